"""What the gateway costs, and what it stands: `python -m benchmarks.gateway --run RUN`; on a GPU `--gpu --base DIR`.

    latency      one caller: the API alone, the adapter alone, both through the gateway; the API is vLLM's own server
    throughput   many callers: the gateway with an API that answers at once, against vLLM's own server asked the same
                 adapter prompts of the same LoRA; and with vLLM's own server as the API, against its two calls in turn
    faults       10,000 requests, 5 % of them with a fault of the API: wrong pairs, answers and records lost, memory
    kill         the engine is killed under 500 requests
    shadow       200 streams, byte for byte

RUN is a finished run of the experiment; with --gpu one is made, of --base (benchmarks/random_base.py) with a random LoRA,
and only the first two parts are run, for 1, 32 and 256 callers. All is written to benchmarks/results/gateway.json or --out.
"""

import argparse
import asyncio
import collections
import contextlib
import itertools
import json
import random
import re
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

from adapter.trained import TrainedAdapter
from benchmarks.gateway_load import Workload, gateway, random_run, timed, vllm_server
from symbols.settings import INSTRUCTION
from tests.streaming_server import StreamingServer

PARTS = ("latency", "throughput", "faults", "kill", "shadow")
FAULTS = ("500", "529", "closed", "half a JSON", "cut short", "tool_use")


def speed(work: Workload, adapter: TrainedAdapter, run: Path, parts: list[str], gpu: bool) -> dict:
    """Latency and throughput."""
    found, counts = {}, {1: 16, 32: 192, 256: 1024} if gpu else {1: 100, 32: 640}
    with vllm_server(adapter, run, gpu) as server:
        run_all = lambda ask, callers: asyncio.run(timed(ask, counts[callers], callers))  # noqa: E731
        _, _, answers = asyncio.run(timed(work.of_api(server), len(work.rows), 16))
        work.api = {work.question(number): text for number, (_, text, _, _) in enumerate(answers)}
        canned = StreamingServer()
        canned.text = lambda prompt: work.api[prompt.removeprefix(INSTRUCTION)]
        with gateway(run, server) as (url, _), gateway(run, canned.url) if "throughput" in parts else \
                contextlib.nullcontext((None, None)) as (alone, _):
            for callers in counts:
                for ask in (work.of_api(url), work.of_adapter(server)):
                    asyncio.run(timed(ask, 2 * callers, callers))  # warm
                api, api_s, _ = run_all(work.of_api(server), callers)
                both, both_s, answers = run_all(work.of_api(url), callers)
                own, own_s, _ = run_all(work.of_adapter(server), callers)
                row = {"api_p50_ms": api, "vllms_adapter_p50_ms": own, "gateway_p50_ms": both}
                row = {name: round(1000 * statistics.median(values), 2) for name, values in row.items()}
                added = row["gateway_p50_ms"] - row["api_p50_ms"]
                row["gateway_p99_ms"] = round(1000 * statistics.quantiles(both, n=100, method="inclusive")[-1], 2)
                row["added_over_adapter"] = round(added / row["vllms_adapter_p50_ms"], 3)
                row |= {name: round(counts[callers] / seconds, 1) for name, seconds in (
                    ("vllms_adapter_per_s", own_s), ("gateway_per_s", both_s), ("two_calls_per_s", api_s + own_s))}
                if alone:
                    asyncio.run(timed(work.of_api(alone), 2 * callers, callers))
                    _, seconds, _ = run_all(work.of_api(alone), callers)
                    row["gateway_alone_per_s"] = round(counts[callers] / seconds, 1)
                    row["throughput"] = round(row["gateway_alone_per_s"] / row["vllms_adapter_per_s"], 3)
                row["actions"] = {done: [d for *_, d in answers].count(done) for done in sorted({d for *_, d in answers})}
                found[f"{callers} callers"] = row
                print(callers, row, flush=True)
        canned.stop()
    return found


class Sometimes:
    """The faults of a server that takes one in `share` of its requests."""

    def __init__(self, share: float):
        self.share, self.taken, self._draw, self._next = share, [], random.Random(0), itertools.cycle(FAULTS)

    def __bool__(self) -> bool:
        return self._draw.random() < self.share

    def popleft(self) -> str:
        """The next one."""
        self.taken.append(next(self._next))
        return self.taken[-1]


def counted(url: str, name: str = "corrector_requests_total") -> float:
    """The sum of a metric's samples."""
    page = urllib.request.urlopen(url + "/metrics").read().decode()
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if re.match(rf"{name}(\{{| )", line))


