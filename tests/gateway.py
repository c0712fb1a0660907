"""The gateway in a thread, behind it an adapter that answers from a table."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import uvicorn

from adapter.confidence import Calibration
from adapter.serve.app import make_app
from adapter.serve.exchange import Exchange
from adapter.serve.gate import EngineDown, Gate, Rules, Written
from adapter.serve.upstream import Upstream
from adapter.settings import Settings, make_corrector

PLAIN = Calibration(20)  # no threshold
CORRECTOR = make_corrector(Settings(data="none.jsonl", verifier="number"))


def wait_until(ready: Callable[[], bool], most_s: float) -> None:
    """Look again and again. Raises AssertionError where it never is."""
    for _ in range(int(most_s / 0.01)):
        if ready():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


@dataclass
class Table:
    """An engine: what it writes for a question; an exception is raised, a number slept for before "27" is boxed."""

    answers: dict[str, str | float | Exception] = field(default_factory=dict)
    otherwise: str | float | Exception = "\\boxed{27}"
    up: bool = True
    step: int = 20
    calibration: Calibration | None = PLAIN
    markers: frozenset[str] = frozenset({"<|im_start|>", "<|im_end|>"})
    refused: str = ""
    swaps: int = 1
    starts: int = 1
    asked: list[str] = field(default_factory=list)

    async def complete(self, problem) -> Written:
        """See Engine of gate.py."""
        question = problem.data.question
        self.asked.append(question)
        found = self.answers.get(question, self.otherwise)
        if not self.up:
            raise EngineDown
        if isinstance(found, Exception):
            raise found
        if isinstance(found, float):
            await asyncio.sleep(found)
            found = "\\boxed{27}"
        return Written(found, (-0.1, -0.2), self.step, self.calibration)


@dataclass
class Served:
    """A gateway that runs."""

    url: str
    engine: Table
    exchanges: list[Exchange]
    app: object

    def exchange(self, count: int = 1) -> Exchange:
        """The last one, once there are so many."""
        wait_until(lambda: len(self.exchanges) >= count, 60)
        assert len(self.exchanges) == count, self.exchanges
        return self.exchanges[-1]

    def post(self, path: str, **given) -> httpx.Response:
        """A plain request."""
        with httpx.Client(timeout=20) as client:
            return client.post(self.url + path, **given)

    def get(self, path: str) -> httpx.Response:
        """What the gateway tells of itself."""
        return httpx.get(self.url + path, timeout=20)


@contextmanager
def gateway(upstream: str, engine: Table | None = None, rules: Rules | None = None, api_prompt: str = "{question}",
            system: str | None = None, observers: tuple[Callable, ...] = (), timeout_s: float = 5.0,
            secret: str | None = None, **more) -> Iterator[Served]:
    """Serve within it."""
    engine, exchanges = engine or Table(), []
    gate = Gate(CORRECTOR, api_prompt, engine, rules or Rules())
    app = make_app(gate, Upstream(upstream, timeout_s, secret), system, [exchanges.append, *observers], **more)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(
            app, http="h11", loop="uvloop", lifespan="on", access_log=False, log_level="critical", server_header=False,
            date_header=False, h11_max_incomplete_event_size=64 * 2**10))
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            yield Served(f"http://127.0.0.1:{sock.getsockname()[1]}", engine, exchanges, app)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
