"""A completion's final answer: the content of its last well-formed \\boxed{}, as data.

A box is well-formed when a brace closes it; pairs of braces within it are part of its content, as JSON and LaTeX have
them. Every brace counts, an escaped or a quoted one too. Of nested boxes it is the innermost. The last one counts, whatever
it holds: a completion that ends in \\boxed{I give up} has not answered with an earlier number. \\boxed{CORRECT} says that
the API's answer stands.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from adapter.verifiers.base import Verifier

AGREE = "CORRECT"
_BRACE = re.compile(r"\\boxed\{|[{}]")


@dataclass(frozen=True)
class Agree:
    """\\boxed{CORRECT}: the API's answer stands."""


@dataclass(frozen=True)
class Override:
    """The adapter's own answer, in the verifier's one way of writing it."""

    answer: str


@dataclass(frozen=True)
class Unparsed:
    """No answer. `reason` is "no box" or "no answer of this kind"."""

    reason: str


Answer = Agree | Override | Unparsed
Verdict = Literal["correct", "override", "unparsed"]  # an answer without its content
VERDICTS: dict[type[Answer], Verdict] = {Agree: "correct", Override: "override", Unparsed: "unparsed"}


def boxes_in(text: str) -> list[str]:
    """What the well-formed boxes of a text hold, in order. Takes any text, in time linear in its length; raises nothing."""
    return [text[start:end] for start, end in box_places(text)]


def box_places(text: str) -> list[tuple[int, int]]:
    """Where the contents of those boxes start and end, in characters; behind each stands its closing brace."""
    places: list[tuple[int, int]] = []
    opened: list[tuple[int, bool]] = []  # where the content of each open brace starts, and whether it is a box's
    newest = -1  # where the newest box's content starts: a brace opened before that holds a box, and is none
    for brace in _BRACE.finditer(text):
        if brace[0] != "}":
            opened.append((brace.end(), brace[0] != "{"))
        elif opened:
            start, is_box = opened.pop()
            if is_box and start > newest:
                places.append((start, brace.start()))
                newest = start
    return places


def final_answer(boxes: Sequence[str], verifier: "Verifier") -> Answer:
    """The answer in the last of the boxes."""
    if not boxes:
        return Unparsed("no box")
    content = boxes[-1].strip()
    if content == AGREE:
        return Agree()
    answer = verifier.normal(content)
    return Unparsed("no answer of this kind") if answer is None else Override(answer)


def in_short(answer: Answer) -> str | None:
    """An answer as a box would hold it, written in one way alone, or CORRECT. None for Unparsed."""
    match answer:
        case Agree():
            return AGREE
        case Override(own):
            return own
        case _:
            return None


def resolve(answer: Answer, api_extracted: str | None) -> str | None:
    """The chain's final answer: the API's, as extracted, where the adapter agrees; its own where it overrides; or None."""
    match answer:
        case Agree():
            return api_extracted
        case Override(own):
            return own
        case _:
            return None
