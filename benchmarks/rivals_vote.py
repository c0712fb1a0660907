"""The vote of benchmarks/rivals.py: an API is asked a question several times, and the commonest answer counts."""

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from adapter.api.answers import Request
from adapter.api.collect import split
from adapter.api.connection import from_environment
from adapter.api.faults import api_errors, in_words
from adapter.api.openai import NO_KEY, base_of
from adapter.api.replies import CUT_OFF, Reply, of_chat
from adapter.api.settings import make_upstream
from adapter.dataset import configured
from adapter.measure.accuracy import share
from grpo.run.files import writable, write_text
from grpo.run.schema import validated
from grpo.types import UserError

AT_ONCE = 64  # requests to the API


def vote(options: argparse.Namespace) -> None:
    """vote: ask, count, judge, and write the result."""
    config, task_class, _ = configured(options)
    given = config.task.model_dump(exclude={"target", "simulated", "api_batch"})  # which such a server would not read
    named = {"upstream": "openai", "api_url": options.url, "api_model": options.model}
    settings = validated(task_class.Settings, given | named, "task.")
    corrector, k = task_class.make_corrector(settings), options.k
    rows = task_class.read_rows(settings, config.run.seed, corrector).test
    upstream = make_upstream(settings, config.run.seed, corrector.verifier)
    if lacking := upstream.missing():
        raise UserError(f"missing here: {'; '.join(lacking)}")
    asked = [upstream.request(row.question) for row in rows]
    requests = [request | {"temperature": 0.0} for request in asked]
    requests += [request | {"temperature": options.temperature} for request in asked for _ in range(k)]
    try:
        replies = asyncio.run(_replies(base_of(options.url), requests, upstream.timeout_s))
    except api_errors() as error:
        raise UserError(f"{options.model}: {in_words(error)}; nothing was written; run again") from None
    answers = [corrector.verifier.extract(reply.text, row) if reply.text else None for reply, row in zip(
        replies, [*rows, *(row for row in rows for _ in range(k))], strict=True)]
    one, votes = answers[:len(rows)], answers[len(rows):]
    voted = [majority(votes[n * k:(n + 1) * k]) for n in range(len(rows))]
    right = {name: asdict(share(sum(corrector.all_right(list(zip(rows, found, strict=True)))), len(rows)))
             for name, found in (("majority_right", voted), ("one_right", one))}
    record = {"set": ", ".join(dict.fromkeys(row.kind for row in rows)), "questions": len(rows), "k": k,
              "model": options.model, "temperature": options.temperature, **right,
              "tokens": {"majority": _used(replies[len(rows):]), "one": _used(replies[:len(rows)])}}
    with writable(options.out, "make room there, or choose another --out"):
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.out, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(record, ensure_ascii=False))


def majority(answers: Sequence[str | None]) -> str | None:
    """The commonest answer; of equally common ones the first; None where there is no answer at all."""
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.get, default=None)


async def _replies(url: str, requests: Sequence[Request], timeout_s: float) -> list[Reply]:
    """What the server says to each, AT_ONCE of them at a time. Raises what asking raises; retries are the SDK's."""
    import openai

    free = asyncio.Semaphore(AT_ONCE)
    async with openai.AsyncOpenAI(api_key=from_environment("OPENAI_API_KEY") or NO_KEY, base_url=url, timeout=timeout_s,
                                  max_retries=5) as client:
        async def one(request: Request) -> Reply:
            async with free:
                return of_chat(await client.chat.completions.create(**split(request, ("model", "messages"))))

        return await asyncio.gather(*map(one, requests))


def _used(replies: Sequence[Reply]) -> dict[str, int]:
    """Tokens read and written, as the server counts them, and how many replies were cut off."""
    total = Counter()
    for reply in replies:
        total.update(reply.usage or {})
    return {name: total[name] for name in ("input_tokens", "output_tokens")} | {
        "cut_off": sum(reply.stop_reason in CUT_OFF for reply in replies)}
