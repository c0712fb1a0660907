"""An exchange that is not over: what is known of it so far, what its response's headers say, and what is kept of it."""

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from adapter.api.prices import dollars
from adapter.corrector import Corrector
from adapter.questions import ApiAnswer, Row
from adapter.serve.exchange import Exchange, Mode
from adapter.serve.gate import LONGEST_TEXT, Gate, Judged
from adapter.serve.protocol import Asked, Said, Spoken, Unreadable
from adapter.serve.upstream import Headers, Reply

LONGEST_ANSWER = 8 * 2**20  # bytes of an API's answer that are kept to be read; a longer one is passed on


@dataclass
class Record:
    """One request's."""

    spoken: Spoken
    asked: Asked
    row: Row | None  # the question; None where there is none for the adapter
    judged: Judged
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    at: float = field(default_factory=time.time)
    start: float = field(default_factory=time.perf_counter)
    reply: Reply | None = None
    raw: bytearray = field(default_factory=bytearray)  # the API's answer, as it came; its beginning where it is too long
    said: Said | None = None
    status: int = 200
    seconds: float = 0.0
    api_seconds: float | None = None

    def read(self, gate: Gate, cut: bool = False) -> None:
        """Read the API's answer. Where it cannot be, it is passed on, and the record says why."""
        if self.reply.status != 200 or cut or len(self.raw) > LONGEST_ANSWER:
            why = "API error" if self.reply.status != 200 else "cut short" if cut else "long answer"
        else:
            try:
                text = self.reply.decoded(bytes(self.raw), LONGEST_ANSWER)
                said = (self.spoken.streamed if self.reply.streams else self.spoken.plain)(text)
                if not (why := unfit(said.text, gate)):
                    self.said = said
                    return
            except Unreadable as error:
                why = str(error)
            except ValueError:
                why = "unreadable"
        self.judged = Judged("passed", why)

    def answered(self) -> Row:
        """The question with what the API said."""
        return replace(self.row, api=ApiAnswer(self.said.text, self.asked.model))

    def headers(self, action: str | None = None) -> Headers:
        """What a response says of it."""
        judged = self.judged
        told = {"id": self.id, "action": action or judged.action, "why": judged.why, "verdict": judged.verdict,
                "confidence": None if judged.confidence is None else f"{judged.confidence:.4f}", "step": judged.step}
        return [(f"x-corrector-{name}".encode(), str(value).encode()) for name, value in told.items() if value is not None]

    def exchange(self, corrector: Corrector, mode: Mode) -> Exchange:
        """What is known at its end."""
        judged, said = self.judged, self.said
        extracted = judged.api_extracted
        if extracted is None and said is not None:
            extracted = corrector.extracted(self.answered())
        final = extracted if judged.final is None else judged.final
        tokens = (said.input_tokens, said.output_tokens) if said else (None, None)
        return Exchange(
            self.id, self.at, self.spoken.name, self.asked.model, self.asked.stream, mode, judged.action, judged.why,
            self.status, question=self.row and self.row.question, api_text=said and said.text, api_extracted=extracted,
            completion=judged.completion, verdict=judged.verdict, confidence=judged.confidence,
            final=final if self.status == 200 else None, step=judged.step, seconds=self.seconds,
            api_seconds=self.api_seconds, adapter_seconds=judged.adapter_seconds, input_tokens=tokens[0],
            output_tokens=tokens[1], cost=dollars(self.asked.model, *tokens))


def unfit(api_text: str, gate: Gate) -> str:
    """Why an API's text is not shown to the adapter; "" where it is."""
    return "long answer" if len(api_text) > LONGEST_TEXT else "control tokens" if gate.marked(api_text) else ""


def guarded(at: float, seconds: float, row: Row | None, api_text: str, judged: Judged, gate: Gate) -> Exchange:
    """The exchange of a guardrail, which sees no request and no tokens. at: seconds since 1970, as it began."""
    extracted = None if row is None else gate.corrector.extracted(row)
    return Exchange(
        uuid.uuid4().hex, at, "guardrail", "", False, gate.rules.mode, judged.action, judged.why, 200,
        question=row and row.question, api_text=api_text, api_extracted=extracted, completion=judged.completion,
        verdict=judged.verdict, confidence=judged.confidence, final=extracted if judged.final is None else judged.final,
        step=judged.step, seconds=seconds, adapter_seconds=judged.adapter_seconds)


@dataclass
class Outcome:
    """A response, before it is one."""

    status: int
    headers: Headers
    chunks: AsyncIterator[bytes]


def whole(status: int, headers: Headers, body: bytes) -> Outcome:
    """A response whose body is known."""

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    return Outcome(status, [*headers, (b"content-length", str(len(body)).encode())], chunks())
