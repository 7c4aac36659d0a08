"""Reading a request's body within a limit."""

from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from outfitter.errors import ApiError


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; raises ApiError (413) beyond `limit` bytes."""
    return b"".join([chunk async for chunk in stream_body(request, limit)])


async def stream_body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives; raises ApiError (413) as soon as it exceeds `limit` bytes."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise _too_large(limit)
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            yield chunk
    except ClientDisconnect as error:
        raise ApiError(400, "the body ended early", "incomplete_body") from error


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body exceeds {limit} bytes", "body_too_large")
