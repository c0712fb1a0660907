"""One of several choices, which the config lists or each row brings.

    {"question": ..., "answer": "B", "choices": ["A", "B"]}
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from adapter.questions import Row
from adapter.verifiers.base import accepted, check_each, last_box
from adapter.verifiers.text import of_row, same
from grpo.run.files import brief

MOST = 200  # choices
LONGEST_TEXT = 20_000  # characters of free text, from its end
_SAID = re.compile(r"\b(?:answer|choice|option)(?:\s+is|\s*[:=])[\s:*_(\[\"']*", re.IGNORECASE)


@dataclass(frozen=True)
class Choice:
    """Verifier of adapter.verifiers.base."""

    choices: tuple[str, ...] = ()  # empty: the row's own
    field: str = "choices"  # where a row has its own
    form: str = "one of the choices that the question gives, as it is written there"

    def extract(self, text: str, row: Row | None = None) -> str | None:
        """The choice in the last box; else the whole text, where it is one; else the last one after "the answer is"; else
        the last one in the text. A choice of one letter is looked for in its own case."""
        choices = self.choices or (self._of(row) if row else ())
        box = last_box(text)
        text = text if box is None else box
        if (whole := _one(text, choices) if choices else same(text)) is not None or not choices:
            return whole
        text = text[-LONGEST_TEXT:]
        found = list(_pattern(choices).finditer(text))
        said = {match.end() for match in _SAID.finditer(text)}
        last = next((match for match in reversed(found) if match.start() in said), found[-1] if found else None)
        return None if last is None else _one(last[0], choices)

    def normal(self, answer: str) -> str | None:
        """A choice as the config writes it; any text where each row brings its own."""
        return _one(answer, self.choices) if self.choices else same(answer)

    def right(self, row: Row, answer: str) -> float:
        """1.0 where it is an accepted choice."""
        return float(same(answer) in [same(value) for value in accepted(row.answer) if isinstance(value, str)])

    def check(self, row: Row) -> None:
        """See Verifier."""
        choices = self.choices or self._of(row)
        if not self.choices and len({same(choice) for choice in choices}) < 2:
            raise ValueError(f"its field {brief(self.field, 40)} lists no choices; expected two or more different texts, or "
                             "name the choices in the config")
        check_each(row.answer, lambda value: of_row(value) and _one(str(value), choices),
                   f"choice; expected one of {brief(', '.join(choices), 100)}")

    def _of(self, row: Row) -> tuple[str, ...]:
        listed = row.more.get(self.field)
        return tuple(c for c in listed[:MOST] if isinstance(c, str) and same(c)) if isinstance(listed, list) else ()


def _one(text: str, choices: Sequence[str]) -> str | None:
    """The choice that a text is, as its list writes it."""
    wanted = same(text)
    return next((choice for choice in choices if same(choice) == wanted), None)


def _pattern(choices: Sequence[str]) -> re.Pattern[str]:
    """Any of the choices as a whole word, the longest first."""
    each = (re.escape(c) if len(c) == 1 else f"(?i:{re.escape(c)})" for c in sorted(choices, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{'|'.join(each)})(?!\w)")
