"""One completion of a test problem, judged: its answer, whether that is right, and if not, why.

A wrong completion is in one class of FAILURES, the first of these that applies:

    truncated        the token limit cut it off, and it holds no answer
    wrong symbol     it states a false reading of a symbol in the expression, such as `γ = +`
    unparsed         it holds no answer: no \\boxed{}, no number in it, or CORRECT where the prompt does not offer that
    echo             the API's wrong answer: agreed with, or given again
    wrong symbol     the exact value of the expression under another reading of its symbols
    arithmetic slip  the rest
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import product
from typing import Literal, get_args

from adapter.parse import VERDICTS, Verdict, parse_number
from symbols.dataset import Row
from symbols.expression import Expression, Notation, Op, evaluate, parse
from symbols.prompt import PromptText
from symbols.reward import resolve

Failure = Literal["echo", "wrong symbol", "arithmetic slip", "unparsed", "truncated"]
FAILURES: tuple[Failure, ...] = get_args(Failure)

_OPERATIONS = {op.value: op for op in Op} | {"-": Op.SUB, "*": Op.MUL, "x": Op.MUL, "/": Op.DIV, "addition": Op.ADD,
                                             "subtraction": Op.SUB, "multiplication": Op.MUL, "division": Op.DIV}


@dataclass(frozen=True)
class Outcome:
    """What became of a test problem."""

    row: Row
    completion: str
    verdict: Verdict
    answer: Fraction | None  # the chain's final one
    right: bool
    failure: Failure | None  # None where right


def judge(row: Row, completion: str, truncated: bool, prompt: PromptText) -> Outcome:
    """The outcome of a completion; the verifier's rules, and the classes above."""
    parsed = prompt.answer_in(completion)
    verdict = VERDICTS[type(parsed)]
    answer = resolve(parsed, row.api_answer)
    right = answer == row.truth
    failure = None if right else _failure(row, completion, truncated, verdict, answer, prompt.notation)
    return Outcome(row, completion, verdict, answer, right, failure)


def api_right(row: Row) -> bool:
    """Whether the API alone would have been right."""
    return parse_number(row.api_answer) == row.truth


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
    values = values_of_readings(parse(row.expression, notation))
    return Fraction(values.count(row.truth), len(values))


def _failure(row: Row, completion: str, truncated: bool, verdict: str, answer: Fraction | None,
             notation: Notation) -> Failure:
    custom = row.kind == "custom"
    if truncated and verdict == "unparsed":
        return "truncated"
    readings = stated(completion, notation) if custom else {}
    if any(op != notation[sign] for sign, op in readings.items() if sign in row.expression):
        return "wrong symbol"
    if verdict == "unparsed":
        return "unparsed"
    if answer == parse_number(row.api_answer):
        return "echo"
    if custom and answer in values_of_readings(parse(row.expression, notation)):
        return "wrong symbol"
    return "arithmetic slip"


@cache
def _statement(signs: tuple[str, ...]) -> re.Pattern[str]:
    """`sign = operation`, not followed by a number or a word: `γ = - 3` states nothing."""
    one_of = "|".join(map(re.escape, _OPERATIONS))
    return re.compile(rf"({'|'.join(map(re.escape, signs))})\s*(?:=|is)\s*({one_of})(?![ \t]*\d|\w)")
