"""Model Breadcrumbs against mergekit."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.taskvectors.merge.drawing import Drawn, drawn, matrices
from tests.taskvectors.merge.oracles import assert_equal, assert_near, mergekit, stable_sorts

densities = st.integers(1, 100).map(lambda percent: percent / 100)
gammas = st.sampled_from((0.0, 0.01, 0.1, 0.5, 1.0))


@settings(max_examples=100, deadline=None)
@given(drawn(count=(1, 6), tied=True), densities, gammas, st.sampled_from((1.0, -0.5)))
def test_breadcrumbs_are_mergekits_where_magnitudes_repeat(
    case: Drawn, density: float, gamma: float, scale: float
) -> None:
    """Equal magnitudes at both ends of the band: equal to the bit."""
    parameters = {"density": density, "gamma": gamma, "lambda": scale}
    with stable_sorts():
        theirs = mergekit(case, "breadcrumbs", **parameters)
    assert_equal(case.merged("breadcrumbs", **parameters), theirs)


@settings(max_examples=100, deadline=None)
@given(drawn(count=(1, 6), tied=False), densities, gammas)
def test_breadcrumbs_are_mergekits(case: Drawn, density: float, gamma: float) -> None:
    """Normal values; equal, unequal, zero and negative weights."""
    parameters = {"density": density, "gamma": gamma}
    ours = case.merged("breadcrumbs", **parameters)
    assert_near(case, ours, mergekit(case, "breadcrumbs", **parameters), factor=4)


@settings(max_examples=60, deadline=None)
@given(drawn(count=(1, 6)), densities, gammas, st.sampled_from((2.0, 0.5)))
def test_scaled_vectors_scale_the_merge(
    case: Drawn, density: float, gamma: float, scale: float
) -> None:
    """A power of two before is a power of two after, to the bit."""
    parameters = {"density": density, "gamma": gamma}
    scaled = Drawn([vector * scale for vector in case.vectors], case.weights, case.shapes)
    expected = {n: a * scale for n, a in case.merged("breadcrumbs", **parameters).items()}
    assert_equal(scaled.merged("breadcrumbs", **parameters), expected)


def test_breadcrumbs_by_hand() -> None:
    """The largest fifth goes, the next two fifths stay."""
    case = matrices([5.0, -4.0, 3.0, -2.0, 1.0])
    merged = case.merged("breadcrumbs", density=0.4, gamma=0.2)["w"]
    assert merged.tolist() == [0.0, -4.0, 3.0, 0.0, 0.0]
    everything = case.merged("breadcrumbs", density=1.0, gamma=0.2)["w"]
    assert everything.tolist() == [5.0, -4.0, 3.0, -2.0, 1.0]
