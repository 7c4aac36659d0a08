"""The combinations of a default run leave out no pair of values."""

import itertools

from tests.covering import covering


def test_every_pair_is_there_and_the_rest_is_slow() -> None:
    """Far fewer than all, and none is lost."""
    values = {"a": range(3), "b": range(4), "c": "wxyz"}
    names, params = covering(**values)
    assert names == ("a", "b", "c")
    assert sorted(param.values for param in params) == sorted(itertools.product(*values.values()))
    default = [param.values for param in params if not param.marks]
    assert 16 <= len(default) <= 20
    for (i, one), (j, other) in itertools.combinations(enumerate(values.values()), 2):
        assert {(case[i], case[j]) for case in default} == set(itertools.product(one, other))
