"""How sure the adapter is: the log-probability of its box, calibrated on validation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo.run.files import read_object


@dataclass(frozen=True)
class Calibration:
    """Of a step's LoRA."""

    step: int
    temperature: float
    threshold: float | None

    def __call__(self, logp: float) -> float:
        """Calibrated confidence in [0, 1]."""
        return math.exp(min(0.0, logp / self.temperature))


def box_logp(token_ids: Sequence[int], logp: Sequence[float], decode: Callable[[Sequence[int]], str]) -> float | None:
    """Of the last box's tokens, nats; None where there is none."""
    text = [decode(tuple(token_ids[:n])) for n in range(len(token_ids) + 1)]
    start = max((n for n, t in enumerate(text) if "\\boxed{" not in t), default=0)
    return sum(logp[start:]) if "\\boxed{" in text[-1] else None


def read_calibration(run: Path, step: int) -> Calibration | None:
    """What adapter.evaluate found for this step's LoRA; None where it did not."""
    try:
        found = read_object(run / "evaluate" / "calibration.json")
    except (OSError, ValueError):
        return None
    return Calibration(step, found["temperature"], found["threshold"]) if found.get("step") == step else None
