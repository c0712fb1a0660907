"""What the gateway takes from a connection, and how it answers: bounded bodies in, bytes as they come out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapter.serve.upstream import CutShort, Headers

SLOWEST_BODY_S = 60.0  # that a caller may take to send a body
DRAINED = 8  # times the limit: of a body that is refused, as much is read, so that the caller reads the refusal


class Refused(Exception):
    """A request that is not read. The message is for the caller."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


async def read_body(request: Request, most: int) -> bytes:
    """A request's body. Raises Refused where it has more than `most` bytes, comes too slowly or not at all."""
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(SLOWEST_BODY_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= most:
                    body += chunk
                elif size > DRAINED * most:
                    break
    except TimeoutError:
        raise Refused(f"the request's body did not come within {SLOWEST_BODY_S:.0f} s", 408) from None
    except ClientDisconnect:
        raise Refused("the request's body broke off", 400) from None
    if size > most:
        raise Refused(f"the request's body has more than {most:,} bytes, the most that this gateway takes", 413)
    return bytes(body)


class Answer(Response):
    """A response whose bytes come as they come. `ended` is called once, when the last is sent or the caller is gone."""

    def __init__(self, status: int, headers: Headers, chunks: AsyncIterator[bytes], ended: Callable[[], Awaitable[None]]):
        self.status_code, self.raw_headers, self.background = status, headers, None
        self._chunks, self._ended = chunks, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI. Where the API's answer breaks off, so does this one: the connection is closed in its middle."""
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in self._chunks:
                if gone.done():
                    return
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except CutShort:
            return
        finally:
            gone.cancel()
            try:
                await self._chunks.aclose()
            finally:
                await self._ended()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
