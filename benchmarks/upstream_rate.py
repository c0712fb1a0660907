"""How busy does the client keep a server? 1,600 answers at concurrency 32, against 32 bare clients that keep nothing.

    python -m benchmarks.upstream_rate                              a local server that takes 50 ms an answer
    python -m benchmarks.upstream_rate http://127.0.0.1:8000 MODEL  any server of the Messages API

A bare client is the SDK's, in a loop that throws away what it is told: 32 clients, or 32 loops that share one client and its
connections. They take turns with ours, with questions that none has asked before.
"""

import asyncio
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import anthropic

from adapter.api.claude import ClaudeUpstream
from adapter.questions import Row

QUESTIONS, CLIENTS, LATENCY_S = 1600, 32, 0.05
TURNS = 3  # one with a server that is given, which may take minutes


def main() -> None:
    """Measure and print."""
    os.environ.setdefault("ANTHROPIC_API_KEY", "none")
    if len(sys.argv) > 1:
        url, model, turns = sys.argv[1], sys.argv[2], 1
    else:
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
        server.start()
        url, model, turns = ours.recv(), "local", TURNS
    os.environ["ANTHROPIC_BASE_URL"] = url
    rates: dict[str, list[float]] = {"32 bare clients": [], "one, 32 loops": [], "ClaudeUpstream": []}
    with tempfile.TemporaryDirectory() as folder:
        upstream = ClaudeUpstream("anthropic", model, Path(folder) / "answers.jsonl", CLIENTS, agreed=True, quiet=True)
        asyncio.run(bare(upstream, questions(-1)[:CLIENTS], 1))  # warms the server up
        for turn in range(turns):
            asks = {"32 bare clients": lambda q: asyncio.run(bare(upstream, q, CLIENTS)),
                    "one, 32 loops": lambda q: asyncio.run(bare(upstream, q, 1)), "ClaudeUpstream": upstream.answers}
            for number, (name, ask) in enumerate(asks.items()):
                fresh = questions(len(asks) * turn + number)
                started = time.perf_counter()
                ask(fresh)
                rates[name].append(QUESTIONS / (time.perf_counter() - started))
    print(f"{url}, {QUESTIONS} answers, concurrency {CLIENTS}; answers a second, {turns} turns:")
    for name, values in rates.items():
        print(f"  {name:<16}" + "".join(f"{v:8.1f}" for v in values) + f"   median {statistics.median(values):.1f}")
    ours, *bare_ones = (statistics.median(rates[name]) for name in reversed(rates))
    print(f"  ours to 32 bare clients {ours / bare_ones[1]:.3f}, to one with 32 loops {ours / bare_ones[0]:.3f}")
    if turns < TURNS:
        return
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("  peak resident memory of a process after 1, 2, 3 and 4 times that many answers, MiB: "
              + ", ".join(f"{mib:.0f}" for mib in pool.apply(memory, (model,))))


def questions(turn: int) -> list[Row]:
    """Questions that no other turn asks."""
    return [Row(f"{n} + {turn + 2}", n + turn + 2) for n in range(QUESTIONS)]


async def bare(upstream: ClaudeUpstream, asked: list[Row], count: int) -> None:
    """CLIENTS loops over `count` clients."""
    todo = iter(asked)

    async def work(client: anthropic.AsyncAnthropic) -> None:
        for row in todo:
            await client.messages.create(**upstream.request(row.question))

    clients = [anthropic.AsyncAnthropic() for _ in range(count)]
    await asyncio.gather(*(work(clients[loop % count]) for loop in range(CLIENTS)))
    for client in clients:
        await client.close()


def memory(model: str) -> list[float]:
    """Peak resident MiB of a process that asks alone, after each of four turns."""
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        upstream = ClaudeUpstream("anthropic", model, Path(folder) / "answers.jsonl", CLIENTS, agreed=True, quiet=True)
        for turn in range(4):
            upstream.answers(questions(100 + turn))
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    return peaks


def serve(pipe) -> None:
    """The tests' server, in a process of its own."""
    from tests.messages_server import MessagesServer

    server = MessagesServer(LATENCY_S)
    pipe.send(server.url)
    server.stopped.wait()


if __name__ == "__main__":
    main()
