"""The gateway's command in a process of its own, and callers of it."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anthropic
import httpx

from symbols.settings import INSTRUCTION
from tests.conftest import LONG, ROOT
from tests.gateway import wait_until

TOKEN = "a-token-of-the-operator"
BEARER = {"authorization": f"Bearer {TOKEN}"}


@dataclass
class Command:
    """A gateway in a process of its own."""

    process: subprocess.Popen
    url: str
    upstream: str
    run: Path
    log: Path

    def listens(self) -> bool:
        try:
            return self.health()["engine"] == "up"
        except httpx.ConnectError:
            return False

    def health(self) -> dict:
        return httpx.get(self.url + "/healthz", timeout=20).json()

    def reload(self) -> httpx.Response:
        """As the operator asks for it."""
        return httpx.post(self.url + "/v1/reload", headers=BEARER, timeout=LONG)

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        page = httpx.get(self.url + "/metrics", timeout=60).text
        return sum(float(line.split()[-1]) for line in page.splitlines() if re.match(rf"{name}[ {{]", line))

    def wait_until_up(self) -> None:
        """Until /healthz says that the engine is."""
        wait_until(lambda: self.health()["engine"] == "up", LONG)


@contextmanager
def serving(run: Path, upstream: str, folder: Path, *arguments: str) -> Iterator[Command]:
    """The command, within it; it captures to folder/captured."""
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "adapter.serve", "--run", str(run), "--upstream", upstream, "--port", "0", "--timeout-ms",
             "60000", "--capture", str(folder / "captured"), *arguments],
            cwd=ROOT, env=os.environ | {"CORRECTOR_TOKEN": TOKEN}, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()
        assert "mode on" in line, (folder / "log").read_text()[-3000:]
        found = Command(process, re.search(r"http://127.0.0.1:\d+(?=,)", line)[0], upstream, run, folder / "log")
        wait_until(found.listens, LONG)
        yield found
    finally:
        process.kill()
        process.wait()


@dataclass
class Answer:
    """What a caller gets."""

    told: dict[str, str]  # by the gateway: action, why, ...
    text: str
    stop_reason: str


async def ask(url: str, questions: list[str]) -> list[Answer]:
    """All at once."""
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0, timeout=LONG) as client:

        async def one(question: str) -> Answer:
            raw = await client.messages.with_raw_response.create(
                model="models/tiny", max_tokens=40, messages=[{"role": "user", "content": INSTRUCTION + question}])
            message = await raw.parse()
            told = {name.removeprefix("x-corrector-"): value for name, value in raw.headers.items() if "corrector" in name}
            return Answer(told, "".join(block.text for block in message.content), message.stop_reason)

        return await asyncio.gather(*map(one, questions))
