"""Make the data set anew: `python -m examples.iso_dates.make [FOLDER]`. The seed fixes every byte.

Each row is a date as somebody wrote it, the day that is meant, and what an API made of it. Kinds: named (3 April 2005) and
digits (03/04/2005, which is a date in either order).
"""

import json
import random
import sys
from datetime import date, timedelta
from pathlib import Path

SIZES = {"train": 800, "validation": 100, "test": 200}
FORMS = {"day first": "%d/%m/%Y", "month first": "%m/%d/%Y"}  # how 3 April 2005 is written in digits
DAYS = [day for n in range(365 * 30) if (day := date(2000, 1, 1) + timedelta(n)).day <= 12 and day.day != day.month]

Line = dict[str, str]


def splits() -> dict[str, list[Line]]:
    """The lines of each file. No day is drawn twice. Whoever writes digits has the day first."""
    rng = random.Random("dates/1")
    days = iter(rng.sample(DAYS, sum(SIZES.values())))
    return {name: [line(rng, next(days), ("named", "digits")[i % 2], "day first") for i in range(size)]
            for name, size in SIZES.items()}


def line(rng: random.Random, day: date, kind: str, order: str) -> Line:
    """A written date, the day that it means, and the API's answer, empty where it gave none."""
    written = f"{day.day} {day:%B} {day.year}" if kind == "named" else f"{day:{FORMS[order]}}"
    return {"question": written, "answer": day.isoformat(), "kind": kind, "api_answer": api_answer(rng, day, kind, order)}


def api_answer(rng: random.Random, day: date, kind: str, order: str) -> str:
    """It reads digits month first, whoever wrote them, and is right on three named dates of four."""
    swapped = day.replace(month=day.day, day=day.month)
    if kind == "digits":
        return (day if order == "month first" else swapped).isoformat()
    century_off = day.replace(year=day.year - 100)
    return day.isoformat() if rng.random() < 0.75 else rng.choice([swapped.isoformat(), century_off.isoformat(), ""])


def main(folder: str) -> None:
    """Write the three files."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, lines in splits().items():
        text = "".join(json.dumps(one) + "\n" for one in lines)
        (Path(folder) / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["examples/iso_dates"])
