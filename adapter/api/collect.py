"""What is the same for every API that is asked over a network: the price is said first, and nothing is asked twice.

Every answer is kept (answers.py), under what was asked: a run that was killed, or asks for more, pays only for what is
missing. Retries are the SDK's; what is ours is that no server can make a retry wait longer than a minute.
"""

import asyncio
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from adapter.api.answers import LONGEST_TEXT, AnswerStore, Request, key_of
from adapter.api.faults import api_errors, in_words
from adapter.api.prices import estimate
from adapter.api.recorded import named
from adapter.api.replies import CUT_OFF, NoReply, Reply
from adapter.questions import ApiAnswer, Row
from grpo.types import UserError

HOPELESS = (401, 403, 404)  # no other question would fare better: a wrong key, a wrong model
QUESTION = "{question}"  # where the question stands in a prompt
Work = Callable[[Any], Awaitable[Counter[str]]]  # given a client, what it counts: how often what went wrong, in words


@dataclass(frozen=True)
class CollectingUpstream(ABC):
    """Upstream of upstream.py, asked once for each question. The SDK's part is a subclass's."""

    provider: str
    model: str
    store: Path
    concurrency: int = 16
    max_tokens: int = 64
    system: str | None = None
    prompt: str = QUESTION
    parameters: Mapping[str, Any] = field(default_factory=dict)  # of the request's body, passed on as they are
    agreed: bool = False  # to what it costs
    quiet: bool = False
    timeout_s: float = 60.0  # for one attempt
    batch = False  # a subclass may ask in another way than one by one

    @abstractmethod
    def request(self, question: str) -> Request:
        """What is sent for a question: the whole body."""

    @abstractmethod
    def missing(self) -> list[str]:
        """What this machine lacks to ask, in words."""

    @abstractmethod
    def _client(self) -> Any:
        """The SDK's client, as an asynchronous context. Raises UserError."""

    @abstractmethod
    async def _reply(self, client: Any, request: Request) -> Reply:
        """What the API says. Raises NoReply, or one of `api_errors`."""

    @property
    def label(self) -> str:
        """See Upstream."""
        return self.model

    def answers(self, rows: Sequence[Row]) -> list[ApiAnswer]:
        """See Upstream. Says what it will cost, and asks whether to go on, before anything is spent."""
        for row in rows:
            if len(row.question) > LONGEST_TEXT:
                raise UserError(f"{named(row)}: has {len(row.question):,} characters, expected at most {LONGEST_TEXT:,}; "
                                "shorten it, or leave it out")
        asked = [self.request(row.question) for row in rows]
        keys = [key_of(request) for request in asked]
        requests = dict(zip(keys, asked, strict=True))
        if self._unasked(requests):
            if lacking := self.missing():
                raise UserError(f"{self.model}: missing here: {'; '.join(lacking)}")
            with self._answers.appending():
                self._collect(requests)
        stored = self._answers.read()
        return [ApiAnswer(stored[key].text, self.model, stored[key].date) for key in keys]

    @cached_property
    def _answers(self) -> AnswerStore:
        return AnswerStore(self.store)

    def _unasked(self, requests: dict[str, Request]) -> dict[str, Request]:
        stored = self._answers.read()
        return {key: request for key, request in requests.items() if key not in stored}

    def _collect(self, requests: dict[str, Request]) -> None:
        """Ask for what the store lacks. Raises UserError where answers are missing after that."""
        if not (unasked := self._unasked(requests)):
            return
        self._agree(len(requests), list(unasked.values()))
        failures = self._run(lambda client: self._ask(client, unasked))
        if left := self._unasked(requests):
            kinds = ", ".join(f"{n} x {kind}" for kind, n in failures.most_common(3))
            raise UserError(f"{self.model}: {len(left)} of {len(requests)} questions have no answer yet ({kinds}); what was "
                            f"answered is kept in {self.store}; run again to ask for the rest")
        stored = self._answers.read()
        if (cut := sum(stored[key].stop_reason in CUT_OFF for key in unasked)) and not self.quiet:
            print(f"{self.model}: {cut} of {len(unasked)} answers were cut off at {self.max_tokens} tokens; --max-tokens "
                  "(task.api_max_tokens) allows longer ones", file=sys.stderr)

    def _run(self, work: Work) -> Counter[str]:
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

    def _agree(self, questions: int, unasked: list[Request]) -> None:
        """Print what asking costs. Raises UserError unless the user agrees."""
        if self.agreed and self.quiet:
            return
        print(f"{self.model} ({self.provider}{', batch' if self.batch else ''}): {questions:,} questions, "
              f"{questions - len(unasked):,} already answered in {self.store}, {len(unasked):,} to ask: "
              f"{estimate(self.model, unasked, self.batch)}", file=sys.stderr)
        if self.agreed:
            return
        if not sys.stdin.isatty():
            raise UserError(f"{self.model}: nothing was asked; to go on without a question at the terminal, "
                            "give --yes (in a config: task.api_yes=true)")
        print("ask? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UserError(f"{self.model}: nothing was asked")

    async def _ask(self, client: Any, requests: dict[str, Request]) -> Counter[str]:
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

    async def _ask_one(self, client: Any, request: Request) -> tuple[str, bool]:
        """Ask and keep the answer. Returns what went wrong, in words ("" for nothing), and whether that is hopeless."""
        try:
            reply = await self._reply(client, request)
        except NoReply as error:
            fault, hopeless = str(error), False
        except api_errors() as error:
            fault, hopeless = in_words(error), getattr(error, "status_code", None) in HOPELESS
        else:
            self._answers.add_reply(request, reply)
            return "", False
        self._answers.add(request, None, None, None, error=fault)
        return fault, hopeless


def split(request: Request, arguments: Iterable[str]) -> dict[str, Any]:
    """A request's body as an SDK's function takes it: what is no argument that it must have goes into extra_body.

    A parameter that the SDK does not know is the server's to refuse, and no TypeError.
    """
    extra = {name: value for name, value in request.items() if name not in arguments}
    return {name: request[name] for name in arguments if name in request} | ({"extra_body": extra} if extra else {})
