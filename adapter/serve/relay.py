"""A request's way: to the API, past the gate, and back to the caller.

    passed      as it came, each byte when it comes: not of the adapter's kind, not in the canary's share
    shadow      the same, and the adapter is asked once the caller has its answer
    on, canary  the API's answer is awaited whole, the adapter is asked, and the caller gets the API's bytes or others

What the headers of a response say is known before its first byte. Where that takes longer than PATIENCE_S, an event stream
begins without it, as action "pending", with a comment every PATIENCE_S, so that the caller does not give up; a last comment
holds what the headers would have said.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace

from adapter.questions import ApiAnswer
from adapter.serve.exchange import Exchange
from adapter.serve.gate import Gate, Judged
from adapter.serve.protocol import PING, Asked, Spoken, Unreadable, as_event, json_object
from adapter.serve.record import LONGEST_ANSWER, Outcome, Record, guarded, unfit, whole
from adapter.serve.response import Answer
from adapter.serve.upstream import DECODED, CutShort, Headers, Unreachable, Upstream

LOG = logging.getLogger(__name__)
PATIENCE_S = 15.0
OF_THE_BODY = {b"content-length", b"content-encoding", b"content-md5", b"digest", b"etag"}  # say nothing of another one
SHADOW = Judged("kept", "shadow")


class Relay:
    """The way, for one gate and one API. `drain` before the engine is stopped."""

    def __init__(self, gate: Gate, upstream: Upstream, system: str | None = None,
                 observers: Sequence[Callable[[Exchange], None]] = (), failed: Callable[[], None] = lambda: None):
        """system: the system prompt that a request may have. failed: is called where an observer raises."""
        self.gate, self._upstream, self._system = gate, upstream, system
        self._observers, self._failed, self._tasks = observers, failed, set()
        self.in_flight = 0

    async def chat(self, spoken: Spoken, path: str, headers: Headers, body: bytes) -> Answer:
        """Answer a request of a protocol. path: with its query."""
        asked = spoken.read(body, self._system)
        row, why = (None, asked.why) if asked.text is None else self.gate.row(asked.text)
        if row is not None and not self.gate.chosen(row):
            why = "canary"
        record = Record(spoken, asked, row, Judged("passed", why))
        self.in_flight += 1
        if why or self.gate.rules.mode == "shadow":
            return await self._at_once(record, "POST", path, headers, body)
        work = self._spawn(self._corrected(record, path, headers, body))
        await asyncio.wait({work}, timeout=PATIENCE_S if asked.stream else None)
        if work.done():
            return self._response(self._outcome(work, record), record)
        told = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        return self._response(Outcome(200, told + record.headers("pending"), self._patient(work, record)), record)

    async def other(self, spoken: Spoken, method: str, path: str, headers: Headers, body: bytes) -> Answer:
        """Pass on what is no chat."""
        self.in_flight += 1
        record = Record(spoken, Asked(None), None, Judged("passed", "other path"))
        return await self._at_once(record, method, path, headers, body)

    def refuse(self, spoken: Spoken, status: int, message: str) -> Answer:
        """Answer a request that is not read."""
        record = Record(spoken, Asked(None), None, Judged("passed", "refused"))
        self.in_flight += 1
        return self._response(_error(record, status, message), record)

    async def guard(self, question: str, api_text: str) -> str | None:
        """What a guardrail makes of an answer that somebody else has fetched: the text in its place; None: it stands."""
        work = self._spawn(self._guarded(question, api_text))
        if self.gate.rules.mode == "shadow":
            return None
        await asyncio.wait({work})
        return None if work.exception() else work.result()

    async def _guarded(self, question: str, api_text: str) -> str | None:
        gate, at, start = self.gate, time.time(), time.perf_counter()
        row, why = gate.row(question)
        if row is not None:
            row = replace(row, api=ApiAnswer(api_text, "guardrail"))
            why = unfit(api_text, gate) or ("" if gate.chosen(row) else "canary")
            row = None if why and why != "canary" else row
        judged = Judged("passed", why) if why else await gate.judge(row)
        self._tell(guarded(at, time.perf_counter() - start, row, api_text, judged, gate))
        return judged.final if judged.action == "corrected" else None

    async def drain(self) -> None:
        """Wait for what goes on after the last response."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _at_once(self, record: Record, *request: object) -> Answer:
        work = self._spawn(self._passed(record, *request))
        await asyncio.wait({work})
        return self._response(self._outcome(work, record), record)

    async def _passed(self, record: Record, method: str, path: str, headers: Headers, body: bytes) -> Outcome:
        """As it comes; the answer to a question is kept beside, to be read afterwards."""
        known = record.row is not None
        try:
            reply = await self._upstream.ask(method, path, headers, body, DECODED if known else None)
        except Unreachable as error:
            record.judged = Judged("passed", "API unreachable")
            return _error(record, error.status, str(error))
        record.reply = reply
        if known and reply.status != 200:
            record.judged = Judged("passed", "API error")
        elif not record.judged.why:
            record.judged = SHADOW

        async def chunks() -> AsyncIterator[bytes]:
            async with aclosing(reply.chunks()) as arriving:
                async for chunk in arriving:
                    if known and len(record.raw) <= LONGEST_ANSWER:
                        record.raw += chunk
                    yield chunk

        return Outcome(reply.status, reply.headers + record.headers(), chunks())

    async def _corrected(self, record: Record, path: str, headers: Headers, body: bytes) -> Outcome:
        """The API's whole answer, or a corrected one. Where anything of ours fails, the API's."""
        try:
            reply = await self._upstream.ask("POST", path, headers, body, ("identity",) if record.asked.stream else DECODED)
        except Unreachable as error:
            record.judged = Judged("passed", "API unreachable")
            return _error(record, error.status, str(error))
        record.reply, chunks, cut = reply, reply.chunks(), False
        try:
            async for chunk in chunks:
                record.raw += chunk
                if len(record.raw) > LONGEST_ANSWER:
                    break
        except CutShort:
            cut = True
        record.api_seconds = time.perf_counter() - record.start
        task = self._spawn(self._considered(record, cut))
        await asyncio.wait({task})
        if error := task.exception():
            LOG.error("an answer could not be considered: %s", type(error).__name__)
        if record.judged.failed and not self.gate.rules.fail_open:
            return _error(record, 503, f"the corrector does not answer ({record.judged.why})")
        if not error and (corrected := task.result()) is not None:
            kept = [(name, value) for name, value in reply.headers if name.lower() not in OF_THE_BODY]
            return whole(reply.status, kept + record.headers(), corrected)

        async def as_it_came() -> AsyncIterator[bytes]:
            yield bytes(record.raw)
            if cut:
                raise CutShort
            async for chunk in chunks:
                yield chunk

        return Outcome(reply.status, reply.headers + record.headers(), as_it_came())

    async def _considered(self, record: Record, cut: bool = False) -> bytes | None:
        """Read the API's answer and ask the adapter. The corrected answer; None where the API's stands."""
        record.judged = Judged("kept", "error")  # unless this comes to its end
        record.read(self.gate, cut)
        if record.said is None:
            return None
        judged = await self.gate.judge(record.answered())
        if judged.why == "error":
            LOG.error("the adapter failed: %s: %.200s", type(judged.fault).__name__, " ".join(str(judged.fault).split()))
        corrected = record.spoken.corrected(record.said, judged.final) if judged.action == "corrected" else None
        record.judged = judged
        return corrected

    def _outcome(self, work: asyncio.Task, record: Record) -> Outcome:
        """What a task found; an error of the protocol's form where it failed for a reason that nobody thought of."""
        if error := work.exception():
            LOG.error("the gateway failed: %s", type(error).__name__)
            record.judged = Judged("passed", "error")
            return _error(record, 500, "the gateway failed")
        return work.result()

    async def _patient(self, work: asyncio.Task, record: Record) -> AsyncIterator[bytes]:
        """An event stream that began before its content was known: comments, then the content, or an error's event."""
        try:
            while not work.done():
                yield PING
                await asyncio.wait({work}, timeout=PATIENCE_S)
        finally:
            if not work.done():
                work.cancel()
                record.judged = Judged("passed", "caller left")
        outcome = self._outcome(work, record)
        said = " ".join(f"{name.decode()}: {value.decode()};" for name, value in record.headers())
        yield f": {said}\n\n".encode()
        fault = outcome.status != 200 or (record.reply is not None and not record.reply.streams)
        async with aclosing(outcome.chunks) as chunks:
            if fault:
                body = b"".join([chunk async for chunk in chunks])
                try:
                    event = json_object(body if outcome.status != 200 else b"", "no JSON")
                except Unreadable:  # of a load balancer, say
                    told = "no event stream" if outcome.status == 200 else f"status {outcome.status}"
                    event = json_object(record.spoken.error(502, f"the API answered with {told}"), "")
                yield as_event(event, "error" if record.spoken.name == "anthropic" else "")
            else:
                async for chunk in chunks:
                    yield chunk

    def _response(self, outcome: Outcome, record: Record) -> Answer:
        async def ended() -> None:
            record.seconds = time.perf_counter() - record.start
            record.api_seconds = record.api_seconds or (record.seconds if record.reply else None)
            self.in_flight -= 1
            self._spawn(self._afterwards(record)).add_done_callback(self._count)

        record.status = outcome.status
        return Answer(outcome.status, outcome.headers, outcome.chunks, ended)

    async def _afterwards(self, record: Record) -> None:
        """Ask the adapter in shadow mode; then tell the observers, each in a task of its own: one that fails is counted."""
        if record.reply is not None:
            record.reply.close()
        if record.judged is SHADOW:
            await asyncio.wait({self._spawn(self._considered(record))})
        elif record.row is not None and record.judged.why == "canary":
            kept = record.judged
            record.read(self.gate)
            record.judged = kept
        self._tell(record.exchange(self.gate.corrector, self.gate.rules.mode))

    def _tell(self, exchange: Exchange) -> None:
        for observer in self._observers:
            self._spawn(_tell(observer, exchange)).add_done_callback(self._count)

    def _spawn(self, work: Coroutine) -> asyncio.Task:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _count(self, task: asyncio.Task) -> None:
        if not task.cancelled() and (error := task.exception()):
            LOG.error("what watches the gateway failed: %s", type(error).__name__)
            self._failed()


async def _tell(observer: Callable[[Exchange], None], exchange: Exchange) -> None:
    observer(exchange)


def _error(record: Record, status: int, message: str) -> Outcome:
    return whole(status, [(b"content-type", b"application/json"), *record.headers()], record.spoken.error(status, message))
