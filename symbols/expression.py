"""Expressions over the four operations: parse, render, and evaluate exactly.

An expression is a flat row of integers with a binary operation between neighbours. There are no brackets.
Precedence is BODMAS: × and ÷ bind tighter than + and −, and each level runs from left to right, so
`50 α 32 γ 33` with α = − and γ = × is 50 − 32×33 = −1006.

Which sign stands for which operation is a `Notation`. It is a parameter everywhere: nothing else in the
project knows that θ means addition.
"""

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction


class Op(StrEnum):
    """The four operations. The value is the ordinary sign."""

    ADD = "+"
    SUB = "−"
    MUL = "×"
    DIV = "÷"


BINDS_TIGHTER = frozenset({Op.MUL, Op.DIV})

Notation = dict[str, Op]  # sign -> operation; one character a sign, all four operations present
STANDARD: Notation = {op.value: op for op in Op}
GREEK: Notation = {"θ": Op.ADD, "α": Op.SUB, "γ": Op.MUL, "β": Op.DIV}
KEYBOARD = {"-": Op.SUB, "*": Op.MUL, "x": Op.MUL, "/": Op.DIV}  # what people type for − × ÷

MAX_CHARACTERS = 1000  # a longer text is refused before any number in it is read


class ExpressionError(ValueError):
    """A text that is no expression. The message quotes the place, counted in characters from 1."""


@dataclass(frozen=True)
class Expression:
    """`operands[0] ops[0] operands[1] ops[1] ...`; one operand more than ops."""

    operands: tuple[int, ...]
    ops: tuple[Op, ...]


@dataclass(frozen=True)
class Step:
    """One binary operation of an evaluation. `value` is None where the result is no integer, or beyond the limit."""

    left: int
    op: Op
    right: int
    value: int | None


def apply(op: Op, left: Fraction, right: Fraction) -> Fraction:
    """`left op right`. Raises ZeroDivisionError for ÷ 0."""
    match op:
        case Op.ADD:
            return left + right
        case Op.SUB:
            return left - right
        case Op.MUL:
            return left * right
        case Op.DIV:
            return left / right


def evaluate(expression: Expression) -> Fraction:
    """The exact value. Raises ZeroDivisionError for a division by zero."""
    total, sign = Fraction(0), Op.ADD
    term = Fraction(expression.operands[0])
    for op, operand in zip(expression.ops, expression.operands[1:], strict=True):
        if op in BINDS_TIGHTER:
            term = apply(op, term, Fraction(operand))
        else:
            total, sign, term = apply(sign, total, term), op, Fraction(operand)
    return apply(sign, total, term)


def steps(expression: Expression, limit: int) -> list[Step]:
    """The binary operations of an evaluation over the integers, in the order BODMAS takes them.

    The list ends early, with a step whose value is None, at the first result that is not an integer of at most
    `limit` in absolute value.
    """
    numbers, ops, done = list(expression.operands), list(expression.ops), []
    while ops:
        at = next((i for i, op in enumerate(ops) if op in BINDS_TIGHTER), 0)
        op, left, right = ops.pop(at), numbers[at], numbers.pop(at + 1)
        exact = apply(op, Fraction(left), Fraction(right))
        fits = exact.denominator == 1 and abs(exact) <= limit
        done.append(Step(left, op, right, int(exact) if fits else None))
        if not fits:
            break
        numbers[at] = int(exact)
    return done


def render(expression: Expression, notation: Notation = STANDARD) -> str:
    """The text of an expression, single spaces between tokens. `parse` with the same notation inverts it."""
    sign_of = {op: sign for sign, op in notation.items()}
    parts = [str(expression.operands[0])]
    for op, operand in zip(expression.ops, expression.operands[1:], strict=True):
        parts += [sign_of[op], str(operand)]
    return " ".join(parts)


def parse(text: str, notation: Notation = STANDARD) -> Expression:
    """Read `number sign number ...`; spaces are free, digits are ASCII, and - * x / pass for − × ÷.

    Raises ExpressionError, naming the position, for everything else.
    """
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"the expression has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    signs = KEYBOARD | notation if set(notation) == set(STANDARD) else notation
    operands, ops, at = [], [], 0
    while True:
        at = _skip_spaces(text, at)
        end = at
        while end < len(text) and text[end] in "0123456789":
            end += 1
        if end == at:
            raise ExpressionError(f"expected a number at {_place(text, at)}")
        operands.append(int(text[at:end]))
        at = _skip_spaces(text, end)
        if at == len(text):
            return Expression(tuple(operands), tuple(ops))
        if text[at] not in signs:
            raise ExpressionError(f"expected one of {' '.join(notation)} at {_place(text, at)}")
        ops.append(signs[text[at]])
        at += 1


def _skip_spaces(text: str, at: int) -> int:
    while at < len(text) and text[at] == " ":
        at += 1
    return at


def _place(text: str, at: int) -> str:
    return f"position {at + 1}, found {text[at]!r}" if at < len(text) else f"position {at + 1}, found the end"
