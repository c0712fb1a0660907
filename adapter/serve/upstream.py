"""The API in front: a request goes on as it came, and so does the answer, but for what belongs to one connection.

The caller's key is among the headers that go on; it is kept nowhere. The address is the operator's: of a request only its
path below /v1 and its query are taken.
"""

import re
from collections.abc import AsyncIterator, Iterable, Sequence

import httpx

from adapter.api.openai import faults_of_url
from grpo.types import UserError

ADDRESSES = {"anthropic": "https://api.anthropic.com", "openai": "https://api.openai.com"}
HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
              b"trailer", b"transfer-encoding", b"upgrade"}
OURS = b"x-corrector-"  # headers that say what the gateway did: nobody else's word counts
DECODED = ("gzip", "deflate", "identity")  # encodings of an answer that the gateway can read
Headers = list[tuple[bytes, bytes]]


class Unreachable(Exception):
    """The API cannot be asked. The message is for the caller, and has no address in it."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status  # HTTP's, for the caller


class CutShort(Exception):
    """The API's answer broke off."""


class Reply:
    """An API's answer, as it arrives."""

    def __init__(self, response: httpx.Response):
        self._response, self.status = response, response.status_code
        self.headers = passed_on(response.headers.raw)
        self.streams = response.headers.get("content-type", "").startswith("text/event-stream")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Its bytes, encoded as they are. Raises CutShort."""
        try:
            async for chunk in self._response.aiter_raw():
                yield chunk
        except httpx.HTTPError as error:
            raise CutShort(type(error).__name__) from None

    async def close(self) -> None:
        """Give the connection back, or up."""
        await self._response.aclose()

    def decoded(self, raw: bytes) -> bytes:
        """The answer's bytes as they were before they were encoded. Raises ValueError."""
        encoding = self._response.headers.get("content-encoding", "")
        try:
            return httpx.Response(200, headers={"content-encoding": encoding}, content=raw).content
        except httpx.DecodingError as error:
            raise ValueError(str(error)) from None


class Upstream:
    """A client of one address."""

    def __init__(self, address: str, timeout_s: float = 600.0):
        """address: what stands before /v1. timeout_s: the longest silence of the API."""
        self.address = address
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout_s, connect=10.0, pool=None), follow_redirects=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256))

    async def ask(self, method: str, path: str, headers: Headers, body: bytes,
                  encodings: Sequence[str] | None = None) -> Reply:
        """Pass a request on. path: with its query. encodings: of the answer, where not all that the caller takes will do.

        Raises Unreachable.
        """
        sent = passed_on(headers, also={b"host", b"content-length", b"expect"})
        if encodings is not None:
            sent = [(name, _only(value, encodings) if name.lower() == b"accept-encoding" else value) for name, value in sent]
        try:
            request = httpx.Request(method, self.address + path, headers=sent, content=body)
            return Reply(await self._client.send(request, stream=True))
        except httpx.TimeoutException as error:
            raise Unreachable(f"the API does not answer ({type(error).__name__})", 504) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(f"the API cannot be reached ({type(error).__name__})", 502) from None

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def address_of(name: str) -> str:
    """What stands before /v1: of an API by name, or of a URL. Raises UserError where it is neither."""
    if name in ADDRESSES:
        return ADDRESSES[name]
    if fault := faults_of_url(name):
        shown = re.sub(r"//.*@", "//...@", name.partition("?")[0])[:100]
        raise UserError(f"--upstream {shown}: neither {' nor '.join(ADDRESSES)}, and no address: {fault}")
    return re.sub(r"(/v1(/messages|/chat/completions)?)?/*$", "", name.strip())


def passed_on(headers: Iterable[tuple[bytes, bytes]], also: set[bytes] = frozenset()) -> Headers:
    """Headers without those of one connection, those in `also` (lower case), and what only the gateway says."""
    headers = list(headers)
    named = {part.strip().lower() for name, value in headers if name.lower() == b"connection" for part in value.split(b",")}
    dropped = HOP_BY_HOP | named | also
    return [(name, value) for name, value in headers
            if name.lower() not in dropped and not name.lower().startswith(OURS)]


def _only(accepted: bytes, encodings: Sequence[str]) -> bytes:
    """An accept-encoding without others."""
    parts = [part.strip() for part in accepted.decode("latin-1").split(",")]
    return (", ".join(part for part in parts if part.partition(";")[0].strip() in encodings) or "identity").encode("latin-1")
