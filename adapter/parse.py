"""A completion's final answer: the content of its last well-formed \\boxed{}, as data.

A box is well-formed when braces close it with no brace inside; of nested boxes that is the innermost. The last one
counts, whatever it holds: a completion that ends in \\boxed{I give up} has not answered with an earlier number. Nor has
one that ends in \\boxed{55/11}: the division is a part of the question, and is not done here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

_BOX = re.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(?:\.[0-9]{1,40}|/0{0,40}[1-9][0-9]{0,39})?")


@dataclass(frozen=True)
class Agree:
    """\\boxed{CORRECT}: the API's answer stands."""


@dataclass(frozen=True)
class Override:
    """\\boxed{number}: the adapter's own answer."""

    value: Fraction


@dataclass(frozen=True)
class Unparsed:
    """No answer. `reason` is "no box" or "no number"."""

    reason: str


Answer = Agree | Override | Unparsed
Verdict = Literal["correct", "override", "unparsed"]  # an answer without its content
VERDICTS: dict[type[Answer], Verdict] = {Agree: "correct", Override: "override", Unparsed: "unparsed"}


def parse_answer(text: str) -> Answer:
    """The final answer of a completion. Takes any text, in time linear in its length; raises nothing."""
    return final_answer(boxes_in(text))


def boxes_in(text: str) -> list[str]:
    """What the well-formed boxes of a text hold, in order. Takes any text, in time linear in its length."""
    return _BOX.findall(text)


def final_answer(boxes: Sequence[str]) -> Answer:
    """The answer in the last of the boxes."""
    if not boxes:
        return Unparsed("no box")
    content = boxes[-1].strip()
    if content == "CORRECT":
        return Agree()
    value = parse_number(content)
    return Unparsed("no number") if value is None else Override(value)


def in_short(answer: Answer) -> str | None:
    """An answer as a box would hold it, written in one way alone: 27, 7/2 or CORRECT. None for Unparsed."""
    match answer:
        case Agree():
            return "CORRECT"
        case Override(value):
            return str(value)
        case _:
            return None


def parse_number(text: str) -> Fraction | None:
    """An integer, a decimal, or a fraction in lowest terms that is no integer, in ASCII digits; or None.

    "−" passes for "-".
    """
    plain = text.strip().replace("−", "-")
    if not _NUMBER.fullmatch(plain):
        return None
    value, (_, slash, denominator) = Fraction(plain), plain.partition("/")
    return None if slash and not 1 < value.denominator == int(denominator) else value
