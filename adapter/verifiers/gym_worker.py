"""reasoning-gym, in a process of its own: it draws questions, and scores answers to them.

    python -m adapter.verifiers.gym_worker names
    python -m adapter.verifiers.gym_worker rows '{"name": "gcd", "size": 100, "seed": 1, "options": {}}'

Some of its sets depend on the order of Python's sets, so that PYTHONHASHSEED must be 0; adapter.gym sees to that. The
library brings matplotlib and sympy, which the trainer need not load.
"""

import json
import random
import sys
from contextlib import redirect_stdout
from copy import deepcopy
from functools import lru_cache

from reasoning_gym.dataset import ProceduralDataset
from reasoning_gym.factory import DATASETS, create_dataset

NEEDS_OTHERS = {"composite"}  # it draws from other sets, which its options would name


@lru_cache(16)
def _drawn(of: str) -> ProceduralDataset:
    asked = json.loads(of)
    return create_dataset(asked["name"], size=asked["size"], seed=asked["seed"], **asked["options"])


@lru_cache(4096)  # drawing one can take a second, and a group has many completions
def _entry(of: str, index: int) -> dict:
    dataset = _drawn(of)
    random.seed(index)  # list_functions draws from Python's own generator too
    return dataset[index]


def score(row: dict, answer: str) -> float:
    """1.0 where the set's own verifier gives exactly 1; many give junk a part of it."""
    of = {key: row["gym"][key] for key in ("name", "size", "seed", "options")}
    entry = _entry(json.dumps(of), row["gym"]["index"])
    if entry["question"] != row["question"]:
        raise LookupError("it is not the question that this set has at this place; draw the rows anew")
    return float(_drawn(json.dumps(of)).score_answer(answer, deepcopy(entry)) == 1.0)


def main(what: str, of: str = "") -> None:
    """Print the names of the sets, or the questions and answers of one, as one line of JSON."""
    with redirect_stdout(sys.stderr):  # some sets print while they draw
        if what == "names":
            found = sorted(DATASETS.keys() - NEEDS_OTHERS)
        else:
            entries = (_entry(of, index) for index in range(json.loads(of)["size"]))
            found = [(entry["question"], entry["answer"]) for entry in entries]
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
