"""What a run writes as it goes: metrics.jsonl, TensorBoard, a line per completion, and a progress bar.

README's glossary says what each key is. What there was nothing to average for is null, and absent from TensorBoard.
"""

import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from grpo.parity import parity_metrics
from grpo.types import Group, Metrics, Table
from grpo.update import TokenLogs


def rollout_metrics(groups: list[Group]) -> Metrics:
    """Rewards by kind, how groups are made up, and what completions look like."""
    completions = [c for g in groups for c in g.completions]
    by_kind = defaultdict(list)
    for group in groups:
        by_kind[group.prompt.problem.kind] += [c.score.reward for c in group.completions]
    spread = [(min(r), max(r)) for r in ([c.score.reward for c in g.completions] for g in groups)]
    mixed = sum(low < high for low, high in spread)
    right = sum(low == high > 0 for low, high in spread)
    return {
        "reward/mean": _mean(c.score.reward for c in completions),
        **{f"reward/{kind}": _mean(rewards) for kind, rewards in sorted(by_kind.items())},
        "groups/all_right": right / len(groups),
        "groups/all_wrong": (len(groups) - mixed - right) / len(groups),
        "groups/mixed": mixed / len(groups),
        "completion/mean_tokens": _mean(len(c.sample.token_ids) for c in completions),
        "completion/truncated_fraction": _mean(c.sample.finish_reason == "length" for c in completions),
        "completion/unparsed_fraction": _mean(c.score.unparsed for c in completions)}


def parity(groups: list[Group], logs: TokenLogs) -> Metrics:
    """The trainer's log-probs against the sampler's, on every trained token."""
    return parity_metrics(pair for (p, row), log in logs.items()
                          for pair in zip(log.logp, groups[p].completions[row].sample.logp, strict=True))


def peak_memory_gib(device: torch.device) -> float:
    """The peak of this process: memory PyTorch reserved on a GPU, or the largest resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Clock:
    """Seconds of a step and of its stages: `with clock("rollout"): ...`."""

    def __init__(self):
        self._start = time.perf_counter()
        self._stages: Metrics = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._stages[f"time/{stage}_s"] = time.perf_counter() - started

    def metrics(self) -> Metrics:
        """The stages, and the step from its start until now."""
        return {**self._stages, "time/step_s": time.perf_counter() - self._start}


class RunLog:
    """The records of a run directory, from step `start + 1` on; later ones of an earlier attempt are dropped."""

    def __init__(self, folder: Path, start: int, steps: int):
        self._folder = folder
        self._rollouts = folder / "rollouts"
        self._rollouts.mkdir(parents=True, exist_ok=True)
        self._metrics = folder / "metrics.jsonl"
        self._keep_until(start)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._bar = tqdm(total=steps, initial=start, unit="step", file=sys.stdout, dynamic_ncols=True, smoothing=0.1)

    def step(self, step: int, metrics: Metrics) -> None:
        """Record a step's scalars."""
        with self._metrics.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        self._bar.set_postfix({name.removeprefix("reward/"): f"{value:.2f}"
                               for name, value in metrics.items() if name.startswith("reward/")}, refresh=False)
        self._bar.update()

    def evaluation(self, step: int, table: Table) -> None:
        """Record an accuracy table, and print it above the bar."""
        for kind, value in table.items():
            self._writer.add_scalar(f"eval/{kind}", value, step)
        self._writer.flush()
        self.say(f"step {step}: " + "  ".join(f"{kind} {100 * value:.1f} %" for kind, value in table.items()))

    def say(self, line: str) -> None:
        """Print a line without tearing the bar."""
        self._bar.write(line, file=sys.stdout)

    def completions(self, step: int, groups: list[Group], advantages_PG: torch.Tensor, logs: TokenLogs) -> None:
        """One line a completion. The trainer's values are null for groups that carried no signal."""
        with (self._rollouts / f"step-{step:05d}.jsonl").open("w") as file:
            for p, group in enumerate(groups):
                for row, completion in enumerate(group.completions):
                    log, sample = logs.get((p, row)), completion.sample
                    file.write(json.dumps({
                        "step": step, "problem": group.prompt.problem.name, "kind": group.prompt.problem.kind,
                        "prompt": group.prompt.text, "completion": completion.text, "token_ids": sample.token_ids,
                        "logp_sampler": _short(sample.logp), "logp_trainer": _short(log and log.logp),
                        "entropy": _short(log and log.entropy), "reward": completion.score.reward,
                        "advantage": round(advantages_PG[p, row].item(), 6),
                        "finish_reason": sample.finish_reason}, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        """Write out what is buffered: a checkpoint must not be ahead of the curves."""
        self._writer.flush()

    def close(self) -> None:
        """Flush everything to disk."""
        self._writer.close()
        self._bar.close()

    def _keep_until(self, step: int) -> None:
        text = self._metrics.read_text() if self._metrics.exists() else ""
        whole = text[: text.rfind("\n") + 1].splitlines()  # a kill can cut the last line short
        part = self._metrics.with_suffix(".part")
        part.write_text("".join(line + "\n" for line in whole if json.loads(line)["step"] <= step))
        part.replace(self._metrics)
        for file in self._rollouts.glob("step-*.jsonl"):
            if int(file.stem.removeprefix("step-")) > step:
                file.unlink()


def _short(values) -> list[float] | None:
    return None if values is None else [round(value, 5) for value in values]


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)
