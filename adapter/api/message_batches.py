"""The Message Batches API: half the price, an answer within a day, and nothing paid for twice.

A batch is written down before it is submitted, in a file beside the answers, with its id as soon as that is known, and
crossed out when its last result is kept. A process that is killed in between finds the file, and the batch:

    killed before submitting       no batch of that size and minute is on the server: the file is dropped
    killed while submitting        the server has it: the batch of that size, nearest in time, is taken up
    killed while waiting, reading  the id is in the file; results that are already kept are skipped

Submitting is never tried twice, for the same reason. Where somebody else submits a batch of the same size within minutes,
and this process dies in the moment between, that one may be taken for ours: its answers are left alone, and ours are lost.
"""

import asyncio
import json
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from adapter.api.answers import AnswerStore, Request
from adapter.api.faults import scrubbed
from adapter.api.replies import NoReply, of_messages
from grpo.run.files import brief, read_object, write_text
from grpo.types import UserError

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

MOST = 100_000  # requests in a batch
LONGEST = 256 * 2**20  # bytes of its record; the API takes no larger batch
SOON = timedelta(minutes=10)  # after it is written down, a batch is on the server; and as much as clocks may differ


def unfinished(store: Path) -> set[str]:
    """The keys of a batch that is under way, and whose answers belong in this store. Raises UserError as `finish` does."""
    return set(_read(store)["requests"]) if _sidecar(store).exists() else set()


async def ask(
    client: "AsyncAnthropic", store: AnswerStore, requests: dict[str, Request], poll_s: float, quiet: bool
) -> Counter[str]:
    """Submit the requests and keep the results. Returns how many failed, by what went wrong, in words."""
    failures, keys = Counter(), list(requests)
    for at in range(0, len(keys), MOST):
        part = {key: requests[key] for key in keys[at : at + MOST]}
        note = {"id": None, "submitted": datetime.now(UTC).isoformat(), "requests": part}
        _write(store.path, note)
        batch = await client.with_options(max_retries=0).messages.batches.create(
            requests=[{"custom_id": key, "params": request} for key, request in part.items()])
        _write(store.path, note | {"id": batch.id})
        failures += await finish(client, store, poll_s, quiet)
    return failures


async def finish(client: "AsyncAnthropic", store: AnswerStore, poll_s: float, quiet: bool) -> Counter[str]:
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
        with tqdm(total=len(requests), desc=f"batch {brief(batch_id)}", unit="answer", disable=quiet) as bar:
            while (batch := await client.messages.batches.retrieve(batch_id)).processing_status != "ended":
                bar.update(len(requests) - batch.request_counts.processing - bar.n)
                await asyncio.sleep(poll_s)
            seen = set()
            async for line in await client.messages.batches.results(batch_id):
                seen.add(line.custom_id)
                if line.custom_id in requests and line.custom_id not in store.read():
                    fault = _keep(store, requests[line.custom_id], line.result)
                    failures.update([fault] if fault else [])
            bar.update(len(requests) - bar.n)
        if 0 < len(seen & requests.keys()) < len(requests):  # none: it was not ours
            raise UserError(f"batch {batch_id}: {len(seen)} of its {len(requests)} results came, and are kept; run again to "
                            "go on")
    except anthropic.NotFoundError:
        raise UserError(f"batch {batch_id} or its results are no longer on the server; delete {_sidecar(store.path)}, and "
                        "what it asked is asked again") from None
    _sidecar(store.path).unlink()
    return failures


def _keep(store: AnswerStore, request: Request, result) -> str:
    """Keep a result. Returns what went wrong, in words, or ""."""
    if result.type == "succeeded":
        try:
            store.add_reply(request, of_messages(result.message))
            return ""
        except NoReply as error:
            fault = str(error)
    else:
        said = getattr(getattr(getattr(result, "error", None), "error", None), "message", None)
        fault = f"batch request {result.type}" + (f": {scrubbed(said)}" if isinstance(said, str) else "")
    store.add(request, None, None, None, error=fault)
    return fault


async def _find(client: "AsyncAnthropic", note: dict) -> str | None:
    """The batch that was submitted when the note was written, if the server got it: of its size, nearest in time."""
    submitted, found = datetime.fromisoformat(note["submitted"]), {}
    async for batch in client.messages.batches.list(limit=100):  # newest first
        if batch.created_at < submitted - SOON:
            break
        apart = abs(batch.created_at - submitted)
        if apart <= SOON and sum(batch.request_counts.model_dump().values()) == len(note["requests"]):
            found[apart] = batch.id
    return found[min(found)] if found else None


def _sidecar(store: Path) -> Path:
    return store.with_name(store.name + ".batch.json")


def _write(store: Path, note: dict) -> None:
    write_text(_sidecar(store), json.dumps(note, ensure_ascii=False))


def _read(store: Path) -> dict:
    try:
        note = read_object(_sidecar(store), LONGEST)
        known = note["id"] is None or re.fullmatch(r"\w{1,100}", note["id"], re.ASCII)  # it becomes part of an address
        if not known or not isinstance(note["requests"], dict):
            raise TypeError
        datetime.fromisoformat(note["submitted"]) - datetime.now(UTC)  # TypeError where it has no time zone
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{_sidecar(store)}: no record of a batch; look the batch up in the API's console, then delete "
                        "the file") from None
    return note
