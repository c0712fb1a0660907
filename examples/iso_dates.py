"""A task that has nothing to do with arithmetic: correct an API that is asked to write dates as YYYY-MM-DD.

    python -m examples.iso_base                  # once: a small base that can write dates
    python train.py examples/iso_dates.yaml      # 20 steps

The API takes 03/04/2005 for the 4th of March. So does the base, but the writer means the 3rd of April: GRPO finds that
out from the reward alone. Greedy, 400 test dates, seeds 1, 2, 3, on 2 busy CPU cores in 1:22, 1:39 and 1:37 minutes:

                          digits                  named
    simulated API alone    0.0,  0.0,  0.0 %      79.0, 78.0, 77.5 %
    base, before GRPO      0.0,  0.0,  0.0 %      93.5, 90.5, 88.5 %
    adapter, step 20      98.0, 99.0, 99.5 %      92.0, 90.5, 88.0 %
"""

import random
import re
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from grpo.types import Problem, Reference, Score, Table

NONE = "none"  # shown where the API gave no answer
FORMS = {"day first": "%d/%m/%Y", "month first": "%m/%d/%Y"}  # how 3 April 2005 is written in digits
DAYS = [day for n in range(365 * 30) if (day := date(2000, 1, 1) + timedelta(n)).day <= 12 and day.day != day.month]


class IsoDates:
    """Task of grpo.types. Kinds: named (3 April 2005) and digits (03/04/2005, which is a date in either order)."""

    class Settings(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
        order: Literal["day first", "month first"] = Field("day first", description="what digits mean; nobody is told")
        train: int = Field(1600, ge=1, le=2500, description="dates to train on")
        validation: int = Field(200, ge=1, le=500, description="dates by which the best LoRA is chosen, none trained on")
        test: int = Field(400, ge=1, le=900, description="dates to evaluate on, none of them trained on or chosen by")

    def __init__(self, settings: Settings, seed: int):
        rng = random.Random(f"dates/{seed}")
        days = rng.sample(DAYS, settings.train + settings.test)
        problems = drawn(rng, days, settings.order)
        self.train, self.test = problems[: settings.train], problems[settings.train :]
        self.validation = drawn(rng, rng.sample(sorted({*DAYS} - {*days}), settings.validation), settings.order)
        self.references = {"api": Reference("simulated API alone", accuracy(self.test, lambda truth, api: truth == api))}
        common = Counter(p.data[0] for p in self.train).most_common(1)[0][0]
        self.trivial = [Reference("always CORRECT", self.references["api"].accuracy),
                        Reference(f"always {common}", accuracy(self.test, lambda truth, _: truth == common))]

    def score(self, problem: Problem, text: str) -> Score:
        """1.0 if the last box holds the date, or CORRECT where the API's answer is the date."""
        truth, api = problem.data
        boxes = re.findall(r"\\boxed\{([^{}]*)\}", text)
        box = boxes[-1].strip() if boxes else ""
        parsed = re.fullmatch(r"CORRECT|[0-9]{4}-[0-9]{2}-[0-9]{2}", box) is not None
        return Score(float((api if box == "CORRECT" else box) == truth), not parsed, box if parsed else None, len(boxes))


def drawn(rng: random.Random, days: list[date], order: str) -> list[Problem]:
    """A problem a day, named and in digits in turn."""
    return [problem(rng, day, ("named", "digits")[i % 2], order) for i, day in enumerate(days)]


def problem(rng: random.Random, day: date, kind: str, order: str) -> Problem:
    """A written date, the API's answer, and what to do about it."""
    written = f"{day.day} {day:%B} {day.year}" if kind == "named" else f"{day:{FORMS[order]}}"
    api = simulated_api(rng, day, kind, order)
    text = ("An API writes dates as YYYY-MM-DD. End with \\boxed{CORRECT} if it is right, else with the date in \\boxed{}."
            f"\n\nAPI answer: {api} | date: {written} ->")
    return Problem(written, kind, ({"role": "user", "content": text},), (day.isoformat(), api))


def simulated_api(rng: random.Random, day: date, kind: str, order: str) -> str:
    """Reads digits month first, whoever wrote them; right on three named dates of four."""
    swapped = day.replace(month=day.day, day=day.month)
    if kind == "digits":
        return (day if order == "month first" else swapped).isoformat()
    century_off = day.replace(year=day.year - 100)
    return day.isoformat() if rng.random() < 0.75 else rng.choice([swapped.isoformat(), century_off.isoformat(), NONE])


def accuracy(problems: list[Problem], right: Callable[[str, str], bool]) -> Table:
    """How often `right`, given the date and the API's answer, is true."""
    table: Table = {}
    for kind in ("digits", "named", "overall"):
        hits = [right(*p.data) for p in problems if kind in (p.kind, "overall")]
        table[kind] = sum(hits) / max(1, len(hits))
    return table
