"""Promotion in the worker: a loadout is written into the resident weights, and taken out again.

What a write replaces is saved first, and demotion puts it back: the same bits, not a difference
that rounding may have changed. Called between steps, while no request runs.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskvectors.errors import PromotionTooLarge, VectorLoadFailed
from taskvectors.format import VectorReader, check_against_base
from taskvectors.format.parameters import ParameterSpec
from taskvectors.spec import Loadout, LoadoutItem
from taskvectors.store.tiered import TieredFiles
from taskvectors.vector import Delta, SparseDelta
from taskvectors.vllm_plugin import compat
from taskvectors.vllm_plugin.resident_weights import ResidentTensor, ResidentWeights, combined
from taskvectors.vllm_plugin.sites import Part

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, to be shown with it

MEMORY_SHARE = 0.8
"""Of the host memory that is available, how much a promotion may take."""
INDEX_BYTES = 8


@dataclass(frozen=True)
class Term:
    """coefficient · Δ of one parameter, read from its file when it is needed."""

    reader: VectorReader
    name: str
    coefficient: float

    @property
    def spec(self) -> ParameterSpec:
        """What the file's header says of it."""
        return self.reader.header.parameters[self.name]

    def delta(self) -> Delta:
        """The checked delta."""
        return self.reader.delta(self.name)


@dataclass(frozen=True)
class Saved:
    """What a write replaced in one part. values: [n] at `index` of the flattened rows, int64 [n];
    all rows where index is None. Both on the host.
    """

    part: Part
    index: Tensor | None
    values: Tensor


@dataclass(eq=False)
class Change:
    """One tensor's terms by part and, once written, what they replaced."""

    tensor: ResidentTensor
    terms: dict[Part, list[Term]] = field(default_factory=dict)
    saved: list[Saved] = field(default_factory=list)
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Promoted:
    """The loadout in the weights.

    asked: as the operator named it, canonical. served: the linear one that was written for it.
    """

    asked: str
    served: Loadout
    changes: Sequence[Change]
    seconds: float

    def describe(self) -> dict[str, Any]:
        """For the operator; checksums are of the changed tensors."""
        return {
            "loadout": self.asked,
            "num_tensors": len(self.changes),
            "saved_bytes": sum(_nbytes(s) for c in self.changes for s in c.saved),
            "seconds": round(self.seconds, 4),
            "sha256_before": combined({c.tensor.name: c.before for c in self.changes}),
            "sha256_promoted": combined({c.tensor.name: c.after for c in self.changes}),
        }


class Promotion:
    """At most one loadout in the weights of one engine.

    available: bytes of host memory that are free now.
    """

    def __init__(
        self,
        weights: ResidentWeights,
        files: TieredFiles,
        base_fingerprint: str | None,
        available: Callable[[], int] = compat.available_memory,
    ) -> None:
        self._weights = weights
        self._files = files
        self._base_fingerprint = base_fingerprint
        self._available = available
        self._promoted: Promoted | None = None

    @property
    def items(self) -> tuple[LoadoutItem, ...]:
        """What the resident weights hold beyond the base: other loadouts are less by it."""
        return self._promoted.served.items if self._promoted else ()

    def state(self) -> dict[str, Any]:
        """What is promoted; `loadout` is None when nothing is."""
        return self._promoted.describe() if self._promoted else {"loadout": None}

    def checksum(self) -> str:
        """sha256 of all weights of the hooked layers as they are now."""
        return self._weights.checksum()

    def promote(self, asked: str, served: Loadout) -> dict[str, Any]:
        """Write `served`, a linear loadout, into the weights, in the place of what was promoted.

        Either all of it is written or nothing. Raises VectorLoadFailed, BaseMismatch,
        PromotionTooLarge, and what TieredFiles and VectorReader raise.
        """
        with contextlib.ExitStack() as stack:
            changes = self._plan(self._terms(served, stack))
            self._check_memory(changes)
            self.demote()
            begin = time.monotonic()
            self._write(changes)
        for change in changes:
            change.terms.clear()  # they hold the files
        self._promoted = Promoted(asked, served, changes, time.monotonic() - begin)
        logger.info("promoted %d tensors in %.3f s", len(changes), self._promoted.seconds)
        return self.state()

    def demote(self) -> dict[str, Any]:
        """Put the original values back; nothing to do when nothing is promoted."""
        if self._promoted is None:
            return {"loadout": None}
        begin, changes = time.monotonic(), self._promoted.changes
        restored = _restore(changes)
        before = {change.tensor.name: change.before for change in changes}
        _require_original(restored, before)
        self._promoted = None
        seconds = time.monotonic() - begin
        logger.info("demoted %d tensors in %.3f s", len(changes), seconds)
        checksums = {"sha256_before": combined(before), "sha256_restored": combined(restored)}
        return {"loadout": None, "seconds": round(seconds, 4), **checksums}

    def _terms(
        self, loadout: Loadout, stack: contextlib.ExitStack
    ) -> list[tuple[LoadoutItem, VectorReader]]:
        opened: dict[str, VectorReader] = {}
        for digest in sorted(loadout.digests):
            reader = stack.enter_context(VectorReader(self._files.load(digest)))
            check_against_base(reader.header, None, self._base_fingerprint)
            opened[digest] = reader
        return [(item, opened[item.digest]) for item in loadout.items]

    def _plan(self, vectors: Sequence[tuple[LoadoutItem, VectorReader]]) -> list[Change]:
        """What is written where; everything that headers can tell is checked here."""
        changes: dict[str, Change] = {}
        for item, reader in vectors:
            for name, spec in reader.header.parameters.items():
                tensor, part = self._weights.find(name, spec.shape)
                coefficient = item.weight * item.selection.factor(part.module)
                if coefficient:
                    change = changes.setdefault(tensor.name, Change(tensor))
                    change.terms.setdefault(part, []).append(Term(reader, name, coefficient))
        return list(changes.values())

    def _check_memory(self, changes: Sequence[Change]) -> None:
        """Raises PromotionTooLarge before anything is read, saved or written."""
        saved = sum(_saved_bytes(change) for change in changes)
        scratch = max((_scratch_bytes(change) for change in changes), default=0)
        room = int(MEMORY_SHARE * self._available())
        if saved + scratch > room:
            raise PromotionTooLarge(
                f"saving what the promotion replaces takes {saved} bytes of host memory and writing"
                f" it {scratch}, and {room} can be had; promote sparse vectors, fewer layers, or"
                " free memory"
            )

    def _write(self, changes: Sequence[Change]) -> None:
        written: list[Change] = []
        try:
            for change in changes:
                written.append(change)
                _write(change)
        except BaseException:
            changed = [change for change in written if change.saved]
            _require_original(_restore(changed), {c.tensor.name: c.before for c in changed})
            raise


