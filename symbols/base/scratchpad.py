"""What an embedded base was taught to write: a guess for each symbol, the steps, one box.

    36 γ 52 α 3   ->   γ = × , α = − ; 36 × 52 − 3 ; 36 × 52 = 1872 ; 1872 − 3 = 1869 ; \\boxed{1869}

The guess comes first, and names the symbol. A base that starts with the rewritten expression never has to write
a symbol, learns to ignore which one it saw, and GRPO then has nothing to take hold of.

Numbers too large to be multiplied or divided at one glance are worked out on paper (`worked`), one partial product for each
digit of the multiplier, one remainder for each digit of the quotient. Such a scratchpad writes nothing else twice, because a
token is what a rollout costs: it repeats no expression that the prompt shows, or that its only step shows.

    36 γ 52 α 3   ->   γ = × , α = − ; 36 × 52 − 3 ; 36 × 52 = 1800 + 72 = 1872 ; 1872 − 3 = 1869 ; \\boxed{1869}
    1872 β 52     ->   β = ÷ ; 1872 ÷ 52 = 30 r 312 + 6 r 0 = 36 ; \\boxed{36}
"""

import random

from symbols.expression import Expression, Notation, Op, Step, render, steps

NO_VALUE = "none"  # ends a scratchpad whose next result is no integer within the limit: nothing is left to box


def write(
    expression: Expression, api_answer: str, may_agree: bool, limit: int, reading: Notation | None, worked: bool = False
) -> str:
    """The completion for an expression.

    reading: the sign each symbol is read as (true or guessed), where the expression was shown in symbols. The
        operations in `expression` are then those of the reading, not those of the symbols' true meaning.
    worked: whether products and quotients are worked out on paper.
    """
    parts = [" , ".join(f"{sign} = {op}" for sign, op in reading.items())] if reading else []
    if not worked or (reading and len(expression.ops) > 1):
        parts.append(render(expression))
    done = steps(expression, limit)
    parts += [_line(step, worked) for step in done]
    value = str(done[-1].value) if done[-1].value is not None else NO_VALUE
    boxed = "CORRECT" if may_agree and value == api_answer != NO_VALUE else value
    return " ; ".join([*parts, f"\\boxed{{{boxed}}}"])


def guess(rng: random.Random, expression: Expression, notation: Notation) -> tuple[Expression, Notation]:
    """The expression under a uniform, independent guess for each of its symbols, and that guess."""
    sign_of = {op: sign for sign, op in notation.items()}
    reading = {sign_of[op]: rng.choice(list(Op)) for op in expression.ops}
    return Expression(expression.operands, tuple(reading[sign_of[op]] for op in expression.ops)), reading


def _line(step: Step, worked: bool) -> str:
    paper = _on_paper(step) if worked else []
    value = NO_VALUE if step.value is None else str(step.value)
    return " = ".join([f"{step.left} {step.op} {step.right}", *paper, value])


def _on_paper(step: Step) -> list[str]:
    """The sum that a step is worked out as, if it is: of a product both of whose factors have two digits or more, and of a
    dividend of three or more."""
    match step.op:
        case Op.MUL if step.value is not None and step.left >= 10 and step.right >= 10:
            digits = reversed(list(enumerate(reversed(str(step.right)))))
            parts = [str(step.left * int(digit) * 10**place) for place, digit in digits if digit != "0"]
        case Op.DIV if step.left >= 100 and step.right > 0:
            parts = _quotients(step.left, step.right)
        case _:
            return []
    return [" + ".join(parts)] if len(parts) > 1 or (parts and step.op is Op.DIV) else []


def _quotients(left: int, right: int) -> list[str]:
    """`30 r 312`, `6 r 0`: what each digit of the quotient stands for, and what is left to divide after it."""
    parts, rest = [], left
    for place in reversed(range(len(str(left)))):
        part = rest // right // 10**place * 10**place
        if part:
            rest -= part * right
            parts.append(f"{part} r {rest}")
    return parts
