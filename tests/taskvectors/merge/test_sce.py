"""SCE against mergekit."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.taskvectors.merge.drawing import Drawn, drawn, matrices
from tests.taskvectors.merge.oracles import assert_equal, assert_near, mergekit, stable_sorts

shares = st.integers(1, 100).map(lambda percent: percent / 100)
cases = drawn(count=(1, 6), weights=(1.0,))


@settings(max_examples=100, deadline=None)
@given(cases, st.sampled_from((1.0, 2.0**-14)))
def test_sce_is_mergekits(case: Drawn, scale: float) -> None:
    """By energy, and with the equal weights of vectors too small for it."""
    small = Drawn([vector * scale for vector in case.vectors], case.weights, case.shapes)
    assert_near(small, small.merged("sce"), mergekit(small, "sce"), factor=16)


@settings(max_examples=100, deadline=None)
@given(drawn(count=(1, 6), weights=(1.0,), tied=False), shares)
def test_sce_selects_as_mergekit(case: Drawn, share: float) -> None:
    """The elements of highest variance, the same number of them."""
    with stable_sorts():  # bfloat16 values repeat
        theirs = mergekit(case, "sce", select_topk=share)
    assert_near(case, case.merged("sce", select_topk=share), theirs, factor=16)


@settings(max_examples=100, deadline=None)
@given(drawn(count=(1, 2), weights=(1.0,), tied=True), shares)
def test_sce_selects_as_mergekit_where_variances_repeat(case: Drawn, share: float) -> None:
    """Two exact vectors have exact variances; the lowest index wins among equals."""
    with stable_sorts():
        theirs = mergekit(case, "sce", select_topk=share)
    assert_near(case, case.merged("sce", select_topk=share), theirs, factor=16)


@settings(max_examples=60, deadline=None)
@given(drawn(count=(2, 2), weights=(1.0,), tied=True), shares)
def test_sce_does_not_see_the_order(case: Drawn, share: float) -> None:
    """The other order of two vectors gives the same merge."""
    one = case.merged("sce", select_topk=share)
    assert_near(case, one, case.merged("sce", select_topk=share, order=[1, 0]))


def test_sce_by_hand() -> None:
    """Weights go by energy; a single vector has no variance to be selected by."""
    case = matrices([2.0, 2.0], [1.0, -1.0])
    np.testing.assert_allclose(case.merged("sce")["w"], [1.8, 2.0], rtol=1e-6)
    tiny = matrices([2e-4, 2e-4], [1e-4, -1e-4])
    np.testing.assert_allclose(tiny.merged("sce")["w"], [1.5e-4, 2e-4], rtol=1e-6)
    half = case.merged("sce", select_topk=0.5)["w"]
    assert half.tolist() == [0.0, 2.0]
    single = matrices([2.0, -1.0])
    assert_equal(single.merged("sce"), single.dense[0])
    assert not single.merged("sce", select_topk=0.9)["w"].any()
