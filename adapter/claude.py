"""Claude in front of the adapter, through the `anthropic` package: the API directly, or Google's Vertex AI.

    anthropic   ANTHROPIC_API_KEY; ANTHROPIC_BASE_URL for another address
    vertex      GOOGLE_CLOUD_PROJECT, GOOGLE_CLOUD_REGION, and Google's own login

Every answer is kept (answers.py), under what was asked: a run that was killed, or asks for more, pays only for what is
missing. Retries are the SDK's; what is ours is that no server can make a retry wait longer than a minute.
"""

import asyncio
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapter import message_batches
from adapter.answers import AnswerStore, Request, key_of
from adapter.parse import parse_number
from adapter.upstream import NONE, Question, UpstreamAnswer
from grpo.types import UserError

if TYPE_CHECKING:
    import anthropic
    import httpx2

INSTRUCTION = ("Evaluate the expression. Multiplication and division come before addition and subtraction. "
               "Reply with the number alone, or with none if you cannot tell.\n\n")
PRICES = {  # US dollars for a million tokens, in and out; platform.claude.com, November 2026
    "claude-haiku-4-5": (1.0, 5.0), "claude-sonnet-5-5": (2.0, 10.0), "claude-opus-5": (5.0, 25.0),
    "claude-opus-5-5": (4.0, 20.0), "claude-fable-5-1": (10.0, 50.0)}
