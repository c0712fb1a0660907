"""What every API's client needs of this machine: an address, a key that can be sent, a connection that waits no hours."""

import os
import re
from typing import TYPE_CHECKING, TypeVar

from adapter.api.faults import in_words
from grpo.run.files import brief
from grpo.types import UserError

if TYPE_CHECKING:
    import httpx2

LONGEST_WAIT_S = 60.0  # what a retry-after header may ask for
Client = TypeVar("Client")


def http_client(kind: type[Client], label: str) -> Client:
    """An SDK's own HTTP client, with the environment's proxies and certificates. Raises UserError where those are at
    fault."""
    import httpx2

    try:
        return kind(event_hooks={"response": [_cap_wait]})
    except (ImportError, OSError, ValueError, httpx2.InvalidURL) as error:
        raise UserError(f"{label}: no connection with the environment's proxies and certificates ({in_words(error)}); mend "
                        "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE or SSL_CERT_DIR") from None


def from_environment(name: str) -> str:
    """A variable's value, without spaces and line ends around it; "" where there is none."""
    return os.environ.get(name, "").strip()


def faults_of_key(secret: str, names: str) -> list[str]:
    """What keeps a key from being sent, in words that do not show it."""
    if re.fullmatch(r"[!-~]*", secret):
        return []
    return [f"an API key that can be sent ({names} holds a space, line end or character that is not ASCII: copy it anew)"]


def faults_of_address(address: str | None, name: str) -> list[str]:
    """What is wrong with a server's address, in words; None and "" are none. `name`: where it comes from."""
    if not address or re.match(r"https?://[^/]", address.strip()):
        return []
    return [f"an address with a protocol ({name} = {brief(address)}: expected https://HOST)"]


async def _cap_wait(response: "httpx2.Response") -> None:
    """Lower a server's retry-after to LONGEST_WAIT_S; one that is no number of seconds is left to the SDK's own schedule."""
    for header, most in (("retry-after", LONGEST_WAIT_S), ("retry-after-ms", 1000 * LONGEST_WAIT_S)):
        if header in response.headers:
            try:
                response.headers[header] = str(min(float(response.headers[header]), most))
            except ValueError:
                del response.headers[header]
