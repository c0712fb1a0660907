"""What the tests of the real clients share: questions, and the answers the test servers give."""

import json

from adapter.api.collect import CollectingUpstream
from adapter.questions import Row

KEY = "sk-ant-never-shown"
INSTRUCTION = ("Evaluate the expression. Multiplication and division come before addition and subtraction. "
               "Reply with the number alone, or with none if you cannot tell.\n\n")


def questions(count: int, start: int = 0) -> list[Row]:
    return [Row(f"{n} + {n}", 2 * n) for n in range(start, start + count)]


def expected(asked: list[Row]) -> list[str]:
    """What the servers answer: the number of characters."""
    return [str(len(INSTRUCTION + row.question)) for row in asked]


def texts(upstream: CollectingUpstream, asked: list[Row]) -> list[str]:
    return [answer.text for answer in upstream.answers(asked)]


def rows(upstream: CollectingUpstream) -> list[dict]:
    return [json.loads(line) for line in upstream.store.read_text(encoding="utf-8").splitlines()]
