"""A text: equal after Unicode's NFKC, without case, extra spaces, curled quotation marks and full stops at the end."""

import re
import unicodedata
from dataclasses import dataclass

from adapter.questions import Row
from adapter.verdict import AGREE
from adapter.verifiers.base import accepted, check_each, last_box

_PLAIN = str.maketrans("‘’ʼ“”\u2212‐‑–—", "\'\'\'\"\"-----")  # what word processors write for ' and " and -
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")  # NFKC would make 102 of 10²
LONGEST = 2000  # characters of an answer


def same(text: str) -> str | None:
    """A text in one way of writing it; None where nothing is left of it, or it is longer than LONGEST."""
    if len(text) > LONGEST and len(text := text.strip()) > LONGEST:
        return None
    folded = unicodedata.normalize("NFKD", _RAISED.sub(r"^\g<0>", text.translate(_PLAIN)))
    for _ in range(2):  # a folded letter may decompose, and its parts fold again
        folded = unicodedata.normalize("NFKD", folded.casefold())
    words = " ".join(unicodedata.normalize("NFKC", folded).split())
    return words.rstrip(".。 ") or None


@dataclass(frozen=True)
class Text:
    """Verifier of adapter.verifiers.base."""

    form: str = "the answer as a short text, without quotation marks"

    def extract(self, text: str, row: Row | None = None) -> str | None:
        """The last box, else the whole text."""
        box = last_box(text)
        return same(text if box is None else box)

    def normal(self, answer: str) -> str | None:
        """See `same`."""
        return same(answer)

    def right(self, row: Row, answer: str) -> float:
        """1.0 where the text is one of the accepted."""
        return float(same(answer) in [same(value) for value in accepted(row.answer) if isinstance(value, str)])

    def check(self, row: Row) -> None:
        """See Verifier."""
        check_each(row.answer, of_row, f"text of 1 to {LONGEST} characters that is not {AGREE}")


def of_row(value: object) -> str | None:
    """A text of a data set, in one way of writing it. CORRECT is none: in a box it says that the API's answer stands."""
    return same(value) if isinstance(value, str) and value.strip() != AGREE else None
