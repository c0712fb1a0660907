"""The simulated API for any task: its shares, its kinds of error, and that none of them is right by accident."""

import json
import random
from collections import Counter
from datetime import date
from itertools import islice

import pytest

from adapter.api.settings import Simulated
from adapter.api.simulated import SimulatedUpstream, drawn_way
from adapter.api.wrong_answers import echoes, near_misses, nearly, other_kinds
from adapter.questions import ApiAnswer, Row
from adapter.verifiers.base import Verifier
from adapter.verifiers.choice import Choice
from adapter.verifiers.date import Date
from adapter.verifiers.json import Json
from adapter.verifiers.number import Number
from adapter.verifiers.text import Text
from grpo.types import UserError

WAYS = ("right", "none", "near_miss", "echo", "wrong_kind")
SHARES = {"right": 0.4, "none": 0.1, "near_miss": 0.3, "echo": 0.15, "wrong_kind": 0.05}
COLOURS = ("red", "green", "blue")
DAYS = [date(2024, month, day).isoformat() for month in range(1, 13) for day in (1, 15, 28)]
TASKS: dict[str, tuple[Verifier, list[object]]] = {
    "integers": (Number(), [*range(-10, 30)]), "decimals": (Number(), [0.5, 12.25, 1e-7, 1e22, "3.50", -2.0]),
    "fractions": (Number(), ["7/2", "1/3", "22/7"]), "within 2": (Number(tolerance=2.0), [*range(20)]),
    "several": (Number(), [[1, 2], [5, 6, 7]]), "texts": (Text(), ["Paris", "a", "new york", "42", "?", "it's 9"]),
    "one of several": (Text(), [["colour", "color"]]), "choices": (Choice(COLOURS), [*COLOURS, ["red", "blue"]]),
    "own choices": (Choice(), ["A", "B"]), "dates": (Date(), [*DAYS, "0001-01-01", "9999-12-31"]),
    "objects": (Json(), [{"a": 1, "b": [True, None]}, [1, "x"], {}, [], "word", True, {"any_of": [[1], [2]]}, 7, [[1]]])}


def rows_of(task: str, count: int = 300) -> list[Row]:
    """Questions that hold their answer, as those of a comprehension task do."""
    _, answers = TASKS[task]
    return [Row(f"{n}: which of A or B, red or blue, is {answers[n % len(answers)]}?", answers[n % len(answers)],
                more={"choices": ["A", "B"]} if task == "own choices" else {}) for n in range(count)]


def only(way: str) -> dict[str, float]:
    return dict.fromkeys(WAYS, 0.0) | {way: 1.0}


def said(task: str, shares: dict[str, float], rows: list[Row], seed: int = 0) -> list[str]:
    return [answer.text for answer in SimulatedUpstream(seed, TASKS[task][0], shares).answers(rows)]


def score(verifier: Verifier, row: Row, text: str) -> float | None:
    answer = verifier.extract(text, row)
    return None if answer is None else verifier.right(row, answer)


def test_a_share_by_hand():
    """Of 1,000 numbers spread evenly from 0 to 1, each way takes as many as its share says, in the order of the shares."""
    class Even(random.Random):
        def random(self) -> float:
            return next(numbers)

    numbers = ((n + 0.5) / 1000 for n in range(1000))
    ways = [drawn_way(Even(), SHARES) for _ in range(1000)]
    assert ways == ["right"] * 400 + ["none"] * 100 + ["near_miss"] * 300 + ["echo"] * 150 + ["wrong_kind"] * 50


def test_shares_of_many_questions():
    """Of 10,000 questions whose errors can be told apart; five standard deviations are 245 where a share is 0.4."""
    rows = [Row(f"question number {n}", "rose") for n in range(10_000)]
    texts = [answer.text for answer in SimulatedUpstream(0, Text(), SHARES).answers(rows)]
    counts = Counter("right" if text == "rose" else "none" if not text else "echo" if text in row.question else
                     "near_miss" if set(text) & set("rose") and len(text) in (3, 4, 5) and not text.isnumeric()
                     and text not in ("true", "[null]") else "wrong_kind" for text, row in zip(texts, rows, strict=True))
    for way, share in SHARES.items():
        assert abs(counts[way] - 10_000 * share) < 5 * (10_000 * share * (1 - share)) ** 0.5, counts


@pytest.mark.parametrize("task", TASKS)
def test_right_is_right_and_wrong_is_never_right(task):
    verifier, rows = TASKS[task][0], rows_of(task)
    for row in rows:
        verifier.check(row)
    assert {score(verifier, row, text) for row, text in zip(rows, said(task, only("right"), rows), strict=True)} == {1.0}
    for way in ("near_miss", "echo", "wrong_kind"):
        texts = said(task, only(way), rows)
        assert not any(score(verifier, row, text) == 1.0 for row, text in zip(rows, texts, strict=True)), way
        found = sum(text != "" for text in texts)
        assert found > 0.9 * len(rows), (way, found)  # "" stands where nothing else was wrong
    assert set(said(task, only("none"), rows)) == {""}


@pytest.mark.parametrize("task", TASKS)
def test_a_near_miss_is_an_answer_of_the_kind(task):
    verifier, rows = TASKS[task][0], rows_of(task)
    texts = said(task, only("near_miss"), rows)
    assert all(score(verifier, row, text) == 0 for row, text in zip(rows, texts, strict=True) if text)


