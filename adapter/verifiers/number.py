"""A number: compared exactly, or within a tolerance.

A box holds an integer, a decimal, or a fraction in lowest terms that is no integer, in ASCII digits; "−" passes for "-". It
holds nothing else: \\boxed{55/11} is a division that is not done, and \\boxed{1,234} may be two numbers. The adapter learns
to write a box, so that strictness costs it nothing. An API writes as it likes: `extract` reads a currency sign, thousands
separators and LaTeX's fractions too, and leaves a unit or a percent sign out.
"""

import re
from collections import deque
from dataclasses import dataclass
from fractions import Fraction

from adapter.questions import Row
from adapter.verifiers.base import accepted, check_each, last_box

_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(?:\.[0-9]{1,40}|/0{0,40}[1-9][0-9]{0,39})?")
_FORM = "a number: an integer, a decimal, or a fraction in lowest terms"
_SEPARATORS = ",'’\u00a0\u202f\u2009"  # between thousands; a plain space stands between two numbers as often
_RUN = re.compile(  # all that may belong to one number; none starts within a word
    rf"(?<![\w.^-])(?P<sign>[+-]?)[$€£¥₹]?(?P<digits>\.?[0-9](?:[0-9.{_SEPARATORS}/^:-]|[eE][+-]?(?=[0-9]))*)", re.ASCII)
_GROUPED = re.compile(rf"[0-9]{{1,3}}(?:([{_SEPARATORS}])[0-9]{{3}}(?:\1[0-9]{{3}}){{0,12}})(?:\.[0-9]{{1,40}})?")
_SCIENTIFIC = re.compile(r"([0-9]{1,40}(?:\.[0-9]{1,40})?)[eE]([+-]?[0-9]{1,2})")
_FRACTION = re.compile(r"([0-9]?)\\[dt]?frac\{(-?[0-9]{1,40})\}\{([0-9]{1,40})\}")
_MINUS = str.maketrans("−‐‑–﹣－", "------")
_SPACE = re.compile(r"(?<=[0-9]),?\\[,!;: ](?=[0-9]{3})")  # LaTeX's, between thousands
_BEFORE = re.compile(r"\\(?:sqrt|overline|bar|ln|log)\{$|\\pm\s*$")  # of a number that is a part of another
_AFTER = re.compile(r"[²³¹⁰⁴-⁹½¼¾⅓⅔_]|x[0-9a-fA-F]")


def read_number(text: str) -> Fraction | None:
    """An integer, a decimal, or a fraction in lowest terms that is no integer, in ASCII digits; or None."""
    plain = text.strip().replace("−", "-")
    if not _NUMBER.fullmatch(plain):
        return None
    value, (_, slash, denominator) = Fraction(plain), plain.partition("/")
    return None if slash and not 1 < value.denominator == int(denominator) else value


def find_number(text: str) -> str | None:
    """The last number in free text, as `read_number` reads it; or None.

    None too where the last one is no plain number: a division, a date, a time, a power, a range, or 12 345, which may be
    two.
    """
    plain = text.translate(_MINUS).replace("{,}", ",").replace("\\$", "$")
    plain = re.sub(r"\^\{([^{}]*)\}", r"^\1", _SPACE.sub("", plain))
    plain = _FRACTION.sub(lambda f: f"{f[1]} {f[2]}/{f[3]}" if f[1] else f"{f[2]}/{f[3]}", plain)
    runs = deque(_RUN.finditer(plain), maxlen=1)
    if not runs:
        return None
    last = runs[0]
    digits = last["digits"].rstrip(f".:/^-{_SEPARATORS}")
    before = plain[max(0, last.start() - 2):last.start()]
    if re.fullmatch(r"[0-9]{3}(?:[.,][0-9]+)?|.*/.*", digits) and re.fullmatch("[0-9] ", before):  # 12 345, 2 1/2
        return None
    if _BEFORE.search(plain[max(0, last.start() - 12):last.start()]) or _AFTER.match(plain, last.end()):
        return None
    return _read(last["sign"], "0" + digits if digits.startswith(".") else digits)


def _read(sign: str, digits: str) -> str | None:
    if _GROUPED.fullmatch(digits):
        digits = re.sub(f"[{_SEPARATORS}]", "", digits)
    if scientific := _SCIENTIFIC.fullmatch(digits):
        value = Fraction(scientific[1]) * Fraction(10) ** int(scientific[2])
        return _written(-value if sign == "-" else value)
    value = read_number(sign + digits)
    return None if value is None else _written(value)


def _written(value: Fraction) -> str | None:
    """As `normal` would: None for what it would not read back."""
    return str(value) if read_number(str(value)) == value else None


def of_row(value: object) -> Fraction | None:
    """A number of a data set: JSON's, or a text that holds one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Fraction(repr(value)) if abs(value) < 10**40 else None  # NaN and inf are not smaller
    return read_number(value) if isinstance(value, str) else None


@dataclass(frozen=True)
class Number:
    """Verifier of adapter.verifiers.base."""

    tolerance: float = 0.0  # how far off an answer may be
    relative: bool = False  # that is a share of the true answer
    form: str = _FORM

    def extract(self, text: str, row: Row | None = None) -> str | None:
        """The number in the last box, else the last number."""
        box = last_box(text)
        return find_number(text if box is None else box)

    def normal(self, answer: str) -> str | None:
        """27 for 27.0, -7/2 for −3.5; see the file's head."""
        value = read_number(answer)
        return None if value is None else _written(value)

    def right(self, row: Row, answer: str) -> float:
        """1.0 where the number is one of the accepted, or within the tolerance of one."""
        value, allowed = read_number(answer), Fraction(repr(self.tolerance))
        truths = [truth for truth in map(of_row, accepted(row.answer)) if truth is not None]
        if value is None:
            return 0.0
        return float(any(abs(value - truth) <= allowed * (abs(truth) if self.relative else 1) for truth in truths))

    def check(self, row: Row) -> None:
        """See Verifier."""
        check_each(row.answer, lambda value: None if (n := of_row(value)) is None else _written(n),
                   "number in a form that a box may have, such as 27, -3.5 or 7/2")
