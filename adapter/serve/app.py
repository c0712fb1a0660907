"""The gateway's routes: two protocols' chat, all else below /v1 as it came, /healthz and /metrics."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from adapter.serve.anthropic import Anthropic
from adapter.serve.exchange import Exchange
from adapter.serve.gate import Gate, told_of
from adapter.serve.metrics import Metrics
from adapter.serve.openai import OpenAI
from adapter.serve.protocol import Spoken
from adapter.serve.relay import Relay
from adapter.serve.response import Refused, read_body
from adapter.serve.upstream import Upstream

LONGEST_BODY = 10 * 2**20  # bytes
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
PROTOCOLS: tuple[Spoken, ...] = (Anthropic(), OpenAI())
Observer = Callable[[Exchange], None]
Close = Callable[[], Awaitable[None]]


def make_app(gate: Gate, upstream: Upstream, system: str | None = None, observers: Sequence[Observer] = (),
             routers: Sequence[APIRouter] = (), on_close: Sequence[Close] = (), longest_body: int = LONGEST_BODY) -> FastAPI:
    """The gateway. `app.state` has its `relay` and its `metrics`.

    observers: are told each exchange at its end, in the event loop: one must not block. on_close: is awaited, in order, once
    every answer is given and every observer is told.
    """
    metrics = Metrics(gate)
    relay = Relay(gate, upstream, system, (metrics.observe, *observers), metrics.observer_errors.inc)
    metrics.in_flight.set_function(lambda: relay.in_flight)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await relay.drain()
        for close in (upstream.close, *on_close):
            await close()

    app = FastAPI(title="corrector", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.relay, app.state.metrics = relay, metrics
    for router in routers:
        app.include_router(router)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """200 while callers get answers."""
        up, rules, sure = gate.engine.up, gate.rules, gate.engine.calibration
        answers = up or rules.fail_open or rules.mode == "shadow"
        told = {"status": "ok" if up else "degraded" if answers else "down", "engine": "up" if up else "down",
                "step": gate.engine.step, "mode": rules.mode, "share": rules.share, **told_of(sure),
                "reload": f"refused: {gate.engine.refused}" if gate.engine.refused else None}
        return JSONResponse(told, 200 if answers else 503)

    @app.get("/metrics")
    async def page() -> Response:
        """For Prometheus."""
        body, kind = metrics.page()
        return Response(body, headers={"content-type": kind})

    for spoken in PROTOCOLS:
        app.add_route(spoken.path, _chat(relay, spoken, longest_body), methods=["POST"])  # Starlette's: no arguments to find
    app.add_route("/v1/{rest:path}", _other(relay, longest_body), methods=METHODS)
    return app


def _chat(relay: Relay, spoken: Spoken, longest_body: int) -> Callable[[Request], Awaitable[Response]]:
    async def chat(request: Request) -> Response:
        try:
            body = await read_body(request, longest_body)
        except Refused as error:
            return relay.refuse(spoken, error.status, str(error))
        return await relay.chat(spoken, _with_query(spoken.path, request), request.headers.raw, body)

    return chat


def _other(relay: Relay, longest_body: int) -> Callable[[Request], Awaitable[Response]]:
    """What else the API can do: its models, its token counts, its batches. A path that leads out of /v1 leads nowhere."""

    async def other(request: Request) -> Response:
        path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        spoken = PROTOCOLS[0 if path.startswith(PROTOCOLS[0].path) or "anthropic-version" in request.headers else 1]
        if path.rstrip("/") == "/v1/reload":  # with another method, or a slash at its end
            return relay.refuse(spoken, 405, "the gateway's own: POST /v1/reload")
        if any(part in path.lower() for part in ("..", "//", "\\", "%2e", "%5c")) or not path.startswith("/v1/"):
            return relay.refuse(spoken, 404, "no such path")
        try:
            body = await read_body(request, longest_body)
            return await relay.other(spoken, request.method, _with_query(path, request), request.headers.raw, body)
        except Refused as error:
            return relay.refuse(spoken, error.status, str(error))

    return other


def _with_query(path: str, request: Request) -> str:
    query = request.scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path
