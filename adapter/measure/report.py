"""The evaluation in plain text, at most WIDTH columns, and as data for report.json."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adapter.measure.accuracy import KINDS, Entry, Share
from adapter.measure.records import MetricsLine
from grpo.run.files import printable
from symbols.expression import Notation
from symbols.failures import FAILURES, Outcome
from symbols.learning import LEVELS, WINDOW, Learning, moving_mean, reached
from symbols.task import SymbolTask

WIDTH = 100
EXAMPLES = 3  # of each class of failure


@dataclass(frozen=True)
class Evaluated:
    """Everything that is reported."""

    run: Path
    step: int  # of the LoRA
    until: int  # the last that was trained
    base: str
    task: SymbolTask
    entries: dict[str, Entry]  # the rows of the tables
    outcomes: dict[str, list[Outcome]]  # of the adapter, and of the base where it was asked
    measured: dict[int, Entry]  # the run's own evaluations on the test problems, by step, and this one
    validation: dict[int, Entry]  # and on the validation problems
    metrics: list[MetricsLine]
    learning: Learning
    notes: list[str]

    @property
    def api(self) -> str:
        """The API's name."""
        return self.task.references["api"].label.removesuffix(" alone")


def text(found: Evaluated) -> str:
    """What is printed."""
    counts = {kind: s.of for kind, s in found.entries["api"].accuracy.items()}
    entries = list(found.entries.values())
    lines = [f"{found.run}: the adapter of step {found.step}{_beside(found)}",
             f"base {found.base}; condition {found.task.prompt.condition}; behind {found.api}; {counts['overall']} test "
             f"problems, {counts['custom']} custom", "",
             "accuracy, with 95 % Wilson intervals", *accuracy_table(entries), "",
             "against the API alone", *api_table(entries), *(f"note: {note}" for note in found.notes)]
    for who, outcomes in found.outcomes.items():
        lines += ["", *failure_table(who, outcomes)]
    return "\n".join([*lines, "", *symbol_table(found.learning, found.task.notation)]) + "\n"


def data(found: Evaluated) -> dict[str, object]:
    """The same and more, for report.json."""
    return {"run": str(found.run), "step": found.step, "trained_to_step": found.until, "base_model": found.base,
            "condition": found.task.prompt.condition, "api": found.api,
            "policies": {name: asdict(entry) for name, entry in found.entries.items()},
            "failures": {who: _failures(outcomes) for who, outcomes in found.outcomes.items()},
            "symbols": _symbols(found.learning, found.task.notation),
            "accuracy_by_step": _by_step(found.measured), "validation_by_step": _by_step(found.validation),
            "notes": found.notes}


def completion_lines(outcomes: dict[str, list[Outcome]]) -> str:
    """completions.jsonl: one line a test problem, the base's answer within the adapter's line."""
    lines = [_problem(outcome) | _answer(outcome) for outcome in outcomes["adapter"]]
    if "base" in outcomes:
        lines = [line | {"base": _answer(base)} for line, base in zip(lines, outcomes["base"], strict=True)]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def accuracy_table(entries: Sequence[Entry]) -> list[str]:
    """Accuracies by kind."""
    label = max(len(entry.label) for entry in entries)
    return [" " * label + "".join(f"{kind:>10}{'':<14}" for kind in KINDS).rstrip(),
            *(f"{entry.label:<{label}}" + "".join(_interval(entry.accuracy[kind]) for kind in KINDS).rstrip()
              for entry in entries)]


def api_table(entries: Sequence[Entry]) -> list[str]:
    """What each chain makes of the API's answers."""
    chains = [entry for entry in entries if entry.against_api]
    made = [entry.against_api for entry in chains]
    rows = [("", [entry.label for entry in chains]),
            ("fix rate: API wrong -> right", [_counts(m.fix_rate) for m in made]),
            ("harm rate: API right -> wrong", [_counts(m.harm_rate) for m in made]),
            ("precision of CORRECT", [_counts(m.correct_precision) for m in made]),
            ("recall of CORRECT", [_counts(m.correct_recall) for m in made]),
            ("exact McNemar p", [f"{m.mcnemar_p:.2g}" for m in made])]
    return [f"{name:<30}" + "".join(f"{cell:>22}" for cell in cells) for name, cells in rows]


def failure_table(who: str, outcomes: Sequence[Outcome]) -> list[str]:
    """How many completions failed in each way, with examples."""
    lines = [f"failures of the {who}: {sum(not o.right for o in outcomes)} of {len(outcomes)}"]
    for failure in FAILURES:
        failed = [o for o in outcomes if o.failure == failure]
        lines.append(f"  {failure:<16}{len(failed):>5}")
        for o in failed[:EXAMPLES]:
            wrote = printable(" ".join(o.completion.split()))
            lines.append(_clip(f"      {o.row.expression} = {o.row.truth} | API: {o.row.api_answer} | {wrote}"))
    return lines


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
                     + f"{_percent(last[0] if last else None):>10}")
    if learning.missing:
        lines.append(f"  rollouts/ holds {learning.steps} of {learning.steps + learning.missing} steps; records.rollouts "
                     "decides which are kept")
    return lines


def _beside(found: Evaluated) -> str:
    """How that step stands among those that were measured on validation."""
    last = f"; trained to step {found.until}" if found.until != found.step else ""
    if found.step not in found.validation:
        return last
    overall = {step: entry.accuracy["overall"].value for step, entry in found.validation.items()}
    how = "the best" if overall[found.step] == max(overall.values()) else "one"
    return f", {how} of {len(overall)} on validation ({_percent(overall[found.step])}){last}"


def _by_step(entries: dict[int, Entry]) -> dict[str, dict[str, float | None]]:
    return {str(step): {kind: s.value for kind, s in entry.accuracy.items()} for step, entry in sorted(entries.items())}


def _failures(outcomes: Sequence[Outcome]) -> dict[str, object]:
    return {failure: {"count": len(failed), "examples": [_problem(o) | _answer(o) for o in failed[:EXAMPLES]]}
            for failure in FAILURES for failed in [[o for o in outcomes if o.failure == failure]]}


def _symbols(learning: Learning, notation: Notation) -> dict[str, object]:
    return {"basis": learning.basis, "steps_read": learning.steps, "steps_missing": learning.missing, "window": WINDOW,
            "learned": {sign: {"operation": op.value,
                               "first_step": {f"{level:g}": reached(learning.curves[sign], level) for level in LEVELS},
                               "by_step": {str(step): round(value, 6) for step, value in learning.curves[sign].items()}}
                        for sign, op in notation.items()}}


def _problem(outcome: Outcome) -> dict[str, object]:
    row = outcome.row
    return {"expression": row.expression, "kind": row.kind, "truth": str(row.truth), "api_answer": row.api_answer}


def _answer(outcome: Outcome) -> dict[str, object]:
    return {"completion": outcome.completion, "verdict": outcome.verdict,
            "answer": None if outcome.answer is None else str(outcome.answer), "right": outcome.right,
            "failure": outcome.failure}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _interval(share: Share) -> str:
    bounds = "" if share.low is None else f"[{100 * share.low:.1f}, {100 * share.high:.1f}]"
    return f"{_percent(share.value):>10} {bounds:<13}"


def _counts(share: Share) -> str:
    return _percent(share.value) + (f" ({share.hits}/{share.of})" if share.of else "")


def _clip(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
