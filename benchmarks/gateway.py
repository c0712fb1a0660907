"""What the gateway costs, and what it stands: `python -m benchmarks.gateway --run RUN`; on a GPU, benchmarks/gateway_gpu.py.

    latency      one caller: the API alone, the adapter alone, both through the gateway; the API is vLLM's own server
    throughput   many callers: the gateway with an API that answers at once, against vLLM's own server asked the same
                 adapter prompts of the same LoRA; and with vLLM's own server as the API, against its two calls in turn
    faults       10,000 requests, 5 % of them with a fault of the API: wrong pairs, what is lost or not captured, memory
    kill         the engine is killed while it answers 64 callers, who go on until it corrects again
    shadow       200 streams, byte for byte

RUN is a finished run of the experiment. All is written to benchmarks/results/gateway.json or --out.
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
from collections.abc import Iterable, Iterator
from pathlib import Path

import aiohttp
import psutil

from adapter.trained import TrainedAdapter
from benchmarks.gateway_load import Ask, Workload, gateway, timed, vllm_server
from symbols.settings import INSTRUCTION
from tests.streaming_server import StreamingServer

PARTS = ("latency", "throughput", "faults", "kill", "shadow")
ROUNDS = 5  # of latency and throughput
FAULTS = ("500", "529", "closed", "half a JSON", "cut short", "tool_use")


def speed(work: Workload, adapter: TrainedAdapter, run: Path, parts: list[str], nice: int) -> dict:
    """Latency and throughput. Whatever else the machine does it does to all alike: they are asked in turn, in rounds."""
    found, counts = {}, {1: 100, 32: 1280}
    with vllm_server(adapter, run, nice) as server:
        _, _, answers = asyncio.run(timed(work.of_api(server), len(work.rows), 16))
        work.api = {work.question(number): text for number, (_, text, _, _) in enumerate(answers)}
        canned = StreamingServer()
        canned.text = lambda prompt: work.api[prompt.removeprefix(INSTRUCTION)]
        with gateway(run, server) as (url, _), gateway(run, canned.url) if "throughput" in parts else \
                contextlib.nullcontext((None, None)) as (alone, _):
            asks = {"api": work.of_api(server), "gateway": work.of_api(url), "vllms_adapter": work.of_adapter(server)}
            asks |= {"gateway_alone": work.of_api(alone)} if alone else {}
            for callers, count in counts.items():
                took = {name: [] for name in asks}  # seconds of each call
                whole, done = dict.fromkeys(asks, 0.0), collections.Counter()
                for at in range(-1, ROUNDS):  # the first warms
                    for name, ask in asks.items():
                        each, seconds, answers = asyncio.run(timed(ask, 2 * callers if at < 0 else count // ROUNDS, callers))
                        if at >= 0:
                            took[name] += each
                            whole[name] += seconds
                            done.update(what for *_, what in answers if name == "gateway")
                found[f"{callers} callers"] = row = speeds(took, whole) | {"actions": dict(done)}
                print(callers, row, flush=True)
        canned.stop()
    return found


def speeds(took: dict[str, list[float]], whole: dict[str, float]) -> dict[str, float]:
    """Of each: the seconds of its calls, and those of all of them together, many at once."""
    p50 = {name: 1000 * statistics.median(each) for name, each in took.items()}
    rate = {name: len(took[name]) / seconds for name, seconds in whole.items()}
    row = {f"{name}_p50_ms": round(p50[name], 2) for name in ("api", "vllms_adapter", "gateway")}
    row["gateway_p99_ms"] = round(1000 * statistics.quantiles(took["gateway"], n=100, method="inclusive")[-1], 2)
    row["added_over_adapter"] = round((p50["gateway"] - p50["api"]) / p50["vllms_adapter"], 3)
    row |= {f"{name}_per_s": round(rate[name], 1) for name in whole}
    row["two_calls_per_s"] = round(1 / (1 / rate["api"] + 1 / rate["vllms_adapter"]), 1)
    of = {f"{name}_over_vllms": round(rate[name] / rate["vllms_adapter"], 3) for name in rate if name.startswith("gateway")}
    return row | of


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
    """Answers, questions and captured lines, with an API that fails for one in twenty."""
    api = known_api(work)
    with tempfile.TemporaryDirectory() as folder:
        with gateway(run, api.url, "--capture", folder) as (url, process):
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
            given_up = sum(counted(url, f"corrector_captured_{name}") for name in ("lost", "failed", "dropped"))
        captured = captures(work, Path(folder), expected + answers, given_up)
    api.stop()
    taken = collections.Counter(api.faults.taken)
    statuses = collections.Counter(status for status, *_ in answers)
    unanswered = statuses[0] - taken["cut short"]  # whose answer broke off as the API's did
    return {"requests": requests, "callers": callers, "faults": dict(taken), "statuses": dict(sorted(statuses.items())),
            "wrong_pairs": wrong_pairs(work, expected, enumerate(answers), requests // 5), "unanswered": unanswered,
            "lost_records": lost, "captured": captured, "seconds": round(seconds, 1), "rss_mib_after_each_fifth": rss,
            "actions": dict(collections.Counter(done for *_, done in answers))}


def captures(work: Workload, folder: Path, answers: list, given_up: float) -> dict:
    """What was written down of the answers that the adapter was asked about. given_up: what the metrics count as lost."""
    files = [path.read_bytes() for path in folder.glob("captured-*.jsonl")]
    lines = [json.loads(line) for line in b"".join(files).splitlines()]
    asked = sum(done.split()[:1] in (["corrected"], ["agreed"], ["kept"]) for *_, done in answers)
    of = {row.question: str(100_000 + at) for at, row in enumerate(work.rows)}
    return {"answers": asked, "lines": len(lines), "ids": len({line["id"] for line in lines}), "counted_as_lost": given_up,
            "missing": asked - len(lines) - given_up,
            "wrong_pairs": sum(line["api_answer"] != of[line["question"]] for line in lines)}


def wrong_pairs(work: Workload, expected: list, answers: Iterable[tuple[int, tuple]], round_of: int) -> int:
    """How many answers, by their number, are neither what the API nor what the adapter said to their question."""
    wrong = 0
    for number, (status, text, _, done) in answers:
        place = number % round_of % len(work.rows)
        asked = status == 200 and done.split()[0] in ("corrected", "agreed", "kept")
        wrong += asked and text not in {expected[place][1], str(100_000 + place)}
    return wrong


def kill(work: Workload, run: Path) -> dict:
    """The engine's process ends while it answers; callers go on until it is back and has corrected as many as before."""
    api, phase, found = known_api(work), "before the kill", collections.defaultdict(list)

    async def caller(session: aiohttp.ClientSession, ask: Ask, numbers: Iterator[int]) -> None:
        while phase != "over":
            number, asked_in = next(numbers), phase
            answer = await ask(session, number)
            in_flight = asked_in == "before the kill" != phase
            found["in flight at the kill" if in_flight else asked_in].append((number, answer))
            if answer[3].endswith("engine down"):
                await asyncio.sleep(0.1)

    async def until_corrected(count: int, when: str) -> None:
        while sum(done.startswith("corrected") for _, (*_, done) in found[when]) < count:
            await asyncio.sleep(0.01)

    async def killed(url: str, process: psutil.Process) -> tuple[float, float]:
        nonlocal phase
        numbers, ask = itertools.count(), work.of_api(url)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            callers = [asyncio.create_task(caller(session, ask, numbers)) for _ in range(64)]
            await until_corrected(300, phase)
            in_hand = await asyncio.to_thread(counted, url, "corrector_adapter_in_flight")
            for child in process.children(recursive=True):
                if "EngineCore" in " ".join([child.name(), *child.cmdline()]):
                    child.kill()
            phase, start = "engine down", time.perf_counter()
            while await asyncio.to_thread(counted, url, "corrector_engine_starts") < 2:
                await asyncio.sleep(0.2)
            phase, back = "engine back", time.perf_counter() - start
            await until_corrected(300, phase)
            phase = "over"
            await asyncio.gather(*callers)
        return in_hand, back

    with gateway(run, api.url) as (url, process):
        _, _, expected = asyncio.run(timed(work.of_api(url), len(work.rows), 64))
        in_hand, back = asyncio.run(killed(url, process))
    api.stop()
    of_all = [one for some in found.values() for one in some]
    return {"requests": len(of_all), "callers": 64, "adapter_in_hand_at_the_kill": in_hand, "back_after_s": round(back, 1),
            "statuses": dict(collections.Counter(status for _, (status, *_) in of_all)),
            "wrong_pairs": wrong_pairs(work, expected, of_all, len(work.rows)),
            "actions": {when: dict(collections.Counter(done for _, (*_, done) in some)) for when, some in found.items()}}


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
    parser.add_argument("--run", type=Path, required=True, help="a finished run of the experiment")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--nice", type=int, default=0, help="of vLLM's server: on a CPU its two processes wait busily, "
                        "a second each time, and take the adapter's cores meanwhile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gateway.json"))
    options = parser.parse_args()
    run, parts = options.run, options.parts.split(",")
    adapter = TrainedAdapter(run)
    work = Workload(adapter, adapter.config.rollout.max_new_tokens)
    made = {"speed": lambda: speed(work, adapter, run, parts, options.nice),
            "faults": lambda: faults(work, run, options.requests, options.callers),
            "kill": lambda: kill(work, run), "shadow": lambda: shadow(work, run)}
    wanted = [*(["speed"] if {*PARTS[:2]} & {*parts} else []), *(part for part in PARTS[2:] if part in parts)]
    found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    for part in wanted:
        name = f"speed, nice {options.nice}" if part == "speed" and options.nice else part
        found[name] = made[part]()
        print(name, json.dumps(found[name]), flush=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
