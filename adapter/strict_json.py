"""JSON as it was meant: no name twice, no NaN, no half of a character, no number that reading it would change."""

import json
import math
from decimal import Decimal

from grpo.run.files import brief


class RefusedError(ValueError):
    """JSON by its form, and refused; the message says why."""


def read(text: str) -> object:
    """The value. Raises RefusedError in words, ValueError or RecursionError where it is no JSON."""
    value = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_no_twins)
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RefusedError("holds half of a surrogate pair, which is no character; mend the text") from None
    return value


def same_numbers(value: object, exact: object) -> bool:
    """Whether no number was rounded. exact: the same JSON, read with Decimal for its floats."""
    match value:
        case float():
            return Decimal(repr(value)) == exact
        case dict():
            return all(same_numbers(value[name], exact[name]) for name in value)
        case list():
            return all(map(same_numbers, value, exact))
    return True


def _no_number(name: str) -> None:
    raise RefusedError(f"{name} is no JSON number; write it as a text, or leave the row out")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise RefusedError(f"{brief(text, 40)} is no number that can be computed with; write it as a text")
    return value


def _no_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RefusedError(f"has the field {brief(repr(twice), 60)} twice; keep one")
    return found
