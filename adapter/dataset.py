"""The data set: expressions, half custom and half standard, each with its truth and the API's answer."""

import random
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from adapter.upstream import Question, Upstream
from symbols.expression import STANDARD, Expression, Notation, evaluate, render
from symbols.generate import Range, draw_many

Kind = Literal["custom", "standard"]


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
    questions = [_question(expression, i % 2 == 0, notation)
                 for expressions in (train_expressions, test_expressions) for i, expression in enumerate(expressions)]
    rows = [Row(q.text, "custom" if q.custom else "standard", evaluate(q.expression), answer)
            for q, answer in zip(questions, upstream.answers(questions), strict=True)]
    return rows[:train], rows[train:]


def _question(expression: Expression, custom: bool, notation: Notation) -> Question:
    return Question(render(expression, notation if custom else STANDARD), expression, custom)
