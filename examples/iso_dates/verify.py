"""Who is right about a date. `verifier: date` would serve as well, but takes 2005-4-3 for no date."""

import re


def verify(row: dict, answer: str) -> bool:
    """Whether the answer is the row's day, as year-month-day in ASCII digits; a zero may be missing, nothing else."""
    found = re.fullmatch(r"(\d{4})-(\d\d?)-(\d\d?)", answer, re.ASCII)
    return found is not None and "{}-{:0>2}-{:0>2}".format(*found.groups()) == row["answer"]
