"""Seeded expressions: operators balanced, every division exact, nothing larger than a stated limit.

Operators are drawn first and uniformly, then operands that fit them. Drawing whole expressions and throwing
away the inexact divisions would leave ÷ in 8 % of the places instead of 25 %, and a model trained on those
would meet three operations, not four.
"""

import random
from dataclasses import dataclass

from symbols.expression import BINDS_TIGHTER, Expression, Op, steps

_TRIES = 2000  # failed draws in a row after which a range is taken to hold nothing more


@dataclass(frozen=True)
class Range:
    """What expressions are drawn from.

    operands: smallest and largest operand, both included; smallest >= 1, so that nothing divides by zero.
    terms: fewest and most operands in an expression.
    limit: the largest absolute value that any step of the evaluation may take.
    """

    operands: tuple[int, int] = (1, 99)
    terms: tuple[int, int] = (2, 4)
    limit: int = 10**9

    def misses(self, expression: Expression) -> set[str]:
        """The bounds, by name, that an expression does not keep."""
        (low, high), (fewest, most) = self.operands, self.terms
        kept = {"operands": all(low <= n <= high for n in expression.operands),
                "terms": fewest <= len(expression.operands) <= most,
                "limit": steps(expression, self.limit)[-1].value is not None}
        return {name for name, is_kept in kept.items() if not is_kept}


def draw(rng: random.Random, within: Range) -> Expression:
    """One expression: the number of terms uniform, each operator uniform, then operands that fit.

    Raises ValueError where the range holds none for the operators drawn: 10 ÷ 10 ÷ 10 leaves no integer.
    """
    ops = tuple(rng.choice(list(Op)) for _ in range(rng.randint(*within.terms) - 1))
    for _ in range(_TRIES):
        expression = Expression(_likely_operands(rng, ops, within), ops)
        if steps(expression, within.limit)[-1].value is not None:
            return expression
    raise ValueError(f"no operands from {within.operands[0]} to {within.operands[1]} were found for the operators "
                     f"{' '.join(ops)} with steps within ±{within.limit}")


def draw_many(rng: random.Random, within: Range, count: int, avoid: frozenset[Expression]) -> list[Expression]:
    """`count` different expressions, none of them in `avoid`.

    Raises ValueError where the range does not hold that many.
    """
    drawn: dict[Expression, None] = {}
    misses = 0
    while len(drawn) < count:
        expression = draw(rng, within)
        misses = misses + 1 if expression in drawn or expression in avoid else 0
        if misses == 0:
            drawn[expression] = None
        elif misses > _TRIES:
            raise ValueError(f"the range holds too few expressions: found {len(drawn)} of {count} new ones")
    return list(drawn)


def _likely_operands(rng: random.Random, ops: tuple[Op, ...], within: Range) -> tuple[int, ...]:
    """Operands for which every ÷ is exact and products stay within the limit, where such operands exist.

    `value` is the running value of the current × ÷ run. A divisor is drawn from the divisors of that value,
    1 and the value itself only where nothing else divides it; a factor from those that keep it within the limit.
    """
    low, high = within.operands
    operands: list[int] = []
    value = 1
    for op, following in zip((Op.ADD, *ops), (*ops, None), strict=True):
        if op not in BINDS_TIGHTER:
            value = 1
        top = min(high, max(low, within.limit // value)) if op is Op.MUL else high
        candidates = range(low, top + 1)
        if op is Op.DIV:
            divisors = [d for d in candidates if value % d == 0]
            candidates = [d for d in divisors if d not in (1, value)] or divisors or candidates
        elif following is Op.DIV and op is not Op.MUL:
            candidates = [n for n in candidates if any(n % d == 0 for d in range(max(low, 2), n))] or candidates
        operand = rng.choice(candidates)
        operands.append(operand)
        value = max(1, value // operand) if op is Op.DIV else value * operand
    return tuple(operands)
