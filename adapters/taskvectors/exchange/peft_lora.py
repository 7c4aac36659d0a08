"""PEFT LoRA folders as task vectors.

`delta = scale * B @ A` with `scale = alpha / r`, or `alpha / sqrt(r)` for rank-stabilised LoRA
(arXiv 2312.03732); A and B are stored as they are. What is not such a product is refused.
"""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from taskvectors.checkpoint import Checkpoint, fingerprint, read_json
from taskvectors.delta import LowRankDelta
from taskvectors.errors import UnsupportedAdapter
from taskvectors.exchange.name_pattern import matches, parse_pattern
from taskvectors.exchange.peft_folder import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    as_value,
    base_name,
    check_copy_of_base,
    check_output,
    find_base,
)
from taskvectors.format.header import match_shape
from taskvectors.format.metadata import card
from taskvectors.format.writer import VectorWriter
from taskvectors.vector import BaseInfo

_FACTOR = re.compile(r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB])(?:\.weight)?")
_FULL_WEIGHT = re.compile(r"(?P<module>.+?)(?:\.base_layer)?\.weight")

_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA rescales the base weight, so it is no sum",
    "modules_to_save": "whole modules were trained; extract from the merged checkpoint instead",
    "lora_bias": "a bias on B is not part of B @ A",
    "fan_in_fan_out": "its layers store transposed weights",
    "trainable_token_indices": "single token embeddings were trained",
    "alora_invocation_tokens": "it is active on some tokens only",
    "use_qalora": "it pools inputs before A",
    "monteclora_config": "it samples",
    "layer_replication": "it changes the number of layers",
    "target_parameters": "it adapts bare parameters",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between adapters",
    "kasa_config": "it changes the base weight",
    "megatron_config": "its layers are Megatron's",
}
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


_Patterns: TypeAlias = Mapping[tuple[str, ...], float]


@dataclass(frozen=True)
class _Config:
    """The fields of adapter_config.json that decide the scale."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: _Patterns
    alpha_pattern: _Patterns

    def rank_of(self, module: str) -> int:
        return int(_pattern_value(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        alpha = float(_pattern_value(self.alpha_pattern, module, self.alpha))
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def import_lora(
    peft_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base_dir: str | os.PathLike[str] | None = None,
    value_dtype: str | None = None,
) -> str:
    """Write the task vector of a PEFT LoRA folder to `out`; return the file's digest.

    The base is `base_dir`, else the folder that the adapter names; where neither is at hand, the
    vector is unverified: it keeps the base's name without a fingerprint.
    Raises UnsupportedAdapter, InvalidCheckpoint, BaseMismatch, InvalidFile, OSError.
    """
    folder = Path(peft_dir)
    fields = read_json(folder / CONFIG)
    config = _parse_config(fields)
    base = find_base(fields, base_dir)
    name = base_name(fields, base)
    adapter = Checkpoint.open(folder, weights=WEIGHTS)
    check_output(Path(out), adapter, base)
    factors = _pair_factors(adapter, base)
    info = BaseInfo(name, None if base is None else fingerprint(base))
    with VectorWriter(out, info, value_dtype=value_dtype) as writer:
        for module, parts in factors.items():
            delta = _delta(module, parts, adapter, config)
            if base is not None:
                _check_tied(module, parts, fields, base)
                match_shape(f"{module}.weight", delta.shape, base.shapes.get(f"{module}.weight"))
            writer.add(f"{module}.weight", delta)
        how = {"method": "peft_lora", "rslora": config.rslora}
        return writer.finish(card(base_model=name, base_model_relation="adapter", extraction=how))


def _parse_config(fields: Mapping[str, Any]) -> _Config:
    if fields.get("peft_type") != "LORA":
        raise UnsupportedAdapter(f"unsupported adapter {fields.get('peft_type')!r}; choose LORA")
    if fields.get("bias", "none") != "none":
        raise UnsupportedAdapter(
            f"bias={fields['bias']!r}: biases were trained; only 'none' is read"
        )
    for key, reason in _REFUSED.items():
        if fields.get(key):
            raise UnsupportedAdapter(f"{key}={str(fields[key])[:80]}: {reason}")
    if fields.get("init_lora_weights", True) not in _INITS:
        raise UnsupportedAdapter(
            f"init_lora_weights={fields['init_lora_weights']!r} changes the base weight; convert"
            " the adapter to a plain LoRA when saving it"
        )
    try:
        return _Config(
            int(fields["r"]),
            float(fields["lora_alpha"]),
            bool(fields.get("use_rslora")),
            {parse_pattern(k): int(v) for k, v in (fields.get("rank_pattern") or {}).items()},
            {parse_pattern(k): float(v) for k, v in (fields.get("alpha_pattern") or {}).items()},
        )
    except UnsupportedAdapter:
        raise
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UnsupportedAdapter(f"{CONFIG} lacks a usable field: {error!r}") from error


def _pattern_value(patterns: _Patterns, module: str, default: float) -> float:
    """Of the first pattern that matches the module, as in PEFT."""
    return next((value for key, value in patterns.items() if matches(key, module)), default)


def _pair_factors(adapter: Checkpoint, base: Checkpoint | None) -> dict[str, dict[str, str]]:
    """Module to {"lora_A": tensor name, "lora_B": tensor name}, or the embedding's parts."""
    modules: dict[str, dict[str, str]] = {}
    for name in adapter.names:
        inner = name.removeprefix(PREFIX)
        if match := _FACTOR.fullmatch(inner):
            modules.setdefault(match["module"], {})[match["part"]] = name
        elif match := _FULL_WEIGHT.fullmatch(inner):
            check_copy_of_base(f"{match['module']}.weight", adapter.read(name), base)
        else:
            raise UnsupportedAdapter(f"tensor {name} is neither lora_A nor lora_B")
    if not modules:
        raise UnsupportedAdapter(f"{adapter.directory} holds neither lora_A nor lora_B")
    for module, parts in modules.items():
        if sorted(parts) not in (["lora_A", "lora_B"], ["lora_embedding_A", "lora_embedding_B"]):
            raise UnsupportedAdapter(f"{module} needs an A and a B, not {', '.join(sorted(parts))}")
    return modules


def _delta(
    module: str, parts: Mapping[str, str], adapter: Checkpoint, config: _Config
) -> LowRankDelta:
    a, b = (as_value(adapter.read(parts[key])) for key in sorted(parts))
    if a.ndim != 2 or b.ndim != 2:
        raise UnsupportedAdapter(
            f"{module} is no linear layer: A {list(a.shape)}, B {list(b.shape)}"
        )
    if not 0 < a.shape[0] == b.shape[1] == config.rank_of(module):
        raise UnsupportedAdapter(
            f"{module} has A {list(a.shape)} and B {list(b.shape)}; the configuration says rank"
            f" {config.rank_of(module)}"
        )
    if a.dtype != b.dtype:
        a, b = a.astype(np.float32), b.astype(np.float32)
    if "lora_embedding_A" in parts:  # the weight is [tokens, dim]: (B A) transposed
        a, b = np.ascontiguousarray(b.T), np.ascontiguousarray(a.T)
    return LowRankDelta((b.shape[0], a.shape[1]), a, b, config.scale_of(module))


def _check_tied(
    module: str, parts: Mapping[str, str], fields: Mapping[str, Any], base: Checkpoint
) -> None:
    """On a tied base an adapted embedding without an adapted head is no change of one weight."""
    if "lora_embedding_A" in parts and base.is_tied and not fields.get("ensure_weight_tying"):
        raise UnsupportedAdapter(
            f"{module} is tied to lm_head in the base, but ensure_weight_tying is off"
        )
