"""What a client is told when something goes wrong: OpenAI's error body, from one table."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from taskvectors import errors as tv


class CatalogUnavailable(tv.TaskVectorError):
    """The catalog's database does not answer; the request may be tried again."""


class CatalogConflict(tv.TaskVectorError):
    """Something in the catalog is already so, or changed meanwhile."""


class InvalidDetails(tv.TaskVectorError):
    """A licence, language, card or other detail of a version is not what it must be."""


class UntrustedVector(tv.TaskVectorError):
    """A signature is missing, wrong, or by nobody whom the policy of the namespace trusts."""


class ExperimentNotFound(tv.VectorNotFound):
    """There is no such experiment."""


class SourceNotAllowed(tv.TaskVectorError):
    """The operator does not allow this scheme, host or folder as a source."""


class SourceFailed(tv.TaskVectorError):
    """A source of task vectors cannot be read: it is not there, or does not answer."""


class UploadNotFound(tv.TaskVectorError):
    """There is no unfinished upload of this id; it may have been published, or forgotten."""


class UploadMismatch(tv.TaskVectorError):
    """An upload is at another offset than was said, or is not whole yet."""


class UploadLocked(tv.TaskVectorError):
    """Somebody else is writing to this upload right now."""


class TooManyUploads(tv.TaskVectorError):
    """There is no room for another unfinished upload."""


class InvalidLimits(tv.TaskVectorError):
    """A tenant's limits have a key that does not exist, or a value that cannot be."""


class NotYours(tv.TaskVectorError):
    """A name belongs to somebody else; who asks may use it, but not change it."""


class TenantNotFound(tv.TaskVectorError):
    """There is no such tenant, or no such key of it."""


class InvalidTenant(tv.TaskVectorError):
    """A tenant, a key or a right is not what it must be."""


INVALID_REQUEST = "invalid_request_error"
RATE_LIMIT = "rate_limit_error"
SERVER_ERROR = "server_error"

_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: RATE_LIMIT,
    503: "overloaded_error",
}

REFUSALS = (401, 403, 407)
"""Of the engine they are about the gateway, not about its client, whom the gateway has let in."""
MAX_MESSAGE = 1000
_LONG_QUOTE = re.compile(r"""'[^']{201,}'|"[^"]{201,}\"""")


@dataclass(frozen=True)
class Kind:
    """How one class of failure looks on the wire."""

    status: int
    type: str
    code: str


