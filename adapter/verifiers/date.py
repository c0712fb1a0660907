"""A day, written as YYYY-MM-DD."""

import re
from collections import deque
from dataclasses import dataclass
from datetime import date

from adapter.questions import Row
from adapter.verifiers.base import accepted, check_each, last_box

_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
           "december")
_MONTH = "|".join(f"{name[:3]}(?:{name[3:]}|{'t?' if name == 'september' else ''}\\.?)" for name in _MONTHS)
_WRITTEN = re.compile(rf"""
    (?<![\w./-])(?:
        (?P<year>[0-9]{{4}})(?P<between>[-/.])(?P<month>[0-9]{{1,2}})(?P=between)(?P<day>[0-9]{{1,2}})(?=T[0-9]|(?![\w/-]))
      | (?P<first>[0-9]{{1,2}})(?P<sign>[-/.])(?P<second>[0-9]{{1,2}})(?P=sign)(?P<year2>[0-9]{{4}})(?![\w/-])
      | (?P<day3>[0-9]{{1,2}})(?:st|nd|rd|th)?[ ](?:of[ ])?(?P<name3>{_MONTH}),?[ ](?P<year3>[0-9]{{4}})(?!\w)
      | (?P<name4>{_MONTH})[ ](?P<day4>[0-9]{{1,2}})(?:st|nd|rd|th)?,?[ ](?P<year4>[0-9]{{4}})(?!\w)
    )""", re.VERBOSE | re.IGNORECASE | re.ASCII)


def read_date(text: str) -> str | None:
    """YYYY-MM-DD in ASCII digits, where the calendar has that day; or None."""
    plain = text.strip()
    if not _ISO.fullmatch(plain):
        return None
    year, month, day = plain.split("-")
    return _day(year, month, day)


def find_date(text: str) -> str | None:
    """The last date in free text as YYYY-MM-DD, or None. 03/04/2005 is none: it may be in March or in April."""
    matches = deque(_WRITTEN.finditer(text), maxlen=1)
    if not matches:
        return None
    last = matches[0]
    if last["year"]:
        return _day(last["year"], last["month"], last["day"])
    if last["first"]:
        day, month = last["first"], last["second"]
        days = {_day(last["year2"], month, day), _day(last["year2"], day, month)} - {None}
        return days.pop() if len(days) == 1 else None
    named, day, year = (last[f"{part}3"] or last[f"{part}4"] for part in ("name", "day", "year"))
    month = next(n for n, name in enumerate(_MONTHS, 1) if named.lower().startswith(name[:3]))
    return _day(year, str(month), day)


def _day(year: str, month: str, day: str) -> str | None:
    try:
        return date(int(year), int(month), int(day)).isoformat()
    except ValueError:
        return None


@dataclass(frozen=True)
class Date:
    """Verifier of adapter.verifiers.base."""

    form: str = "a date as YYYY-MM-DD"

    def extract(self, text: str, row: Row | None = None) -> str | None:
        """The date in the last box, else the last date: in ISO's form, with a month's English name, or in digits that can be
        read in one way alone."""
        box = last_box(text)
        return find_date(text if box is None else box)

    def normal(self, answer: str) -> str | None:
        """See `read_date`."""
        return read_date(answer)

    def right(self, row: Row, answer: str) -> float:
        """1.0 where it is one of the accepted days."""
        return float(answer in accepted(row.answer))

    def check(self, row: Row) -> None:
        """See Verifier."""
        check_each(row.answer, lambda value: read_date(value) if value == str(value).strip() else None,
                   "date as YYYY-MM-DD")
