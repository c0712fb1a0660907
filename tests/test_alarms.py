"""Alarms on steps made by hand: each begins exactly at its threshold, says so once, and its share is a number worked out."""

from dataclasses import replace

import pytest

from grpo.guards.alarms import Alarms
from grpo.types import Completion, Group, Problem, Prompt, Sample, Score

NAMES = ("same_answer", "several_answers", "unparsed", "truncated")


def answering(answer: str | None, times: int, reward: float = 0.0, **score) -> list[Completion]:
    """Completions that end by themselves and give one answer."""
    return [Completion(Sample((1,), (0.0,), "stop"), "", Score(reward, answer=answer, **score))] * times


def truncated(times: int) -> list[Completion]:
    return [Completion(Sample((1,), (0.0,), "length"), "", Score(0.0))] * times


def different(times: int) -> list[Completion]:
    """Completions that nothing is to be said of."""
    return [c for i in range(times) for c in answering(str(1000 + i), 1)]


def step(completions: list[Completion], groups: int = 2) -> list[Group]:
    """A step of `groups` groups of one size."""
    size = len(completions) // groups
    assert size * groups == len(completions)
    prompt = Prompt(Problem("q", "custom", ()), (1,), "")
    return [Group(prompt, tuple(completions[at : at + size])) for at in range(0, len(completions), size)]


def ringing(completions: list[Completion], groups: int = 2) -> set[str]:
    """The alarms of one step. Each says one line as it begins, and its metric is 1.0 or 0.0."""
    metrics, lines = Alarms().check(step(completions, groups))
    rings = {name for name in NAMES if metrics[f"alarm/{name}"] == 1.0}
    assert all(metrics[f"alarm/{name}"] == 0.0 for name in NAMES if name not in rings)
    assert len(lines) == len(rings)
    assert all(line.startswith("alarm: ") and line.count("\n") == 0 for line in lines)
    return rings


@pytest.mark.parametrize(("at", "below", "name"), [
    (answering("7", 18) + different(2), answering("7", 17) + different(3), "same_answer"),  # 90 %
    (answering("7", 1, answers=2) * 4 + different(16), answering("7", 1, answers=9) * 3 + different(17), "several_answers"),
    (answering(None, 10, unparsed=True) + different(10), answering(None, 9, unparsed=True) + different(11), "unparsed"),
    (truncated(4) + different(16), truncated(3) + different(17), "truncated"),  # 20 %
])
def test_each_begins_exactly_at_its_threshold(at, below, name):
    assert ringing(at) == {name}
    assert ringing(below) == set()


@pytest.mark.parametrize(("right", "rings"), [(17, {"same_answer"}), (18, set()), (20, set())])  # of 20; 0.9 is solved
def test_the_same_answer_is_no_alarm_where_it_is_right(right, rings):
    assert ringing(answering("CORRECT", right, reward=1.0) + answering("CORRECT", 20 - right)) == rings


def test_the_rewards_that_count_are_those_of_the_same_answer():
    """18 answer 7, 16 of them rightly: 16/18 = 0.889; the mean over all 20 would be 18/20 = 0.9."""
    same = answering("7", 16, reward=1.0) + answering("7", 2)
    assert ringing(same + [c for i in "ab" for c in answering(i, 1, reward=1.0)]) == {"same_answer"}


def test_one_question_may_have_one_answer():
    assert ringing(answering("7", 20), groups=1) == set()
    assert ringing(answering("7", 20), groups=2) == {"same_answer"}


def test_no_answer_is_not_an_answer():
    metrics, lines = Alarms().check(step(answering(None, 20)))
    assert metrics["completion/same_answer_fraction"] == 0.0
    assert not lines
    metrics, lines = Alarms().check(step(answering(None, 12) + answering("7", 8)))
    assert metrics["completion/same_answer_fraction"] == 0.4
    assert not lines


def test_the_shares_by_hand():
    """Of 8: three answer 7, one 8, two nothing at all, two are cut off; one of the 7s and both cut off give several."""
    completions = (answering("7", 2) + answering("7", 1, answers=3) + answering("8", 1) + answering(None, 2, unparsed=True)
                   + [Completion(Sample((1,), (0.0,), "length"), "", Score(0.0, answers=2))] * 2)
    metrics, lines = Alarms().check(step(completions))
    assert metrics == {"completion/same_answer_fraction": 3 / 8, "completion/several_answers_fraction": 3 / 8,
                       "alarm/same_answer": 0.0, "alarm/several_answers": 1.0, "alarm/unparsed": 0.0, "alarm/timed_out": 0.0,
                       "alarm/truncated": 1.0}
    assert lines == ["alarm: 38% of the completions give several answers",
                     "alarm: 25% of the completions are cut off at rollout.max_new_tokens"]


def test_the_line_names_the_answer_and_its_share():
    _, lines = Alarms().check(step(answering("42", 9, reward=1.0) + answering("42", 10) + different(1)))
    assert lines == ["alarm: 95% of the completions answer 42, whatever the question; their mean reward is 0.47"]  # 9 of 19
    _, lines = Alarms().check(step(answering(None, 20, unparsed=True)))
    assert lines == ["alarm: 100% of the completions give no answer"]


def test_it_speaks_when_it_begins_and_again_after_it_stopped():
    alarms, bad, good = Alarms(), step(truncated(20)), step(different(20))
    said = [alarms.check(groups) for groups in (bad, bad, good, bad)]
    assert [len(lines) for _, lines in said] == [1, 0, 0, 1]
    assert [metrics["alarm/truncated"] for metrics, _ in said] == [1.0, 1.0, 0.0, 1.0]


def test_one_that_goes_on_does_not_silence_another():
    alarms = Alarms()
    alarms.check(step(truncated(20)))
    _, lines = alarms.check(step(truncated(10) + answering(None, 10, unparsed=True)))
    assert lines == ["alarm: 50% of the completions give no answer"]


def test_a_verifier_that_comes_to_no_end_rings():
    completions = [replace(c, score=replace(c.score, timed_out=n == 0)) for n, c in enumerate(different(40))]
    metrics, lines = Alarms().check(step(completions))
    assert metrics["alarm/timed_out"] == 1.0
    assert lines == ["alarm: the verifier came to no end in its time for 2.5% of the completions, which count as wrong"]
