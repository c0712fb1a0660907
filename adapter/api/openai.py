"""Any server that speaks OpenAI's protocol in front of the adapter: OpenAI's own, vLLM's, a proxy's; through `openai`.

    task.api_url, or else OPENAI_BASE_URL    the server; OpenAI's own without either
    OPENAI_API_KEY                           needed for OpenAI's own; a server of yours may need none

A config may be a stranger's: the key is sent to OpenAI, to the address in OPENAI_BASE_URL and to this machine, and to no
address that a config alone names.

The longest answer is sent as max_completion_tokens: OpenAI's own models refuse max_tokens, and vLLM takes both.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from adapter.api.answers import Request
from adapter.api.collect import QUESTION, CollectingUpstream, split
from adapter.api.connection import faults_of_address, faults_of_key, from_environment, http_client
from adapter.api.replies import Reply, of_chat
from grpo.run.files import brief

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OWN = "https://api.openai.com/v1"
NO_KEY = "none"  # what a server is sent that needs no key: the SDK insists on one
_HERE = ("localhost", "127.0.0.1", "::1")
_ARGUMENTS = ("model", "messages")  # of the SDK's function


@dataclass(frozen=True)
class OpenAIUpstream(CollectingUpstream):
    """Upstream of upstream.py."""

    url: str | None = None  # None: the environment's, else OpenAI's own

    def request(self, question: str) -> Request:
        """See CollectingUpstream."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return {"model": self.model, "max_completion_tokens": self.max_tokens, **self.parameters,
                "messages": [*system, {"role": "user", "content": self.prompt.replace(QUESTION, question)}]}

    def missing(self) -> list[str]:
        """See CollectingUpstream."""
        named, secret = from_environment("OPENAI_BASE_URL"), from_environment("OPENAI_API_KEY")
        if self.url is not None and (fault := faults_of_url(self.url)):
            return [f"a server's address (task.api_url: {fault})"]
        faults = faults_of_address(named, "OPENAI_BASE_URL") + faults_of_key(secret, "OPENAI_API_KEY")
        if not secret and self._address == OWN:
            faults.append("an API key (OPENAI_API_KEY); a server of your own that needs none is named by task.api_url or "
                          "OPENAI_BASE_URL")
        trusted = self._address in (OWN, base_of(named)) or urlsplit(self._address).hostname in _HERE
        if secret not in ("", NO_KEY) and not trusted:
            faults.append(f"OPENAI_BASE_URL={brief(self._address)} (OPENAI_API_KEY is sent to no address that a config "
                          f"alone names; for a server that needs no key, set OPENAI_API_KEY={NO_KEY})")
        return faults

    @property
    def _address(self) -> str:
        return base_of(self.url or from_environment("OPENAI_BASE_URL")) or OWN

    async def _reply(self, client: "AsyncOpenAI", request: Request) -> Reply:
        return of_chat(await client.chat.completions.create(**split(request, _ARGUMENTS)))

    def _client(self) -> "AsyncOpenAI":
        import openai

        return openai.AsyncOpenAI(
            api_key=from_environment("OPENAI_API_KEY") or NO_KEY, base_url=self._address, timeout=self.timeout_s,
            max_retries=5, http_client=http_client(openai.DefaultAsyncHttpxClient, self.model))


def base_of(address: str) -> str:
    """A server's address as OpenAI's package takes it, which adds /chat/completions: one without a path gets /v1."""
    address = re.sub(r"(/chat/completions)?/*$", "", address.strip())
    return f"{address}/v1" if re.fullmatch(r"https?://[^/]+", address) else address


def faults_of_url(url: str) -> str:
    """What is wrong with a server's address in a config, in words, or ""."""
    if not re.fullmatch(r"https?://[^/\s][!-~]*", url.strip()):
        return "expected an address with a protocol, in ASCII, such as http://127.0.0.1:8000"
    try:
        parts = urlsplit(url.strip())
        _ = parts.port  # ValueError where it is none
    except ValueError as error:
        return f"{error}; expected an address such as http://127.0.0.1:8000"
    if parts.username is not None or parts.query or parts.fragment:
        return "expected a plain address: a key belongs in OPENAI_API_KEY, where no file of a run shows it"
    return ""
