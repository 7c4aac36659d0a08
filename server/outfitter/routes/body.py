"""Reading a request's body within a limit of size and of patience."""

import asyncio
from collections.abc import AsyncIterator, Callable

from starlette.requests import ClientDisconnect, Request

from outfitter.errors import ApiError

PATIENCE_S = 30.0
"""How long the gateway waits for the next `MIN_PROGRESS_BYTES` of a body, or its end."""
MIN_PROGRESS_BYTES = 16 * 2**10
CHUNK_BYTES = 2**20


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; raises ApiError (413) beyond `limit` bytes, and what stream_body raises."""
    return b"".join([chunk async for chunk in stream_body(request, limit)])


def announced_bytes(request: Request) -> int:
    """What the header says of the body's length; 0 when it says nothing."""
    announced = request.headers.get("content-length", "")
    return int(announced[:20]) if announced.isdecimal() else 0


async def stream_body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives.

    Raises ApiError: 413 as soon as it exceeds `limit` bytes, 408 when it trickles or stalls.
    """
    if announced_bytes(request) > limit:
        raise _too_large(limit)
    size = 0
    try:
        async for chunk in _paced(request.stream()):
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            yield chunk
    except ClientDisconnect as error:
        raise ApiError(400, "the body ended early", "incomplete_body") from error


async def receive(body: AsyncIterator[bytes], write: Callable[[bytearray], object]) -> None:
    """Hand `body` to `write` in a thread, a megabyte at a time.

    Where the body breaks off, what came before is handed over, too.
    """
    buffer = bytearray()
    try:
        async for chunk in body:
            buffer += chunk
            if len(buffer) >= CHUNK_BYTES:
                piece, buffer = buffer, bytearray()
                await asyncio.to_thread(write, piece)
    finally:
        if buffer:
            await asyncio.to_thread(write, buffer)


async def _paced(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """`chunks`, as long as they come fast enough; only the time spent waiting for them counts."""
    now = asyncio.get_running_loop().time
    patience, progress = PATIENCE_S, 0
    while True:
        since = now()
        try:
            async with asyncio.timeout(patience):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise _too_slow() from error
        if chunk is None:
            return
        patience, progress = patience - (now() - since), progress + len(chunk)
        if progress >= MIN_PROGRESS_BYTES:
            patience, progress = PATIENCE_S, 0
        yield chunk


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body exceeds {limit} bytes", "body_too_large")


def _too_slow() -> ApiError:
    message = (
        f"the body came too slowly: {PATIENCE_S:g} s brought neither its end nor"
        f" {MIN_PROGRESS_BYTES} bytes; send it again"
    )
    return ApiError(408, message, "body_too_slow", headers={"connection": "close"})
