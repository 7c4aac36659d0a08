"""Whether a tenant may store another file, or another experiment. Pure."""

from dataclasses import dataclass

from outfitter.errors import ApiError


@dataclass(frozen=True)
class Stored:
    """What a tenant's namespaces hold; files of one digest count once.

    has_file: whether the file in question is among them. largest: name and version of the one that
    takes most, and its bytes; None when there are none.
    """

    nbytes: int
    has_file: bool = False
    largest: tuple[str, int] | None = None


def storage_refusal(tenant: str, stored: Stored, nbytes: int, limit: int) -> ApiError | None:
    """Why `nbytes` more are too many; None when they are not."""
    if stored.has_file or stored.nbytes + nbytes <= limit:
        return None
    message = (
        f"tenant {tenant!r} stores {stored.nbytes} bytes, and {nbytes} more would exceed its"
        f" stored_bytes of {limit}; delete versions of task vectors that are not needed, and the"
        " saved loadouts that still need deleted ones"
    )
    if stored.largest is not None:
        message += f" (the largest is {stored.largest[0]}, {stored.largest[1]} bytes)"
    return ApiError(403, message, "storage_quota_exceeded")


def experiments_refusal(tenant: str, stored: int, limit: int) -> ApiError | None:
    """Why one more experiment is too many; None when it is not."""
    if stored < limit:
        return None
    message = (
        f"tenant {tenant!r} has {stored} experiments, and its limit is {limit} (`experiments`);"
        " delete those that have ended and are needed no more"
    )
    return ApiError(403, message, "experiments_quota_exceeded")
