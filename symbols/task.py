"""The task GRPO is given: correct an API's answers to arithmetic in symbols it has never seen."""

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cached_property
from pathlib import Path

from adapter.api import claude
from adapter.parse import Unparsed, boxes_in, in_short
from grpo.types import Problem, Reference, Score, Table, UserError
from symbols.dataset import Row, Splits, build, check_said, read
from symbols.failures import api_right, chance
from symbols.prompt import PromptText
from symbols.reward import reward
from symbols.settings import Settings, make_notation, make_range, make_upstream
from symbols.simulated import SIMULATED, SimulatedUpstream


class SymbolTask:
    """Task of grpo.types. Kinds: custom (symbols) and standard (ordinary operators)."""

    Settings = Settings

    def __init__(self, settings: Settings, seed: int):
        """Read the data set, or draw it and ask the API. Raises UserError for settings that cannot be met."""
        self.notation = make_notation(settings)
        self.prompt = PromptText(settings.condition, self.notation)
        if settings.data is not None:
            splits = read(Path(settings.data), self.notation)
            check_said(settings, splits)
        else:
            try:
                splits = build(seed, Splits(settings.train, settings.validation, settings.test), make_range(settings),
                               self.notation, make_upstream(settings, seed))
            except ValueError as error:
                raise UserError(f"task.operands, task.terms, task.limit: {error}; widen them, or lower task.train, "
                                "task.validation or task.test") from None
        self.train, self.validation, self.test = ([self._problem(row) for row in rows] for rows in splits)
        self.references = {"api": Reference(f"{_label(splits.test)} alone", _accuracy(splits.test, api_right))}

    @staticmethod
    def missing(settings: Settings) -> list[str]:
        """What this machine lacks for the settings, in words: a key, for a real API."""
        return [] if settings.upstream == "simulated" or settings.data else claude.missing(settings.upstream)

    def score(self, problem: Problem, text: str) -> Score:
        """1.0 if the chain's final answer is the truth. `answers` counts the boxes."""
        row: Row = problem.data
        boxes = boxes_in(text)
        answer = self.prompt.final_answer(boxes)
        return Score(reward(answer, row.api_answer, row.truth), isinstance(answer, Unparsed), in_short(answer), len(boxes))

    @cached_property
    def trivial(self) -> list[Reference]:
        """What policies that do not look at the question score on the test problems. A random mapping looks at all but
        the symbols."""
        rows = [problem.data for problem in self.test]
        times = Counter(problem.data.truth for problem in self.train)
        commonest = min(times, key=lambda truth: (-times[truth], truth))
        always_correct = Reference("always CORRECT", self.references["api"].accuracy)
        return [*([always_correct] if self.prompt.may_agree else []),
                Reference(f"always {commonest}", _accuracy(rows, lambda row: row.truth == commonest)),
                Reference("random mapping, expected", _accuracy(rows, lambda row: chance(row, self.notation)))]

    def _problem(self, row: Row) -> Problem:
        return Problem(row.expression, row.kind, tuple(self.prompt.messages(row.expression, row.api_answer)), row)


def _label(rows: list[Row]) -> str:
    models = sorted({row.api.model for row in rows})
    shown = [SimulatedUpstream.label if model == SIMULATED else model[:100] for model in models[:3]]
    return ", ".join(shown) + (f" and {len(models) - 3} others" if len(models) > 3 else "")


def _accuracy(rows: list[Row], right: Callable[[Row], bool | Fraction]) -> Table:
    """The mean of `right` by kind, and overall."""
    values = [(row.kind, right(row)) for row in rows]
    table: Table = {}
    for kind in ("custom", "standard", "overall"):
        of = [value for its_kind, value in values if kind in (its_kind, "overall")]
        table[kind] = float(sum(of, Fraction(0)) / max(1, len(of)))
    return table
