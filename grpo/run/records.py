"""What a run writes as it goes: metrics.jsonl, TensorBoard, a line per completion, and a progress bar.

docs/metrics.md says what each key is. What there was nothing to average for is null, and absent from TensorBoard.
"""

import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from grpo.run.files import flush, printable
from grpo.run.rollouts import ALL, KeptSteps, rollout_files, write_rollout
from grpo.types import Metrics, Table, UserError

LONGEST_LINE = 2**20  # bytes of metrics.jsonl and lora.jsonl


def _quiet(thread: threading.ExceptHookArgs) -> None:
    """A full disk ends TensorBoard's thread, and is raised again where the run next writes: it needs no traceback here."""
    if not isinstance(thread.exc_value, OSError):
        threading.__excepthook__(thread)


class Clock:
    """Seconds of a step and of its stages: `with clock("rollout"): ...`."""

    def __init__(self):
        self._start = time.perf_counter()
        self._stages: Metrics = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        name = f"time/{stage}_s"
        self._stages[name] = self._stages.get(name, 0.0) + time.perf_counter() - started

    def metrics(self) -> Metrics:
        """The stages, and the step from its start until now."""
        return {**self._stages, "time/step_s": time.perf_counter() - self._start}


class RunLog:
    """The records of a run directory, from step `start + 1` on; later ones of an earlier attempt are dropped."""

    def __init__(self, folder: Path, start: int, steps: int, kept: KeptSteps = ALL):
        self._rollouts, self._kept = folder / "rollouts", kept
        self._rollouts.mkdir(parents=True, exist_ok=True)
        self._metrics, self._modules = folder / "metrics.jsonl", folder / "lora.jsonl"
        self._keep_until(start)
        threading.excepthook = _quiet
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._bar = tqdm(total=steps, initial=start, unit="step", file=sys.stdout, dynamic_ncols=True, smoothing=0.1)

    def step(self, step: int, metrics: Metrics) -> None:
        """Record a step's scalars."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        self._bar.set_postfix({printable(name.removeprefix("reward/")): f"{value:.2f}"
                               for name, value in metrics.items() if name.startswith("reward/")}, refresh=False)
        self._bar.update()

    def evaluation(self, split: str, step: int, table: Table) -> None:
        """Record an accuracy table, and print it above the bar."""
        for kind, value in table.items():
            self._writer.add_scalar(f"{split}/{kind}", value, step)
        self._writer.flush()
        self.say(f"step {step}: {split} {shown(table)}")

    def say(self, line: str) -> None:
        """Print a line without tearing the bar."""
        self._bar.write(printable(line), file=sys.stdout)

    def completions(self, step: int, lines: Iterable[dict[str, Any]]) -> None:
        """A file of the step, one line a completion, where it is a step whose completions are kept."""
        if self._kept.has(step):
            write_rollout(self._rollouts, step, lines)

    def modules(self, step: int, health: dict[str, Any]) -> None:
        """A line of lora.jsonl: what grpo/guards/lora_health.py says of each module."""
        with self._modules.open("ab") as file:
            file.write(msgspec.json.encode({"step": step, "modules": health}) + b"\n")

    def flush(self) -> None:
        """Put what was recorded on the disk: a checkpoint must not be ahead of it."""
        self._writer.flush()
        flush(self._metrics)
        flush(self._modules)

    def close(self) -> None:
        """Flush everything to disk."""
        self._writer.close()
        self._bar.close()

    def _keep_until(self, step: int) -> None:
        for path in (self._metrics, self._modules):
            part = path.with_suffix(".part")
            with part.open("wb") as kept:
                for line in _whole_lines(path):
                    if _step_of(path, line) <= step:
                        kept.write(line)
            part.replace(path)
        for number, file in rollout_files(self._rollouts).items():
            if number > step:
                file.unlink()


def _step_of(path: Path, line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise UserError(f"{path}: holds a line that is no step's metrics; delete the line") from None


def shown(table: Table) -> str:
    """Accuracies on one line, in percent."""
    return "  ".join(f"{kind} {100 * value:.1f} %" for kind, value in table.items())


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file that may not be there. A kill can cut the last one short: it is left out."""
    if path.exists():
        with path.open("rb") as file:
            while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
                yield line
        if len(line) == LONGEST_LINE:
            raise UserError(f"{path}: a line is longer than {LONGEST_LINE} bytes; no step's metrics are; delete it")
