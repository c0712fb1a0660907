"""Claude in front of the adapter, through the `anthropic` package: the API directly, or Google's Vertex AI.

    anthropic   ANTHROPIC_API_KEY, or else ANTHROPIC_AUTH_TOKEN; ANTHROPIC_BASE_URL for another address
    vertex      GOOGLE_CLOUD_PROJECT, GOOGLE_CLOUD_REGION, and Google's own login

Every answer is kept (answers.py), under what was asked: a run that was killed, or asks for more, pays only for what is
missing. Retries are the SDK's; what is ours is that no server can make a retry wait longer than a minute.
"""

import asyncio
import os
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapter.api import message_batches
from adapter.api.answers import AnswerStore, Request, key_of
from adapter.api.faults import api_errors, google_errors, in_words
from adapter.api.prices import estimate
from adapter.parse import parse_number
from grpo.run.files import brief
from grpo.types import UserError
from symbols.simulated import NONE, Question, UpstreamAnswer

if TYPE_CHECKING:
    import anthropic
    import httpx2

INSTRUCTION = ("Evaluate the expression. Multiplication and division come before addition and subtraction. "
               "Reply with the number alone, or with none if you cannot tell.\n\n")
LONGEST_WAIT_S = 60.0  # what a retry-after header may ask for
HOPELESS = (401, 403, 404)  # no other question would fare better: a wrong key, a wrong model
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")


