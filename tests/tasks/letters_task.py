"""A task that has nothing to do with arithmetic, for models that know nothing: write letters rather than anything else."""

from collections.abc import Sequence

from pydantic import BaseModel

from grpo.types import Problem, Reference, Score


class LettersTask:
    """Reward: the share of ASCII letters among the completion's characters, so that noise already scores something."""

    class Settings(BaseModel):
        names: list[str] = ["one", "two two", "three three three"]

    def __init__(self, settings: Settings, seed: int):
        self.train: Sequence[Problem] = [
            Problem(name, "word", ({"role": "user", "content": name},)) for name in settings.names]
        self.validation, self.test = self.train[1:2], self.train[:1]
        self.references = {"nothing": Reference("the empty answer", {"word": 0.0, "overall": 0.0})}

    def score(self, problem: Problem, text: str) -> Score:
        letters = sum(c.isascii() and c.isalpha() for c in text)
        return Score(letters / max(1, len(text)), unparsed=not text)
