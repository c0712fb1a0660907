"""Rewards that float32 holds, and whose spread it does not: the advantages are not numbers."""

from grpo.types import Problem, Score
from tests.tasks.letters_task import LettersTask


class OverflowTask(LettersTask):
    """Half of all completions get 3e38, the others -3e38."""

    def score(self, problem: Problem, text: str) -> Score:
        return Score(3e38 if len(text) % 2 else -3e38)
