"""The questions: expressions, half custom and half standard, each with its truth; drawn by a seed, or read from files."""

import random
from collections.abc import Sequence
from pathlib import Path

from adapter.questions import Row
from adapter.rows import Splits, read_data
from grpo.types import UserError
from symbols.expression import STANDARD, Expression, ExpressionError, Notation, evaluate, parse, render
from symbols.generate import Range, draw_many
from symbols.prompt import EXAMPLES

KINDS = ("custom", "standard")
LONGEST = 1000  # characters of a question
AGAIN = "make it anew with python -m adapter.dataset"


def question(expression: Expression, custom: bool, notation: Notation) -> Row:
    """An expression as a question, in custom symbols or in ordinary operators."""
    return Row(render(expression, notation if custom else STANDARD), str(evaluate(expression)), KINDS[not custom])


def draw(seed: int, sizes: Splits[int], within: Range, notation: Notation) -> Splits[list[Row]]:
    """The questions of each split, so many, custom and standard in turn. The seed fixes them.

    No expression is in two splits, in either notation, nor in any where the prompts show it as an example. Raises ValueError
    where the range holds too few.
    """
    rng = random.Random(f"dataset/{seed}")
    test = draw_many(rng, within, sizes.test, frozenset(EXAMPLES))
    train = draw_many(rng, within, sizes.train, frozenset([*EXAMPLES, *test]))
    avoid = frozenset([*EXAMPLES, *test, *train])
    validation = draw_many(rng, within, sizes.validation, avoid)  # last: its size changes no other split
    return Splits(*([question(expression, i % 2 == 0, notation) for i, expression in enumerate(expressions)]
                    for expressions in (train, validation, test)))


def read(folder: Path, notation: Notation) -> Splits[list[Row]]:
    """The rows of a folder, each checked. Raises UserError, naming file and line, where one is wrong or in two splits."""
    splits = read_data(folder, (), {}, lambda row: check(row, notation))
    first_in: dict[Expression, str] = {}
    for name, rows in splits._asdict().items():
        for row in rows:
            if (other := first_in.setdefault(expression_of(row, notation), name)) != name:
                raise UserError(f"{folder / f'{name}.jsonl'}: {row.id}: {row.question} is in {other}.jsonl too; "
                                "delete it from one of them")
    return splits


def expression_of(row: Row, notation: Notation) -> Expression:
    """What a row asks. Raises ExpressionError where that is no expression in its kind's notation."""
    return parse(row.question, notation if row.kind == "custom" else STANDARD)


def check(row: Row, notation: Notation) -> None:
    """Raises ValueError, in words, for anything but a true row that brings the API's answer."""
    if len(row.question) > LONGEST:
        raise ValueError(f"question: expected at most {LONGEST:,} characters; {AGAIN}")
    if row.kind not in KINDS:
        raise ValueError(f"kind is {row.kind[:20]!r}, expected {' or '.join(KINDS)}; {AGAIN}")
    try:
        truth = evaluate(expression_of(row, notation))
    except ExpressionError as error:
        raise ValueError(f"question: {error}; {AGAIN}") from None
    except ZeroDivisionError:
        raise ValueError(f"question: division by zero; {AGAIN}") from None
    if row.answer != str(truth):
        raise ValueError(f"answer is {str(row.answer)[:20]}, but {row.question[:60]} is {str(truth)[:40]} with the symbols "
                         f"in the config; {AGAIN}")
    if row.api is None:
        raise ValueError(f"has no api_answer; {AGAIN}")


def misses(rows: Sequence[Row], within: Range, notation: Notation) -> dict[str, Row]:
    """By key of the settings, the first row that is not within the range; empty where all are."""
    found: dict[str, Row] = {}
    for row in rows:
        for key in within.misses(expression_of(row, notation)):
            found.setdefault(key, row)
    return found
