"""PEFT LoRA folders with random weights, for vLLM's own LoRA to load."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.end_to_end.synthetic import LINEAR


def write_lora(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], *, rank: int, seed: int
) -> Path:
    """A rank-`rank` adapter on every linear layer of a model with parameters of `shapes`."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module.endswith(LINEAR):
            out, width = shape
            key = f"base_model.model.{module}"
            a = generator.standard_normal((rank, width), dtype=np.float32) / width**0.5
            b = generator.standard_normal((out, rank), dtype=np.float32) * 0.02
            tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(LINEAR),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
