"""What every verifier can do, and the result of one call."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from adapter.questions import Row
from adapter.verdict import boxes_in
from grpo.run.files import brief

Found = Literal["text", "number"]  # what an API's text without a box is searched for


class Verifier(Protocol):
    """A kind of answer. Each method takes any text, in time linear in its length; the first two raise nothing."""

    form: str  # one clause for the prompt: what goes into the box, such as "a number"

    def extract(self, text: str, row: Row | None = None) -> str | None:
        """The answer in an API's free text, written in one way alone; None: there is none.

        The row helps where it says what may be answered (choices of its own); its answer is not looked at.
        """

    def normal(self, answer: str) -> str | None:
        """A box's content, written in one way alone; None: no answer of this kind."""

    def right(self, row: Row, answer: str) -> float:
        """How right an answer is, in [0, 1]. It is one that `normal` or `extract` returned."""

    def check(self, row: Row) -> None:
        """Raises ValueError, in words, where the row's answer is nothing that this verifier can compare with."""


@dataclass(frozen=True)
class Verified:
    """What became of one call of a verifier."""

    score: float  # in [0, 1]; 0 where it timed out
    timed_out: bool = False  # only a user's own function can
    seconds: float = 0.0  # that the call took, without waiting for a free process


class Pending(Protocol):
    """A call whose result is not looked at yet."""

    def result(self) -> Verified:
        """Waits for it. Raises VerifierError of grpo.types where a user's own function failed."""


@dataclass(frozen=True)
class Ready:
    """A call that is done: most verifiers answer at once."""

    verified: Verified

    def result(self) -> Verified:
        """See Pending."""
        return self.verified


def submit(verifier: Verifier, row: Row, answer: str, completion: str = "") -> Pending:
    """Start a call of any verifier, so that others can run meanwhile; the completion's whole text is for an error alone."""
    own = getattr(verifier, "submit", None)
    if own is not None:
        return own(row, answer, completion)
    start = time.perf_counter()
    score = verifier.right(row, answer)
    return Ready(Verified(score, seconds=time.perf_counter() - start))


def accepted(answer: object) -> list[object]:
    """The values of a row's answer, which may be a list of them. Raises ValueError where that is empty."""
    if answer is None or answer == []:
        raise ValueError("there is no answer; give a value, or a list of accepted ones")
    return answer if isinstance(answer, list) else [answer]


def check_each(answer: object, read: Callable[[object], object | None], wanted: str) -> None:
    """Raises ValueError where `read` finds nothing in one of a row's accepted values."""
    for value in accepted(answer):
        if read(value) is None:
            raise ValueError(f"{brief(repr(value), 80)} is no {wanted}")


def last_box(text: str) -> str | None:
    """What the last box of a text holds."""
    return boxes[-1].strip() if (boxes := boxes_in(text)) else None