TABLE: Mapping[type[tv.TaskVectorError], Kind] = {
    tv.InvalidReference: Kind(400, INVALID_REQUEST, "invalid_reference"),
    tv.InvalidLoadout: Kind(400, INVALID_REQUEST, "invalid_loadout"),
    tv.VectorNotFound: Kind(404, INVALID_REQUEST, "task_vector_not_found"),
    ExperimentNotFound: Kind(404, INVALID_REQUEST, "experiment_not_found"),
    tv.VectorInUse: Kind(409, INVALID_REQUEST, "task_vector_in_use"),
    tv.BaseMismatch: Kind(422, INVALID_REQUEST, "base_mismatch"),
    tv.InvalidFile: Kind(422, INVALID_REQUEST, "invalid_file"),
    tv.TruncatedFile: Kind(422, INVALID_REQUEST, "truncated_file"),
    tv.HeaderTooLarge: Kind(422, INVALID_REQUEST, "header_too_large"),
    tv.InvalidHeader: Kind(422, INVALID_REQUEST, "invalid_header"),
    tv.UnsupportedVersion: Kind(422, INVALID_REQUEST, "unsupported_version"),
    tv.InvalidTensor: Kind(422, INVALID_REQUEST, "invalid_tensor"),
    tv.InvalidIndex: Kind(422, INVALID_REQUEST, "invalid_index"),
    tv.NonFiniteValue: Kind(422, INVALID_REQUEST, "non_finite_value"),
    tv.ChecksumMismatch: Kind(422, INVALID_REQUEST, "checksum_mismatch"),
    tv.IncompatibleCheckpoints: Kind(422, INVALID_REQUEST, "incompatible_checkpoints"),
    tv.InvalidCheckpoint: Kind(422, INVALID_REQUEST, "invalid_checkpoint"),
    tv.UnsupportedAdapter: Kind(422, INVALID_REQUEST, "unsupported_adapter"),
    tv.PoolTooSmall: Kind(400, INVALID_REQUEST, "loadout_too_large"),
    tv.PoolBusy: Kind(503, SERVER_ERROR, "pool_busy"),
    tv.EngineUnavailable: Kind(503, SERVER_ERROR, "engine_unavailable"),
    tv.VectorLoadFailed: Kind(422, INVALID_REQUEST, "task_vector_not_servable"),
    tv.UnsupportedEngine: Kind(500, SERVER_ERROR, "unsupported_engine"),
    tv.PromotionTooLarge: Kind(507, SERVER_ERROR, "promotion_too_large"),
    tv.StoreFull: Kind(507, SERVER_ERROR, "store_full"),
    tv.TierUnavailable: Kind(503, SERVER_ERROR, "store_unavailable"),
    CatalogUnavailable: Kind(503, SERVER_ERROR, "catalog_unavailable"),
    CatalogConflict: Kind(409, INVALID_REQUEST, "conflict"),
    InvalidDetails: Kind(422, INVALID_REQUEST, "invalid_details"),
    UntrustedVector: Kind(403, INVALID_REQUEST, "untrusted_vector"),
    SourceNotAllowed: Kind(403, INVALID_REQUEST, "source_not_allowed"),
    SourceFailed: Kind(502, SERVER_ERROR, "source_failed"),
    NotYours: Kind(403, INVALID_REQUEST, "not_your_namespace"),
    TenantNotFound: Kind(404, INVALID_REQUEST, "tenant_not_found"),
    InvalidTenant: Kind(400, INVALID_REQUEST, "invalid_tenant"),
    UploadNotFound: Kind(404, INVALID_REQUEST, "upload_not_found"),
    UploadMismatch: Kind(409, INVALID_REQUEST, "upload_mismatch"),
    UploadLocked: Kind(423, INVALID_REQUEST, "upload_locked"),
    InvalidLimits: Kind(400, INVALID_REQUEST, "invalid_limits"),
    TooManyUploads: Kind(429, RATE_LIMIT, "too_many_uploads"),
    tv.TaskVectorError: Kind(500, SERVER_ERROR, "internal_error"),
}


@dataclass
class ApiError(Exception):
    """A failure with its status and OpenAI body."""

    status: int
    message: str
    code: str | None
    param: str | None = None
    type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)
        self.type = self.type or type_for_status(self.status)

    @property
    def body(self) -> dict[str, object]:
        """The JSON body, in OpenAI's shape."""
        return error_body(self.message, self.type, self.code, self.param)


def error_body(
    message: str, type_: str, code: str | None = None, param: str | None = None
) -> dict[str, object]:
    """`{"error": {…}}` as OpenAI writes it."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def type_for_status(status: int) -> str:
    """OpenAI's error type for an HTTP status."""
    if status == 429:
        return RATE_LIMIT
    return SERVER_ERROR if status >= 500 else INVALID_REQUEST


def anthropic_type(status: int) -> str:
    """Anthropic's error type for an HTTP status."""
    if status in _ANTHROPIC:
        return _ANTHROPIC[status]
    return "api_error" if status >= 500 else INVALID_REQUEST


def from_task_vector_error(error: tv.TaskVectorError, param: str | None = None) -> ApiError:
    """Translate a library error by the table, most specific class first."""
    kind = next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)
    headers = {"retry-after": "1"} if kind.status in (423, 429, 503) else {}
    return ApiError(kind.status, shorten(str(error)), kind.code, param, kind.type, headers)


def shorten(text: str) -> str:
    """`text` with at most 200 characters in each pair of quotes, and at most 1000 in all."""
    start = text[: 2**16]  # megabytes would take seconds
    text = _LONG_QUOTE.sub(lambda match: f"{match[0][:201]}…{match[0][0]}", start)
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…"


def unavailable(reason: str, code: str = "engine_unavailable", retry_after: int = 5) -> ApiError:
    """503: the engine cannot answer now, and when to come back."""
    return ApiError(503, reason, code, headers={"retry-after": str(retry_after)})


def engine_died(status: int = 502) -> ApiError:
    """The engine went away while it was answering."""
    message = "the engine stopped while it was answering; it is being restarted: try again"
    return ApiError(status, message, "engine_died", headers={"retry-after": "5"})


def engine_refused(status: int, message: str) -> ApiError:
    """The engine does not let the gateway in; status: one of `REFUSALS`."""
    told = f"the engine refused the gateway itself ({status}): {message}"
    return ApiError(502, told, "engine_refused")
