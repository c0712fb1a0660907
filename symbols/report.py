"""What adapter.evaluate reports of this experiment alone: guessing, when each symbol was learned, the classes of failure."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from adapter.measure.accuracy import Entry, expected
from adapter.measure.curves import WINDOW, moving_mean, reached
from adapter.measure.plots import BLUE, GREEN, PURPLE, VERMILLION, curves_plot
from adapter.measure.sections import Section
from adapter.measure.tables import percent
from adapter.questions import Row
from grpo.config import Config
from symbols.expression import Notation
from symbols.failures import chance
from symbols.learning import LEVELS, Learning, read_learning

EXPLAINED = """\
random mapping     reads each symbol as any of the four operations, all equally likely: the expected
                   accuracy
reached            when completions read the symbol right; where they state no readings, when
                   problems with that symbol alone are rewarded
a failure is of the first class that applies, in this order:
  truncated        cut off, with no answer
  wrong symbol     states a false reading, such as `γ = +`
  unparsed         holds no answer
  echo             the API's wrong answer, agreed with or given again
  wrong symbol     the exact value under another reading of the symbols
  arithmetic slip  the rest""".splitlines()


def policies(rows: Sequence[Row], notation: Notation) -> dict[str, Entry]:
    """Reading the symbols at random and computing exactly: its expected accuracy."""
    return {"random_mapping": expected("random mapping, expected", rows, [chance(row, notation) for row in rows])}


def section(run: Path, until: int, config: Config, notation: Notation, condition: str) -> Section:
    """When each symbol was learned, from the run's rollouts up to a step. Raises UserError where these are damaged."""
    learning = read_learning(run, until, config.rollout.prompts_per_step * config.rollout.group_size, notation)
    lines = [f"condition {condition}", *symbol_table(learning, notation), "", *EXPLAINED]
    draw = partial(symbols_plot, learning, notation) if learning.steps else None
    return Section("symbols", lines, {"condition": condition} | symbol_data(learning, notation), draw)


def symbol_table(learning: Learning, notation: Notation) -> list[str]:
    """When each symbol was learned."""
    what = {"readings": "share of sampled completions that read it right",
            "reward": "mean reward on problems in which it is the only symbol"}[learning.basis]
    if not learning.steps:
        return ["symbols: not known, there are no rollouts"]
    lines = [f"symbols: {what}; mean of {WINDOW} recorded steps",
             f"  {'symbol':<10}" + "".join(f"{f'reached {100 * level:.0f} %':>18}" for level in LEVELS) + f"{'last':>10}"]
    for sign, op in notation.items():
        curve = learning.curves[sign]
        last = list(moving_mean(curve, WINDOW).values())[-1:]
        steps = ["not yet" if step is None else f"step {step}" for step in (reached(curve, level) for level in LEVELS)]
        lines.append(f"  {f'{sign}  ({op})':<10}" + "".join(f"{step:>18}" for step in steps)
                     + f"{percent(last[0] if last else None):>10}")
    if learning.missing:
        lines.append(f"  rollouts/ holds {learning.steps} of {learning.steps + learning.missing} steps; records.rollouts "
                     "decides which are kept")
    return lines


def symbol_data(learning: Learning, notation: Notation) -> dict[str, object]:
    """The same and more, for report.json."""
    return {"basis": learning.basis, "steps_read": learning.steps, "steps_missing": learning.missing, "window": WINDOW,
            "learned": {sign: {"operation": op.value,
                               "first_step": {f"{level:g}": reached(learning.curves[sign], level) for level in LEVELS},
                               "by_step": {str(step): round(value, 6) for step, value in learning.curves[sign].items()}}
                        for sign, op in notation.items()}}


def symbols_plot(learning: Learning, notation: Notation, path: Path, subtitle: str) -> None:
    """When each symbol was learned."""
    title = {"readings": "Share of completions that read a symbol right",
             "reward": "Reward on problems with one symbol"}[learning.basis]
    colours = (BLUE, VERMILLION, GREEN, PURPLE)
    lines = [(f"{sign} is {op}", learning.curves[sign], colour)
             for (sign, op), colour in zip(notation.items(), colours, strict=True)]
    curves_plot(path, title, lines, subtitle, ("guessing 25 %", 0.25) if learning.basis == "readings" else None)
