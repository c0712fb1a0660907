"""The data set: expressions, half custom and half standard, each with its truth and the API's answer."""

import random
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

from symbols.expression import STANDARD, Expression, Notation, evaluate, render
from symbols.generate import Range, draw_many

Kind = Literal["custom", "standard"]


class Upstream(Protocol):
    """An API that answers expressions."""

    name: str

    def answer(self, expression: Expression, custom: bool) -> str:
        """Its answer as text, or "none"."""


@dataclass(frozen=True)
class Row:
    """One expression as the API and the adapter see it."""

    expression: str
    kind: Kind
    truth: Fraction
    api_answer: str


def build(
    seed: int, train: int, test: int, within: Range, notation: Notation, upstream: Upstream
) -> tuple[list[Row], list[Row]]:
    """Train and test rows, custom and standard in turn. The seed fixes them.

    No expression of the test rows is among the train rows, in either notation. Raises ValueError where the range
    holds too few.
    """
    rng = random.Random(f"dataset/{seed}")
    test_expressions = draw_many(rng, within, test, frozenset())
    train_expressions = draw_many(rng, within, train, frozenset(test_expressions))

    def rows(expressions: list[Expression]) -> list[Row]:
        return [_row(e, "standard" if i % 2 else "custom", notation, upstream) for i, e in enumerate(expressions)]

    return rows(train_expressions), rows(test_expressions)


def _row(expression: Expression, kind: Kind, notation: Notation, upstream: Upstream) -> Row:
    custom = kind == "custom"
    return Row(render(expression, notation if custom else STANDARD), kind, evaluate(expression),
               upstream.answer(expression, custom))
