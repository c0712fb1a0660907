"""The Message Batches API: half the price, an answer within a day, and nothing paid for twice.

A batch is written down before it is submitted, in a file beside the answers, with its id as soon as that is known, and
crossed out when its last result is kept. A process that is killed in between finds the file, and the batch:

    killed before submitting       no batch of that time and size is on the server: the file is dropped
    killed while submitting        the server has it: the batch of that time and size is taken up
    killed while waiting, reading  the id is in the file; results that are already kept are skipped
"""

import asyncio
import json
import os
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from adapter.answers import AnswerStore, Request
from grpo.types import UserError

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

MOST = 10_000  # requests in a batch; the API takes 100,000 of them, or 256 MB
CLOCKS_DIFFER = timedelta(minutes=2)  # ours and the server's, at most


def unfinished(store: Path) -> set[str]:
    """The keys of a batch that is under way, and whose answers belong in this store. Raises UserError as `finish` does."""
    return set(_read(store)["requests"]) if _sidecar(store).exists() else set()


async def ask(client: "AsyncAnthropic", store: AnswerStore, requests: dict[str, Request], poll_s: float) -> Counter[str]:
    """Submit the requests and keep the results. Returns how many failed, by what went wrong, in words."""
    failures, keys = Counter(), list(requests)
    for at in range(0, len(keys), MOST):
        part = {key: requests[key] for key in keys[at : at + MOST]}
        note = {"id": None, "submitted": datetime.now(UTC).isoformat(), "requests": part}
        _write(store.path, note)
        batch = await client.messages.batches.create(
            requests=[{"custom_id": key, "params": request} for key, request in part.items()])
        _write(store.path, note | {"id": batch.id})
        failures += await finish(client, store, poll_s)
    return failures


async def finish(client: "AsyncAnthropic", store: AnswerStore, poll_s: float) -> Counter[str]:
    """Wait for the batch that was written down, and keep its results. Returns how many failed, as `ask` does.

    Raises UserError where the server no longer has it.
    """
    import anthropic
    from tqdm import tqdm

    note = _read(store.path)
    batch_id, requests, failures = note["id"] or await _find(client, note), note["requests"], Counter()
    if batch_id is None:
        _sidecar(store.path).unlink()
        return failures
    _write(store.path, note | {"id": batch_id})
    try:
        with tqdm(total=len(requests), desc=f"batch {batch_id}", unit="answer") as bar:
            while (batch := await client.messages.batches.retrieve(batch_id)).processing_status != "ended":
                bar.update(len(requests) - batch.request_counts.processing - bar.n)
                await asyncio.sleep(poll_s)
            kept = store.read()
            async for line in await client.messages.batches.results(batch_id):
                if line.custom_id in requests and line.custom_id not in kept:
                    fault = _keep(store, requests[line.custom_id], line.result)
                    failures.update([fault] if fault else [])
            bar.update(len(requests) - bar.n)
    except anthropic.NotFoundError:
        raise UserError(f"batch {batch_id} or its results are no longer on the server; delete {_sidecar(store.path)}, and "
                        "what it asked is asked again") from None
    _sidecar(store.path).unlink()
    return failures


def _keep(store: AnswerStore, request: Request, result) -> str:
    if result.type == "succeeded":
        return store.add_reply(request, result.message)
    fault = f"batch request {result.type}"
    if result.type == "errored":
        fault += f": {result.error.error.message}"
    store.add(request, None, None, None, error=fault)
    return fault


async def _find(client: "AsyncAnthropic", note: dict) -> str | None:
    """The batch that was submitted when the note was written, if the server got it: of its size, nearest in time."""
    submitted, found = datetime.fromisoformat(note["submitted"]), {}
    async for batch in client.messages.batches.list(limit=100):  # newest first
        if batch.created_at < submitted - CLOCKS_DIFFER:
            break
        if sum(batch.request_counts.model_dump().values()) == len(note["requests"]):
            found[abs(batch.created_at - submitted)] = batch.id
    return found[min(found)] if found else None


def _sidecar(store: Path) -> Path:
    return store.with_name(store.name + ".batch.json")


def _write(store: Path, note: dict) -> None:
    part = _sidecar(store).with_suffix(".part")
    with part.open("w") as file:
        json.dump(note, file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    part.replace(_sidecar(store))


def _read(store: Path) -> dict:
    try:
        note = json.loads(_sidecar(store).read_text())
        return {name: note[name] for name in ("id", "submitted", "requests")}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{_sidecar(store)}: no record of a batch; look the batch up in the API's console, then delete "
                        "the file") from None