BATCH_DISCOUNT = 0.5
CHARACTERS_PER_TOKEN = 3  # of a prompt; English has about 4, digits and symbols fewer
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
        store = AnswerStore(self.store)
        requests = {key_of(request): request for request in map(self.request, questions)}
        stored = store.read()
        if requests.keys() - stored.keys():
            if lacking := missing(self.provider):
                raise UserError(f"{self.model}: missing here: {'; '.join(lacking)}")
            with store.appending():
                asyncio.run(self._collect(store, requests))
            stored = store.read()
        found = [stored[key_of(self.request(question))] for question in questions]
        return [UpstreamAnswer(number_in(answer.text), self.model, answer.date) for answer in found]

    def request(self, question: Question) -> Request:
        """What is sent for a question."""
        return {"model": self.model, "max_tokens": self.max_tokens,
                "messages": [{"role": "user", "content": INSTRUCTION + question.text}]}

    async def _collect(self, store: AnswerStore, requests: dict[str, Request]) -> None:
        """Ask for what the store lacks. Raises UserError where answers are missing after that."""
        import anthropic

        try:
            async with self._client() as client:
                waiting, unasked = message_batches.unfinished(self.store), missing_from(store, requests)
                if waiting & unasked.keys() or (waiting and self.batch):  # paid for already
                    await message_batches.finish(client, store, self.poll_s)
                    unasked = missing_from(store, requests)
                if not unasked:
                    return
                self._agree(len(requests), unasked)
                if self.batch:
                    failures = await message_batches.ask(client, store, unasked, self.poll_s)
                else:
                    failures = await self._ask(client, store, unasked)
        except (anthropic.AnthropicError, *_google_errors()) as error:
            failures = Counter([in_words(error)])
        if failures:
            kinds = ", ".join(f"{n} x {kind}" for kind, n in failures.most_common(3))
            left = len(missing_from(store, requests))
            raise UserError(f"{self.model}: {left} of {len(requests)} questions have no answer yet ({kinds}); what was "
                            f"answered is kept in {store.path}; run again to ask for the rest")

    def _agree(self, questions: int, unasked: dict[str, Request]) -> None:
        """Print what asking costs. Raises UserError unless the user agrees."""
        if not self.quiet:
            print(f"{self.model} ({self.provider}{', batch' if self.batch else ''}): {questions:,} questions, "
                  f"{questions - len(unasked):,} already answered in {self.store}, {len(unasked):,} to ask: "
                  f"{self._estimate(unasked)}", file=sys.stderr)
        if self.agreed:
            return
        if not sys.stdin.isatty():
            raise UserError(f"{self.model}: nothing was asked; to go on without a question at the terminal, "
                            "give --yes (in a config: task.api_yes=true)")
        print("ask? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UserError(f"{self.model}: nothing was asked")

    def _estimate(self, unasked: dict[str, Request]) -> str:
        characters = sum(len(message["content"]) for request in unasked.values() for message in request["messages"])
        tokens_in, tokens_out = characters // CHARACTERS_PER_TOKEN, self.max_tokens * len(unasked)
        tokens = f"about {tokens_in:,} tokens in, at most {tokens_out:,} out"
        price = PRICES.get(re.sub(r"[@-]20\d{6}$", "", self.model))
        if price is None:
            return f"{tokens}; the price of {self.model} is not known here"
        dollars = (tokens_in * price[0] + tokens_out * price[1]) / 1e6 * (BATCH_DISCOUNT if self.batch else 1)
        return f"{tokens}, at most about ${dollars:.2f}"

    def _client(self) -> "anthropic.AsyncAnthropic | anthropic.AsyncAnthropicVertex":
        import anthropic

        common = {"timeout": self.timeout_s, "max_retries": 5,
                  "http_client": anthropic.DefaultAsyncHttpxClient(event_hooks={"response": [_cap_wait]})}
        if self.provider == "anthropic":
            return anthropic.AsyncAnthropic(**common)
        import google.auth
        from google.auth.exceptions import GoogleAuthError

        try:
            credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        except GoogleAuthError:
            raise UserError(f"{self.model}: no Google login was found; run `gcloud auth application-default login`, "
                            "or name a key file in GOOGLE_APPLICATION_CREDENTIALS") from None
        return anthropic.AsyncAnthropicVertex(
            project_id=os.environ["GOOGLE_CLOUD_PROJECT"], region=os.environ["GOOGLE_CLOUD_REGION"],
            credentials=credentials, **common)

    async def _ask(self, client, store: AnswerStore, requests: dict[str, Request]) -> Counter[str]:
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
                    fault, hopeless = await self._ask_one(client, store, request)
                    in_a_row = in_a_row + 1 if fault else 0
                    failures.update([fault] if fault else [])
                    bar.update(not fault)
                    if hopeless or in_a_row > self.concurrency:
                        todo.close()

            await asyncio.gather(*(work() for _ in range(min(self.concurrency, len(requests)))))
        return failures

    async def _ask_one(self, client, store: AnswerStore, request: Request) -> tuple[str, bool]:
        """Ask and keep the answer. Returns what went wrong, in words ("" for nothing), and whether that is hopeless."""
        import anthropic

        try:
            reply = await client.messages.create(**request)
        except (anthropic.AnthropicError, *_google_errors(), ValueError) as error:  # ValueError: a reply that is no JSON
            fault = in_words(error)
            store.add(request, None, None, None, error=fault)
            return fault, getattr(error, "status_code", None) in HOPELESS
        return store.add_reply(request, reply), False


def missing(provider: str) -> list[str]:
    """What this machine lacks to ask, in words."""
    if provider == "anthropic":
        return [] if os.environ.get("ANTHROPIC_API_KEY") else ["an API key (ANTHROPIC_API_KEY)"]
    lacking = [f"{what} ({name})" for name, what in (("GOOGLE_CLOUD_PROJECT", "a Google Cloud project"),
                                                     ("GOOGLE_CLOUD_REGION", "its region")) if not os.environ.get(name)]
    if not _google_errors():
        lacking.append("the package google-auth (pip install -r requirements/vertex.txt)")
    return lacking


def missing_from(store: AnswerStore, requests: dict[str, Request]) -> dict[str, Request]:
    """The requests that have no answer in the store."""
    stored = store.read()
    return {key: request for key, request in requests.items() if key not in stored}


def number_in(text: str) -> str:
    """An API's answer as the prompt shows it: the number it consists of, or NONE."""
    value = parse_number(_THOUSANDS.sub("", text.strip().removesuffix(".")))
    return NONE if value is None else str(value)


def in_words(error: Exception) -> str:
    """An error in one line, without credentials: its kind, its HTTP status, and what the server said."""
    kind = " ".join(str(part) for part in (type(error).__name__, getattr(error, "status_code", None)) if part)
    body = getattr(error, "body", None)
    said = body.get("error") if isinstance(body, dict) else None
    said = said.get("message") if isinstance(said, dict) else None
    for secret in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        if said and os.environ.get(secret):
            said = said.replace(os.environ[secret], f"[{secret}]")
    return f"{kind}: {' '.join(said.split())[:200]}" if said else kind


def _google_errors() -> tuple[type[Exception], ...]:
    """What Google's login raises; empty where its package is not installed."""
    try:
        from google.auth.exceptions import GoogleAuthError
    except ImportError:
        return ()
    return (GoogleAuthError,)


async def _cap_wait(response: "httpx2.Response") -> None:
    """Lower a server's retry-after to LONGEST_WAIT_S; one that is no number of seconds is left to the SDK's own schedule."""
    for header, most in (("retry-after", LONGEST_WAIT_S), ("retry-after-ms", 1000 * LONGEST_WAIT_S)):
        if header in response.headers:
            try:
                response.headers[header] = str(min(float(response.headers[header]), most))
            except ValueError:
                del response.headers[header]
