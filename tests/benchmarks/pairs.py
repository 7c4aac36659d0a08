"""Pairs of a base and a fine-tuned checkpoint for the extraction benchmark."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from taskvectors.checkpoint import Checkpoint
from taskvectors.delta import Array, Shape

BF16 = np.dtype(ml_dtypes.bfloat16)
UPDATE = 1e-3
_HIDDEN, _INNER, _KEYS, _VOCABULARY, _LAYERS = 2048, 8192, 512, 128_000, 20


def finetune(base: Path, folder: Path, seed: int) -> Path:
    """A copy of a checkpoint whose every weight got a random update that bf16 holds."""
    checkpoint, generator = Checkpoint.open(base), np.random.default_rng(seed)
    folder.mkdir(parents=True)
    tensors = {}
    for name in checkpoint.names:
        before = checkpoint.read(name)
        update = generator.standard_normal(before.shape, np.float32) * np.float32(UPDATE)
        after = before.astype(np.float32) + update.astype(BF16).astype(np.float32)
        tensors[name] = after.astype(before.dtype)
    save_file(tensors, folder / "model.safetensors")
    for path in base.glob("*.json"):
        shutil.copy(path, folder)
    return folder


def synthesize(folder: Path, seed: int) -> tuple[Path, Path, int]:
    """(base, fine-tuned, elements) of 1.5 billion in bf16, Llama-like, tied, shard by shard.

    All layers hold the same values: only shapes, dtypes and bytes matter here.
    """
    base, tuned = folder / "base", folder / "tuned"
    base.mkdir(parents=True)
    tuned.mkdir()
    generator, elements = np.random.default_rng(seed), 0
    maps: dict[str, str] = {}
    drawn: dict[str, tuple[Array, Array]] = {}
    for number in range(_LAYERS + 1):
        shapes = _layer(number - 1) if number else _ENDS
        if number < 2:
            drawn = {name: _draw(generator, shape) for name, shape in shapes.items()}
        file = f"model-{number + 1:05d}-of-{_LAYERS + 1:05d}.safetensors"
        pairs = dict(zip(shapes, drawn.values(), strict=True))
        for side, place in ((base, 0), (tuned, 1)):
            save_file({name: pair[place] for name, pair in pairs.items()}, side / file)
        maps |= dict.fromkeys(shapes, file)
        elements += sum(before.size for before, _ in drawn.values())
    for side in (base, tuned):
        (side / "model.safetensors.index.json").write_text(json.dumps({"weight_map": maps}))
        (side / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    return base, tuned, elements


_ENDS: dict[str, Shape] = {
    "model.embed_tokens.weight": (_VOCABULARY, _HIDDEN),
    "model.norm.weight": (_HIDDEN,),
}


def _layer(number: int) -> dict[str, Shape]:
    shapes = {
        "self_attn.q_proj": (_HIDDEN, _HIDDEN),
        "self_attn.k_proj": (_KEYS, _HIDDEN),
        "self_attn.v_proj": (_KEYS, _HIDDEN),
        "self_attn.o_proj": (_HIDDEN, _HIDDEN),
        "mlp.gate_proj": (_INNER, _HIDDEN),
        "mlp.up_proj": (_INNER, _HIDDEN),
        "mlp.down_proj": (_HIDDEN, _INNER),
        "input_layernorm": (_HIDDEN,),
        "post_attention_layernorm": (_HIDDEN,),
    }
    return {f"model.layers.{number}.{module}.weight": s for module, s in shapes.items()}


def _draw(generator: np.random.Generator, shape: Shape) -> tuple[Array, Array]:
    """A parameter before and after a random update."""
    before = generator.standard_normal(shape, np.float32) * np.float32(0.02)
    update = generator.standard_normal(shape, np.float32) * np.float32(UPDATE)
    return before.astype(BF16), (before + update).astype(BF16)
