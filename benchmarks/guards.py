"""What trust costs: the guards' share of a step, and the seconds of a checkpoint. Prints JSON.

    python -m benchmarks.guards [key.path=value ...]

Runs steps of configs/tiny.yaml with a stopwatch around each guard; then checkpoints of that LoRA, and of one of Qwen3-8B's
shape (87.3 M numbers, random), with their optimizer state; then the guards on a step's worth of tokens of the flagship.
"""

import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from peft import LoraConfig
from torch import nn

import grpo.rollout
import grpo.trainer
import grpo.update
from grpo.config import load
from grpo.guards import checkpoint
from grpo.guards.alarms import Alarms
from grpo.guards.parity import check_parity
from grpo.policy import Policy
from grpo.rollout import rewards
from grpo.run.identity import Identity
from grpo.run.memory import memory_metrics
from grpo.types import Completion, Group, Problem, Prompt, Sample, Score, TokenLog
from grpo.update import Updater
from symbols.task import Settings, SymbolTask

STEPS, WARM = 12, 2
SHAPE = {"q_proj": (4096, 4096), "k_proj": (4096, 1024), "v_proj": (4096, 1024), "o_proj": (4096, 4096),
         "gate_proj": (4096, 12288), "up_proj": (4096, 12288), "down_proj": (12288, 4096)}  # in, out; 36 layers


class Stopwatch:
    """Seconds spent in functions, by name."""

    def __init__(self):
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def around(self, owner: object, name: str) -> None:
        """Time `owner.name` from now on."""
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            started = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds[name].append(time.perf_counter() - started)
            return result

        setattr(owner, name, timed)


class LoraOfShape:
    """What a checkpoint needs of a policy, for a LoRA of given layers and random numbers."""

    save, lora = Policy.save, Policy.lora

    def __init__(self, device: torch.device, layers: int, rank: int):
        self.device = device
        self.settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(SHAPE))
        self.parameters = {}
        for layer in range(layers):
            for name, (size_in, size_out) in SHAPE.items():
                for part, size in (("A", (rank, size_in)), ("B", (size_out, rank))):
                    at = f"base_model.model.model.layers.{layer}.{name}.lora_{part}.weight"
                    self.parameters[at] = nn.Parameter(torch.randn(size, device=device))


def checkpoint_seconds(policy, config, folder: Path, times: int = 3) -> dict[str, float]:
    """Of `grpo.guards.checkpoint.save`, after one real AdamW8bit step."""
    updater = Updater(policy, config)
    for p in policy.parameters.values():
        p.grad = torch.ones_like(p)
    updater.optimizer.step()
    spent = []
    for step in range(1, times + 1):
        started = time.perf_counter()
        checkpoint.save(folder, step, policy, updater, Identity({"train": "", "validation": "", "test": ""}, ""))
        spent.append(time.perf_counter() - started)
    size = sum(f.stat().st_size for f in (folder / f"step-{times:05d}").iterdir())
    return {"parameters": sum(p.numel() for p in policy.parameters.values()), "mib": round(size / 2**20, 1),
            "seconds": round(statistics.median(spent), 3)}


def flagship_guards() -> dict[str, float]:
    """Seconds of the guards on 16 x 64 completions of 128 tokens, all of them trained."""
    sample = Sample(tuple(range(128)), tuple(-0.01 * i for i in range(128)), "stop")
    groups = [Group(Prompt(Problem(str(p), "custom", ()), (1,), ""),
                    tuple(Completion(sample, "", Score(float(i % 2), answer=str(i))) for i in range(64))) for p in range(16)]
    logs = {(p, i): TokenLog(list(sample.logp), [0.0] * 128) for p in range(16) for i in range(64)}
    watch = {}
    for name, guard in {"check_parity": lambda: check_parity(groups, logs, torch.float32, 0.0, 1.0),
                        "rewards": lambda: rewards(groups), "alarms": lambda: Alarms().check(groups),
                        "memory_metrics": lambda: memory_metrics(torch.device("cpu"))}.items():
        started = time.perf_counter()
        for _ in range(5):
            guard()
        watch[name] = round((time.perf_counter() - started) / 5, 4)
    return watch


def main(overrides: list[str]) -> None:
    """The command."""
    with tempfile.TemporaryDirectory() as place:
        config = load("configs/tiny.yaml", [f"run.dir={place}/run", f"run.steps={STEPS}", *overrides])
        run = grpo.trainer.Trainer(config, SymbolTask(Settings(limit=999), config.run.seed), resume=False, allowed=())
        watch = Stopwatch()
        for owner, name in ((grpo.update, "check_parity"), (grpo.rollout, "rewards"), (run.alarms, "check"),
                            (grpo.trainer, "memory_metrics"), (run, "step"), (run.policy, "fingerprint"),
                            (run.sampler, "fingerprint")):
            watch.around(owner, name)
        for step in range(1, STEPS + 1):
            run.step(step)
        run.save()
        steps = watch.seconds.pop("step")[WARM:]
        base = watch.seconds.pop("fingerprint")
        guards = {name: statistics.mean(seconds[WARM:]) for name, seconds in watch.seconds.items()}
        shape = LoraOfShape(torch.device("cpu"), 36, 32)
        print(json.dumps({
            "tiny": {"step_s": round(statistics.mean(steps), 3),
                     "guards_ms": {name: round(1e3 * seconds, 3) for name, seconds in guards.items()},
                     "share_of_step": round(sum(guards.values()) / statistics.mean(steps), 5),
                     "hash_of_both_bases_s": round(sum(base), 4)},
            "checkpoint_tiny": checkpoint_seconds(run.policy, config, Path(place) / "a"),
            "checkpoint_8b_lora": checkpoint_seconds(shape, config, Path(place) / "b"),
            "guards_on_131072_tokens_s": flagship_guards()}, indent=1))
        run.sampler.close()


if __name__ == "__main__":
    main(sys.argv[1:])
