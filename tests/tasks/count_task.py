"""A task that has nothing to do with arithmetic, for models that know nothing: write the letter e, a little."""

from collections.abc import Sequence

from grpo.types import Problem, Reference, Score


class CountTask:
    """Reward: the share of the completion's characters that are e. Any text scores, so that any model learns."""

    def __init__(self, settings: dict, seed: int):
        names = settings.get("names", ["one", "two two", "three three three"])
        self.train: Sequence[Problem] = [Problem(name, "word", ({"role": "user", "content": name},)) for name in names]
        self.test = self.train[:1]
        self.references = {"nothing": Reference("the empty answer", {"word": 0.0, "overall": 0.0})}

    def score(self, problem: Problem, text: str) -> Score:
        return Score(text.count("e") / max(1, len(text)), unparsed=not text)
