"""A loadout that is one lossless task vector: the fine-tuned checkpoint itself."""

from collections.abc import Iterator
from contextlib import contextmanager

from taskvectors.checkpoint import Checkpoint
from taskvectors.extract.restore import Restoration
from taskvectors.format import read_header
from taskvectors.merge.spec_file import ResolvedSpec
from taskvectors.selection import EVERYWHERE


@contextmanager
def restoring(spec: ResolvedSpec, base: Checkpoint) -> Iterator[Restoration | None]:
    """What `export_checkpoint` takes as `restored`; None where the loadout is anything else.

    Raises InvalidFile, InvalidCheckpoint, BaseMismatch, OSError.
    """
    if not _is_one_lossless(spec):
        yield None
        return
    (item,) = spec.loadout.items
    with Restoration(spec.paths[item.digest], base) as restoration:
        yield restoration


def _is_one_lossless(spec: ResolvedSpec) -> bool:
    items = spec.loadout.items
    if not spec.loadout.is_linear or len(items) != 1:
        return False
    if items[0].weight != 1 or items[0].selection != EVERYWHERE:
        return False
    metadata = read_header(spec.paths[items[0].digest]).metadata
    return bool(metadata.get("extraction", {}).get("method") == "lossless")
