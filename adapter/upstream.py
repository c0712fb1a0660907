"""The API in front of the adapter: Claude, or a simulation of it for machines without a key.

Both take questions and give answers as text: an integer, or "none". The simulation behaves as the source experiment
saw Claude Haiku behave, and is always labelled as simulated.
"""

import asyncio
import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from adapter.parse import parse_number
from grpo.types import UserError
from symbols.expression import Expression, evaluate

NONE = "none"  # what the prompt shows where the API gave no answer


@dataclass(frozen=True)
class Question:
    """An expression, as text and as what it means, and whether it is written in custom symbols."""

    text: str
    expression: Expression
    custom: bool


class Upstream(Protocol):
    """An API that evaluates expressions."""

    label: str  # as printed

    def answers(self, questions: Sequence[Question]) -> list[str]:
        """One answer a question, in order. Raises UserError where the API cannot be asked."""


class SimulatedUpstream:
    """Never right on custom symbols, right on 75.5 % of standard expressions; wrong in the ways Haiku is.

    The answer to a question depends on the seed and the question alone.
    """

    label = "simulated API"
    standard_accuracy = 0.755

    def __init__(self, seed: int):
        self._seed = seed

    def answers(self, questions: Sequence[Question]) -> list[str]:
        """See Upstream."""
        return [self._answer(q.expression, q.custom) for q in questions]

    def _answer(self, expression: Expression, custom: bool) -> str:
        rng = random.Random(f"{self._seed}/{custom}/{expression}")
        truth = evaluate(expression)
        if not custom and rng.random() < self.standard_accuracy:
            return str(truth)
        wrong = [NONE, str(expression.operands[0])]
        if not custom:
            wrong.append(str(near_miss(rng, truth)))
        return rng.choice([answer for answer in wrong if answer != str(truth)])


def near_miss(rng: random.Random, truth: Fraction) -> Fraction:
    """A slip of the kind long arithmetic invites: one unit, two, ten or a hundred off."""
    return truth + rng.choice((-1, 1)) * rng.choice((1, 2, 10, 100))


class ClaudeUpstream:
    """Claude through the Anthropic API (ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL), asked once for each question.

    Every answer is appended to a JSONL file as it arrives, under the SHA-256 of what was asked: a run that was killed,
    or asks for more, pays only for what is missing. Retries are the SDK's.
    """

    instruction = ("Evaluate the expression. Multiplication and division come before addition and subtraction. "
                   "Reply with the number alone, or with none if you cannot tell.\n\n")

    def __init__(self, model: str, store: Path, concurrency: int):
        self.label, self._model, self._store, self._concurrency = model, model, store, concurrency

    @staticmethod
    def missing() -> list[str]:
        """What the environment lacks for it, in words."""
        return [] if os.environ.get("ANTHROPIC_API_KEY") else ["an API key (ANTHROPIC_API_KEY)"]

    def answers(self, questions: Sequence[Question]) -> list[str]:
        """See Upstream."""
        requests = {self._key(request): request for request in map(self._request, questions)}
        stored = self._read()
        if unasked := [key for key in requests if key not in stored]:
            self._make_store()
            asyncio.run(self._ask({key: requests[key] for key in unasked}))
            stored = self._read()
        return [self._plain(stored[self._key(self._request(question))]["text"]) for question in questions]

    def _request(self, question: Question) -> dict[str, object]:
        return {"model": self._model, "max_tokens": 64,
                "messages": [{"role": "user", "content": self.instruction + question.text}]}

    @staticmethod
    def _key(request: dict[str, object]) -> str:
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

    @staticmethod
    def _plain(text: str) -> str:
        value = parse_number(text)
        return NONE if value is None else str(value)

    def _make_store(self) -> None:
        try:
            self._store.parent.mkdir(parents=True, exist_ok=True)
            self._store.touch()
        except OSError as error:
            raise UserError(f"task.api_answers = {self._store}: cannot be written ({error.strerror}); "
                            "choose another file") from None

    def _read(self) -> dict[str, dict]:
        """The stored rows by key. A last line that a kill cut short is dropped, from the file too."""
        if not self._store.exists():
            return {}
        data = self._store.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            self._store.write_bytes(whole)
        rows = {}
        for number, line in enumerate(whole.decode().splitlines(), 1):
            try:
                row = json.loads(line)
                rows[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{self._store}: line {number} is no answer; delete that line, "
                                "and it is asked again") from None
        return rows

    async def _ask(self, requests: dict[str, dict]) -> None:
        import anthropic
        from tqdm import tqdm

        slots = asyncio.Semaphore(self._concurrency)
        with self._store.open("a") as file, tqdm(total=len(requests), desc=f"asking {self._model}", unit="answer") as bar:
            async with anthropic.AsyncAnthropic(timeout=60) as client:

                async def ask(key: str, request: dict) -> None:
                    async with slots:
                        reply = await client.messages.create(**request)
                    text = "".join(block.text for block in reply.content if block.type == "text")
                    row = {"key": key, "request": request, "text": text, "stop_reason": reply.stop_reason,
                           "usage": reply.usage.model_dump(include={"input_tokens", "output_tokens"})}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    file.flush()
                    bar.update()

                fault = ""
                try:
                    async with asyncio.TaskGroup() as group:
                        for key, request in requests.items():
                            group.create_task(ask(key, request))
                except* anthropic.AnthropicError as errors:  # raising in here would wrap the error in another group
                    first = errors.exceptions[0]
                    fault = f"{type(first).__name__} {getattr(first, 'status_code', '')}".strip()
                if fault:
                    raise UserError(f"{self._model}: {fault} after {bar.n} of {len(requests)} answers, which are kept in "
                                    f"{self._store}; run again to ask for the rest")
