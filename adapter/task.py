"""The task GRPO is given: correct an API's answers to arithmetic in symbols it has never seen."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from adapter.dataset import Row, build
from adapter.parse import Agree, Unparsed, parse_answer
from adapter.prompt import Condition, PromptText
from adapter.reward import reward
from adapter.upstream import ClaudeUpstream, SimulatedUpstream, Upstream
from grpo.types import Problem, Reference, Score, Table, UserError
from symbols.expression import GREEK, Op
from symbols.generate import Range


class Settings(BaseModel):
    """The keys under `task` in a config."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    condition: Condition = Field("vague", description="what the prompt tells, adapter/prompt.py")
    symbols: dict[str, str] = Field({sign: op.value for sign, op in GREEK.items()},
                                    description="sign -> one of + − × ÷, one for each")
    operands: list[int] = Field([1, 99], min_length=2, max_length=2, description="smallest and largest")
    terms: list[int] = Field([2, 4], min_length=2, max_length=2, description="fewest and most operands")
    limit: int = Field(10**9, ge=1, description="largest absolute value of any step of an evaluation")
    train: int = Field(1600, ge=1, description="expressions to train on")
    test: int = Field(400, ge=1, description="expressions to evaluate on, none of them trained on")
    upstream: Literal["simulated", "anthropic"] = Field("simulated", description="the API in front of the adapter")
    api_model: str = Field("claude-haiku-4-5", description="the API's model, where it is a real one")
    api_answers: str = Field("data/answers.jsonl", description="where a real API's answers are kept, to ask only once")
    api_concurrency: int = Field(16, ge=1, description="how many questions a real API is asked at once")


class SymbolTask:
    """Task of grpo.types. Kinds: custom (symbols) and standard (ordinary operators)."""

    Settings = Settings

    def __init__(self, settings: Settings, seed: int):
        """Draw the data set and ask the API. Raises UserError for settings that cannot be met."""
        notation, within, upstream = _notation(settings.symbols), _range(settings), _upstream(settings, seed)
        self._text = PromptText(settings.condition, notation)
        try:
            train, test = build(seed, settings.train, settings.test, within, notation, upstream)
        except ValueError as error:
            raise UserError(f"task.operands, task.terms, task.limit: {error}; widen them, or lower task.train") from None
        self.train, self.test = ([self._problem(row) for row in rows] for rows in (train, test))
        self.references = {"api": Reference(f"{upstream.label} alone", _api_accuracy(test))}

    @staticmethod
    def missing(settings: Settings) -> list[str]:
        """What this machine lacks for the settings, in words: a key, for a real API."""
        return ClaudeUpstream.missing() if settings.upstream == "anthropic" else []

    def score(self, problem: Problem, text: str) -> Score:
        """1.0 if the chain's final answer is the truth."""
        row: Row = problem.data
        answer = parse_answer(text)
        if isinstance(answer, Agree) and not self._text.may_agree:
            answer = Unparsed("no number")
        return Score(reward(answer, row.api_answer, row.truth), isinstance(answer, Unparsed))

    def _problem(self, row: Row) -> Problem:
        return Problem(row.expression, row.kind, tuple(self._text.messages(row.expression, row.api_answer)), row)


def _upstream(settings: Settings, seed: int) -> Upstream:
    if settings.upstream == "simulated":
        return SimulatedUpstream(seed)
    return ClaudeUpstream(settings.api_model, Path(settings.api_answers), settings.api_concurrency)


def _api_accuracy(rows: list[Row]) -> Table:
    table: Table = {}
    for kind in ("custom", "standard", "overall"):
        right = [row.api_answer == str(row.truth) for row in rows if kind in (row.kind, "overall")]
        table[kind] = sum(right) / max(1, len(right))
    return table


def _notation(symbols: dict[str, str]) -> dict[str, Op]:
    if sorted(symbols.values()) != sorted(Op) or any(len(sign) != 1 or sign.isdigit() or sign.isspace() for sign in symbols):
        raise UserError(f"task.symbols = {symbols}: expected four single characters, one for each of {' '.join(Op)}")
    return {sign: Op(value) for sign, value in symbols.items()}


def _range(settings: Settings) -> Range:
    for key, smallest in (("operands", 1), ("terms", 2)):
        low, high = getattr(settings, key)
        if not smallest <= low <= high:
            raise UserError(f"task.{key} = [{low}, {high}]: expected two numbers, the first at least {smallest} "
                            "and no larger than the second")
    return Range(tuple(settings.operands), tuple(settings.terms), settings.limit)
