"""What benchmarks/gateway.py asks, whom, and how: vLLM's own server, the gateway's command, and callers at once."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import psutil

from adapter.questions import ApiAnswer
from adapter.rows import Splits
from adapter.trained import TrainedAdapter
from symbols.expression import GREEK
from symbols.generate import Range
from symbols.settings import INSTRUCTION
from tests.symbol_rows import build

Ask = Callable[[aiohttp.ClientSession, int], "asyncio.Future"]


@contextlib.contextmanager
def vllm_server(adapter: TrainedAdapter, run: Path, nice: int = 0) -> Iterator[str]:
    """vLLM's own server as docs/serving.md starts it, the LoRA as "adapter". nice: of its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["nice", "-n", str(nice), sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", adapter.path,
               "--served-model-name", "api", "--enable-lora", "--max-lora-rank", str(max(16, adapter.config.lora.rank)),
               "--lora-modules", f"adapter={run}/adapter", "--default-chat-template-kwargs", '{"enable_thinking": false}',
               "--generation-config", "vllm", "--override-generation-config", '{"temperature": 0}',
               "--host", "127.0.0.1", "--port", str(port),
               "--max-model-len", "512", "--disable-uvicorn-access-log", "--enforce-eager"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True,
                                  env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_WAIT_POLICY": "PASSIVE"})
        try:
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                    break
                assert server.poll() is None, log.seek(0) or log.read()[-3000:]
                time.sleep(0.3)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@contextlib.contextmanager
def gateway(run: Path, upstream: str, *arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """The command, and its address."""
    command = [sys.executable, "-m", "adapter.serve", "--run", str(run), "--upstream", upstream, "--port", "0",
               "--timeout-ms", "120000", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert "corrects" in line, "the gateway did not start"
        yield re.search(r"http://127.0.0.1:\d+(?=,)", line)[0], psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0


async def timed(ask: Ask, count: int, callers: int) -> tuple[list[float], float, list]:
    """Seconds of each of `count` calls by so many callers, of all, and what they returned."""
    numbers, seconds, found = iter(range(count)), [0.0] * count, [None] * count
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(600)) as session:
        async def caller() -> None:
            for number in numbers:
                start = time.perf_counter()
                found[number] = await ask(session, number)
                seconds[number] = time.perf_counter() - start

        start = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return seconds, time.perf_counter() - start, found


class Workload:
    """The run's questions, and ways to ask them."""

    def __init__(self, adapter: TrainedAdapter, most_tokens: int):
        self.corrector = adapter.task_class.make_corrector(adapter.settings)
        self.rows = build(11, Splits(2, 2, 500), Range((1, 99), (2, 2), 999), GREEK, 11).test
        self.most, self.api = most_tokens, {}

    def question(self, number: int) -> str:
        """One of 500."""
        return self.rows[number % len(self.rows)].question

    def of_api(self, url: str, model: str = "api", stream: bool = False) -> Ask:
        """As a client asks the API."""
        async def ask(session: aiohttp.ClientSession, number: int) -> tuple[int, str, bytes, str]:
            body = {"model": model, "max_tokens": self.most, "stream": stream,
                    "messages": [{"role": "user", "content": INSTRUCTION + self.question(number)}]}
            return await _post(session, url, body)

        return ask

    def of_adapter(self, url: str) -> Ask:
        """As docs/serving.md asks the served LoRA, with what the API said to this question."""
        async def ask(session: aiohttp.ClientSession, number: int) -> tuple[int, str, bytes, str]:
            row = self.rows[number % len(self.rows)]
            row = replace(row, api=ApiAnswer(self.api[row.question], "api"))
            return await _post(session, url, {"model": "adapter", "max_tokens": self.most,
                                              "messages": list(self.corrector.problem(row).messages)})

        return ask


async def _post(session: aiohttp.ClientSession, url: str, body: dict) -> tuple[int, str, bytes, str]:
    """Status, the text, the bytes, and what the gateway did. A connection that breaks off is status 0."""
    try:
        async with session.post(url + "/v1/messages", json=body, headers={"x-api-key": "none"}) as reply:
            raw = await reply.read()
            done = f"{reply.headers.get('x-corrector-action')} {reply.headers.get('x-corrector-why')}"
            text = ""
            if reply.status == 200 and not body.get("stream"):
                with contextlib.suppress(ValueError):
                    text = "".join(block.get("text", "") for block in json.loads(raw)["content"])
            return reply.status, text, raw, done
    except aiohttp.ClientError:
        return 0, "", b"", ""
