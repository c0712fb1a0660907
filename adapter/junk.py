"""Answers that must score 0: GRPO finds whatever else than the truth pays, and learns that.

The junk: nothing, the question itself, every number from it, all answers at once, CORRECT where the API is wrong, huge
answers, digits of another script, several boxes, the answer within a longer text, hedges, and what programs stumble over.
What happens to be right is left out.
"""

import json
import re
from collections.abc import Sequence

from adapter.questions import Row
from adapter.verdict import AGREE
from adapter.verifiers.base import Verifier
from adapter.verifiers.json import Json, accepted_json
from adapter.verifiers.number import Number, of_row, read_number
from adapter.verifiers.text import same

_OTHER_DIGITS = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
FIXED = {
    "empty": "", "a space": " ", "banana": "banana", "-1": "-1", "0": "0", "NaN": "NaN", "inf": "inf", "None": "None",
    "true": "true", "an empty list": "[]", "giving up": "I give up", "code": "__import__('os').getpid()",
    "10,000 digits": "9" * 10_000, "35,000 characters": "banana " * 5000}


def true_answers(row: Row, verifier: Verifier) -> list[str]:
    """The row's accepted answers, as a box would hold them; none where only a user's function could say."""
    if isinstance(verifier, Json):
        return [json.dumps(value, ensure_ascii=False) for value in accepted_json(row.answer)]
    values = row.answer if isinstance(row.answer, list) else [row.answer]
    if isinstance(verifier, Number):
        return [str(value) for value in map(of_row, values) if value is not None]
    return [value if isinstance(value, str) else json.dumps(value) for value in values
            if isinstance(value, str | int | float)]


def junk_answers(row: Row, verifier: Verifier, all_answers: Sequence[str]) -> list[tuple[str, str]]:
    """Labels, and what a box holds. all_answers: true answers of many rows, this one's among them.

    CORRECT is in it where the row has an API's answer; it is for the caller to leave that out where the API is right.
    """
    truths = true_answers(row, verifier)
    other = next((answer for answer in all_answers if not _alike(answer, truths)), "banana")
    junk = FIXED | {"the question": row.question, "every number of the question": ", ".join(
        re.findall(r"-?[0-9]+(?:\.[0-9]+)?", row.question[:10_000]))}
    junk["all answers at once"] = ", ".join(dict.fromkeys(all_answers[:20]))
    if truths:
        true = truths[0]
        last = next(word for word in ("banana", "I give up", "nothing") if not _alike(word, truths))
        junk |= {"several boxes": f"{true}}} no: \\boxed{{{last}",
                 "the answer within a longer text": f"It is {true}, or so I am told",
                 "the answer and another": f"{true} or {other}", "another and the answer": f"{other}, {true}",
                 "digits of another script": re.sub("[0-9]+", lambda digits: digits[0].translate(_OTHER_DIGITS), true)}
    if row.api is not None:
        junk["CORRECT where the API is wrong"] = AGREE
    return [(label, text) for label, text in junk.items() if not (_alike(text, truths) or _near(text, row, verifier))]


def _alike(text: str, truths: Sequence[str]) -> bool:
    """Whether it is a true answer, written in another way perhaps."""
    number = read_number(text)
    return any(same(text) == same(true) or (number is not None and number == read_number(true)) for true in truths)


def _near(text: str, row: Row, verifier: Verifier) -> bool:
    """Whether it is within a number's tolerance, and so right."""
    number = verifier.normal(text) if isinstance(verifier, Number) else None
    return number is not None and verifier.right(row, number) > 0
