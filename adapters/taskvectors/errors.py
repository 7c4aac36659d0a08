"""Every error that this library raises on purpose, under one root.

Each message names what was wrong, the value, and what would be right.
"""


class TaskVectorError(Exception):
    """Root of all errors of this library."""


class InvalidReference(TaskVectorError):
    """A reference to a task vector does not parse."""


class InvalidLoadout(TaskVectorError):
    """A requested mix is malformed, out of bounds, or uses an unknown method."""


class VectorNotFound(TaskVectorError):
    """A reference or digest names nothing in the store."""


class BaseMismatch(TaskVectorError):
    """A task vector belongs to another base than the one at hand."""


class InvalidFile(TaskVectorError):
    """A task vector file breaks the format; the subclasses say how."""


class TruncatedFile(InvalidFile):
    """The file is shorter (or longer) than its own header says."""


class HeaderTooLarge(InvalidFile):
    """The header length exceeds the cap, so nothing of it was read."""


class InvalidHeader(InvalidFile):
    """The header is not the JSON that the format asks for."""


class UnsupportedVersion(InvalidFile):
    """The schema version or kind is not one that this library reads."""


class InvalidTensor(InvalidFile):
    """A tensor has a wrong dtype, shape, size, or place in the file."""


class InvalidIndex(InvalidFile):
    """A sparse index is out of bounds, out of order, or does not match its values."""


class NonFiniteValue(InvalidFile):
    """A value is NaN or infinite."""


class ChecksumMismatch(InvalidFile):
    """The bytes of a tensor or file do not have the sha256 that they should have."""


class IncompatibleCheckpoints(TaskVectorError):
    """Two checkpoints cannot be subtracted: a parameter is missing or of another shape."""


class InvalidCheckpoint(TaskVectorError):
    """A checkpoint folder lacks what is needed or cannot be read."""


class UnsupportedAdapter(TaskVectorError):
    """An adapter folder uses something that has no additive task vector."""


class UnsupportedEngine(TaskVectorError):
    """The engine is configured in a way that task vectors cannot be served in."""


class PoolTooSmall(TaskVectorError):
    """A loadout can never fit the pool's byte budget or its number of columns."""


class PoolBusy(TaskVectorError):
    """The pool stayed full of vectors in use for longer than a request may wait."""


class EngineUnavailable(TaskVectorError):
    """The engine does not do what it was told; the request may be tried again."""


class VectorLoadFailed(TaskVectorError):
    """A task vector was found but could not be made resident."""


class PromotionTooLarge(TaskVectorError):
    """The host has no memory for what a promotion would replace in the weights."""


class VectorInUse(TaskVectorError):
    """A stored task vector cannot be removed by digest while a name stands for it."""


class StoreFull(TaskVectorError):
    """There is no room for a file: the disk or a quota is full."""


class TierUnavailable(TaskVectorError):
    """A tier of the store does not answer, or answers wrongly; another one may have the file."""
