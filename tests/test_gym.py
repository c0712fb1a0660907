"""reasoning-gym as a source of questions: the same ones each time, and no part of a score counts."""

import os

import pytest

from adapter import gym
from adapter.gym import FORM, GymTask
from adapter.verifiers.base import submit
from grpo.run.schema import validated
from grpo.run.tasks import check_task, load_class
from grpo.types import UserError, VerifierError
from tests.conftest import LONG

needs_gym = pytest.mark.skipif(gym.importlib.util.find_spec("reasoning_gym") is None, reason="requirements/gym.txt")


@pytest.fixture(scope="module")
def verifier():
    return gym.gym_verifier(seconds=LONG, processes=2)


@needs_gym
def test_rows_depend_on_name_size_seed_and_options_alone(monkeypatch):
    drawn = gym.rows("ransom_note", 5, seed=3)
    monkeypatch.setitem(os.environ, "PYTHONHASHSEED", "5")  # the order of this set's sets is in its questions
    assert gym.rows("ransom_note", 5, seed=3) == drawn
    assert gym.rows("ransom_note", 5, seed=4) != drawn
    assert [(row.kind, row.id) for row in drawn] == [("ransom_note", f"ransom_note-{n}") for n in range(5)]
    assert gym.rows("chain_sum", 1, 1, {"min_terms": 2, "max_terms": 2})[0].question.count("+") <= 1


@needs_gym
def test_a_set_that_prints_while_it_draws_is_drawn():
    assert len(gym.rows("bf", 1, seed=1)) == 1


@needs_gym
def test_digits_of_other_scripts_are_no_answer(verifier):
    assert [verifier.normal(text) for text in ("139", "١٣٩", " 1² ")] == ["139", None, "1²"]


@needs_gym
def test_the_sets_own_verifier_scores_in_a_process(verifier):
    for row in [*gym.rows("ransom_note", 4, seed=3), *gym.rows("gcd", 2, seed=1),
                *reversed(gym.rows("list_functions", 6, seed=1))]:  # it draws from Python's own generator too
        verifier.check(row)
        assert verifier.right(row, row.answer) == 1.0
        assert submit(verifier, row, "banana").result().score == 0.0


@needs_gym
def test_a_part_of_a_score_is_none(verifier):
    """It gives 1/7 to the letters of "banana" that are in place."""
    (row,) = gym.rows("spell_backward", 1, seed=1)
    assert verifier.right(row, row.answer) == 1.0
    assert verifier.right(row, row.answer[:-1] + "?") == 0.0


@needs_gym
def test_a_verifier_that_raises_stops_the_run(verifier):
    (row,) = gym.rows("prime_factorization", 1, seed=1)
    with pytest.raises(VerifierError, match=r"reasoning-gym: ValueError: .*banana"):
        verifier.right(row, "banana")


@needs_gym
def test_a_row_of_another_draw_is_no_row_of_this(verifier):
    row, other = gym.rows("gcd", 2, seed=1)
    moved = gym.Row(row.question, row.answer, more=other.more)
    with pytest.raises(VerifierError, match="not the question that this set has at this place"):
        verifier.right(moved, row.answer)
    with pytest.raises(ValueError, match="no row of a gym set"):
        verifier.check(gym.Row("?", "1"))


@needs_gym
@pytest.mark.parametrize(("arguments", "words"), [
    (("chainsum", 5, 1), "'chainsum': reasoning-gym has no such set; did you mean .*chain_sum"),
    (("composite", 5, 1), "no such set"), (("qqqqqqq", 5, 1), r"docs/gym.md lists its 105"),
    (("gcd", 0, 1), "gcd: 0 rows; expected 1 to"),
    (("gcd", 5, 1, {"termz": 2}), "unexpected keyword argument 'termz'; mend"),
    (("gcd", 5, 1, {"min_numbers": -1}), "AssertionError")])
def test_what_cannot_be_drawn_is_one_line(arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        gym.rows(*arguments)
    assert "\n" not in str(caught.value)


def test_without_the_package_it_is_one_line(monkeypatch):
    monkeypatch.setattr(gym.importlib.util, "find_spec", lambda name: None)
    gym.available.cache_clear()
    for ask in (gym.available, gym.gym_verifier, lambda: gym.rows("gcd", 1, 1)):
        with pytest.raises(UserError, match=r"not installed; install it: .* requirements/gym.txt"):
            ask()


def gym_task(**settings) -> GymTask:
    sizes = {"train": 9, "validation": 3, "test": 4}
    return GymTask(validated(GymTask.Settings, sizes | {"upstream": "simulated"} | settings, "task."), 1)


@needs_gym
def test_two_sets_are_a_task():
    task = gym_task(sets=["gcd", "chain_sum"], simulated={"right": 1.0, "none": 0.0, "near_miss": 0.0, "echo": 0.0,
                                                           "wrong_kind": 0.0})
    check_task(task, "gym")
    assert load_class("gym") is GymTask
    assert [[sum(p.kind == kind for p in split) for kind in ("gcd", "chain_sum")]
            for split in (task.train, task.validation, task.test)] == [[5, 4], [2, 1], [2, 2]]
    questions = [row.question for rows in task.rows for row in rows]
    assert len({*questions}) == 16
    assert task.references["api"].accuracy == {"chain_sum": 1.0, "gcd": 1.0, "overall": 1.0}
    problem = task.test[0]
    begun = [task.score(problem, f"\\boxed{{{answer}}}") for answer in (problem.data.answer, "no number", "CORRECT")]
    assert [one.result().reward for one in begun] == [1.0, 0.0, 1.0]
    assert FORM in problem.messages[0]["content"]


@needs_gym
@pytest.mark.parametrize(("settings", "words"), [
    ({"sets": ["chain_sun"]}, "'chain_sun': reasoning-gym has no such set; did you mean chain_sum or"),
    ({"sets": []}, "task.sets"), ({"sets": ["gcd", "gcd"]}, "gcd is listed twice"),
    ({"sets": ["gcd"], "options": {"lcm": {}}}, "options: lcm is none of the sets"),
    ({"sets": ["gcd"], "options": {"gcd": {"nonsense": 1}}}, "mend the set's options")], ids=str)
def test_a_wrong_set_is_one_line(settings, words):
    with pytest.raises(UserError) as caught:
        gym_task(**settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
