"""Other architectures, in an offline vLLM: an untied head, biases, norms over heads.

Small random models in float32; what is served equals transformers on densely merged weights.
"""

from pathlib import Path

import pytest
import torch
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from taskvectors.bench.engines import Adapter, Engine, EngineSpec, loadout
from taskvectors.store import DirectoryStore
from tests.end_to_end.oracle import Oracle
from tests.end_to_end.synthetic import Maker

SEED = 23
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 600,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
PROMPTS = [[(7 * i + j * j) % 590 + 5 for j in range(9 + i)] for i in range(4)]


QWEN2 = (Qwen2ForCausalLM, Qwen2Config(**SHAPE), "self_attn.q_proj.bias")
QWEN3 = (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=32), "self_attn.q_norm.weight")


@pytest.mark.parametrize(
    ("model_class", "config", "has", "is_eager"),
    [
        pytest.param(*QWEN2, False, id="qwen2: biases; compiled"),
        pytest.param(*QWEN2, True, id="qwen2", marks=pytest.mark.slow),
        pytest.param(*QWEN3, False, id="qwen3: norms over heads; compiled", marks=pytest.mark.slow),
        pytest.param(*QWEN3, True, id="qwen3", marks=pytest.mark.slow),
    ],
)
def test_every_parameter_of_an_untied_model_is_served(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    has: str,
    is_eager: bool,
    tmp_path: Path,
) -> None:
    """Full, low-rank and sparse vectors, mixed with signs, in one batch with the base."""
    print(f"seed {SEED}")
    torch.manual_seed(SEED)
    model = model_class(config).float()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert any(name.endswith(has) for name in shapes)
    assert "lm_head.weight" in shapes
    model.save_pretrained(tmp_path / "model")
    maker, store = Maker(shapes, None, tmp_path), DirectoryStore(tmp_path / "store")
    vectors = [
        maker.full("full", seed=1, size=0.3),
        maker.low_rank("low", seed=2, rank=3, size=0.3),
        maker.sparse("sparse", seed=3, size=0.5),
    ]
    deltas = {store.add(vector.path): vector.deltas for vector in vectors}
    full, low, sparse = deltas
    mixes = [{}, {full: 1.0}, {full: -0.8, low: 1.0}, {low: 0.5, sparse: 1.5}]
    asked: list[tuple[list[int], Adapter]] = [
        (prompt, loadout(mix) if mix else None) for mix in mixes for prompt in PROMPTS
    ]
    spec = EngineSpec(
        "plugin", tmp_path / "model", "float32", tmp_path / "store", eager=is_eager,
        extra={"skip_tokenizer_init": True, "max_model_len": 256},
    )  # fmt: skip
    with Engine(spec) as engine:
        answers = iter(engine.complete(asked, 16))
    oracle = Oracle(tmp_path / "model")
    for mix in mixes:
        with oracle.merged([(deltas[digest], weight, None) for digest, weight in mix.items()]):
            for prompt in PROMPTS:
                compared = oracle.compare_ids(prompt, *next(answers))
                assert compared.first_wrong is None
                assert compared.max_difference <= 1e-3
