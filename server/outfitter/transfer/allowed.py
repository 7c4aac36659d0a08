"""What an operator allows a client to name as a source: URLs under certain prefixes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from outfitter.errors import SourceNotAllowed
from outfitter.transfer.locations import LOCAL, WEB, Location


@dataclass(frozen=True)
class Allowed:
    """Prefixes, each a location under which everything is allowed."""

    prefixes: tuple[Location, ...]

    @classmethod
    def parse(cls, prefixes: Sequence[str]) -> "Allowed":
        """Raises InvalidReference for a prefix that is no URL."""
        return cls(tuple(Location.parse(prefix) for prefix in prefixes))

    def check(self, location: Location) -> None:
        """Raise SourceNotAllowed unless a prefix covers `location`, links followed."""
        if not self.covers(location):
            raise SourceNotAllowed(
                f"the source {str(location)[:200]!r} is not allowed here; {self._advice}"
            )

    def covers(self, location: Location) -> bool:
        """Whether a prefix covers it; of a local path the real one counts."""
        if is_local(location):
            return location.is_absolute and all(map(self.root_of, local_paths(location)))
        return any(_under(prefix, location) for prefix in self.prefixes)

    def root_of(self, path: Path) -> Path | None:
        """The allowed folder that really holds `path`; None where there is none."""
        try:
            real = path.resolve()
        except (OSError, RuntimeError):  # links in a circle
            return None
        roots = (local_paths(prefix)[0].resolve() for prefix in self.prefixes if is_local(prefix))
        return next((root for root in roots if real.is_relative_to(root)), None)

    @property
    def _advice(self) -> str:
        if not self.prefixes:
            return "the operator allows none"
        return f"choose one under {', '.join(map(str, self.prefixes))}"


def is_local(location: Location) -> bool:
    """Whether it names a path of this machine."""
    return location.scheme in LOCAL and not location.authority


def local_paths(location: Location) -> tuple[Path, ...]:
    """What a `file:` or `oci:` URL may name; what is after a colon in the latter may be a tag."""
    path = unquote(location.path)
    if location.scheme == "file" or ":" not in path:
        return (Path(path),)
    return Path(path), Path(path.rpartition(":")[0])


def _under(prefix: Location, location: Location) -> bool:
    if (prefix.scheme, prefix.authority) != (location.scheme, location.authority):
        return False
    count = len(prefix.segments)
    return prefix.segments in (location.segments[:count], _unpinned(location)[:count])


def _unpinned(location: Location) -> tuple[str, ...]:
    """The segments of a reference without its `@version`: the plain name covers every version."""
    segments = location.segments
    where = 0 if location.scheme == "hf" else len(segments) - 1
    if (
        not segments
        or location.scheme not in ("hf", "outfitter", "oci", *WEB)
        or (location.scheme in WEB and location.is_file)
    ):
        return segments
    bare = segments[where].partition("@")[0]
    if location.scheme == "oci":
        bare = bare.partition(":")[0]
    return (*segments[:where], bare, *segments[where + 1 :])
