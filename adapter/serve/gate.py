"""Whether a caller gets the API's answer or the adapter's: mode, canary, threshold, time limit, and what fails."""

import asyncio
import hashlib
import time
from dataclasses import dataclass, replace
from typing import Protocol

from adapter.api.collect import QUESTION
from adapter.confidence import Calibration, mean_logp
from adapter.corrector import Corrector
from adapter.questions import Row
from adapter.serve.exchange import Action, Mode
from adapter.verdict import VERDICTS, Agree, Override, Unparsed, Verdict, resolve
from grpo.types import Problem

LONGEST_TEXT = 2**17  # characters of a question, and of an answer of the API: both are read in the event loop
FAILURES = ("timeout", "full", "engine down", "too long", "error")  # why, where the adapter failed: --fail is about these


class EngineDown(Exception):
    """The engine's process is not there, or died over this request."""


class TooLong(Exception):
    """A prompt that leaves the adapter no room to answer."""


@dataclass(frozen=True)
class Written:
    """What the adapter wrote."""

    text: str
    logp: tuple[float, ...]  # of each token, nats; one at least; none where there is no calibration
    step: int  # of the LoRA that wrote it
    calibration: Calibration | None = None  # of that LoRA; its threshold is the one to go by


class Engine(Protocol):
    """What answers for the adapter: Engine of engine.py."""

    up: bool  # whether it answers
    step: int  # of the LoRA that answers
    calibration: Calibration | None  # of that LoRA; None where its confidence is not known
    markers: frozenset[str]  # what the chat template divides turns with, such as <|im_start|>
    refused: str  # why the last reload took no other LoRA; "" where it did
    swaps: int  # how often a LoRA was put in place
    starts: int  # how often it was started

    async def complete(self, problem: Problem) -> Written:
        """The most probable completion. Raises EngineDown, TooLong, or UserError where the chat template refuses it."""


def told_of(calibration: Calibration | None) -> dict[str, float | None]:
    """What is said of a calibration where the gateway tells of itself."""
    temperature, threshold = (None, None) if calibration is None else (calibration.temperature, calibration.threshold)
    return {"temperature": temperature, "threshold": threshold}


@dataclass(frozen=True)
class Rules:
    """What the operator says."""

    mode: Mode = "on"
    share: float = 1.0  # of the questions that the adapter is asked; only canary has less
    timeout_s: float = 10.0  # that the adapter may take
    most_at_once: int = 256  # questions that it is asked at once
    fail_open: bool = True


@dataclass(frozen=True)
class Judged:
    """What came of asking the adapter. The fields are Exchange's."""

    action: Action
    why: str = ""
    api_extracted: str | None = None
    completion: str | None = None
    verdict: Verdict | None = None
    confidence: float | None = None
    final: str | None = None
    step: int | None = None
    adapter_seconds: float | None = None
    fault: BaseException | None = None  # where why is "error"

    @property
    def failed(self) -> bool:
        """Whether the adapter did not answer."""
        return self.why in FAILURES


class Gate:
    """One adapter behind one API. Nothing here raises because of what a caller, the API or the adapter writes."""

    def __init__(self, corrector: Corrector, api_prompt: str, engine: Engine, rules: Rules = Rules()):
        """api_prompt: how a question is put to the API, as the run's settings have it."""
        self.corrector, self.engine, self.rules = corrector, engine, rules
        self._before, _, self._behind = api_prompt.partition(QUESTION)
        self.asking = 0  # how many questions the adapter has in hand

    def row(self, text: str) -> tuple[Row | None, str]:
        """The question that a caller's turn asks, or why it asks none of the adapter's."""
        if len(text) > LONGEST_TEXT:
            return None, "long question"
        if self.marked(text):
            return None, "control tokens"
        if not (text.startswith(self._before) and text.endswith(self._behind)):
            return None, "another prompt"
        question = text[len(self._before) : len(text) - len(self._behind)]
        if len(text) < len(self._before) + len(self._behind):
            return None, "another prompt"
        try:
            return self.corrector.read(question), ""
        except ValueError:
            return None, "no question of the task"

    def marked(self, text: str) -> bool:
        """Whether a text has a token in it that only the chat template may write: it could forge a turn."""
        return any(marker in text for marker in self.engine.markers)

    def chosen(self, row: Row) -> bool:
        """Whether the adapter is asked: by the question's hash, so that a question is always in, or always out."""
        digest = hashlib.sha256(row.question.encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.rules.share * 2**64

    async def judge(self, row: Row) -> Judged:
        """What the adapter makes of a question with the API's answer, within the time limit."""
        start, rules = time.perf_counter(), self.rules
        if self.asking >= rules.most_at_once:
            return Judged("kept", "full")
        self.asking += 1
        task = asyncio.create_task(self._judged(row))
        try:
            await asyncio.wait({task}, timeout=rules.timeout_s)
        finally:
            self.asking -= 1
            if not task.done():
                task.cancel()
        if not task.done():
            found = Judged("kept", "timeout")
        elif error := task.exception():
            why = {EngineDown: "engine down", TooLong: "too long"}.get(type(error), "error")
            found = Judged("kept", why, fault=error)
        else:
            found = task.result()
        return replace(found, adapter_seconds=time.perf_counter() - start)

    async def _judged(self, row: Row) -> Judged:
        corrector, extracted = self.corrector, self.corrector.extracted(row)
        written = await self.engine.complete(corrector.problem(row))
        answer = corrector.answer_in(written.text)
        sure, confidence = written.calibration, None  # what is not calibrated is shown to nobody here
        if sure is not None:
            confidence = sure(None if isinstance(answer, Unparsed) else mean_logp(written.logp))
        found = {"api_extracted": extracted, "completion": written.text, "verdict": VERDICTS[type(answer)],
                 "confidence": confidence, "final": extracted, "step": written.step}
        if isinstance(answer, Unparsed):
            return Judged("kept", "unparsed", **found)
        if isinstance(answer, Agree) or resolve(answer, extracted) == extracted:
            return Judged("agreed", **found)
        assert isinstance(answer, Override)
        if sure is not None and sure.threshold is not None and confidence < sure.threshold:
            return Judged("kept", "below the threshold", **found)
        if self.rules.mode == "shadow":
            return Judged("kept", "shadow", **found)
        return Judged("corrected", **found | {"final": answer.answer})
