"""What a run is made from, besides its config: a resume compares it with the checkpoint's."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from grpo.types import Problem, Task


@dataclass(frozen=True)
class Identity:
    """Hashes of the problems and of the frozen base."""

    data: dict[str, str]  # "train", "test"
    base: str

    @staticmethod
    def of(task: Task, base: str) -> "Identity":
        """Of the task's problems, as they are now, and a base's fingerprint."""
        return Identity({"train": _hash(task.train), "test": _hash(task.test)}, base)


def _hash(problems: Sequence[Problem]) -> str:
    """Of names, kinds, messages and the repr of the task's own data, without memory addresses."""
    digest = hashlib.sha256()
    for problem in problems:
        data = re.sub(r" at 0x[0-9a-f]+", "", repr(problem.data))
        digest.update(json.dumps([problem.name, problem.kind, problem.messages, data]).encode())
    return digest.hexdigest()
