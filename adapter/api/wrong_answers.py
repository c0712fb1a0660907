"""Wrong answers of the simulated API, drawn without end: near misses, echoes, and answers of another kind.

Each is a stream of candidates for one row; simulated.py takes the first that the verifier does not find right.
"""

import json
import random
import re
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from adapter.questions import Row

if TYPE_CHECKING:
    from adapter.verifiers.base import Verifier

LONGEST_ECHO = 300  # characters
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?(/[0-9]+)?")
_SENTENCES = ("It depends on what is meant by that.", "Sorry, but something seems to be missing here.",
              "This should be looked up somewhere else.", "Perhaps both of them, perhaps neither.")
_KINDS = {"text": ("maybe", "nothing"), "number": ("42", "3.5"), "date": ("2001-02-03",), "bool": ("true", "false"),
          "list": ("[]", "[null]"), "object": ("{}", '{"answer": null}')}


def near_misses(rng: random.Random, row: Row, verifier: "Verifier", text: str, value: object) -> Iterator[str]:
    """Answers close to an accepted one: another choice, or one that `nearly` gives. text: how `value` is written."""
    listed = getattr(verifier, "choices", ()) or row.more.get(getattr(verifier, "field", "choices"))
    choices = [c for c in listed if isinstance(c, str) and c != text] if isinstance(listed, list | tuple) else []
    while True:
        if choices:
            yield rng.choice(choices)
        elif isinstance(value, str) and text == value:
            yield nearly(rng, value)
        else:
            yield json.dumps(nearly(rng, value), ensure_ascii=False)


def nearly(rng: random.Random, value: object) -> object:
    """A value with one slip: a number off by a unit or a digit, a date by a day, a month or a year, a text misspelt, one
    field of a list or an object changed in such a way."""
    match value:
        case bool():
            return not value
        case int():
            return int(_number(rng, str(value)))
        case float():
            return float(_number(rng, repr(value)))
        case str() if kind_of(value) == "date":
            return _date(rng, date.fromisoformat(value)).isoformat()
        case str() if kind_of(value) == "number":
            return _number(rng, value)
        case str():
            return _misspelt(rng, value)
        case list() if value:
            at = rng.randrange(len(value))
            return [*value[:at], nearly(rng, value[at]), *value[at + 1 :]]
        case dict() if value:
            name = rng.choice(list(value))
            return value | {name: nearly(rng, value[name])}
        case list() | dict():
            return [0] if isinstance(value, list) else {"answer": 0}
    return 0


def echoes(rng: random.Random, question: str) -> Iterator[str]:
    """The question, or some of its words that follow each other; LONGEST_ECHO characters at most."""
    words = question.split() or [question]
    while True:
        count = len(words) if rng.random() < 0.5 else rng.randint(1, len(words))
        start = rng.randint(0, len(words) - count)
        yield (question if count == len(words) else " ".join(words[start : start + count]))[:LONGEST_ECHO]


def other_kinds(rng: random.Random, values: list[object]) -> Iterator[str]:
    """A sentence, or an answer of a kind that none of the accepted values has."""
    kinds = {kind_of(value) for value in values}
    others = [text for kind, texts in _KINDS.items() if kind not in kinds for text in texts]
    while True:
        yield rng.choice(_SENTENCES if rng.random() < 0.5 else others)


def kind_of(value: object) -> str:
    """What a value of JSON is, a text by what it holds: one of text, number, date, bool, list, object, null."""
    match value:
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case list():
            return "list"
        case dict():
            return "object"
        case str() if _NUMBER.fullmatch(value):
            return "number"
        case str() if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            return "date" if _is_a_day(value) else "text"
        case str():
            return "text"
    return "null"


def _is_a_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _number(rng: random.Random, text: str) -> str:
    """One more or one less, or another digit in a digit's place; no zero comes to stand first."""
    if rng.random() < 0.5:
        try:
            return f"{Decimal(text) + rng.choice((-1, 1)):f}"
        except InvalidOperation:  # a fraction
            pass
    places = [at for at, c in enumerate(text) if c.isdigit()]
    at = rng.choice(places)
    return text[:at] + rng.choice([d for d in "0123456789"[at == places[0]:] if d != text[at]]) + text[at + 1 :]


def _date(rng: random.Random, day: date) -> date:
    """A day, a month or a year later or earlier; what the calendar has not is a day off instead."""
    step, part = rng.choice((-1, 1)), rng.choice(("day", "month", "year"))
    try:
        if part == "year":
            return day.replace(year=day.year + step)
        if part == "month":
            return day.replace(month=day.month + step)
    except ValueError:
        pass
    try:
        return day + timedelta(days=step)
    except OverflowError:
        return day - timedelta(days=step)


def _misspelt(rng: random.Random, text: str) -> str:
    """Two neighbours swapped, a letter left out, doubled, or replaced by the next one of the alphabet."""
    letters = [at for at, c in enumerate(text) if c.isalnum()]
    if not letters:
        return text + "x"
    at = rng.choice(letters)
    before, letter, after = text[:at], text[at], text[at + 1 :]
    match rng.choice(("swap", "drop", "double", "replace")):
        case "swap" if after:
            return before + after[0] + letter + after[1:]
        case "drop" if len(letters) > 1:
            return before + after
        case "double":
            return before + 2 * letter + after
    return before + (chr(ord(letter) + 1) if letter.lower() in "abcdefghijklmnopqrstuvwxy012345678" else "a") + after
