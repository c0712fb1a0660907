"""rollouts/: the completions of a step in one file, a line each, gzip'd; and of which steps there is one."""

import gzip
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from pydantic import BeforeValidator

if TYPE_CHECKING:
    from grpo.config import Config

MOST = 5 * 2**30  # bytes of a run's rollouts/, where records.rollouts is auto
TOKEN, COLUMN = 15, 3  # bytes, compressed: of a token, and of one more number for it; random tokens take 14, real ones fewer
FASTEST = 1  # gzip's level: 9 saves an eighth, and takes ten times as long
_FILE = re.compile(r"step-([0-9]{5,15})\.jsonl(\.gz)?")  # an older run's are not compressed


def _which(value: Any) -> Any:
    if value not in ("auto", "all", "none") and (type(value) is not int or value < 1):
        raise ValueError("expected auto, all, none, or how many steps apart, such as 10: steps 1, 11, 21, ...")
    return value


WhichSteps = Annotated[int | str, BeforeValidator(_which)]  # of the key records.rollouts


@dataclass(frozen=True)
class KeptSteps:
    """The steps whose completions are recorded: the first, and each `every`-th after it; 0: none."""

    every: int = 1
    size: int = 0  # bytes that they take, at most, about
    whole: int = 0  # and that all steps would take

    @staticmethod
    def of(config: "Config") -> "KeptSteps":
        """As records.rollouts says. auto: 1, 2, 5, 10, ... steps apart, the least that keeps rollouts/ below MOST."""
        rollout, columns = config.rollout, (config.algorithm.beta > 0) + (config.algorithm.epochs > 1)
        tokens = rollout.prompts_per_step * rollout.group_size * rollout.max_new_tokens
        step, steps = tokens * (TOKEN + COLUMN * columns), config.run.steps
        match config.records.rollouts:
            case "none":
                return KeptSteps(0)
            case "all":
                every = 1
            case "auto":
                apart = (n * 10**power for power in range(20) for n in (1, 2, 5))
                every = next(n for n in apart if n >= steps or -(-steps // n) * step <= MOST)
            case number:
                every = number
        return KeptSteps(every, -(-steps // every) * step, steps * step)

    def has(self, step: int) -> bool:
        """Whether a step's completions are recorded. Steps count from 1."""
        return self.every > 0 and (step - 1) % self.every == 0

    def __str__(self) -> str:
        if not self.every:
            return "rollouts/: no completions are kept (records.rollouts)"
        if self.every == 1:
            return f"rollouts/: the completions of all steps, {_shown(self.size)} at most (records.rollouts)"
        return (f"rollouts/: the completions of steps 1, {1 + self.every}, {1 + 2 * self.every}, ..., {_shown(self.size)} "
                f"at most; records.rollouts=all keeps those of all steps, {_shown(self.whole)}")


def _shown(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


ALL = KeptSteps()


def rollout_files(folder: Path) -> dict[int, Path]:
    """The files of rollouts/ by step, in order. What is named otherwise is left out."""
    found = ((_FILE.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return dict(sorted((int(match[1]), path) for match, path in found if match and path.is_file()))


def write_rollout(folder: Path, step: int, lines: Iterable[dict[str, Any]]) -> None:
    """The step's file: whole, or absent, so that a run can be read while it trains."""
    path = folder / f"step-{step:05d}.jsonl.gz"
    part = path.with_suffix(".part")
    with gzip.open(part, "wb", FASTEST) as file:
        for line in lines:
            file.write(msgspec.json.encode(line) + b"\n")  # a tenth of json's time: a large step has 400,000 numbers
    part.replace(path)
