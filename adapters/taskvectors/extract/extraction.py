"""From two checkpoints to a task vector file, streamed parameter by parameter, block by block."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from taskvectors.checkpoint import Checkpoint, fingerprint
from taskvectors.delta import Delta, DenseDelta
from taskvectors.extract.difference import Difference, check_compatible
from taskvectors.extract.dtypes import describe_dtypes
from taskvectors.extract.lossless import lossless_delta
from taskvectors.extract.low_rank import low_rank_delta
from taskvectors.extract.report import ExtractReport, Meter, ParameterReport, Progress
from taskvectors.extract.settings import InvalidExtraction, Settings, make_settings
from taskvectors.extract.sizes import size_of
from taskvectors.extract.sparse import global_picker, keep_by, sparse_delta, square_sum
from taskvectors.format import Exceptions, VectorWriter, read_header
from taskvectors.format.metadata import card
from taskvectors.format.values import cast_values, float_encoding
from taskvectors.sparsify import Picker
from taskvectors.vector import BaseInfo

_NAMING = ("lossless", "dare", "della")
"""Methods that take the fine-tuned checkpoint's fingerprint: to restore it, or to draw by it."""

_Change: TypeAlias = tuple[Delta | None, Exceptions | None, float, float]
"""Delta, exceptions, Σ d² of the difference, Σ d² of what is kept."""


