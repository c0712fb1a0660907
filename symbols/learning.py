"""Which symbol was learned when, from a run's rollouts.

A step's value for a symbol is the share of completions, of custom problems with that symbol, that read it right: as the
last `γ = ×` in the completion says. Where most completions state no reading (basis "reward"), it is the mean reward on
problems in which it is the only symbol. A symbol reaches a level at the first step at which the mean of its last WINDOW
values (adapter/measure/curves.py) is at least that level.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from adapter.measure.curves import Curve
from adapter.measure.records import RolloutLine
from grpo.run.files import brief, read_lines
from grpo.run.rollouts import rollout_files
from grpo.types import UserError
from symbols.expression import ExpressionError, Notation, parse
from symbols.failures import signs_in, stated
from symbols.rows import KINDS

LEVELS = (0.5, 0.9)
CURE = "delete the file, and its step is left out"


@dataclass(frozen=True)
class Learning:
    """What the rollouts tell. `curves`: for each sign, the steps at which it was seen."""

    basis: Literal["readings", "reward"]
    curves: dict[str, Curve]
    steps: int  # how many steps were read
    missing: int  # how many have no file


def read_learning(run: Path, until: int, per_step: int, notation: Notation) -> Learning:
    """Read rollouts/ up to a step, a line at a time. per_step: how many lines each file has.

    Raises UserError, naming file and line, where one is damaged.
    """
    read, rewards = ({sign: {} for sign in notation} for _ in range(2))
    tally = Counter()
    files = {step: path for step, path in rollout_files(run / "rollouts").items() if 1 <= step <= until}
    with tqdm(files.items(), desc="rollouts", unit="step", delay=1, leave=False, disable=None) as steps:
        for step, path in steps:
            right, sole = defaultdict(list), defaultdict(list)
            for line in _completions(path, step, per_step, notation):
                signs = signs_in(line.problem, notation) if line.kind == "custom" else set()
                readings = stated(line.completion, notation) if signs else {}
                for sign in signs:
                    tally[sign in readings] += 1
                    right[sign].append(readings.get(sign) == notation[sign])
                if len(signs) == 1:
                    sole[signs.pop()].append(line.reward)
            for curves, values in ((read, right), (rewards, sole)):
                for sign, seen in values.items():
                    curves[sign][step] = sum(seen) / len(seen)
    basis = "readings" if tally[True] >= max(1, tally[False]) else "reward"
    return Learning(basis, read if basis == "readings" else rewards, len(files), until - len(files))


def _completions(path: Path, step: int, per_step: int, notation: Notation) -> Iterator[RolloutLine]:
    number, known = 0, None
    for number, line in read_lines(path, RolloutLine, CURE):
        if line.step != step:
            raise UserError(f"{path}: line {number}: step is {line.step}, expected {step}; {CURE}")
        if number > per_step:
            raise UserError(f"{path}: line {number}: one more than the {per_step} completions of a step; {CURE}")
        if line.kind not in KINDS:
            raise UserError(f"{path}: line {number}: kind: {brief(repr(line.kind), 40)}, expected {' or '.join(KINDS)}; "
                            f"{CURE}")
        if line.kind == "custom" and line.problem != known:
            try:
                parse(line.problem, notation)
            except ExpressionError as error:
                raise UserError(f"{path}: line {number}: problem: {error}; {CURE}") from None
            known = line.problem
        yield line
    if number < per_step:
        raise UserError(f"{path}: line {number + 1}: missing; a step of this run has {per_step} completions; {CURE}")
