"""Fine-tuned minus base, streamed parameter by parameter into a task vector file."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskvectors.checkpoint import Checkpoint, fingerprint
from taskvectors.delta import Array, Delta, DenseDelta, SparseDelta
from taskvectors.errors import IncompatibleCheckpoints
from taskvectors.extract.report import ExtractReport, ParameterReport, Progress
from taskvectors.extract.sparsify import top_k
from taskvectors.format.metadata import card
from taskvectors.format.writer import VectorWriter, cast_values
from taskvectors.vector import BaseInfo

_FLOATS = ("F64", "F32", "F16", "BF16")
_NAMED = 5


def extract(
    base_dir: str | os.PathLike[str],
    finetuned_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    density: float = 0.01,
    value_dtype: str = "bf16",
    index: str = "auto",
    license: str | None = None,
    base_model: str | None = None,
    base_model_relation: str | None = "finetune",
    tags: Sequence[str] | None = None,
    language: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> ExtractReport:
    """Write the task vector `finetuned - base` to `out`.

    Of each matrix the `density` share with the largest magnitude is kept (see sparsify.top_k);
    vectors (norms, biases) are kept whole when they changed at all. The difference is taken in
    float32 and stored as fp32, bf16 or fp16. One parameter is in memory at a time.
    Raises InvalidCheckpoint, IncompatibleCheckpoints, InvalidFile (an overflow in fp16), OSError.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, not {density}")
    base, finetuned = Checkpoint.open(base_dir), Checkpoint.open(finetuned_dir)
    check_compatible(base, finetuned)
    info = BaseInfo(base_model or base.directory.resolve().name, fingerprint(base))
    fields = card(
        license=license,
        base_model=base_model,
        base_model_relation=base_model_relation,
        tags=tags,
        language=language,
        extraction={"method": "magnitude", "density": density},
        provenance=provenance,
    )
    reports: list[ParameterReport] = []
    with VectorWriter(out, info, index=index) as writer:
        for name, delta, energy in _deltas(base, finetuned, density, value_dtype, progress):
            writer.add(name, delta)
            reports.append(_report(name, delta, energy))
        digest = writer.finish(fields)
    unchanged = sorted(base.tensors.keys() - {report.name for report in reports})
    nbytes = Path(out).stat().st_size
    return ExtractReport(Path(out), digest, nbytes, info, tuple(reports), tuple(unchanged))


def check_compatible(base: Checkpoint, finetuned: Checkpoint) -> None:
    """Raise IncompatibleCheckpoints unless both have the same parameters and shapes."""
    problems = [f"{n} is missing in the fine-tuned one" for n in _missing(base, finetuned)]
    problems += [f"{n} is missing in the base" for n in _missing(finetuned, base)]
    for name in base.tensors.keys() & finetuned.tensors.keys():
        ours, theirs = base.info(name)[0], finetuned.info(name)[0]
        if ours != theirs:
            problems.append(f"{name} is {list(ours)} in the base, {list(theirs)} in the other")
    if problems:
        shown = "; ".join(sorted(problems)[:_NAMED])
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise IncompatibleCheckpoints(f"the checkpoints cannot be subtracted: {shown}{more}")


def difference(base: Checkpoint, finetuned: Checkpoint, name: str) -> Array | None:
    """float32 difference of one parameter, in its shape; None where nothing changed.

    Raises IncompatibleCheckpoints for values that have no finite difference.
    """
    before, after = base.read(name), finetuned.read(name)
    if before.dtype == after.dtype and np.array_equal(_bytes(before), _bytes(after)):
        return None
    for checkpoint in (base, finetuned):
        if checkpoint.info(name)[1] not in _FLOATS:
            raise IncompatibleCheckpoints(
                f"{name} is {checkpoint.info(name)[1]} in {checkpoint.directory}; only"
                f" {', '.join(_FLOATS)} can be subtracted"
            )
    delta = after.astype(np.float32)
    delta -= before.astype(np.float32)
    if not np.isfinite(delta).all():
        raise IncompatibleCheckpoints(f"the difference of {name} is not finite")
    return delta if delta.any() else None


def _bytes(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


def _missing(there: Checkpoint, here: Checkpoint) -> list[str]:
    return sorted(there.tensors.keys() - here.tensors.keys())


def _deltas(
    base: Checkpoint,
    finetuned: Checkpoint,
    density: float,
    value_dtype: str,
    progress: Progress | None,
) -> Iterator[tuple[str, Delta, float]]:
    """Name, delta as it is stored, and Σ d² of the whole difference."""
    for done, name in enumerate(base.names, start=1):
        full = difference(base, finetuned, name)
        delta = None if full is None else _keep(name, full, density, value_dtype)
        if full is not None and delta is not None:
            yield name, delta, _energy(full)
        if progress is not None:
            progress(done, len(base.names), name)


def _keep(name: str, full: Array, density: float, value_dtype: str) -> Delta | None:
    """None where the stored dtype cannot tell any entry from zero."""
    if full.ndim < 2:
        values = cast_values(full, value_dtype, name)
        return DenseDelta(values) if values.any() else None
    flat = full.reshape(-1)
    index = top_k(flat, density)
    values = cast_values(flat[index], value_dtype, name)
    nonzero = values != 0
    return SparseDelta(full.shape, index[nonzero], values[nonzero]) if nonzero.any() else None


def _report(name: str, delta: Delta, energy: float) -> ParameterReport:
    stored = delta.values if isinstance(delta, SparseDelta | DenseDelta) else delta.to_dense()
    kind = "sparse" if isinstance(delta, SparseDelta) else "dense"
    return ParameterReport(name, kind, delta.shape, delta.nnz, energy, _energy(stored))


def _energy(values: Array) -> float:
    """Σ v² in float64."""
    flat = values.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64, casting="unsafe"))
