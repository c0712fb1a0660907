"""Why a completion of a test expression is wrong, and what guessing would score.

A wrong completion is in one class of FAILURES, the first of these that applies:

    truncated        the token limit cut it off, and it holds no answer
    wrong symbol     it states a false reading of a symbol in the expression, such as `γ = +`
    unparsed         it holds no answer: no \\boxed{}, no number in it, or CORRECT where the prompt does not offer that
    echo             the API's wrong answer: agreed with, or given again
    wrong symbol     the exact value of the expression under another reading of its symbols
    arithmetic slip  the rest
"""

import re
from fractions import Fraction
from functools import cache
from itertools import product

from adapter.measure.outcomes import Outcome
from adapter.questions import Row
from symbols.expression import Expression, Notation, Op, evaluate, parse

FAILURES = ("echo", "wrong symbol", "arithmetic slip", "unparsed", "truncated")

_OPERATIONS = {op.value: op for op in Op} | {"-": Op.SUB, "*": Op.MUL, "x": Op.MUL, "/": Op.DIV, "addition": Op.ADD,
                                             "subtraction": Op.SUB, "multiplication": Op.MUL, "division": Op.DIV}


def why_wrong(notation: Notation, outcome: Outcome) -> str:
    """The class of a wrong outcome, one of FAILURES."""
    row, custom, unparsed = outcome.row, outcome.row.kind == "custom", outcome.verdict == "unparsed"
    if outcome.truncated and unparsed:
        return "truncated"
    readings = stated(outcome.completion, notation) if custom else {}
    if any(op != notation[sign] for sign, op in readings.items() if sign in row.question):
        return "wrong symbol"
    if unparsed:
        return "unparsed"
    if outcome.answer == outcome.api_extracted:
        return "echo"
    if custom and Fraction(outcome.answer) in values_of_readings(parse(row.question, notation)):
        return "wrong symbol"
    return "arithmetic slip"


def stated(completion: str, notation: Notation) -> Notation:
    """The readings a completion states, such as `γ = ×` or `γ is multiplication`. The last one about a sign counts."""
    return {found[1]: _OPERATIONS[found[2]] for found in _statement(tuple(notation)).finditer(completion)}


def signs_in(expression: str, notation: Notation) -> set[str]:
    """The signs of the notation in an expression's text."""
    return set(expression) & set(notation)


def values_of_readings(expression: Expression) -> list[Fraction | None]:
    """The value under each of the 4^k readings of its k distinct operations, the true one included. None: ÷ 0."""
    distinct = sorted(set(expression.ops))
    values = []
    for reading in product(Op, repeat=len(distinct)):
        read = dict(zip(distinct, reading, strict=True))
        try:
            values.append(evaluate(Expression(expression.operands, tuple(read[op] for op in expression.ops))))
        except ZeroDivisionError:
            values.append(None)
    return values


def chance(row: Row, notation: Notation) -> Fraction:
    """The probability that reading each symbol as any of the four operations, all equally likely, and computing exactly
    is right. A standard expression is computed right."""
    if row.kind == "standard":
        return Fraction(1)
    values = values_of_readings(parse(row.question, notation))
    return Fraction(values.count(Fraction(row.answer)), len(values))


@cache
def _statement(signs: tuple[str, ...]) -> re.Pattern[str]:
    """`sign = operation`, not followed by a number or a word: `γ = - 3` states nothing."""
    one_of = "|".join(map(re.escape, _OPERATIONS))
    return re.compile(rf"({'|'.join(map(re.escape, signs))})\s*(?:=|is)\s*({one_of})(?![ \t]*\d|\w)")
