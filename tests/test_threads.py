"""A chain may be called from many threads, as web frameworks do, and closed: no caller gets another's answer, or error."""

import threading
import time
from collections.abc import Callable

import pytest

from adapter.chain import Chain
from adapter.turns import Turns
from grpo.types import UserError
from tests.conftest import ROOT


def together(calls: list[Callable[[], object]]) -> list[object]:
    """What each call returns, or the words of its UserError, each in a thread of its own."""
    outcomes: list[object] = [None] * len(calls)

    def run(place: int) -> None:
        try:
            outcomes[place] = calls[place]()
        except UserError as error:
            outcomes[place] = str(error)

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


class Squares:
    """Callers of a function that refuses 13. Its first call is the first caller's, and lasts until all others wait."""

    def __init__(self, *asked: list[int], interrupted: bool = False):
        self.calls, self.started, self.callers, self.interrupted = [], threading.Event(), len(asked), interrupted
        self.turns = Turns(self.squares)
        self.outcomes = together([lambda n=n, numbers=numbers: self.ask(n, numbers) for n, numbers in enumerate(asked)])

    def ask(self, caller: int, numbers: list[int]) -> list[int] | None:
        if caller:
            self.started.wait(10)
        try:
            return self.turns(numbers)
        except KeyboardInterrupt:
            return None

    def squares(self, numbers: list[int]) -> list[int]:
        self.calls.append(numbers)
        first = not self.started.is_set()
        self.started.set()
        while first and len(self.turns._waiting) < self.callers:
            time.sleep(0.001)
        if first and self.interrupted:
            raise KeyboardInterrupt
        if 13 in numbers:
            raise UserError("13 is unlucky")
        return [n * n for n in numbers]


def test_what_arrives_while_it_runs_is_the_next_call():
    squares = Squares([1], [2, 3], [], [4])
    assert squares.outcomes == [[1], [4, 9], [], [16]]
    assert [sorted(call) for call in squares.calls] == [[1], [2, 3, 4]]
    assert squares.turns._waiting == []


def test_one_callers_mistake_is_no_others():
    squares = Squares([1], [2], [13, 3], [4])
    assert squares.outcomes == [[1], [4], "13 is unlucky", [16]]
    assert sorted(map(sorted, squares.calls[1:])) == [[2], [2, 3, 4, 13], [3, 13], [4]]


def test_a_caller_that_is_interrupted_leaves_the_others_to_themselves():
    squares = Squares([1], [2], [3], interrupted=True)
    assert squares.outcomes == [None, [4], [9]]
    assert len(squares.calls) == 2
    assert squares.turns._waiting == []


def test_two_chains_answer_many_threads_and_one_outlives_the_other(toy, monkeypatch):
    monkeypatch.chdir(ROOT)
    chains = [Chain(toy[0]), Chain(toy[0])]
    asked = [f"{n} + {n}" for n in range(1, 13)]
    calls = [lambda n=n, text=text: chains[n % 2]([text])[0].answer for n, text in enumerate(asked)]
    calls.append(lambda: chains[0](["9" * 996 + "+1"]))
    *answers, refused = together(calls)
    assert answers == [str(2 * n) for n in range(1, 13)]
    assert "leave the adapter room" in refused
    chains[0].close()
    chains[0].close()
    with pytest.raises(UserError, match="this chain is closed, and answers no more"):
        chains[0](["1 + 1"])
    assert chains[1](["1 + 1"])[0].answer == "2"
    chains[1].close()
