"""Every choice of kernels, in an offline vLLM: mixed loadouts equal densely merged weights.

Triton's run in its interpreter, so the model is tiny. In bfloat16 the oracle is float32 over the
same rounded base, so the logprobs are compared with what rounding may cost.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from taskvectors.bench.engines import Adapter, Engine, EngineSpec, loadout
from taskvectors.store import DirectoryStore
from tests.end_to_end.oracle import Oracle
from tests.end_to_end.synthetic import Maker


@dataclass(frozen=True)
class KernelSpec(EngineSpec):
    """An engine whose kernels are chosen."""

    kernels: str = "auto"

    def arguments(self) -> dict[str, Any]:
        """Of vllm.LLM."""
        arguments = super().arguments()
        arguments["additional_config"]["task_vectors"]["kernels"] = self.kernels
        return arguments


SEED = 29
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 200,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "attention_bias": True,
}
PROMPTS = [[(7 * i + j * j) % 190 + 5 for j in range(5 + i)] for i in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kernels", "eager"),
    [("cpu", True), ("cpu", False), ("torch", True), ("torch", False), ("triton", True)],
    ids=["cpu", "cpu-compiled", "torch", "torch-compiled", "triton"],
)
def test_mixed_loadouts_in_one_batch_are_right(
    kernels: str,
    dtype: str,
    tied: bool,
    eager: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Full with norms and biases, dense, low-rank and sparse vectors beside the base."""
    print(f"seed {SEED}")
    torch.manual_seed(SEED)
    if kernels == "triton":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=tied))
    model = model.to(getattr(torch, dtype))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    model.save_pretrained(tmp_path / "model")
    maker, store = Maker(shapes, None, tmp_path), DirectoryStore(tmp_path / "store")
    vectors = [
        maker.full("full", seed=1, size=0.3),
        maker.low_rank("low", seed=2, rank=3, size=0.3),
        maker.sparse("sparse", seed=3, size=0.5),
        maker.dense("dense", seed=4, size=0.03),
    ]
    deltas = {store.add(vector.path): vector.deltas for vector in vectors}
    full, low, sparse, dense = deltas
    mixes: list[dict[str, float]] = [
        {}, {full: 1.0}, {full: -0.8, low: 1.0}, {low: 0.5, sparse: 1.5}, {dense: 1.0, low: -0.5},
    ]  # fmt: skip
    asked: list[tuple[list[int], Adapter]] = [
        (prompt, loadout(mix) if mix else None) for mix in mixes for prompt in PROMPTS
    ]
    spec = KernelSpec(
        "plugin", tmp_path / "model", dtype, tmp_path / "store", slots=8, pool_bytes=4 << 20,
        kernels=kernels, eager=eager, extra={
            "skip_tokenizer_init": True, "max_model_len": 64,
            "max_num_seqs": 16, "max_num_batched_tokens": 64,
        },
    )  # fmt: skip
    with Engine(spec) as engine:
        answers = iter(engine.complete(asked, 4))
    oracle = Oracle(tmp_path / "model")
    for mix in mixes:
        with oracle.merged([(deltas[digest], weight, None) for digest, weight in mix.items()]):
            for prompt in PROMPTS:
                compared = oracle.compare_ids(prompt, *next(answers))
                print(mix, compared)
                if dtype == "float32":
                    assert compared.first_wrong is None
                assert compared.max_difference <= (1e-3 if dtype == "float32" else 0.15)
