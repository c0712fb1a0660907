"""Rows of the experiment by hand, and its data set as the tests ask for it."""

from adapter.questions import ApiAnswer, Row
from adapter.rows import Splits
from adapter.task import asked
from grpo.run.schema import validated
from symbols.expression import GREEK, STANDARD, Notation, evaluate, parse
from symbols.generate import Range
from symbols.rows import draw
from symbols.settings import Settings
from symbols.simulated import SimulatedUpstream
from symbols.task import SymbolTask


def row(expression: str, api: str, model: str = "simulated") -> Row:
    """An expression, in symbols if it has one, and what the API answered."""
    custom = bool(set(expression) & set(GREEK))
    truth = evaluate(parse(expression, GREEK if custom else STANDARD))
    return Row(expression, str(truth), "custom" if custom else "standard", api=ApiAnswer(api, model))


def build(seed: int, sizes: Splits[int], within: Range, notation: Notation, api_seed: int) -> Splits[list[Row]]:
    """Drawn rows with the simulated API's answers."""
    return asked(draw(seed, sizes, within, notation), SimulatedUpstream(api_seed, notation))


def symbol_task(**settings: object) -> SymbolTask:
    """The task with these settings."""
    return SymbolTask(validated(Settings, settings, "task."), seed=0)
