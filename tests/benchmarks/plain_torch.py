"""What one would write without a library: load both, subtract, keep the top, save.

    python -m tests.benchmarks.plain_torch BASE FINETUNED OUT --density 0.01

Saves rows, columns (int32) and values (fp32) of each matrix, as PEFT's SHiRA does. With --dense the
whole difference in bf16.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("finetuned", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--dense", action="store_true")
    options = parser.parse_args()
    base, tuned = load(options.base), load(options.finetuned)
    saved: dict[str, torch.Tensor] = {}
    for name, before in base.items():
        delta = tuned[name].float() - before.float()
        if options.dense or delta.dim() < 2:
            saved[name] = delta.bfloat16()
        else:
            saved |= top(name, delta, options.density)
    save_file(saved, options.out)


def load(folder: Path) -> dict[str, torch.Tensor]:
    """The state dict of all shards."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def top(name: str, delta: torch.Tensor, density: float) -> dict[str, torch.Tensor]:
    """Places and values of the largest entries of one matrix."""
    flat = delta.flatten()
    places = flat.abs().topk(max(1, round(density * flat.numel()))).indices.sort().values
    columns = delta.shape[1]
    return {
        f"{name}.row": (places // columns).int(),
        f"{name}.column": (places % columns).int(),
        f"{name}.value": flat[places],
    }


if __name__ == "__main__":
    main()
