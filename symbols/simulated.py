"""The API in front of the adapter, as the rest of the project sees it, and a simulation of it for machines without a key.

An upstream takes questions and gives answers as text: a number, or "none". The simulation behaves as the source
experiment saw Claude Haiku behave, and is always labelled as simulated. The real API is in claude.py.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from symbols.expression import Expression, evaluate

NONE = "none"  # what the prompt shows where the API gave no answer
SIMULATED = "simulated"  # where a real API's row names its model


@dataclass(frozen=True)
class Question:
    """An expression, as text and as what it means, and whether it is written in custom symbols."""

    text: str
    expression: Expression
    custom: bool


@dataclass(frozen=True)
class UpstreamAnswer:
    """What an API answered, and where that comes from."""

    text: str  # a number, or NONE
    model: str  # SIMULATED for the simulation
    date: str | None = None  # the day it was asked, YYYY-MM-DD in UTC; None for the simulation


class Upstream(Protocol):
    """An API that evaluates expressions."""

    label: str  # as printed

    def answers(self, questions: Sequence[Question]) -> list[UpstreamAnswer]:
        """One answer a question, in order. Raises UserError where the API cannot be asked."""


class SimulatedUpstream:
    """Never right on custom symbols, right on 75.5 % of standard expressions; wrong in the ways Haiku is.

    The answer to a question depends on the seed and the question alone.
    """

    label = "simulated API"
    standard_accuracy = 0.755

    def __init__(self, seed: int):
        self._seed = seed

    def answers(self, questions: Sequence[Question]) -> list[UpstreamAnswer]:
        """See Upstream."""
        return [UpstreamAnswer(self._answer(q.expression, q.custom), SIMULATED) for q in questions]

    def _answer(self, expression: Expression, custom: bool) -> str:
        rng = random.Random(f"{self._seed}/{custom}/{expression}")
        truth = evaluate(expression)
        if not custom and rng.random() < self.standard_accuracy:
            return str(truth)
        wrong = [NONE, str(expression.operands[0])]
        if not custom:
            wrong.append(str(near_miss(rng, truth)))
        return rng.choice([answer for answer in wrong if answer != str(truth)])


def near_miss(rng: random.Random, truth: Fraction) -> Fraction:
    """A slip of the kind long arithmetic invites: one unit, two, ten or a hundred off."""
    return truth + rng.choice((-1, 1)) * rng.choice((1, 2, 10, 100))
