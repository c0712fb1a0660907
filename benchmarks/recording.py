"""What it costs to record a step for the report: rollouts/step-N.jsonl.gz, lora.jsonl. Prints JSON.

    python -m benchmarks.recording [--device cuda] [--rank 32] [--run RUN]

At the size of the flagship, by the run's own functions: 16 x 64 completions of 128 tokens under prompts of 1,500 characters,
and the LoRA of Qwen3-8B's shape, 252 modules, random. `health` is LoraHealth's part, `modules` the line of lora.jsonl. With
--run, a finished run's own `time/record_s` too.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.guards import LoraOfShape
from grpo.guards.lora_health import LoraHealth
from grpo.run.metrics import completion_lines
from grpo.run.records import RunLog
from grpo.types import Completion, Group, Problem, Prompt, Sample, Score, TokenLog

TIMES, STEP_8B = 7, 16.8  # seconds: benchmarks/speed.md


def flagship(folder: Path, device: torch.device, rank: int) -> dict[str, float]:
    """Medians of seconds for a step's files."""
    numbers = torch.randn(128, generator=torch.Generator().manual_seed(0)).double().tolist()
    sample = Sample(tuple(range(10_000, 10_128)), tuple(numbers), "stop")
    groups = [Group(Prompt(Problem(str(p), "custom", ()), (1,), "x" * 1500), tuple(
        Completion(sample, "y" * 400, Score(float(i % 2))) for i in range(64))) for p in range(16)]
    logs = {(p, i): TokenLog(numbers, numbers) for p in range(16) for i in range(64)}
    lora = LoraOfShape(device, 36, rank)
    weight = torch.ones(64, 64, device=device)
    names = sorted({name.rsplit(".", 2)[0] for name in lora.parameters})
    layers = [(name, SimpleNamespace(lora_A=None, get_base_layer=lambda: SimpleNamespace(weight=weight))) for name in names]
    lora.model, lora.scale = SimpleNamespace(named_modules=lambda: layers), 2.0
    log, health = RunLog(folder, 0, TIMES), LoraHealth(lora)
    spent = {"norms": [], "completions": [], "health": [], "modules": []}
    for step in range(1, TIMES + 1):
        before = time.perf_counter()
        norms = {name: p.detach().norm() for name, p in lora.parameters.items()}  # as Updater.step, of gradients
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        log.completions(step, completion_lines(step, groups, torch.zeros(16, 64), logs))
        between = time.perf_counter()
        found, _ = health.measure(step, norms)
        measured = time.perf_counter()
        log.modules(step, found)
        spent["norms"].append(started - before)
        spent["completions"].append(between - started)
        spent["health"].append(measured - between)
        spent["modules"].append(time.perf_counter() - measured)
    log.close()
    medians = {name: round(statistics.median(seconds), 4) for name, seconds in spent.items()}
    size = (folder / "rollouts" / "step-00001.jsonl.gz").stat().st_size
    return {**medians, "mib": round(size / 2**20, 2), "share_of_a_step": round(sum(medians.values()) / STEP_8B, 5),
            "health_of_a_step": round(medians["health"] / STEP_8B, 5)}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        found = {"device": device.type, "rank": options.rank, "flagship": flagship(Path(folder), device, options.rank)}
    if options.run:
        steps = [json.loads(line) for line in (options.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        record, whole = (statistics.mean(s[f"time/{name}_s"] for s in steps) for name in ("record", "step"))
        found["run"] = {"record_s": round(record, 4), "step_s": round(whole, 3), "share_of_a_step": round(record / whole, 5)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
