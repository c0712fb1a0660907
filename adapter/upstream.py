"""The API in front of the adapter. Here: a simulation of it, for machines without a key.

The simulation behaves as the source experiment saw Claude Haiku behave. It is always labelled as simulated.
"""

import random
from fractions import Fraction

from symbols.expression import Expression, evaluate

NONE = "none"  # what the prompt shows where the API gave no answer


class SimulatedUpstream:
    """Never right on custom symbols, right on 75.5 % of standard expressions; wrong in the ways Haiku is.

    The answer to an expression depends on the seed and the expression alone, so it can be asked twice.
    """

    name = "simulated API"
    standard_accuracy = 0.755

    def __init__(self, seed: int):
        self._seed = seed

    def answer(self, expression: Expression, custom: bool) -> str:
        """The API's answer as text: an integer or "none"."""
        rng = random.Random(f"{self._seed}/{custom}/{expression}")
        truth = evaluate(expression)
        if not custom and rng.random() < self.standard_accuracy:
            return str(truth)
        wrong = [NONE, str(expression.operands[0])]
        if not custom:
            wrong.append(str(near_miss(rng, truth)))
        return rng.choice([answer for answer in wrong if answer != str(truth)])


def near_miss(rng: random.Random, truth: Fraction) -> Fraction:
    """A slip of the kind long arithmetic invites: one unit, ten or a hundred off."""
    return truth + rng.choice((-1, 1)) * rng.choice((1, 2, 10, 100))
