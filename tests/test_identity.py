"""What a run is made from has one hash in every process; which seeds are others."""

import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from pydantic import BaseModel

from grpo.rollout import sampling_seed
from grpo.run.identity import Identity, _spelled, fingerprint
from grpo.types import Problem, Prompt

ROOT = Path(__file__).parents[1]  # conftest has it too, and reads transformers and peft: processes that start here need not


@dataclass
class Row:
    """What a task may keep with a problem."""

    n: int
    accepted: set[str]


class Pair(NamedTuple):
    """As Row."""

    n: int
    accepted: frozenset[str]


class Model(BaseModel):
    """As Row."""

    accepted: set[str]


def test_a_set_is_spelled_alike_in_every_process():
    """Wherever it is; what holds none is spelled as its repr, so that the hashes of earlier runs hold."""
    code = ("from tests.test_identity import Model, Pair, Row, _spelled; words = [*'abcdefgh'];"
            "print(_spelled([Row(1, {*words}), (Pair(2, frozenset(words)),), {'k': {(3, w) for w in words}}, "
            "Model(accepted=words)]))")
    told = {subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, text=True,
                           capture_output=True, check=True).stdout for seed in "12"}
    eight = ", ".join(repr(letter) for letter in "abcdefgh")
    assert told == {f"[Row(n=1, accepted=set({eight})), (Pair(n=2, accepted=frozenset({eight})),), "
                    f"{{'k': set({', '.join(f'(3, {letter!r})' for letter in 'abcdefgh')})}}, "
                    f"Model(accepted=set({eight}))]\n"}
    plain = [Problem("q", "k", ()), (1,), (), {"a": [None, 0.5]}, Fraction(1, 2), Pair(1, "x"), date(2024, 7, 26)]
    assert _spelled(plain) == repr(plain)


def test_what_a_data_set_is():
    class Thing:
        """An object without a repr of its own."""

    def identity(messages=({"role": "user", "content": "1"},), kind="custom", name="q", data=3, test=(), validation=(),
                 tokens=((1, 2), (3,))) -> Identity:
        train = [Problem(name, kind, messages, data)]
        return Identity.of(SimpleNamespace(train=train, validation=list(validation), test=list(test)), tokens)

    assert (same := identity()) == identity()
    assert same.base is None
    assert same.data["test"] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no bytes
    others = [identity(messages=({"role": "user", "content": "2"},)),
              identity(messages=({"role": "system", "content": "1"},)), identity(kind="standard"), identity(name="r"),
              identity(data=4), identity(data="3")]
    assert len({other.data["train"] for other in [same, *others]}) == 7
    assert identity(data=Thing()) == identity(data=Thing())
    assert identity(data=Row(3, {"x"})) != identity(data=Row(3, {"y"}))
    problems = [Problem(str(i), "custom", ()) for i in range(2)]
    assert identity(test=problems) != identity(test=reversed(problems))
    assert identity(validation=problems).data == same.data | {"validation": identity(test=problems).data["test"]}


def test_what_tells_two_bases_apart():
    x, y = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.zeros(2)
    same = fingerprint([("a", x), ("b", y)])
    assert fingerprint([("b", y.clone()), ("a", x.clone())]) == same  # in whatever order they come
    lower = x.clone()
    lower[1, 2] = 6.5
    others = {"rows": x.flip(0), "columns": x.flip(1), "a number": lower}
    assert len({same, *(fingerprint([("a", other), ("b", y)]) for other in others.values())}) == 4
    assert len({same, fingerprint([("c", x), ("b", y)]), fingerprint([("a", y), ("b", x)])}) == 3
    nothing = [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(0)]
    assert len({fingerprint([("a", zeros)]) for zeros in nothing}) == 4


def test_the_bits_of_a_seed_that_a_cpu_takes():
    """mt19937 takes 32. Those of two prompts' completions do not meet within a step of configs/tiny.yaml's run."""

    five, more, six = (torch.rand(9, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5 + 2**32, 6))
    assert torch.equal(five, more)
    assert not torch.equal(five, six)
    prompt = Prompt(Problem("36 γ 52", "custom", ()), (), "")
    for step in range(1, 61):
        seeds = {(sampling_seed(1, step, place, prompt) + i) % 2**32 for place in range(8) for i in range(64)}
        assert len(seeds) == 8 * 64