@dataclass(frozen=True)
class ClaudeUpstream:
    """Upstream of upstream.py, asked once for each question."""

    provider: Literal["anthropic", "vertex"]
    model: str
    store: Path
    concurrency: int = 16
    max_tokens: int = 64
    batch: bool = False
    agreed: bool = False  # to what it costs
    quiet: bool = False
    timeout_s: float = 60.0  # for one attempt
    poll_s: float = 30.0  # between two looks at a batch

    @property
    def label(self) -> str:
        """See Upstream."""
        return self.model

    def answers(self, questions: Sequence[Question]) -> list[UpstreamAnswer]:
        """See Upstream. Says what it will cost, and asks whether to go on, before anything is spent."""
        requests = {key_of(request): request for request in map(self.request, questions)}
        if self._unasked(requests):
            if lacking := missing(self.provider):
                raise UserError(f"{self.model}: missing here: {'; '.join(lacking)}")
            with self._answers.appending():
                self._collect(requests)
        stored = self._answers.read()
        found = [stored[key_of(self.request(question))] for question in questions]
        return [UpstreamAnswer(number_in(answer.text), self.model, answer.date) for answer in found]

    def request(self, question: Question) -> Request:
        """What is sent for a question."""
        return {"model": self.model, "max_tokens": self.max_tokens,
                "messages": [{"role": "user", "content": INSTRUCTION + question.text}]}

    @cached_property
    def _answers(self) -> AnswerStore:
        return AnswerStore(self.store)

    def _unasked(self, requests: dict[str, Request]) -> dict[str, Request]:
        stored = self._answers.read()
        return {key: request for key, request in requests.items() if key not in stored}

    def _collect(self, requests: dict[str, Request]) -> None:
        """Ask for what the store lacks. Raises UserError where answers are missing after that."""
        waiting = message_batches.unfinished(self.store)
        if waiting and (self.batch or waiting & self._unasked(requests).keys()):  # paid for already
            self._run(lambda client: message_batches.finish(client, self._answers, self.poll_s, self.quiet))
        if not (unasked := self._unasked(requests)):
            return
        self._agree(len(requests), unasked)
        if self.batch:
            failures = self._run(lambda client: message_batches.ask(client, self._answers, unasked, self.poll_s, self.quiet))
        else:
            failures = self._run(lambda client: self._ask(client, unasked))
        if left := self._unasked(requests):
            kinds = ", ".join(f"{n} x {kind}" for kind, n in failures.most_common(3))
            raise UserError(f"{self.model}: {len(left)} of {len(requests)} questions have no answer yet ({kinds}); what was "
                            f"answered is kept in {self.store}; run again to ask for the rest")
        stored = self._answers.read()
        if (cut := sum(stored[key].stop_reason == "max_tokens" for key in unasked)) and not self.quiet:
            print(f"{self.model}: {cut} of {len(unasked)} answers were cut off at {self.max_tokens} tokens; --max-tokens "
                  "(task.api_max_tokens) allows longer ones", file=sys.stderr)

    def _run(self, work: "Callable[[anthropic.AsyncAnthropic], Awaitable[Counter[str]]]") -> Counter[str]:
        """What `work` counts, given a client. Raises UserError for what the API or the connection raises."""

        async def with_client() -> Counter[str]:
            async with self._client() as client:
                return await work(client)

        try:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return asyncio.run(with_client())
            with ThreadPoolExecutor(1) as thread:  # called from async code, such as a notebook's
                return thread.submit(asyncio.run, with_client()).result()
        except api_errors() as error:
            raise UserError(f"{self.model}: {in_words(error)}; what was answered is kept in {self.store}; "
                            "run again to go on") from None

    def _agree(self, questions: int, unasked: dict[str, Request]) -> None:
        """Print what asking costs. Raises UserError unless the user agrees."""
        if self.agreed and self.quiet:
            return
        print(f"{self.model} ({self.provider}{', batch' if self.batch else ''}): {questions:,} questions, "
              f"{questions - len(unasked):,} already answered in {self.store}, {len(unasked):,} to ask: "
              f"{estimate(self.model, list(unasked.values()), self.batch)}", file=sys.stderr)
        if self.agreed:
            return
        if not sys.stdin.isatty():
            raise UserError(f"{self.model}: nothing was asked; to go on without a question at the terminal, "
                            "give --yes (in a config: task.api_yes=true)")
        print("ask? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UserError(f"{self.model}: nothing was asked")

    def _client(self) -> "anthropic.AsyncAnthropic | anthropic.AsyncAnthropicVertex":
        import anthropic
        import httpx2

        try:
            http_client = anthropic.DefaultAsyncHttpxClient(event_hooks={"response": [_cap_wait]})
        except (ImportError, OSError, ValueError, httpx2.InvalidURL) as error:
            raise UserError(f"{self.model}: no connection with the environment's proxies and certificates "
                            f"({in_words(error)}); mend HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE or "
                            "SSL_CERT_DIR") from None
        common = {"timeout": self.timeout_s, "max_retries": 5, "http_client": http_client}
        if self.provider == "anthropic":
            return anthropic.AsyncAnthropic(**_credential(), **common,
                                            base_url=root_of(os.environ.get("ANTHROPIC_BASE_URL", "")) or None)
        import google.auth

        try:
            credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        except (*google_errors(), OSError):
            raise UserError(f"{self.model}: no Google login was found; run `gcloud auth application-default login`, "
                            "or name a key file in GOOGLE_APPLICATION_CREDENTIALS") from None
        return anthropic.AsyncAnthropicVertex(
            project_id=os.environ["GOOGLE_CLOUD_PROJECT"], region=os.environ["GOOGLE_CLOUD_REGION"],
            credentials=credentials, **common)

    async def _ask(self, client, requests: dict[str, Request]) -> Counter[str]:
        """Ask with `concurrency` workers, keep what comes, and count what failed, in words.

        Nothing more is asked once a fault is hopeless, or follows as many others in a row as there are workers.
        """
        from tqdm import tqdm

        todo = (request for request in requests.values())  # shared: each worker takes the next
        failures, in_a_row = Counter(), 0
        with tqdm(total=len(requests), desc=f"asking {self.model}", unit="answer", disable=self.quiet) as bar:

            async def work() -> None:
                nonlocal in_a_row
                for request in todo:
                    fault, hopeless = await self._ask_one(client, request)
                    in_a_row = in_a_row + 1 if fault else 0
                    failures.update([fault] if fault else [])
                    bar.update(not fault)
                    if hopeless or in_a_row > self.concurrency:
                        todo.close()

            await asyncio.gather(*(work() for _ in range(min(self.concurrency, len(requests)))))
        return failures

    async def _ask_one(self, client, request: Request) -> tuple[str, bool]:
        """Ask and keep the answer. Returns what went wrong, in words ("" for nothing), and whether that is hopeless."""
        try:
            reply = await client.messages.create(**request)
        except api_errors() as error:
            fault = in_words(error)
            self._answers.add(request, None, None, None, error=fault)
            return fault, getattr(error, "status_code", None) in HOPELESS
        return self._answers.add_reply(request, reply), False


def missing(provider: str) -> list[str]:
    """What this machine lacks to ask, in words."""
    if provider == "anthropic":
        secret, address = "".join(_credential().values()), os.environ.get("ANTHROPIC_BASE_URL")
        lacking = [] if secret else ["an API key (ANTHROPIC_API_KEY), or a token (ANTHROPIC_AUTH_TOKEN)"]
        if not re.fullmatch(r"[!-~]*", secret):
            lacking.append("an API key that can be sent (ANTHROPIC_API_KEY or ANTHROPIC_AUTH_TOKEN holds a space, line end "
                           "or character that is not ASCII: copy it anew)")
        if address and not re.match(r"https?://[^/]", address.strip()):
            lacking.append(f"an address with a protocol (ANTHROPIC_BASE_URL = {brief(address)}: expected https://HOST)")
        return lacking
    lacking = [f"{what} ({name})" for name, what in (("GOOGLE_CLOUD_PROJECT", "a Google Cloud project"),
                                                     ("GOOGLE_CLOUD_REGION", "its region")) if not os.environ.get(name)]
    if not google_errors():
        lacking.append("the package google-auth (pip install -r requirements/vertex.txt)")
    return lacking


def _credential() -> dict[str, str]:
    """The key, else the token, that the environment has, as the SDK takes it. Empty where there is none."""
    names = {"api_key": "ANTHROPIC_API_KEY", "auth_token": "ANTHROPIC_AUTH_TOKEN"}
    found = {argument: value for argument, name in names.items() if (value := os.environ.get(name, "").strip())}
    return dict([*found.items()][:1])


def root_of(address: str) -> str:
    """A server's address as Anthropic's package takes it, which adds /v1/messages: other clients want a part of that."""
    return re.sub(r"(/v1(/messages)?)?/*$", "", address.strip())


def number_in(text: str) -> str:
    """An API's answer as the prompt shows it: the number it consists of, or NONE."""
    value = parse_number(_THOUSANDS.sub("", text.strip().removesuffix(".")))
    return NONE if value is None else str(value)


async def _cap_wait(response: "httpx2.Response") -> None:
    """Lower a server's retry-after to LONGEST_WAIT_S; one that is no number of seconds is left to the SDK's own schedule."""
    for header, most in (("retry-after", LONGEST_WAIT_S), ("retry-after-ms", 1000 * LONGEST_WAIT_S)):
        if header in response.headers:
            try:
                response.headers[header] = str(min(float(response.headers[header]), most))
            except ValueError:
                del response.headers[header]
