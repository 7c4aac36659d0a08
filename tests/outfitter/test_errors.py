"""Every failure has one place where its status is decided."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from outfitter import errors as own
from outfitter.errors import TABLE, ApiError, from_task_vector_error
from taskvectors import errors

STATUSES = {
    errors.StoreFull: (507, "store_full"),
    errors.TierUnavailable: (503, "store_unavailable"),
    own.CatalogUnavailable: (503, "catalog_unavailable"),
    own.CatalogConflict: (409, "conflict"),
    own.InvalidDetails: (422, "invalid_details"),
    own.UntrustedVector: (403, "untrusted_vector"),
    own.SourceNotAllowed: (403, "source_not_allowed"),
    own.SourceFailed: (502, "source_failed"),
    own.UploadNotFound: (404, "upload_not_found"),
    own.UploadMismatch: (409, "upload_mismatch"),
    own.UploadLocked: (423, "upload_locked"),
    own.TooManyUploads: (429, "too_many_uploads"),
    own.InvalidLimits: (400, "invalid_limits"),
    own.NotYours: (403, "not_your_namespace"),
    own.TenantNotFound: (404, "tenant_not_found"),
    own.ExperimentNotFound: (404, "experiment_not_found"),
    own.InvalidTenant: (400, "invalid_tenant"),
}


def every_error() -> list[type[errors.TaskVectorError]]:
    both = (*vars(errors).values(), *vars(own).values())
    found = [kind for kind in both if isinstance(kind, type)]
    return [kind for kind in found if issubclass(kind, errors.TaskVectorError)]


@pytest.mark.parametrize("kind", every_error())
def test_every_library_error_is_in_the_table(kind: type[errors.TaskVectorError]) -> None:
    """A new error of the library needs a status here."""
    assert kind in TABLE


@pytest.mark.parametrize("kind", every_error())
def test_a_library_error_becomes_openais_shape(kind: type[errors.TaskVectorError]) -> None:
    """The message is kept; the type fits the status."""
    error = from_task_vector_error(kind("what was wrong"), "task_vectors")
    assert error.body["error"] == {
        "message": "what was wrong",
        "type": TABLE[kind].type,
        "param": "task_vectors",
        "code": TABLE[kind].code,
    }
    assert (error.status >= 500) == (error.type == "server_error")


@pytest.mark.parametrize(("kind", "expected"), STATUSES.items())
def test_an_error_of_the_store_has_its_status(
    kind: type[errors.TaskVectorError], expected: tuple[int, str]
) -> None:
    """What may be tried again soon says when."""
    error = from_task_vector_error(kind("x"))
    assert (error.status, error.code) == expected
    assert ("retry-after" in error.headers) == (error.status in (423, 429, 503))


def test_every_error_of_the_gateway_is_checked_here() -> None:
    """A new one needs a line above."""
    mine = {kind for kind in every_error() if kind.__module__ == own.__name__}
    assert mine <= STATUSES.keys()


def test_an_unknown_subclass_is_treated_like_its_parent() -> None:
    """The most specific entry decides."""

    class OddIndex(errors.InvalidIndex):
        pass

    assert from_task_vector_error(OddIndex("x")).code == "invalid_index"


def test_the_type_follows_the_status() -> None:
    """429 is a rate limit, 5xx the server's fault, the rest the client's."""
    types = [ApiError(status, "m", None).type for status in (400, 404, 429, 500, 503)]
    assert types == [
        "invalid_request_error",
        "invalid_request_error",
        "rate_limit_error",
        "server_error",
        "server_error",
    ]


def test_what_a_client_sent_is_echoed_in_part() -> None:
    """A long name is cut, what to do about it stays; the whole has a limit, too."""
    for quote in "'\"":
        text = f"no {quote}{'x' * 5000}{quote}; did you mean {quote}y{quote}?"
        cut = f"no {quote}{'x' * 200}…{quote}; did you mean {quote}y{quote}?"
        assert from_task_vector_error(errors.VectorNotFound(text)).message == cut
    assert len(from_task_vector_error(errors.VectorNotFound("' \"" * 5000)).message) <= 1000
    assert len(from_task_vector_error(errors.VectorNotFound("z" * 5000)).message) == 1000
    exact = f"no '{'x' * 200}'"
    assert from_task_vector_error(errors.VectorNotFound(exact)).message == exact


def raised_codes() -> Iterator[str]:
    """The codes that the sources give to `ApiError` or the table, as literals."""
    for file in Path(own.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("ApiError", "Kind"):
                named = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                for value in [*node.args[2:3], *named]:
                    if isinstance(value, ast.Constant) and value.value:
                        yield str(value.value)


def test_every_code_is_on_the_page_of_the_api() -> None:
    """A client can look up what it was told."""
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    codes = set(raised_codes())
    assert {"invalid_api_key", "rate_limit_exceeded", "store_full"} <= codes
    assert {code for code in codes if f"`{code}`" not in page} == set()
