"""The GPU kernels compile for the chips they are meant for; no GPU is needed to see that."""

import os
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
compiler = pytest.importorskip("triton.compiler")
targets = pytest.importorskip("triton.backends.compiler")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from taskvectors.kernels import triton_embedding, triton_low_rank, triton_sparse  # noqa: E402

SPARSE = {"NARROW": True, "FIELDS": triton_sparse.SPARSE_FIELDS}
RANKED = {
    "FIELDS": triton_low_rank.RANK_FIELDS,
    "TOKENS": triton_low_rank.TOKENS,
    "RANKS": triton_low_rank.RANKS,
}
KERNELS: list[tuple[Any, dict[str, object]]] = [
    (
        triton_sparse._gather,
        {
            **SPARSE,
            "ROWS": triton_sparse.GATHER_ROWS,
            "LANES": triton_sparse.PAIR_LANES,
            "CHUNK": triton_sparse.GATHER_CHUNK,
        },
    ),
    (
        triton_sparse._combine,
        {"FIELDS": triton_sparse.SPARSE_FIELDS, "ROWS": triton_sparse.COMBINE_ROWS},
    ),
    (
        triton_sparse._tiles,
        {
            **SPARSE,
            "TOKENS": triton_sparse.TILE_TOKENS,
            "ROWS": triton_sparse.TILE_ROWS,
            "COLUMNS": triton_sparse.TILE_COLUMNS,
            "CHUNK": triton_sparse.TILE_CHUNK,
        },
    ),
    (triton_low_rank._shrink, {**RANKED, "COLUMNS": triton_low_rank.COLUMNS}),
    (triton_low_rank._expand, {**RANKED, "ROWS": triton_low_rank.ROWS}),
    (
        triton_embedding._rows,
        {
            **SPARSE,
            "RANK_FIELDS": triton_low_rank.RANK_FIELDS,
            "DIMS": triton_embedding.DIMS,
            "CHUNK": triton_embedding.CHUNK,
            "RANKS": triton_embedding.RANKS,
        },
    ),
]
WIDE = {"table": "*i64", "ranks_table": "*i64", "ids": "*i64", "sums": "*fp32", "weights": "*fp32"}
PLANNED = {
    *("num_blocks", "blocks", "pair_token", "pair_column", "token_row", "token_start"),
    *("token_pair", "num_active", "active", "part_start", "crow"),
}


def _type(name: str) -> str:
    if name in ("x", "y", "val", "data", "hidden"):
        return "*bf16"
    return WIDE.get(name) or ("*i16" if name == "col" else "*i32" if name in PLANNED else "i32")


@pytest.mark.parametrize(
    ("kernel", "constants"), KERNELS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_kernel_compiles_for_hopper(
    kernel: Any, constants: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To machine code of compute capability 9.0, in bfloat16, within its shared memory."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else _type(name) for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    source = compiler.ASTSource(kernel, signature, constexprs=values)
    warps = triton_sparse.TILE_WARPS if kernel is triton_sparse._tiles else 4
    target, options = targets.GPUTarget("cuda", 90, 32), {"num_warps": warps}
    built = compiler.compile(source, target=target, options=options)
    assert len(built.asm["cubin"]) > 0
    assert built.metadata.shared <= 228 << 10
    multiplies = kernel.__name__ in ("_tiles", "_shrink", "_expand")
    assert ("mma" in built.asm["ptx"]) == multiplies, "tensor cores, and only where they pay"
