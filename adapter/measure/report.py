"""The evaluation in plain text, and as data for report.json."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adapter.measure import confidence_report
from adapter.measure.accuracy import OVERALL, Entry, kinds_of
from adapter.measure.confidence_report import Confidence
from adapter.measure.curves import Curve
from adapter.measure.outcomes import Outcome
from adapter.measure.sections import Section
from adapter.measure.tables import (
    EXAMPLES,
    WIDTH,
    accuracy_table,
    api_table,
    cut,
    failure_table,
    kind_table,
    lift,
    percent,
)
from grpo.run.files import printable

KEYS = ("run", "step", "trained_to_step", "base_model", "task", "api", "kinds", "policies", "failures", "accuracy_by_step",
        "validation_by_step", "notes", "confidence")  # of report.json; a section has another name
PICTURES = ("reward", "accuracy", "reliability", "risk_coverage")  # nor has its picture one of these
FAR = 8  # kinds, up to which the head lists them


@dataclass(frozen=True)
class Evaluated:
    """Everything that is reported."""

    run: Path
    step: int  # of the LoRA
    until: int  # the last that was trained
    base: str
    task: str  # its class, as the config names it
    api: str  # its name
    entries: dict[str, Entry]  # the rows of the tables; "api" and "adapter" are among them
    outcomes: dict[str, list[Outcome]]  # of the adapter, and of the base where it was asked
    classes: Sequence[str]  # of failures
    measured: dict[int, Entry]  # the run's own evaluations on the test problems, by step, and this one
    validation: dict[int, Entry]  # and on the validation problems
    rewards: dict[str, Curve]  # of the sampled completions, by kind, and overall
    confidence: Confidence
    sections: Sequence[Section]  # the task's own
    notes: Sequence[str]

    @property
    def kinds(self) -> dict[str, int]:
        """How many test questions there are of each kind."""
        accuracy = self.entries["api"].accuracy
        return {kind: accuracy[kind].of for kind in kinds_of(accuracy)}


def text(found: Evaluated) -> str:
    """What is printed."""
    entries = list(found.entries.values())
    by_kind = kind_table(found.entries["api"], found.entries["adapter"])
    lines = [f"{found.run}: the adapter of step {found.step}{_beside(found)}", *(cut(line, WIDTH) for line in _head(found)),
             "", *_headline(found), *(f"note: {note}" for note in found.notes), "",
             "accuracy, with 95 % Wilson intervals", *accuracy_table(entries), "",
             "against the API alone; net lift with its 95 % paired bootstrap interval", *api_table(entries)]
    if by_kind:
        lines += ["", "the adapter against the API, by kind", *by_kind]
    for who, outcomes in found.outcomes.items():
        lines += ["", *failure_table(who, outcomes, found.classes)]
    lines += ["", *confidence_report.lines(found.confidence)]
    for section in found.sections:
        lines += ["", *(line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in section.lines)]
    return "\n".join(lines) + "\n"


def data(found: Evaluated) -> dict[str, object]:
    """The same and more, for report.json."""
    values = (str(found.run), found.step, found.until, found.base, found.task, found.api, found.kinds,
              {name: _entry(entry) for name, entry in found.entries.items()},
              {who: _failures(outcomes, found.classes) for who, outcomes in found.outcomes.items()},
              _by_step(found.measured), _by_step(found.validation), list(found.notes),
              confidence_report.data(found.confidence))
    return dict(zip(KEYS, values, strict=True)) | {section.name: section.data for section in found.sections}


def completion_lines(outcomes: dict[str, list[Outcome]]) -> str:
    """completions.jsonl: one line a question, the base's answer within the adapter's line."""
    lines = [_question(outcome) | _answer(outcome) for outcome in outcomes["adapter"]]
    if "base" in outcomes:
        lines = [line | {"base": _answer(base)} for line, base in zip(lines, outcomes["base"], strict=True)]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _head(found: Evaluated) -> list[str]:
    total, kinds = found.entries["api"].accuracy[OVERALL].of, found.kinds
    named = ", ".join(f"{of} {kind}" for kind, of in kinds.items())
    which = f": {named}" if 1 < len(kinds) <= FAR else f" of {len(kinds)} kinds" if len(kinds) > 1 else ""
    return [f"base {found.base}", f"behind {found.api}", f"{total} test questions{which}"]


def _headline(found: Evaluated) -> list[str]:
    """What a reader asks first."""
    api, adapter = (found.entries[name] for name in ("api", "adapter"))
    made = adapter.against_api[OVERALL]
    return [f"accuracy: API alone {percent(api.accuracy[OVERALL].value)} -> with the adapter "
            f"{percent(adapter.accuracy[OVERALL].value)}",
            f"net lift {lift(made.net_lift)} points; {made.fixes} of {made.repair_rate.of} API errors fixed, "
            f"{made.harms} of {made.harm_rate.of} right answers harmed"]


def _beside(found: Evaluated) -> str:
    """How that step stands among those that were measured on validation."""
    last = f"; trained to step {found.until}" if found.until != found.step else ""
    if found.step not in found.validation:
        return last
    overall = {step: entry.accuracy[OVERALL].value for step, entry in found.validation.items()}
    how = "the best" if overall[found.step] == max(overall.values()) else "one"
    return f", {how} of {len(overall)} on validation ({percent(overall[found.step])}){last}"


def _entry(entry: Entry) -> dict[str, object]:
    """JSON knows no infinity: a ratio without harms is the word."""
    found = asdict(entry)
    for kind, made in (entry.against_api or {}).items():
        infinite = made.ratio is not None and math.isinf(made.ratio)
        found["against_api"][kind] |= {"fixes": made.fixes, "harms": made.harms,
                                       "ratio": "infinite" if infinite else made.ratio}
    return found


def _by_step(entries: dict[int, Entry]) -> dict[str, dict[str, float | None]]:
    return {str(step): {kind: s.value for kind, s in entry.accuracy.items()} for step, entry in sorted(entries.items())}


def _failures(outcomes: Sequence[Outcome], classes: Sequence[str]) -> dict[str, object]:
    return {failure: {"count": len(failed), "examples": [_question(o) | _answer(o) for o in failed[:EXAMPLES]]}
            for failure in classes for failed in [[o for o in outcomes if o.failure == failure]]}


def _question(outcome: Outcome) -> dict[str, object]:
    row = outcome.row
    return {"id": row.id, "question": row.question, "kind": row.kind, "answer": row.answer,
            "api_answer": None if row.api is None else row.api.text, "api_extracted": outcome.api_extracted,
            "api_right": outcome.api_right}


def _answer(outcome: Outcome) -> dict[str, object]:
    found = {"completion": outcome.completion, "verdict": outcome.verdict, "final": outcome.answer, "right": outcome.right,
             "failure": outcome.failure}
    if outcome.confidence is None:  # of the base
        return found
    return found | {"confidence": outcome.confidence, "mean_probability": _probability(outcome.mean_logp),
                    "box": [[t.text, math.exp(t.logp)] for t in outcome.box],
                    "least_sure": None if outcome.doubt is None else [outcome.doubt.text, math.exp(outcome.doubt.logp)]}


def _probability(logp: float | None) -> float | None:
    return None if logp is None else math.exp(logp)


def check_names(sections: Sequence[Section]) -> list[str]:
    """The sections' names. Raises ValueError, in words, where one cannot be a key of report.json and a file's name."""
    names = [section.name for section in sections]
    for name in names:
        if not name.isidentifier() or name in KEYS or names.count(name) > 1 or name in PICTURES:
            raise ValueError(f"its report has a section {printable(repr(name))}; expected a name of letters and digits that "
                             "nothing else in the report has")
    return names
