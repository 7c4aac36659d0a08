"""Composing a loadout at request time: one merge, written to the store as one vector.

`python -m taskvectors.merge.compose` reads a job as JSON from its standard input and writes one
JSON object: a `Composed`, or `{"error": <name of a class>, "message": …}`. It is a process of its
own because merging holds the interpreter and takes memory: the engine keeps its own of both.
"""

import json
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taskvectors.checkpoint import Checkpoint
from taskvectors.delta import Delta, LowRankDelta
from taskvectors.errors import (
    EngineUnavailable,
    InvalidLoadout,
    PoolTooSmall,
    TaskVectorError,
    VectorLoadFailed,
)
from taskvectors.footprint import delta_bytes
from taskvectors.format import VectorWriter, check_against_base
from taskvectors.harmless import become_harmless
from taskvectors.merge.stream import MergedVector
from taskvectors.method import MERGE_ONCE, Method
from taskvectors.methods import find_method
from taskvectors.sources import open_files
from taskvectors.spec import Loadout
from taskvectors.store import DirectoryStore
from taskvectors.store.composed import COMPOSE_VERSION, ComposedStore, composed_key
from taskvectors.values import MAX_ECHO

DISK = "composed loadouts have"


@dataclass(frozen=True)
class Job:
    """What is composed, and within which limits.

    store: its root. loadout: canonical. base_dir: the base's checkpoint, where it is a local
    folder. value_bytes, sparse_value_bytes: of the engine, for the footprint. pool_bytes: most
    device bytes of the result. composed_bytes: most bytes of all composed files.
    memory_bytes: most memory of the process.
    """

    store: str
    loadout: str
    base_fingerprint: str | None
    base_dir: str | None
    value_bytes: int
    sparse_value_bytes: int
    pool_bytes: int
    composed_bytes: int
    memory_bytes: int


@dataclass(frozen=True)
class Composed:
    """The file that a loadout was composed into."""

    digest: str
    nbytes: int
    resident_bytes: int


def compose(job: Job) -> Composed:
    """Merge a loadout into one file of the composed store, float32.

    Raises PoolTooSmall as soon as the result exceeds a limit; InvalidLoadout, VectorNotFound,
    BaseMismatch, InvalidFile, InvalidCheckpoint, OSError.
    """
    loadout = Loadout.from_canonical(job.loadout)
    method = find_method(loadout.method)
    method.check_at_request()
    store, target = DirectoryStore(job.store), ComposedStore(job.store)
    files = [(item.digest, store.path(item.digest)) for item in loadout.items]
    with open_files(files) as sources:
        for source in sources:
            check_against_base(source.reader.header, None, job.base_fingerprint)
        merged = MergedVector(
            sources,
            [item.weight for item in loadout.items],
            loadout.method,
            dict(loadout.parameters),
            selections=[item.selection for item in loadout.items],
            base=_base(method, job.base_dir),
        )
        written = target.new_file()
        try:
            composed = _write(merged, written, loadout, job)
            target.put(written, composed.digest, composed_key(loadout, job.base_fingerprint))
        finally:
            written.unlink(missing_ok=True)
    target.evict(job.composed_bytes)
    return composed


def _base(method: Method, base_dir: str | None) -> Checkpoint | None:
    if not method.wants_base:
        return None
    if base_dir is None:
        raise InvalidLoadout(
            f"method {method.name!r} counts the base's elements, and the engine has no local folder"
            f" of the base: {MERGE_ONCE}"
        )
    return Checkpoint.open(base_dir)


def _write(merged: MergedVector, path: Path, loadout: Loadout, job: Job) -> Composed:
    resident = stored = 0
    with VectorWriter(path, merged.base, value_dtype="fp32") as writer:
        for name, delta in merged.deltas():
            resident += delta_bytes(name, delta, job.value_bytes, job.sparse_value_bytes)
            stored += _value_bytes(delta)
            _check("on the device", resident, job.pool_bytes, "the pool has", "--pool-bytes")
            _check("on disk", stored, job.composed_bytes, DISK, "--composed-bytes")
            writer.add(name, delta)
        provenance = {"loadout": loadout.digest, "compose_version": COMPOSE_VERSION}
        digest = writer.finish({"provenance": provenance})
    nbytes = path.stat().st_size
    _check("on disk", nbytes, job.composed_bytes, DISK, "--composed-bytes")
    return Composed(digest, nbytes, resident)


def _value_bytes(delta: Delta) -> int:
    """The bytes of a delta's values in the file."""
    count = delta.a.size + delta.b.size if isinstance(delta, LowRankDelta) else delta.nnz
    return 4 * count


def _check(where: str, nbytes: int, limit: int, whose: str, remedy: str) -> None:
    if nbytes > limit:
        raise PoolTooSmall(
            f"the composed loadout takes {nbytes} bytes {where} or more, and {whose} {limit}; use a"
            f" smaller density, fewer vectors or a larger {remedy}"
        )


def main() -> None:
    """Compose the job on standard input; exit 0 with an answer, whatever it says."""
    fields = json.load(sys.stdin)
    become_harmless(fields.pop("parent"), fields["memory_bytes"])
    print(json.dumps(_answer(Job(**fields))))


def _answer(job: Job) -> Mapping[str, Any]:
    try:
        return asdict(compose(job))
    except TaskVectorError as error:
        return _refusal(error)
    except MemoryError:
        return _refusal(
            PoolTooSmall(
                f"composing the loadout takes more than {job.memory_bytes} bytes of memory; use"
                f" fewer vectors or a larger --compose-memory, or {MERGE_ONCE}"
            )
        )
    except OSError as error:
        return _refusal(EngineUnavailable(f"the loadout was not composed: {error.strerror}"))
    except Exception as error:  # noqa: BLE001 (whatever it is, it would come again)
        traceback.print_exc()
        return _refusal(VectorLoadFailed(f"the loadout cannot be composed: {error!r}"[:MAX_ECHO]))


def _refusal(error: TaskVectorError) -> Mapping[str, Any]:
    return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    main()