def _write(change: Change) -> None:
    with change.tensor.opened(to_write=True) as values:
        change.before = change.tensor.digest(values)
        for part, terms in change.terms.items():
            deltas = [(term.coefficient, term.delta()) for term in terms]
            rows = values[part.start : part.stop]
            saved = _save(part, rows, deltas)
            change.saved.append(saved)
            _add(rows, saved, deltas)
        change.after = change.tensor.digest(values)


def _save(part: Part, rows: Tensor, deltas: Sequence[tuple[float, Delta]]) -> Saved:
    """The values that `deltas` will replace; whole rows where an index of them is no smaller."""
    sparse = [delta.index for _, delta in deltas if isinstance(delta, SparseDelta)]
    if len(sparse) < len(deltas) or not _is_sparse_smaller(
        sum(map(len, sparse)), rows.numel(), rows.element_size()
    ):
        return Saved(part, None, rows.to("cpu", copy=True))
    found = sparse[0] if len(sparse) == 1 else np.unique(np.concatenate(sparse))
    index = torch.from_numpy(np.array(found))
    return Saved(part, index, rows.view(-1)[index.to(rows.device)].cpu())


def _add(rows: Tensor, saved: Saved, deltas: Sequence[tuple[float, Delta]]) -> None:
    """rows = round(original + Σ coefficient · Δ), summed in float32 and rounded once."""
    total = saved.values.to(torch.float32, copy=True)
    for coefficient, delta in deltas:
        if saved.index is not None:
            assert isinstance(delta, SparseDelta)
            place = torch.searchsorted(saved.index, torch.from_numpy(delta.index))
            values = torch.from_numpy(delta.values.astype(np.float32))
            total[place] += values * coefficient
        else:
            # Not add_(…, alpha=…), which some processors fuse: no merged checkpoint has those bits.
            total += torch.from_numpy(delta.to_dense()) * coefficient
    rounded = total.to(rows.dtype)
    if not bool(torch.isfinite(rounded).all()):
        raise VectorLoadFailed(
            f"{saved.part.module!r} would not be finite in {rows.dtype}; use smaller weights"
        )
    _put(rows, saved.index, rounded)


def _put(rows: Tensor, index: Tensor | None, values: Tensor) -> None:
    if index is None:
        rows.copy_(values.view_as(rows))
    else:
        rows.view(-1)[index.to(rows.device)] = values.to(rows.device)


def _restore(changes: Sequence[Change]) -> dict[str, str]:
    """Put back what was saved; the digest of each tensor after it, by name.

    Whoever cannot do this serves wrong answers, so the engine ends, to be started afresh.
    """
    digests = {}
    try:
        for change in reversed(changes):
            with change.tensor.opened(to_write=True) as values:
                for saved in change.saved:
                    rows = values[saved.part.start : saved.part.stop]
                    _put(rows, saved.index, saved.values)
                digests[change.tensor.name] = change.tensor.digest(values)
    except BaseException as error:
        logger.critical("the original weights cannot be restored; the engine ends", exc_info=True)
        raise SystemExit(1) from error
    return digests


def _require_original(restored: Mapping[str, str], before: Mapping[str, str]) -> None:
    """End the engine where a tensor is not what it was."""
    changed = [name for name, digest in before.items() if restored[name] != digest]
    if changed:
        logger.critical("%s is not as it was before the promotion; the engine ends", changed[0])
        raise SystemExit(1)


def _saved_bytes(change: Change) -> int:
    """Most bytes that saving takes, known from headers alone."""
    itemsize = change.tensor.dtype.itemsize
    total = 0
    for part, terms in change.terms.items():
        numel = int(np.prod(change.tensor.shape_of(part)))
        nnz = sum(term.spec.nnz for term in terms if term.spec.kind == "sparse")
        all_sparse = all(term.spec.kind == "sparse" for term in terms)
        is_sparse = all_sparse and _is_sparse_smaller(nnz, numel, itemsize)
        total += nnz * (INDEX_BYTES + itemsize) if is_sparse else numel * itemsize
    return total


def _scratch_bytes(change: Change) -> int:
    """A packed weight is unpacked, and packed anew; the sum and a delta are float32."""
    packed = 2 * change.tensor.num_bytes if change.tensor.is_packed else 0
    sizes = [int(np.prod(change.tensor.shape_of(part))) for part in change.terms]
    return packed + max(sizes) * 4 * 3


def _is_sparse_smaller(nnz: int, numel: int, itemsize: int) -> bool:
    return nnz * (INDEX_BYTES + itemsize) < numel * itemsize


def _nbytes(saved: Saved) -> int:
    return saved.values.nbytes + (0 if saved.index is None else saved.index.nbytes)
