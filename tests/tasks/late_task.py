"""The experiment, with a verifier that trips once, in step 4 of runs of 4 x 8 completions."""

from typing import Literal

from grpo.types import Problem, Score
from symbols.settings import Settings
from symbols.task import SymbolTask


class LateTask(SymbolTask):
    """See above."""

    class Settings(Settings):
        """trips: how."""

        trips: Literal["nan", "raise", "never"] = "never"

    def __init__(self, settings: Settings, seed: int):
        super().__init__(settings, seed)
        self._trips, self._left = settings.trips, 3 * 4 * 8
        self._trained = {problem.name for problem in self.train}

    def score(self, problem: Problem, text: str) -> Score:
        self._left -= problem.name in self._trained
        if self._left == -1 and self._trips == "raise":
            raise KeyError("a field that the answer lacks")
        return Score(float("nan")) if self._left == -1 and self._trips == "nan" else super().score(problem, text)