def known_api(work: Workload) -> StreamingServer:
    """An API whose answer to each question is a number that no other question has."""
    server = StreamingServer()
    of = {row.question: str(100_000 + at) for at, row in enumerate(work.rows)}
    server.text = lambda prompt: of[prompt.removeprefix(INSTRUCTION)]
    return server


def faults(work: Workload, run: Path, requests: int, callers: int) -> dict:
    """Answers and questions, with an API that fails for one in twenty."""
    api = known_api(work)
    with gateway(run, api.url) as (url, process):
        _, _, expected = asyncio.run(timed(work.of_api(url), len(work.rows), callers))
        api.faults = Sometimes(0.05)
        rss, answers, before = [], [], time.perf_counter()
        for _ in range(5):
            _, _, some = asyncio.run(timed(work.of_api(url), requests // 5, callers))
            answers += some
            rss.append([round(one.memory_info().rss / 2**20) for one in (process, *process.children(recursive=True))])
        seconds = time.perf_counter() - before
        time.sleep(2)
        lost = requests + len(work.rows) - counted(url)
    api.stop()
    taken, wrong = collections.Counter(api.faults.taken), 0
    for number, (status, text, _, done) in enumerate(answers):
        place = number % (requests // 5) % len(work.rows)
        right = {expected[place][1], str(100_000 + place)}
        wrong += status == 200 and done.split()[0] in ("corrected", "agreed", "kept") and text not in right
    statuses = collections.Counter(status for status, *_ in answers)
    unanswered = statuses[0] - taken["cut short"]  # whose answer broke off as the API's did
    return {"requests": requests, "callers": callers, "faults": dict(taken), "statuses": dict(sorted(statuses.items())),
            "wrong_pairs": wrong, "unanswered": unanswered, "lost_records": lost, "seconds": round(seconds, 1),
            "rss_mib_after_each_fifth": rss, "actions": dict(collections.Counter(done for *_, done in answers))}


def kill(work: Workload, run: Path) -> dict:
    """The engine's process ends in the middle."""
    api = known_api(work)

    async def killed(url: str, process: psutil.Process) -> list:
        asked = asyncio.create_task(timed(work.of_api(url), 500, 64))
        await asyncio.sleep(1.0)
        for child in process.children(recursive=True):
            if "EngineCore" in " ".join([child.name(), *child.cmdline()]):
                child.kill()
        return (await asked)[2]

    with gateway(run, api.url) as (url, process):
        answers = asyncio.run(killed(url, process))
        start = time.perf_counter()
        while counted(url, "corrector_engine_starts") < 2:
            time.sleep(0.2)
        back = time.perf_counter() - start
    api.stop()
    return {"requests": 500, "statuses": dict(collections.Counter(status for status, *_ in answers)),
            "actions": dict(collections.Counter(done for *_, done in answers)), "back_after_s": round(back, 1)}


def shadow(work: Workload, run: Path) -> dict:
    """Streams as the API sends them and as they come through."""
    api, same = known_api(work), 0
    with gateway(run, api.url, "--mode", "shadow") as (url, _):
        _, _, direct = asyncio.run(timed(work.of_api(api.url, stream=True), 200, 8))
        _, _, through = asyncio.run(timed(work.of_api(url, stream=True), 200, 8))
        same = sum(a[2] == b[2] != b"" for a, b in zip(direct, through, strict=True))
    api.stop()
    return {"streams": 200, "byte_for_byte": same}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of the experiment")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--gpu", action="store_true", help="latency and throughput alone, 1 to 256 callers")
    parser.add_argument("--base", type=Path, help="with --gpu: a model directory")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gateway.json"))
    options = parser.parse_args()
    parts = [part for part in options.parts.split(",") if part in (PARTS[:2] if options.gpu else PARTS)]
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or random_run(options.base, Path(folder))
        adapter = TrainedAdapter(run)
        work = Workload(adapter, adapter.config.rollout.max_new_tokens)
        made = {"speed": lambda: speed(work, adapter, run, parts, options.gpu), "kill": lambda: kill(work, run),
                "faults": lambda: faults(work, run, options.requests, options.callers), "shadow": lambda: shadow(work, run)}
        wanted = [*(["speed"] if {*PARTS[:2]} & {*parts} else []), *(part for part in PARTS[2:] if part in parts)]
        found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
        for part in wanted:
            found["gpu" if options.gpu else part] = made[part]()
            print(part, json.dumps(found["gpu" if options.gpu else part]), flush=True)
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
