"""What a task's score may return: a Score, and nothing that only looks like one."""

from types import SimpleNamespace

import pytest

from grpo.rollout import scored
from grpo.types import Problem, Prompt, Sample, Score, UserError

PROMPT, SAMPLE = Prompt(Problem("3 + 4", "standard", ()), (1,), ""), Sample((2,), (0.0,), "stop")
POLICY = SimpleNamespace(decode=lambda ids: "7")


def task(returned: object) -> SimpleNamespace:
    return SimpleNamespace(score=lambda problem, text: returned)


def test_a_score_is_taken():
    (completion,) = scored(task(Score(1.0)), POLICY, [(PROMPT, SAMPLE)])
    assert completion.score == Score(1.0)


@pytest.mark.parametrize("returned", [None, 1.0, True, [1.0], {"score": 1.0}])
def test_what_is_no_score_is_one_line(returned):
    with pytest.raises(UserError) as caught:
        scored(task(returned), POLICY, [(PROMPT, SAMPLE)])
    assert str(caught.value) == (f"SimpleNamespace.score of 3 + 4 returned {returned!r}; expected a grpo.types.Score, such "
                                 "as Score(1.0)")


def test_scores_are_begun_before_one_is_waited_for():
    happened = []

    def score(problem, text):
        happened.append("begun")
        return SimpleNamespace(result=lambda: happened.append("waited") or Score(0.5))

    completions = scored(SimpleNamespace(score=score), POLICY, [(PROMPT, SAMPLE)] * 2)
    assert [completion.score for completion in completions] == [Score(0.5)] * 2
    assert happened == ["begun", "begun", "waited", "waited"]
