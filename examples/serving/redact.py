"""What is taken out of each row before it is captured: --redact examples/serving/redact.py:redact. Make it your own.

A model that is trained on rows without names and numbers is asked questions with them: take out what must not be kept, no
more.
"""

import re

# What repeats is bounded: while a pattern backtracks over a caller's long text, no answer goes out.
PATTERNS = {
    "[key]": re.compile(r"\b(?:sk|pk|rk|ghp|xox[bp])[-_][A-Za-z0-9_-]{16,200}"),
    "[mail]": re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
    "[phone]": re.compile(r"\+\d[\d ()/-]{7,24}\d")}
TEXTS = ("question", "api_answer", "api_extracted", "completion", "final")


def redact(row: dict[str, object]) -> dict[str, object] | None:
    """The row to write; None leaves it out."""
    return row | {name: cleaned(row[name]) for name in TEXTS if isinstance(row.get(name), str)}


def cleaned(text: str) -> str:
    """The text without keys, mail addresses and telephone numbers."""
    for name, pattern in PATTERNS.items():
        text = pattern.sub(name, text)
    return text
