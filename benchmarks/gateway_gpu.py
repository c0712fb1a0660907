"""Requests a second of the gateway on a GPU: `python -m benchmarks.gateway_gpu MODEL [--out FILE]`.

MODEL is a model directory, such as benchmarks/random_base.py makes of a shape; its LoRA is random, of rank 32. 1, 32 and 256
callers ask, each the next question as soon as it is answered; the API is a local server that says one and the same at once,
so that what is measured is the gateway's and the adapter's. The adapter writes up to 128 tokens (random weights: all 128).
"""

import argparse
import asyncio
import collections
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from adapter.model import Model
from adapter.trained import TrainedAdapter
from benchmarks.gateway_load import Workload, gateway, timed
from grpo.config import load
from tests.streaming_server import StreamingServer

COUNTS = {1: 20, 32: 320, 256: 1536}  # callers, and the requests of all of them


def random_run(base: Path, folder: Path) -> Path:
    """A run directory with a LoRA that nobody trained."""
    config = load("configs/tiny.yaml", [f"model.path={base}", "model.device=cuda", "lora.rank=32", "lora.alpha=32",
                                        "rollout.max_new_tokens=128", "rollout.max_sequences=256", f"run.dir={folder}"])
    model = Model(config)
    generator = torch.Generator().manual_seed(0)
    model.hold({name: 0.01 * torch.randn(shape, generator=generator) for name, shape in model.shapes.items()})
    model.save(folder / "adapter")
    (folder / "config.yaml").write_text(config.dump(), encoding="utf-8")
    return folder


def measured(work: Workload, run: Path) -> dict:
    """Seconds until it serves; of each number of callers requests a second, and seconds a request."""
    api, found, before = StreamingServer(), {}, time.perf_counter()
    api.text = lambda prompt: "The answer is 12."
    with gateway(run, api.url, "--at-once", "256") as (url, _):
        found["ready_after_s"] = round(time.perf_counter() - before, 1)
        for callers, count in COUNTS.items():
            asyncio.run(timed(work.of_api(url), 2 * callers, callers))  # warms
            took, whole, answers = asyncio.run(timed(work.of_api(url), count, callers))
            cuts = statistics.quantiles(took, n=100, method="inclusive")
            found[f"{callers} callers"] = row = {
                "requests": count, "per_s": round(count / whole, 2), "p50_s": round(cuts[49], 3),
                "p99_s": round(cuts[98], 3), "actions": dict(collections.Counter(done for *_, done in answers))}
            print(callers, row, flush=True)
    api.stop()
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gateway_gpu.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = random_run(options.model, Path(folder))
        adapter = TrainedAdapter(run)
        work = Workload(adapter, adapter.config.rollout.max_new_tokens)
        found = {"gpu": torch.cuda.get_device_name()} | measured(work, run)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
