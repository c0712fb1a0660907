"""What the tests of the real client share: questions, and the answers the test server gives."""

import json

from adapter.api.claude import INSTRUCTION, ClaudeUpstream
from symbols.expression import parse
from symbols.simulated import Question

KEY = "sk-ant-never-shown"


def questions(count: int, start: int = 0) -> list[Question]:
    texts = [f"{n} + {n}" for n in range(start, start + count)]
    return [Question(text, parse(text), False) for text in texts]


def expected(asked: list[Question]) -> list[str]:
    """What the server answers: the number of characters."""
    return [str(len(INSTRUCTION + q.text)) for q in asked]


def texts(upstream: ClaudeUpstream, asked: list[Question]) -> list[str]:
    return [answer.text for answer in upstream.answers(asked)]


def rows(upstream: ClaudeUpstream) -> list[dict]:
    return [json.loads(line) for line in upstream.store.read_text().splitlines()]
