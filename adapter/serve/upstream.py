"""The API in front: a request goes on as it came, and so does the answer, but for what belongs to one connection.

The caller's key is among the headers that go on; it is kept nowhere. The address is the operator's: of a request only its
path below /v1 and its query are taken. The client is aiohttp's: httpx's looks at each of its connections for each request.
Of the environment the proxy is taken, once: aiohttp's `trust_env` looks for it in a thread for each request, and sends what
~/.netrc has for the API where a caller has no Authorization.
"""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from urllib.request import getproxies, proxy_bypass

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from adapter.api.openai import faults_of_url
from grpo.types import UserError

ADDRESSES = {"anthropic": "https://api.anthropic.com", "openai": "https://api.openai.com"}
HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
              b"trailer", b"transfer-encoding", b"upgrade"}
OURS = b"x-corrector-"  # headers that say what the gateway did: nobody else's word counts
DECODED = ("gzip", "deflate", "identity")  # encodings of an answer that the gateway can read
ADDED = ("accept", "accept-encoding", "user-agent", "content-type")  # what aiohttp would send where the caller does not
CONNECT_S = 10.0
LONGEST_HEADER = 64 * 2**10  # bytes, of the API's
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

    def __init__(self, response: aiohttp.ClientResponse):
        self._response, self.status = response, response.status
        self.headers = passed_on(response.raw_headers)
        self.streams = response.headers.get("content-type", "").startswith("text/event-stream")

    async def chunks(self) -> AsyncIterator[bytes]:
        """Its bytes, encoded as they are. Raises CutShort."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise CutShort(type(error).__name__) from None

    def close(self) -> None:
        """Give the connection up, unless the answer was read to its end."""
        self._response.close()

    def decoded(self, raw: bytes, most: int) -> bytes:
        """The answer's bytes as they were before they were encoded. Raises ValueError, also where that is over `most`."""
        encoding = self._response.headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            return raw
        if encoding not in DECODED:
            raise ValueError("an encoding that is not read here")
        try:
            unpacked = zlib.decompressobj(zlib.MAX_WBITS | 32)
            text = unpacked.decompress(raw, most)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        if not unpacked.eof or unpacked.unused_data:
            raise ValueError("more than is read here")
        return text


class Upstream:
    """A client of one address."""

    def __init__(self, address: str, timeout_s: float = 600.0, secret: str | None = None):
        """address: what stands before /v1. timeout_s: the longest silence of the API. secret: the gateway's own token; a
        header that holds it does not go on."""
        self._secret = None if secret is None else secret.encode()
        self.address, self._proxy = address, proxy_of(URL(address))
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, method: str, path: str, headers: Headers, body: bytes,
                  encodings: Sequence[str] | None = None) -> Reply:
        """Pass a request on. path: with its query. encodings: of the answer, where not all that the caller takes will do.

        Raises Unreachable.
        """
        sent = [(name, value) for name, value in passed_on(headers, also={b"host", b"content-length", b"expect"})
                if self._secret is None or self._secret not in value]
        if encodings is not None:
            sent = [(name, _only(value, encodings) if name.lower() == b"accept-encoding" else value) for name, value in sent]
        named = CIMultiDict((name.decode("latin-1"), value.decode(errors="surrogateescape")) for name, value in sent)
        try:
            return Reply(await self._client().request(
                method, URL(self.address + path, encoded=True), headers=named, data=body or None, allow_redirects=False))
        except TimeoutError as error:
            raise Unreachable(f"the API does not answer ({type(error).__name__})", 504) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unreachable(f"the API cannot be reached ({type(error).__name__})", 502) from None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        """Made within the event loop that it belongs to; no cookie of one caller's is sent for another."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=self._timeout, auto_decompress=False, proxy=self._proxy,
                skip_auto_headers=ADDED, max_line_size=LONGEST_HEADER, max_field_size=LONGEST_HEADER,
                cookie_jar=aiohttp.DummyCookieJar(loop=asyncio.get_running_loop()))
        return self._session


def address_of(name: str) -> str:
    """What stands before /v1: of an API by name, or of a URL. Raises UserError where it is neither."""
    if name in ADDRESSES:
        return ADDRESSES[name]
    if fault := faults_of_url(name):
        shown = re.sub(r"//.*@", "//...@", name.partition("?")[0])[:100]
        raise UserError(f"--upstream {shown}: neither {' nor '.join(ADDRESSES)}, and no address: {fault}")
    return re.sub(r"(/v1(/messages|/chat/completions)?)?/*$", "", name.strip())


def proxy_of(address: URL) -> str | None:
    """What HTTPS_PROXY or HTTP_PROXY name for an address; None where there is no proxy, or NO_PROXY has the address."""
    return None if proxy_bypass(address.host or "") else getproxies().get(address.scheme)


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
