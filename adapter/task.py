"""The task GRPO is given: correct an API's answers to arithmetic in symbols it has never seen."""

from pathlib import Path

from adapter import claude
from adapter.dataset import Row, build, read
from adapter.parse import Agree, Unparsed
from adapter.prompt import PromptText
from adapter.reward import reward
from adapter.settings import Settings, make_notation, make_range, make_upstream
from adapter.upstream import SIMULATED, SimulatedUpstream
from grpo.types import Problem, Reference, Score, Table, UserError


class SymbolTask:
    """Task of grpo.types. Kinds: custom (symbols) and standard (ordinary operators)."""

    Settings = Settings

    def __init__(self, settings: Settings, seed: int):
        """Read the data set, or draw it and ask the API. Raises UserError for settings that cannot be met."""
        self.notation = make_notation(settings)
        self.prompt = PromptText(settings.condition, self.notation)
        if settings.data is not None:
            train, test = read(Path(settings.data), self.notation)
        else:
            try:
                train, test = build(seed, settings.train, settings.test, make_range(settings), self.notation,
                                    make_upstream(settings, seed))
            except ValueError as error:
                raise UserError(f"task.operands, task.terms, task.limit: {error}; widen them, or lower task.train") from None
        self.train, self.test = ([self._problem(row) for row in rows] for rows in (train, test))
        self.references = {"api": Reference(f"{_label(test)} alone", _api_accuracy(test))}

    @staticmethod
    def missing(settings: Settings) -> list[str]:
        """What this machine lacks for the settings, in words: a key, for a real API."""
        return [] if settings.upstream == "simulated" or settings.data else claude.missing(settings.upstream)

    def score(self, problem: Problem, text: str) -> Score:
        """1.0 if the chain's final answer is the truth."""
        row: Row = problem.data
        answer = self.prompt.answer_in(text)
        return Score(reward(answer, row.api_answer, row.truth), isinstance(answer, Unparsed))

    def _problem(self, row: Row) -> Problem:
        return Problem(row.expression, row.kind, tuple(self.prompt.messages(row.expression, row.api_answer)), row)


def _label(rows: list[Row]) -> str:
    models = sorted({row.api.model for row in rows})
    return ", ".join(SimulatedUpstream.label if model == SIMULATED else model for model in models)


def _api_accuracy(rows: list[Row]) -> Table:
    table: Table = {}
    for kind in ("custom", "standard", "overall"):
        right = [reward(Agree(), row.api_answer, row.truth) for row in rows if kind in (row.kind, "overall")]
        table[kind] = sum(right) / max(1, len(right))
    return table
