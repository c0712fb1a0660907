"""The gateway's command in a process of its own, and callers of it."""

import asyncio
import subprocess
from dataclasses import dataclass
from pathlib import Path

import anthropic
import httpx

from symbols.settings import INSTRUCTION
from tests.conftest import LONG
from tests.gateway import wait_until


@dataclass
class Command:
    """A gateway in a process of its own."""

    process: subprocess.Popen
    url: str
    run: Path
    log: Path

    def listens(self) -> bool:
        try:
            return self.health()["engine"] == "up"
        except httpx.ConnectError:
            return False

    def health(self) -> dict:
        return httpx.get(self.url + "/healthz", timeout=20).json()

    def wait_until_up(self) -> None:
        """Until /healthz says that the engine is."""
        wait_until(lambda: self.health()["engine"] == "up", LONG)


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
