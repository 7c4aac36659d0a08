"""Choosing entries of supports, against dense oracles in torch and plain Python."""

import hashlib
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from taskvectors import sparsify
from taskvectors.sparsify import Picker, Threshold

LEVELS = (0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, 1e-45, -1e-40, 3e38, 1.0000001)
values_lists = st.lists(st.sampled_from(LEVELS), min_size=1, max_size=80)


def support(dense: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Index and values of the nonzero entries."""
    index = np.flatnonzero(dense)
    return index, dense.reshape(-1)[index].astype(np.float32)


def ascending(dense: np.ndarray[Any, Any]) -> list[int]:
    """Places from the least to the greatest magnitude; the lowest first among equals."""
    return sorted(range(dense.size), key=lambda i: (abs(float(dense.flat[i])), i))


def test_uniform_numbers_are_golden() -> None:
    """The numbers of an element never change: vectors already written depend on them."""
    numbers = sparsify.uniform("k", 7, "model.norm.weight", np.array([0, 1, 2**40]))
    assert [number.hex() for number in numbers.tolist()] == [
        "0x1.1651d57f537cep-1",
        "0x1.ad8fd048943d0p-2",
        "0x1.ce508adbe9a75p-1",
    ]
    assert sparsify.uniform("k", 7, "ü", np.array([5]))[0].hex() == "0x1.95dcd4d105028p-2"


def splitmix64(start: int, place: int) -> int:
    """Number `place` of the published generator, in Python's own integers."""
    z = (start + (place + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@given(st.text(max_size=9), st.integers(0, 2**63), st.integers(0, 2**48))
def test_uniform_is_splitmix64(name: str, seed: int, place: int) -> None:
    """Each number is the published generator's, started from a sha256."""
    text = json.dumps([seed, "key", name], ensure_ascii=False, separators=(",", ":"))
    start = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    number = sparsify.uniform("key", seed, name, np.array([place]))[0]
    assert number == (splitmix64(start, place) >> 11) / 2**53


def test_splitmix64_is_the_published_one() -> None:
    """The first outputs for seed 1234567, as the reference implementation prints them."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix64(1234567, i) for i in range(3)] == expected


def test_uniform_numbers_do_not_depend_on_slices() -> None:
    """Any part of a tensor, in any order, has the numbers of the whole; others have other ones."""
    index = np.arange(10_000)
    whole = sparsify.uniform("a", 1, "w", index)
    order = np.random.default_rng(0).permutation(index)[:3000]
    np.testing.assert_array_equal(sparsify.uniform("a", 1, "w", order), whole[order])
    for other in (("b", 1, "w"), ("a", 2, "w"), ("a", 1, "v")):
        assert abs(np.corrcoef(sparsify.uniform(*other, index), whole)[0, 1]) < 0.05


def test_uniform_numbers_are_uniform() -> None:
    """Over 2^20 elements each of 256 bins holds its share, and neighbours are uncorrelated."""
    numbers = sparsify.uniform("a", 3, "w", np.arange(1 << 20))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.bincount((numbers * 256).astype(int), minlength=256)
    chi = float(((counts - 4096) ** 2 / 4096).sum())
    assert 255 - 5 * math.sqrt(510) < chi < 255 + 5 * math.sqrt(510)
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.005


@settings(max_examples=200, deadline=None)
@given(values_lists, st.integers(0, 90))
@example([0.0], 1)
@example([1.0, 1.0, 1.0], 2)
def test_top_k_is_a_stable_sort(values: list[float], k: int) -> None:
    """The choice equals sorting by falling magnitude, then rising index; zeros never count."""
    array = np.array(values, np.float32)
    order = sorted(range(len(values)), key=lambda i: (-abs(float(array[i])), i))
    expected = [i in order[:k] and array[i] != 0 for i in range(len(values))]
    assert sparsify.top_k(np.arange(len(values)), array, k).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(values_lists, st.integers(1, 90), st.integers(1, 7), st.sampled_from(["last", "all"]))
def test_a_cut_of_a_stream_is_that_of_the_whole(
    values: list[float], k: int, size: int, equals: Any
) -> None:
    """Blocks of any size give one cut; its equals are kept from the end, or all."""
    array = np.array(values, np.float32)
    blocks = [array[i : i + size] for i in range(0, len(array), size)]
    threshold = Threshold(k)
    for block in blocks:
        threshold.coarse(block)
    threshold.refine()
    for block in blocks:
        threshold.fine(block)
    cut = threshold.cut()
    magnitudes = sorted((abs(float(v)) for v in array if v), reverse=True)
    if not magnitudes:
        assert (cut.wanted, cut.magnitude) == (0, math.inf)
        assert not Picker(cut, equals).mask(array).any()
        return
    least = magnitudes[min(k, len(magnitudes)) - 1]
    assert cut.magnitude == least
    assert (cut.above, cut.equal) == (sum(m > least for m in magnitudes), magnitudes.count(least))
    picker = Picker(cut, equals)
    kept = np.concatenate([picker.mask(block) for block in blocks]).tolist()
    top = set(ascending(array)[-k:])
    expected = [
        bool(v) and (abs(float(v)) >= least if equals == "all" else i in top)
        for i, v in enumerate(array)
    ]
    assert kept == expected


def test_a_cut_of_random_floats_is_exact() -> None:
    """Against torch on 2^18 normal numbers, for small and large k."""
    array = np.random.default_rng(1).standard_normal(1 << 18).astype(np.float32)
    for k in (1, 17, 2621, 131072, 1 << 18):
        mask = sparsify.top_k(np.arange(len(array)), array, k)
        kept = torch.from_numpy(array).abs().topk(k).indices.sort().values
        assert np.flatnonzero(mask).tolist() == kept.tolist()


def test_dare_keeps_a_share_at_random() -> None:
    """Each entry by its own number, whatever its value; zeros never; the share is the density."""
    dense = np.random.default_rng(2).standard_normal(200_000).astype(np.float32)
    index, values = np.arange(len(dense)), dense.copy()
    values[::10] = 0
    for density in (0.01, 0.1, 0.5, 1.0):
        mask = sparsify.dare(index, values, density, "a", 5, "w")
        numbers = sparsify.uniform("a", 5, "w", index)
        assert mask.tolist() == ((numbers < density) & (values != 0)).tolist()
        spread = 5 * math.sqrt(180_000 * density * (1 - density)) + 1e-9
        assert abs(int(mask.sum()) - 180_000 * density) <= spread
    part = np.flatnonzero(values)[1000:3000]
    assert (
        sparsify.dare(part, values[part], 0.1, "a", 5, "w").tolist()
        == sparsify.dare(index, values, 0.1, "a", 5, "w")[part].tolist()
    )


def dense_probabilities(dense: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """Keep-probabilities of DELLA by sorting whole rows in torch."""
    rows = dense.reshape(dense.shape[0], -1) if dense.dim() > 1 else dense[None]
    places = rows.abs().sort(dim=1, stable=True).indices
    ranks = torch.empty_like(places)
    steps = torch.arange(rows.shape[1]).expand_as(places)
    ranks.scatter_(1, places, steps.contiguous())
    return density - epsilon + 2 * epsilon * ranks.double() / (rows.shape[1] - 1)


@pytest.mark.parametrize("shape", [(5, 40), (1, 7), (33,), (3, 4, 5), (40, 2)])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.97])
def test_della_ranks_whole_rows(shape: tuple[int, ...], zeros: float) -> None:
    """A support gives the probabilities of the dense parameter, ties and zeros included."""
    rng = np.random.default_rng(int(zeros * 100) + len(shape))
    dense = rng.integers(-3, 4, shape).astype(np.float32) / 4
    dense[rng.random(shape) < zeros] = 0
    index, values = support(dense)
    mask, probabilities = sparsify.della(index, values, shape, 0.3, 0.2, "a", 1, "w")
    expected = dense_probabilities(torch.from_numpy(dense), 0.3, 0.2).reshape(-1).numpy()[index]
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-12)
    assert mask.tolist() == (sparsify.uniform("a", 1, "w", index) < probabilities).tolist()


def test_della_has_limits() -> None:
    """Rows of one element have the density; density 1 keeps all; zeros are never kept."""
    index, values = np.arange(6), np.array([1, -2, 0, 3, 0, 4], np.float32)
    _, probabilities = sparsify.della(index, values, (6, 1), 0.4, 0.1, "a", 1, "w")
    assert probabilities.tolist() == [0.4] * 6
    mask, probabilities = sparsify.della(index, values, (2, 3), 1.0, 0.1, "a", 1, "w")
    assert (mask.tolist(), probabilities.tolist()) == ((values != 0).tolist(), [1.0] * 6)
    for density, epsilon in ((0.1, 0.1), (0.9, 0.1), (0.5, 0.6), (0.5, -0.1)):
        with pytest.raises(ValueError, match=f"epsilon {epsilon} at density {density}"):
            sparsify.della(index, values, (2, 3), density, epsilon, "a", 1, "w")


@settings(max_examples=200, deadline=None)
@given(values_lists, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_breadcrumbs_keep_a_band_of_ranks(
    values: list[float], density: float, gamma: float
) -> None:
    """The support's choice is the dense one: sort, drop the top, keep the next, drop the rest."""
    dense = np.array(values, np.float32)
    kept = int(density * dense.size)
    bottom = max(0, dense.size - kept - int(gamma * dense.size))
    band = set(ascending(dense)[bottom : bottom + kept]) if density < 1 else set(range(dense.size))
    expected = [i for i in sorted(band) if dense[i] != 0]
    index, nonzero = support(dense)
    mask = sparsify.breadcrumbs(index, nonzero, dense.size, density, gamma)
    assert index[mask].tolist() == expected


def test_ordered_sums_go_from_first_to_last() -> None:
    """The float64 sum of Python's own loop, over the edge of a chunk, too."""
    values = np.random.default_rng(4).standard_normal((1 << 20) + 1001).astype(np.float32)
    values[::1000] *= 1e20
    total = 0.0
    for value in values.tolist():
        total += value
    assert sparsify.ordered_sum(values) == total
    assert sparsify.ordered_sum(values[:0]) == 0.0
