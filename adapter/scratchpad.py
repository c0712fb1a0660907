"""What the embedded base was taught to write: a guess for each symbol, the steps, one box.

    36 γ 52 α 3   ->   γ = × , α = − ; 36 × 52 − 3 ; 36 × 52 = 1872 ; 1872 − 3 = 1869 ; \\boxed{1869}

The guess comes first, and names the symbol. A base that starts with the rewritten expression never has to write
a symbol, learns to ignore which one it saw, and GRPO then has nothing to take hold of.
"""

import random

from symbols.expression import Expression, Notation, Op, Step, render, steps

NO_VALUE = "none"  # ends a scratchpad whose next result is no integer within the limit: nothing is left to box


def write(expression: Expression, api_answer: str, may_agree: bool, limit: int, reading: Notation | None) -> str:
    """The completion for an expression.

    reading: the sign each symbol is read as (true or guessed), where the expression was shown in symbols. The
        operations in `expression` are then those of the reading, not those of the symbols' true meaning.
    """
    parts = [" , ".join(f"{sign} = {op}" for sign, op in reading.items())] if reading else []
    parts.append(render(expression))
    done = steps(expression, limit)
    parts += [_line(step) for step in done]
    value = str(done[-1].value) if done[-1].value is not None else NO_VALUE
    boxed = "CORRECT" if may_agree and value == api_answer != NO_VALUE else value
    return " ; ".join([*parts, f"\\boxed{{{boxed}}}"])


def guess(rng: random.Random, expression: Expression, notation: Notation) -> tuple[Expression, Notation]:
    """The expression under a uniform, independent guess for each of its symbols, and that guess."""
    sign_of = {op: sign for sign, op in notation.items()}
    reading = {sign_of[op]: rng.choice(list(Op)) for op in expression.ops}
    return Expression(expression.operands, tuple(reading[sign_of[op]] for op in expression.ops)), reading


def _line(step: Step) -> str:
    value = NO_VALUE if step.value is None else step.value
    return f"{step.left} {step.op} {step.right} = {value}"
