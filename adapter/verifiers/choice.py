"""One of several choices, which the config lists or each row brings.

    {"question": ..., "answer": "B", "choices": ["A", "B"]}
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from adapter.questions import Row
from adapter.verdict import AGREE
from adapter.verifiers.base import accepted, check_each, last_box
from adapter.verifiers.text import of_row, same
from grpo.run.files import brief

MOST = 200  # choices
LONGEST_TEXT = 20_000  # characters of free text, from its end
_SAID = re.compile(  # what stands before an answer that is named as one, LaTeX and marks of emphasis included
    r"\b(?:answer|choice|option)(?:\s+(?:is|would\s+be)|\s*[:=–—-])?[\s:*_(\[\"'$]*(?:\\(?:text\w*|math\w*)\{|\\\()?",
    re.IGNORECASE)
_OPENS = re.compile(r"\s*(?:[.):;\n]|[-–—]\s|,(?<=\w\w,))")  # behind an answer that a text begins with: "Yes, ...", "B) ..."


@dataclass(frozen=True)
class Choice:
    """Verifier of adapter.verifiers.base."""

    choices: tuple[str, ...] = ()  # empty: the row's own
    field: str = "choices"  # where a row has its own
    form: str = "one of the choices that the question gives, as it is written there"

    def extract(self, text: str, row: Row | None = None) -> str | None:
        """The choice in the last box; else the whole text, where it is one; else the last one after "the answer is"; else
        one that the text begins with, as in "Yes, ..."; else the last one in it. A choice of one letter is looked for in its
        own case."""
        choices = self.choices or (self._of(row) if row else ())
        box = last_box(text)
        text = text if box is None else box
        if (whole := _one(text, choices) if choices else same(text)) is not None or not choices:
            return whole
        text = text[-LONGEST_TEXT:]
        found = list(_pattern(choices).finditer(text))
        said = {match.end() for match in _SAID.finditer(text)}
        named = [match for match in found if match.start() in said]
        opening = [match for match in found[:1]
                   if not text[:match.start()].strip("([*_ \n") and _OPENS.match(text, match.end())]
        best = (named or opening or found)[-1:]
        return _one(best[0][0], choices) if best else None

    def normal(self, answer: str) -> str | None:
        """A choice as the config writes it; any text where each row brings its own."""
        return _one(answer, self.choices) if self.choices else same(answer)

    def right(self, row: Row, answer: str) -> float:
        """1.0 where it is an accepted choice."""
        return float(same(answer) in [same(value) for value in accepted(row.answer) if isinstance(value, str)])

    def check(self, row: Row) -> None:
        """See Verifier."""
        choices = self.choices or self._of(row)
        if not self.choices:
            self._check_own(row)
        if not self.choices and len({same(choice) for choice in choices}) < 2:
            raise ValueError(f"its field {brief(self.field, 40)} lists no choices; expected two or more different texts, or "
                             "name the choices in the config")
        check_each(row.answer, lambda value: of_row(value) and _one(str(value), choices),
                   f"choice; expected one of {brief(', '.join(choices), 100)}")

    def _check_own(self, row: Row) -> None:
        """Raises ValueError where a row's own choices are not texts that can be told apart."""
        listed = row.more.get(self.field)
        for choice in listed if isinstance(listed, list) else []:
            if not isinstance(choice, str) or choice.strip() == AGREE:
                raise ValueError(f"its field {brief(self.field, 40)} holds {brief(repr(choice), 40)}; expected texts that "
                                 f"are not {AGREE}")
        if isinstance(listed, list) and not len({same(choice) for choice in listed}) == len(listed) <= MOST:
            raise ValueError(f"its field {brief(self.field, 40)} lists choices that are read alike, or more than {MOST}; "
                             "expected texts that differ in more than case and spaces")

    def _of(self, row: Row) -> tuple[str, ...]:
        listed = row.more.get(self.field)
        return tuple(c for c in listed[:MOST] if isinstance(c, str) and same(c)) if isinstance(listed, list) else ()


def _one(text: str, choices: Sequence[str]) -> str | None:
    """The choice that a text is, as its list writes it."""
    wanted = same(text)
    return next((choice for choice in choices if same(choice) == wanted), None)


def _pattern(choices: Sequence[str]) -> re.Pattern[str]:
    """Any of the choices as a whole word, the longest first."""
    each = (re.escape(c) if len(c) == 1 else "(?i:" + r"\s+".join(map(re.escape, c.split())) + ")"
            for c in sorted(choices, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?<![0-9][.,])(?:{'|'.join(each)})(?!\w|[.,][0-9])")
