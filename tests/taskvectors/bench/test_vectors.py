"""The synthetic vectors and adapters of the benchmark."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from transformers import LlamaForCausalLM

from taskvectors.bench.settings import InvalidBench
from taskvectors.bench.vectors import LINEAR, draw_vectors, linear_shapes
from taskvectors.delta import LowRankDelta, SparseDelta
from taskvectors.exchange import import_lora
from taskvectors.format import read_vector
from taskvectors.store import DirectoryStore
from taskvectors.vector import TaskVector
from tests.taskvectors.tiny_llama import tiny_config

SEED = 4
SHAPES = {"model.layers.0.self_attn.q_proj.weight": (24, 40), "h.mlp.down_proj.weight": (30, 50)}


def test_a_configuration_alone_gives_the_shapes_of_the_weights(tmp_path: Path) -> None:
    """Those of every linear layer, with fewer heads for keys and values."""
    LlamaForCausalLM(tiny_config(tied=True)).save_pretrained(tmp_path)
    of_weights = linear_shapes(tmp_path, dummy=False)
    assert linear_shapes(tmp_path, dummy=True) == of_weights
    assert len(of_weights) == 2 * len(LINEAR)


@pytest.mark.parametrize("value", [None, 0, -1, "2", 1.5])
def test_a_configuration_that_says_no_shapes_is_refused(value: object, tmp_path: Path) -> None:
    """By the name of what is missing or wrong."""
    fields = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({**fields, "num_hidden_layers": value}))
    with pytest.raises(InvalidBench, match="needs num_hidden_layers for --dummy"):
        linear_shapes(tmp_path, dummy=True)


def test_the_vectors_are_four_low_rank_and_four_sparse_in_bfloat16(tmp_path: Path) -> None:
    """Ranks 8 and 16 in turn, 1 %, all different; the same for the same seed."""
    print(f"seed {SEED}")
    drawn = draw_vectors(SHAPES, tmp_path / "a", 0, SEED)
    assert draw_vectors(SHAPES, tmp_path / "b", 0, SEED).digests == drawn.digests
    assert draw_vectors(SHAPES, tmp_path / "c", 0, SEED + 1).digests != drawn.digests
    assert len(set(drawn.digests)) == 8
    store = DirectoryStore(drawn.store)
    for i, digest in enumerate(drawn.digests):
        path = store.path(digest)
        assert drawn.nbytes[digest] == path.stat().st_size
        for name, delta in read_vector(path).parameters.items():
            assert delta.shape == SHAPES[name]
            if i < 4:
                assert isinstance(delta, LowRankDelta)
                assert (delta.rank, delta.a.dtype) == ((8, 16)[i % 2], ml_dtypes.bfloat16)
            else:
                assert isinstance(delta, SparseDelta)
                assert delta.values.dtype == ml_dtypes.bfloat16
                assert 0.5 <= delta.nnz / (0.01 * np.prod(delta.shape)) <= 1.1


def test_loadouts_are_distinct_and_mix_both_kinds(tmp_path: Path) -> None:
    """Over all vectors in turn, or all over the same two."""
    drawn = draw_vectors(SHAPES, tmp_path, 0, SEED)
    generator = np.random.default_rng(SEED)
    for over_all, used in ((True, 8), (False, 2)):
        mixes = drawn.mixes(256, generator, over_all=over_all)
        assert len({mix.digest for mix in mixes}) == 256
        assert len({digest for mix in mixes for digest in mix.digests}) == used
        for mix in mixes:
            low_rank, sparse = drawn.low_rank, drawn.sparse
            assert [len(mix.digests & set(kind)) for kind in (low_rank, sparse)] == [1, 1]


def test_an_adapter_is_a_peft_lora_of_every_layer_in_bfloat16(tmp_path: Path) -> None:
    """It imports as one; no two are equal."""
    adapters = draw_vectors(SHAPES, tmp_path, 2, SEED).adapters
    first, second = (_imported(folder) for folder in adapters)
    for name, shape in SHAPES.items():
        delta = first.parameters[name]
        assert isinstance(delta, LowRankDelta)
        assert (delta.shape, delta.rank) == (shape, 8)
        assert not np.array_equal(delta.to_dense(), second.parameters[name].to_dense())
    with safe_open(adapters[0] / "adapter_model.safetensors", "np") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118


def _imported(folder: Path) -> TaskVector:
    path = folder.with_suffix(".safetensors")
    import_lora(folder, path)
    return read_vector(path)
