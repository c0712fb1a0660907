"""Claude in front of the adapter, through the `anthropic` package: the API directly, or Google's Vertex AI.

    anthropic   ANTHROPIC_API_KEY, or else ANTHROPIC_AUTH_TOKEN; ANTHROPIC_BASE_URL for another address
    vertex      GOOGLE_CLOUD_PROJECT, GOOGLE_CLOUD_REGION, and Google's own login
"""

import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapter.api import message_batches
from adapter.api.answers import Request
from adapter.api.collect import QUESTION, CollectingUpstream, split
from adapter.api.connection import faults_of_address, faults_of_key, from_environment, http_client
from adapter.api.faults import google_errors
from adapter.api.replies import Reply, of_messages
from grpo.types import UserError

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic, AsyncAnthropicVertex

_ARGUMENTS = ("model", "max_tokens", "messages")  # of the SDK's function


@dataclass(frozen=True)
class ClaudeUpstream(CollectingUpstream):
    """Upstream of upstream.py. `provider` is anthropic or vertex."""

    batch: bool = False  # through the Message Batches API
    poll_s: float = 30.0  # between two looks at a batch

    def request(self, question: str) -> Request:
        """See CollectingUpstream."""
        system = {} if self.system is None else {"system": self.system}
        return {"model": self.model, "max_tokens": self.max_tokens, **system,
                "messages": [{"role": "user", "content": self.prompt.replace(QUESTION, question)}], **self.parameters}

    def missing(self) -> list[str]:
        """See CollectingUpstream."""
        return missing(self.provider)

    def _collect(self, requests: dict[str, Request]) -> None:
        waiting = message_batches.unfinished(self.store)
        if waiting and (self.batch or waiting & self._unasked(requests).keys()):  # paid for already
            self._run(lambda client: message_batches.finish(client, self._answers, self.poll_s, self.quiet))
        super()._collect(requests)

    async def _ask(self, client: "AsyncAnthropic", requests: dict[str, Request]) -> Counter[str]:
        if self.batch:
            return await message_batches.ask(client, self._answers, requests, self.poll_s, self.quiet)
        return await super()._ask(client, requests)

    async def _reply(self, client: "AsyncAnthropic", request: Request) -> Reply:
        return of_messages(await client.messages.create(**split(request, _ARGUMENTS)))

    def _client(self) -> "AsyncAnthropic | AsyncAnthropicVertex":
        import anthropic

        common = {"timeout": self.timeout_s, "max_retries": 5,
                  "http_client": http_client(anthropic.DefaultAsyncHttpxClient, self.model)}
        if self.provider == "anthropic":
            return anthropic.AsyncAnthropic(**_credential(), **common,
                                            base_url=root_of(from_environment("ANTHROPIC_BASE_URL")) or None)
        import google.auth

        try:
            credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        except (*google_errors(), OSError):
            raise UserError(f"{self.model}: no Google login was found; run `gcloud auth application-default login`, "
                            "or name a key file in GOOGLE_APPLICATION_CREDENTIALS") from None
        return anthropic.AsyncAnthropicVertex(
            project_id=os.environ["GOOGLE_CLOUD_PROJECT"], region=os.environ["GOOGLE_CLOUD_REGION"],
            credentials=credentials, **common)


def missing(provider: str) -> list[str]:
    """What this machine lacks to ask, in words."""
    if provider == "anthropic":
        secret = "".join(_credential().values())
        lacking = [] if secret else ["an API key (ANTHROPIC_API_KEY), or a token (ANTHROPIC_AUTH_TOKEN)"]
        return [*lacking, *faults_of_key(secret, "ANTHROPIC_API_KEY or ANTHROPIC_AUTH_TOKEN"),
                *faults_of_address(os.environ.get("ANTHROPIC_BASE_URL"), "ANTHROPIC_BASE_URL")]
    lacking = [f"{what} ({name})" for name, what in (("GOOGLE_CLOUD_PROJECT", "a Google Cloud project"),
                                                     ("GOOGLE_CLOUD_REGION", "its region")) if not os.environ.get(name)]
    if not google_errors():
        lacking.append("the package google-auth (pip install -r requirements/vertex.txt)")
    return lacking


def _credential() -> dict[str, str]:
    """The key, else the token, that the environment has, as the SDK takes it. Empty where there is none."""
    names = {"api_key": "ANTHROPIC_API_KEY", "auth_token": "ANTHROPIC_AUTH_TOKEN"}
    found = {argument: value for argument, name in names.items() if (value := from_environment(name))}
    return dict([*found.items()][:1])


def root_of(address: str) -> str:
    """A server's address as Anthropic's package takes it, which adds /v1/messages: other clients want a part of that."""
    return re.sub(r"(/v1(/messages)?)?/*$", "", address.strip())