def extract(
    base_dir: str | os.PathLike[str],
    finetuned_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    method: str = "magnitude",
    density: float | None = None,
    scope: str | None = None,
    seed: int | None = None,
    epsilon: float | None = None,
    gamma: float | None = None,
    rank: int | None = None,
    energy: float | None = None,
    value_dtype: str | None = None,
    index: str = "auto",
    license: str | None = None,
    base_model: str | None = None,
    base_model_relation: str | None = "finetune",
    tags: Sequence[str] | None = None,
    language: Sequence[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    allow_empty: bool = True,
) -> ExtractReport:
    """Write the task vector `finetuned - base` to `out`; nothing appears there before it is whole.

    method and the options it takes (settings.OPTIONS has the defaults), for matrices:
    - magnitude: the `density` share with the largest magnitude, at least one entry, of each matrix
      or (scope `global`) of all matrices together; the lowest index wins among equals.
    - dare, della: a seeded random share, rescaled by 1/p (arXiv 2311.03099, 2406.11617).
    - breadcrumbs: without the top `gamma`, the next `density` (arXiv 2312.06795).
    - low_rank: of a `rank`, or of the rank that holds the share `energy` of Σ d².
    - lossless: every changed entry of every parameter, and what that does not restore, exactly.
    Except for lossless, vectors (norms, biases) are kept whole when they changed at all.

    value_dtype: bf16 (default), fp16, fp32, int8 or ternary; lossless: the fine-tuned checkpoint's.
    allow_empty: False raises InvalidExtraction, and writes nothing, where nothing differs.
    The difference is taken in float32. Memory: blocks of it, and what is kept of one parameter.
    Raises InvalidExtraction, InvalidCheckpoint, IncompatibleCheckpoints, InvalidFile (an overflow
    in fp16), OSError.
    """
    options = {
        "density": density,
        "scope": scope,
        "seed": seed,
        "epsilon": epsilon,
        "gamma": gamma,
        "rank": rank,
        "energy": energy,
    }
    settings = make_settings(method, value_dtype, index, options)
    _check_output(Path(out))
    run = _Run.open(base_dir, finetuned_dir, settings, progress, allow_empty)
    _check_not_read(Path(out), run.base, run.finetuned)
    fields = card(
        license=license,
        base_model=base_model,
        base_model_relation=base_model_relation,
        tags=tags,
        language=language,
        provenance=provenance,
    )
    return run.write(Path(out), base_model, fields)


@dataclass(frozen=True)
class _Run:
    """One extraction: both checkpoints, checked against each other, and how to subtract them."""

    base: Checkpoint
    finetuned: Checkpoint
    settings: Settings
    meter: Meter
    allow_empty: bool

    @classmethod
    def open(
        cls,
        base_dir: str | os.PathLike[str],
        finetuned_dir: str | os.PathLike[str],
        settings: Settings,
        progress: Progress | None,
        allow_empty: bool,
    ) -> "_Run":
        base, finetuned = Checkpoint.open(base_dir), Checkpoint.open(finetuned_dir)
        check_compatible(base, finetuned)
        ours, theirs = _nbytes(base), _nbytes(finetuned)
        total = ours + (ours + theirs)
        if settings.method in _NAMING:
            total += theirs
        if settings.scope == "global":
            total += 2 * sum(_pair_nbytes(base, finetuned, name) for name in _matrices(base))
        return cls(base, finetuned, settings, Meter(progress, total), allow_empty)

    def write(self, out: Path, base_model: str | None, fields: Mapping[str, Any]) -> ExtractReport:
        """Fingerprint, subtract, write; the report is of the file as it is."""
        name = base_model or self.base.directory.resolve().name
        info = BaseInfo(name, self._fingerprint(self.base, "base"))
        extraction = self.settings.describe()
        theirs = None
        if self.settings.method in _NAMING:
            theirs = self._fingerprint(self.finetuned, "fine-tuned")
            extraction["finetuned_fingerprint"] = theirs
        if self.settings.method == "lossless" and (
            dtypes := describe_dtypes(self.base, self.finetuned)
        ):
            extraction["dtypes"] = dtypes
        energies: dict[str, tuple[float, float]] = {}
        value_dtype, index = self.settings.value_dtype, self.settings.index
        with VectorWriter(out, info, value_dtype=value_dtype, index=index) as writer:
            for parameter, (delta, exceptions, energy, kept) in self._changes(theirs or ""):
                if delta is not None:
                    writer.add(parameter, delta, exceptions)
                    energies[parameter] = energy, kept
            if not (energies or self.allow_empty or "dtypes" in extraction):
                raise InvalidExtraction(
                    f"nothing differs between {self.base.directory} and"
                    f" {self.finetuned.directory}; there is no task vector to write"
                )
            digest = writer.finish({**fields, "extraction": extraction})
        reports = _reports(out, energies)
        unchanged = tuple(sorted(self.base.tensors.keys() - energies.keys()))
        return ExtractReport(out, digest, out.stat().st_size, info, reports, unchanged, theirs)

    def _fingerprint(self, checkpoint: Checkpoint, side: str) -> str:
        advance = self.meter.advance
        return fingerprint(checkpoint, lambda n, name: advance(n, f"fingerprint of {side}: {name}"))

    def _changes(self, key: str) -> Iterator[tuple[str, _Change]]:
        picker = None
        if self.settings.scope == "global":
            assert self.settings.density is not None
            step = partial(self._advance, "global threshold")
            picker = global_picker(self.base, self.finetuned, self.settings.density, step)
        for name in self.base.names:
            yield name, self._change(name, picker, key)
            self._advance("difference", name)

    def _change(self, name: str, picker: Picker | None, key: str) -> _Change:
        """Of one parameter; no delta where the stored dtype cannot tell any entry from zero."""
        settings = self.settings
        if settings.method == "lossless":
            return _lossless(self.base, self.finetuned, name, settings.value_dtype)
        difference = Difference(self.base, self.finetuned, name)
        assert settings.value_dtype is not None
        is_low_rank = settings.method == "low_rank"
        if len(difference.shape) < 2 or (is_low_rank and len(difference.shape) != 2):
            return _dense(difference, settings.value_dtype)
        if is_low_rank:
            low_rank, energy, kept = low_rank_delta(difference, settings)
            return low_rank, None, energy, kept
        keep = keep_by(settings, difference, picker, key)
        sparse, energy, kept = sparse_delta(difference, keep, settings.value_dtype)
        return sparse if sparse.nnz else None, None, energy, kept

    def _advance(self, what: str, name: str) -> None:
        self.meter.advance(_pair_nbytes(self.base, self.finetuned, name), f"{what}: {name}")


def _lossless(
    base: Checkpoint, finetuned: Checkpoint, name: str, value_dtype: str | None
) -> _Change:
    delta, exceptions, energy = lossless_delta(base, finetuned, name, value_dtype)
    return delta, exceptions, energy, energy


def _dense(difference: Difference, value_dtype: str) -> _Change:
    full = difference.whole()
    values = cast_values(full, float_encoding(value_dtype), difference.name)
    energy = square_sum(full.reshape(-1))
    return DenseDelta(values) if (values != 0).any() else None, None, energy, energy


def _reports(
    path: Path, energies: Mapping[str, tuple[float, float]]
) -> tuple[ParameterReport, ...]:
    header = read_header(path)
    return tuple(
        ParameterReport(
            name,
            spec.kind,
            spec.shape,
            spec.nnz,
            *energies[name],
            size_of(header, name),
            spec.values,
            spec.index,
            spec.rank,
        )
        for name, spec in header.parameters.items()
    )


def _check_output(out: Path) -> None:
    if out.is_dir():
        raise InvalidExtraction(f"{out} is a folder; name a file to write")
    if not out.parent.is_dir():
        raise InvalidExtraction(f"{out} cannot be written: there is no folder {out.parent}")


def _check_not_read(out: Path, *inputs: Checkpoint) -> None:
    for folder in inputs:
        if out.exists() and any(map(out.samefile, folder.files)):
            raise InvalidExtraction(
                f"{out} holds weights of {folder.directory}; choose another name"
            )


def _matrices(base: Checkpoint) -> Iterator[str]:
    return (name for name in base.names if len(base.info(name)[0]) >= 2)


def _nbytes(checkpoint: Checkpoint) -> int:
    return sum(checkpoint.nbytes(name) for name in checkpoint.names)


def _pair_nbytes(base: Checkpoint, finetuned: Checkpoint, name: str) -> int:
    return base.nbytes(name) + finetuned.nbytes(name)
