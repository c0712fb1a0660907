"""A JSON value: equal in what it says, however it is spelt.

The order of an object's keys and spaces do not count; numbers are compared exactly, so that 1, 1.0 and 10e-1 are one. An
object that names a key twice, NaN, and what is longer than LONGEST or deeper than DEEPEST is no answer.

A row's answer is one value, a list too: [1, 2] is right for [1, 2] alone. Several accepted values are written as
{"any_of": [..., ...]}.
"""

import json
import re
from collections import deque
from dataclasses import dataclass
from decimal import Context, Decimal

from adapter.questions import Row
from adapter.verifiers.base import last_box
from grpo.run.files import brief

LONGEST = 20_000  # characters of an answer
DEEPEST = 50  # lists and objects within each other
_EXACT = Context(prec=400)
_MARK = re.compile(r'\\.|"(?:[^"\\\n]|\\.)*+"|[\[\]{}]')  # a string whole; what is in it opens and closes nothing
_SCALAR = re.compile(
    r'"(?:[^"\\\n]|\\.)*+"|(?<![\w.])-?[0-9]++(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?(?!\w)|\b(?:true|false|null)\b')
_TRIES = 20


def canonical(text: str) -> str | None:
    """A JSON text in one way of writing it; or None."""
    if len(text) > LONGEST:
        return None
    try:
        return _written(json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_refuse,
                                   object_pairs_hook=_object))
    except (ValueError, ArithmeticError, RecursionError):  # Decimal's own, for an exponent of many digits
        return None


def _number(text: str) -> Decimal:
    """Exactly. Raises ValueError where writing it out would be long."""
    value = Decimal(text) if len(text) <= 200 else Decimal("NaN")
    if not value.is_finite() or abs(value.adjusted()) > 100:
        raise ValueError("a number of more than 100 digits")
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(pairs) != len(made := dict(pairs)):
        raise ValueError("a key twice")
    return made


def _written(value: object, depth: int = 0) -> str:
    if depth > DEEPEST:
        raise ValueError("too deep")
    match value:
        case dict():
            return "{" + ", ".join(f"{_text(key)}: {_written(value[key], depth + 1)}" for key in sorted(value)) + "}"
        case list():
            return "[" + ", ".join(_written(item, depth + 1) for item in value) + "]"
        case str():
            return _text(value)
        case Decimal():
            return format(_EXACT.normalize(value), "f") if value else "0"
        case _:
            return json.dumps(value)  # true, false, null


def _text(value: str) -> str:
    """Raises ValueError for half of a surrogate pair, which no UTF-8 file can hold."""
    value.encode()
    return json.dumps(value, ensure_ascii=False)


def find_json(text: str) -> str | None:
    """The last list or object in the last LONGEST characters of free text, else the last plain value, canonical; or None."""
    text = text[-LONGEST:]
    spans: list[tuple[int, int]] = []  # of what opens and closes, those within another left out
    opened: list[tuple[str, int]] = []
    for mark in _MARK.finditer(text):
        if mark[0] in ("[", "{"):
            opened.append((mark[0], mark.start()))
        elif mark[0] in ("]", "}") and opened:
            sign, start = opened.pop()
            if sign + mark[0] not in ("[]", "{}"):
                opened.clear()
                continue
            while spans and spans[-1][0] > start:
                spans.pop()
            spans.append((start, mark.end()))
    found = (canonical(text[start:end]) for start, end in reversed(spans[-_TRIES:]))
    if (last := next((value for value in found if value is not None), None)) is not None or re.search(r"[\[{]", text):
        return last  # of a list or an object that is broken, no part is the answer
    return _last_scalar(text)


def _last_scalar(text: str) -> str | None:
    """The last string, number, true, false or null; or None."""
    found = deque(_SCALAR.finditer(text), maxlen=1)
    return canonical(found[0][0]) if found else None


def _of_row(value: object) -> str | None:
    try:
        return canonical(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return None


def accepted_json(answer: object) -> list[object]:
    """The values of a row's answer: those in any_of, or the one that it is."""
    several = isinstance(answer, dict) and answer.keys() == {"any_of"} and isinstance(answer["any_of"], list)
    return answer["any_of"] if several else [answer]


@dataclass(frozen=True)
class Json:
    """Verifier of adapter.verifiers.base."""

    form: str = "a JSON value"

    def extract(self, text: str, row: Row | None = None) -> str | None:
        """The value in the last box; else the whole text, where it is one; else the last list or object in it, else
        the last plain value."""
        box = last_box(text)
        text = text if box is None else box
        whole = canonical(text.strip())
        return find_json(text) if whole is None else whole

    def normal(self, answer: str) -> str | None:
        """See `canonical`."""
        return canonical(answer)

    def right(self, row: Row, answer: str) -> float:
        """1.0 where the value is one of the accepted."""
        return float(canonical(answer) in [_of_row(value) for value in accepted_json(row.answer)])

    def check(self, row: Row) -> None:
        """See Verifier. A text that holds a list or an object is taken for a slip, unless it stands in any_of."""
        values = accepted_json(row.answer)
        if not values:
            raise ValueError("any_of lists nothing; give one or more accepted values")
        for value in values:
            if _of_row(value) is None:
                raise ValueError(f"{brief(repr(value), 80)} is longer than {LONGEST} characters, deeper than {DEEPEST}, or "
                                 "holds a number of more than 100 digits; shorten it")
        text = row.answer if isinstance(row.answer, str) else ""
        if text.strip()[:1] in ("[", "{") and canonical(text):
            raise ValueError(f"{brief(repr(text), 80)} is a text that holds JSON; write the value itself, without quotation "
                             'marks, or {"any_of": [...]} around a text that is meant')