def test_an_answer_depends_on_seed_and_question_alone():
    rows = rows_of("texts")
    all_of_them = said("texts", SHARES, rows)
    assert said("texts", SHARES, rows[::-1])[::-1] == all_of_them
    assert [said("texts", SHARES, [row])[0] for row in rows[:40]] == all_of_them[:40]
    assert said("texts", SHARES, rows, seed=1) != all_of_them


def draws(value: object, count: int = 400) -> set[str]:
    return {json.dumps(nearly(random.Random(seed), value), ensure_ascii=False) for seed in range(count)}


@pytest.mark.parametrize(("value", "near"), [
    (7, {"6", "8", *"0123459"}), (10, {"9", "11", *(f"{n}0" for n in range(2, 10)), *(f"1{n}" for n in range(1, 10))}),
    ("2.5", {'"1.5"', '"3.5"', *(f'"{n}.5"' for n in range(10) if n != 2), *(f'"2.{n}"' for n in range(10) if n != 5)}),
    ("1/3", {f'"{n}/3"' for n in range(10) if n != 1} | {f'"1/{n}"' for n in range(10) if n != 3}),
    (True, {"false"}), (None, {"0"}), ([], {"[0]"}), ({}, {'{"answer": 0}'}),
    ([True, None], {"[false, null]", "[true, 0]"}), ({"a": [False], "b": True}, {'{"a": [true], "b": true}',
                                                                                '{"a": [false], "b": false}'}),
    ("2024-05-31", {'"2024-05-30"', '"2024-06-01"', '"2023-05-31"', '"2025-05-31"'}),  # no 31st of April or June
    ("2024-02-29", {'"2024-02-28"', '"2024-03-01"', '"2024-01-29"', '"2024-03-29"'}),  # no 29th in 2023 or 2025
    ("9999-12-31", {'"9999-12-30"', '"9998-12-31"'}),
    ("ab", {'"ba"', '"a"', '"b"', '"aab"', '"abb"', '"bb"', '"ac"'}), ("z", {'"zz"', '"a"'}), ("?", {'"?x"'})],
    ids=lambda value: "near" if isinstance(value, set) else str(value))  # a set has another order in each process
def test_near_misses_by_hand(value, near):
    found = draws(value)
    assert found <= near
    assert len(found) >= len(near) - 1  # of 400 draws


def test_another_choice_is_another_choice():
    listed = near_misses(random.Random(0), Row("?", "red"), Choice(COLOURS), "red", "red")
    assert set(islice(listed, 50)) == {"green", "blue"}
    own = near_misses(random.Random(0), Row("?", "A", more={"options": ["A", "B", "C"]}), Choice(field="options"), "A", "A")
    assert set(islice(own, 50)) == {"B", "C"}


def test_an_echo_is_the_question_or_words_of_it():
    found = Counter(islice(echoes(random.Random(0), "a b c"), 600))
    assert set(found) == {"a", "b", "c", "a b", "b c", "a b c"}
    assert found["a b c"] > 300
    assert next(echoes(random.Random(0), "")) == ""
    assert set(map(len, islice(echoes(random.Random(0), "x" * 10**6), 20))) == {300}


@pytest.mark.parametrize(("values", "kind"), [
    ([7], "number"), (["7"], "number"), (["Paris"], "text"), (["2024-02-29"], "date"), ([[1], 1], "list"), ([{}], "object"),
    ([True], "bool")])
def test_another_kind_is_a_sentence_or_of_another_kind(values, kind):
    of_kind = {"number": {"42", "3.5"}, "text": {"maybe", "nothing"}, "date": {"2001-02-03"}, "list": {"[]", "[null]"},
               "object": {"{}", '{"answer": null}'}, "bool": {"true", "false"}}
    found = set(islice(other_kinds(random.Random(0), values), 500))
    assert not found & of_kind[kind]
    assert len(found) >= 4 + 5  # sentences, and others


def test_what_cannot_be_simulated_is_one_line():
    api = SimulatedUpstream(0, Number(), only("right"))
    with pytest.raises(UserError, match=r"^question '36 \+ 36': its answer is not known, .*; give the API's answer along"):
        api.answers([Row("36 + 36", None)])
    with pytest.raises(UserError, match=r"^row x-1: its own answer is not right to the verifier, .*; mend the row or "):
        api.answers([Row("36 + 36", "seventy-two", id="x-1")])


def test_a_user_s_own_verifier_checks_many_at_once():
    class Slow(Text):
        begun, most = 0, 0

        def submit(self, row, answer, completion=""):
            Slow.begun += 1
            verifier = self

            class Call:
                def result(self):
                    Slow.most, Slow.begun = max(Slow.most, Slow.begun), Slow.begun - 1
                    return type("Verified", (), {"score": verifier.right(row, answer)})()
            return Call()

    rows = rows_of("texts", 50)
    found = SimulatedUpstream(0, Slow(), only("right")).answers(rows)
    assert [score(Text(), row, answer.text) for row, answer in zip(rows, found, strict=True)] == [1.0] * 50
    assert Slow.most == 50


def test_it_is_labelled_as_simulated():
    api = SimulatedUpstream(0, Number(), only("right"))
    assert api.label == "simulated API"
    assert api.answers([Row("7?", 7)]) == [ApiAnswer("7", "simulated")]
    assert sum(Simulated().model_dump().values()) == 1
