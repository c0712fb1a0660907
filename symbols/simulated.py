"""The simulation of the API in front of the adapter, for machines without a key.

It behaves as the source experiment saw Claude Haiku behave, and is always labelled as simulated.
"""

import random
from collections.abc import Sequence
from fractions import Fraction

from adapter.api.simulated import SIMULATED
from adapter.questions import NONE, ApiAnswer, Row
from symbols.expression import Expression, Notation, evaluate
from symbols.rows import expression_of


class SimulatedUpstream:
    """Never right on custom symbols, right on 75.5 % of standard expressions; wrong in the ways Haiku is.

    The answer to a question depends on the seed and the question alone.
    """

    label = "simulated API"
    standard_accuracy = 0.755

    def __init__(self, seed: int, notation: Notation):
        self._seed, self._notation = seed, notation

    def answers(self, rows: Sequence[Row]) -> list[ApiAnswer]:
        """See Upstream of adapter/api/upstream.py: a number each, or NONE."""
        return [ApiAnswer(self.answer(expression_of(row, self._notation), row.kind == "custom"), SIMULATED) for row in rows]

    def answer(self, expression: Expression, custom: bool) -> str:
        """What it answers to an expression, written in custom symbols or in ordinary operators."""
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
