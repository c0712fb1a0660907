"""reasoning-gym as a source of questions: about a hundred generated sets, each with a verifier. docs/gym.md says which are
safe.

    pip install --no-deps -r requirements/gym.txt

The same name, size, seed and options give the same rows on every machine, as long as the package has the same version.
"""

import difflib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from adapter.api.settings import ApiSettings
from adapter.corrector import Corrector
from adapter.questions import Row
from adapter.rows import Splits, same
from adapter.settings import PromptSettings, make_prompt
from adapter.task import CorrectorTask
from adapter.verifiers.base import Found
from adapter.verifiers.own import Own
from adapter.verifiers.pool import ROOT
from grpo.run.files import brief
from grpo.types import UserError

INSTALL = "install it: .venv/bin/pip install --no-deps -r requirements/gym.txt"
FORM = "the answer alone, in the form that the question asks for"
MOST = 10**6  # rows of a set
_WORKER = Path(__file__).parent / "verifiers" / "gym_worker.py"


@dataclass(frozen=True)
class GymVerifier(Own):
    """Verifier of adapter.verifiers.base: the set's own, in processes, with a time limit; only its full score counts."""

    def normal(self, answer: str) -> str | None:
        """See Own. No digits of other scripts: Python reads them as numbers, and so would many of the sets."""
        return None if any(c.isdecimal() and not c.isascii() for c in answer) else super().normal(answer)

    def check(self, row: Row) -> None:
        """See Verifier. Some sets have no answer of their own to show, and recognise many."""
        if "gym" not in row.more:
            raise ValueError("it is no row of a gym set; draw it with adapter.gym.rows")


def gym_verifier(seconds: float = 10.0, processes: int | None = None, found: Found = "text") -> GymVerifier:
    """The verifier of every set. Raises UserError where the package is not installed.

    seconds: of a call. The first one of a process draws the set anew, and some sets search for solutions.
    """
    _check_installed()
    return GymVerifier("reasoning-gym", _WORKER, "score", seconds, processes, FORM, found)


@cache
def available() -> tuple[str, ...]:
    """The names of the sets. Raises UserError where the package is not installed."""
    return tuple(_ask("names"))


def rows(name: str, size: int, seed: int, options: Mapping[str, object] | None = None) -> list[Row]:
    """`size` rows of a set, of one kind, its name; a small set may draw a question twice.

    options: the set's own, such as {"min_terms": 3} for chain_sum. Raises UserError for a name or an option that it lacks.
    """
    if name not in available():
        close = difflib.get_close_matches(name, available(), 3)
        raise UserError(f"{brief(repr(name), 60)}: reasoning-gym has no such set; " + (
            f"did you mean {' or '.join(close)}?" if close else f"docs/gym.md lists its {len(available())}"))
    if not 1 <= size <= MOST:
        raise UserError(f"{name}: {size} rows; expected 1 to {MOST}")
    of = {"name": name, "size": size, "seed": seed, "options": dict(options or {})}
    drawn = _ask("rows", json.dumps(of))
    return [Row(question, answer, name, f"{name}-{index}", more={"gym": of | {"index": index}})
            for index, (question, answer) in enumerate(drawn)]


class GymSettings(ApiSettings):
    """The keys under `task` where its target is gym."""

    sets: list[str] = Field(min_length=1, description="names of reasoning-gym's sets, docs/gym.md", examples=["[chain_sum]"])
    options: dict[str, dict[str, Any]] = Field({}, description="by set, its own options",
                                               examples=["{gcd: {max_numbers: 3}}"])
    train: int = Field(1600, ge=1, le=MOST, description="questions to train on")
    validation: int = Field(200, ge=1, le=MOST, description="questions by which the best LoRA is chosen")
    test: int = Field(400, ge=1, le=MOST, description="questions to report on")
    seconds: float = Field(5.0, gt=0, le=3600, description="the time limit of a verifier's call")
    processes: int | None = Field(None, ge=1, le=1024, examples=[8], description="how many verifiers run at once; as "
                                  "many as there are CPU cores where it is not set")
    found: Found = Field("text", description="what is looked for in an API's text that has no box: the whole text, or its "
                                             "last number, for sets whose answers are numbers")
    prompt: PromptSettings = Field(PromptSettings(), description="what the adapter is told")
    api_prompt: str = Field("{question}\n\nEnd with the answer alone in \\boxed{}.",
                            description="what a real API is asked; {question} stands for the question")

    @model_validator(mode="after")
    def _options_are_of_the_sets(self) -> "GymSettings":
        if twice := sorted({name for name in self.sets if self.sets.count(name) > 1}):
            raise ValueError(f"sets: {twice[0]} is listed twice, and would give the same questions; list it once")
        if others := sorted(self.options.keys() - set(self.sets)):
            raise ValueError(f"options: {others[0]} is none of the sets; expected one of {', '.join(self.sets)}")
        try:
            json.dumps(self.options, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("options: expected numbers, texts, true, false, or lists of such") from None
        return self


class GymTask(CorrectorTask):
    """Task of grpo.types: questions of one or several sets, which are its kinds."""

    Settings = GymSettings
    of_the_data: ClassVar = dict.fromkeys(("sets", "options", "train", "validation", "test", "seconds", "processes"), True)

    @staticmethod
    def make_corrector(settings: GymSettings) -> Corrector:
        """See CorrectorTask. Raises UserError where the package is not installed."""
        verifier = gym_verifier(settings.seconds, settings.processes, settings.found)
        return Corrector(make_prompt(settings.prompt, verifier), verifier)

    @staticmethod
    def read_rows(settings: GymSettings, seed: int, corrector: Corrector) -> Splits[list[Row]]:
        """Drawn by the run's seed, as many of each set. No question is in two splits. Raises UserError."""
        parts: Splits[list[Row]] = Splits([], [], [])
        for at, name in enumerate(settings.sets):
            sizes = [len(range(at, getattr(settings, split), len(settings.sets))) for split in Splits._fields]
            drawn = iter(_different(name, sum(sizes), seed, settings.options.get(name)))
            for part, size in zip(parts, sizes, strict=True):
                part += islice(drawn, size)
        return parts


def _different(name: str, size: int, seed: int, options: Mapping[str, object] | None) -> list[Row]:
    """So many rows, no question twice. Raises UserError where a set has fewer."""
    drawn = rows(name, min(MOST, 2 * size + 100), seed, options)
    unlike = list({same(row.question): row for row in reversed(drawn)}.values())[::-1]
    if len(unlike) < size:
        raise UserError(f"{name}: {len(unlike):,} different questions were drawn, and {size:,} are wanted; lower "
                        "task.train, or give the set wider task.options")
    return unlike[:size]


def _ask(*arguments: str) -> list:
    _check_installed()
    path = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    env = os.environ | {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-P", "-m", "adapter.verifiers.gym_worker", *arguments], env=env,
                          capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"reasoning-gym: {brief(' '.join(arguments), 120)}: {brief(last)}; mend the set's options, or "
                        f"{INSTALL}")
    return json.loads(done.stdout.splitlines()[-1])


def _check_installed() -> None:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise UserError(f"reasoning-gym is not installed; {INSTALL}")
