"""What stands around the gateway's core: what watches it, what it shows and counts of that, and how it is told to reload."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Gauge

from adapter.confidence import Calibration
from adapter.corrector import Corrector
from adapter.serve import guardrail, page_router
from adapter.serve.capture import Capture
from adapter.serve.drift import NAMES, Drift, reference
from adapter.serve.engine import Engine
from adapter.serve.exchange import Exchange
from adapter.serve.gate import EngineDown, told_of
from adapter.serve.page import About, check_token
from adapter.serve.recent import Recent
from adapter.serve.redaction import load_redaction
from adapter.serve.truths import Truths
from adapter.serve.watch import Watch
from grpo.guards.parity import SyncError
from grpo.run.files import brief
from grpo.types import UserError

LOG = logging.getLogger(__name__)
TOKEN = "CORRECTOR_TOKEN"  # environment variable: who has it sees the page, and may reload


class Service:
    """The observers, routes and gauges of one gateway."""

    def __init__(self, run: Path, host: str, capture: Path | None, capture_bytes: int, redact: str | None,
                 truths: Path | None, corrector: Corrector):
        """Raises UserError where a file or folder is not what it should be, or others could read the page."""
        self.token = os.environ.get(TOKEN) or None
        page_router.check_open(host, self.token)
        self._truths = None if truths is None else Truths(truths, corrector)
        self._run, self._drift = run, Drift(reference(run))
        self._capture = None if capture is None else Capture(
            capture, capture_bytes, None if redact is None else load_redaction(redact))
        self._recent = Recent()
        self._watch = Watch(self._recent, self._truths, self._drift)

    @property
    def observers(self) -> list[Callable[[Exchange], None]]:
        """Who is told of each exchange."""
        return [self._watch, *([] if self._capture is None else [self._capture])]

    def routers(self, engine: Engine, about: Callable[[Sequence[str], int], About],
                decide: Callable[[str, str], Awaitable[str | None]], longest_body: int) -> list[APIRouter]:
        """The page, LiteLLM's guardrail, POST /v1/reload. about: what runs, given notes and how many truths are known.
        longest_body: bytes."""
        def told() -> About:
            notes = [*self._watch.notes, *([] if self._capture is None else self._capture.notes)]
            return about(notes, 0 if self._truths is None else len(self._truths))

        return [page_router.make_router(self._recent, told, self.token),
                guardrail.make_router(decide, self.token, longest_body=longest_body),
                reload_router(lambda: self.reload(engine), self.token)]

    async def reload(self, engine: Engine) -> tuple[int, dict[str, object]]:
        """Serve the LoRA that the run keeps by now, and say so. An HTTP status; the step that is served and the one before,
        temperature and threshold of its confidence, and why it is no other."""
        before, status, fault = engine.step, 200, None
        try:
            known = await asyncio.to_thread(reference, self._run)
            await engine.reload()
            self._drift.compare_with(known)
            engine.refused = ""
        except UserError as error:
            status, fault = 409, brief(error, 400)
            engine.refused = fault
        except EngineDown:
            status, fault = 503, "the adapter's engine is down; it is started again"
        except SyncError as error:
            status, fault = 500, f"{brief(error, 300)}; the engine is started again"
        LOG.warning("reload: %sthe LoRA of step %d is served, %s", f"refused: {fault}; " if fault else "", engine.step,
                    _in_words(engine.calibration))
        told = {"step": engine.step, "before": before, **told_of(engine.calibration)}
        return status, told | ({"error": fault} if fault else {})

    def count(self, registry: CollectorRegistry) -> None:
        """Add what is watched to the metrics."""
        for name in NAMES:  # a reload may bring the first reference
            ringing = Gauge(f"corrector_drift_{name}_alarm", "1 while it has left the reference.", registry=registry)
            ringing.set_function(lambda name=name: self._drift.rings.get(name, False))
            now = Gauge(f"corrector_drift_{name}", "Of the last exchanges; NaN until there are enough, and where it is not "
                        "watched.", registry=registry)
            now.set_function(lambda name=name: self._drift.values().get(name, (float("nan"),))[0])
        for name, judged in (("fixes", "fix"), ("harms", "harm")):
            Gauge(f"corrector_{name}", "Of the API's answers, where the truth is known.", registry=registry).set_function(
                lambda judged=judged: self._recent.totals.judged.get(judged, 0))
        if self._capture is not None:
            for name in ("written", "lost", "failed", "dropped"):
                Gauge(f"corrector_captured_{name}", "Exchanges.", registry=registry).set_function(
                    lambda name=name: getattr(self._capture, name))

    async def close(self) -> None:
        """Look at, and write down, what waits."""
        for observer in self.observers:
            await asyncio.to_thread(observer.close)


def reload_router(reload: Callable[[], Awaitable[tuple[int, dict[str, object]]]], token: str | None) -> APIRouter:
    """POST /v1/reload: serve the LoRA that the run keeps by now. For who has the token; without one, for this machine."""
    router = APIRouter()

    @router.post("/v1/reload")
    async def asked(request: Request) -> JSONResponse:
        local = page_router.is_loopback(request.headers.get("host", "")) and "origin" not in request.headers
        if not check_token(request.headers, {}, token) or (token is None and not local):
            return JSONResponse({"error": f"send Authorization: Bearer and the token that {TOKEN} holds"}, 401)
        status, told = await reload()
        return JSONResponse(told, status)

    return router


def _in_words(calibration: Calibration | None) -> str:
    if calibration is None:
        return "its confidence is not calibrated"
    least = "no threshold" if calibration.threshold is None else f"threshold {calibration.threshold:g}"
    return f"temperature {calibration.temperature:g}, {least}"
