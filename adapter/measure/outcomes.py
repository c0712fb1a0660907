"""One completion of a test question, judged: its answer, whether that is right, and if not, why.

A wrong completion is in one class of FAILURES, the first of these that applies:

    truncated        the token limit cut it off, and it holds no answer
    unparsed         it holds no answer: no \\boxed{}, nothing of the verifier's kind in it, or a CORRECT that is not offered
    wrong agreement  it agrees with an answer of the API that is wrong
    echo             it gives the API's wrong answer again
    wrong override   the rest: an answer of its own, and a wrong one

A task may have classes of its own (adapter/corrector.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapter.confidence import Token
from adapter.questions import Row
from adapter.verdict import Verdict

FAILURES = ("truncated", "unparsed", "wrong agreement", "echo", "wrong override")


@dataclass(frozen=True)
class Outcome:
    """What became of a test question."""

    row: Row
    completion: str
    truncated: bool
    verdict: Verdict
    api_extracted: str | None  # the API's answer; None: it gave none
    api_right: bool
    answer: str | None  # the chain's final one
    right: bool  # fully: a verifier may pay less than 1 for what is right in part
    failure: str | None = None  # None where right
    reward: float = 0.0  # what the verifier paid, in [0, 1]
    timed_out: bool = False  # the verifier came to no end in its time: that is wrong
    mean_logp: float | None = None  # over the completion's tokens; None: not known, or there is no answer
    box: Sequence[Token] = ()  # the tokens of the completion's last box
    doubt: Token | None = None  # the least probable one of the completion
    confidence: float | None = None  # that the verdict is right; None: it was not asked for

    @property
    def box_logp(self) -> float | None:
        """The log-probability of the box's tokens; None without an answer."""
        return math.fsum(token.logp for token in self.box) if self.verdict != "unparsed" and self.box else None

    def because(self, failure: str) -> "Outcome":
        """The same, with its class of failure."""
        return replace(self, failure=failure)


def why_wrong(outcome: Outcome) -> str:
    """The class of a wrong outcome, one of FAILURES."""
    if outcome.verdict == "unparsed":
        return "truncated" if outcome.truncated else "unparsed"
    if outcome.verdict == "correct":
        return "wrong agreement"
    return "echo" if outcome.answer == outcome.api_extracted else "wrong override"
