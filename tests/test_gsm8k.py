"""The recorded answers to GSM8K: how they are divided, and what the report says of an order."""

import json

import numpy as np
import pytest

from adapter.commands import task_of
from benchmarks.gsm8k import aurc, auroc, make, measured, p_right
from grpo.config import load
from grpo.run.tasks import load_class
from grpo.types import UserError


@pytest.fixture
def recorded(tmp_path):
    """Of 60 problems, by two models; the answers to the last are the same."""
    path = tmp_path / "recorded.jsonl"
    lines = [{"question": f"Problem {number}?", "ground_truth": "A: 1",
              "large": {"is_correct": True, "solution": "1 + 0 = <<1+0=1>>1\nA: 1"},
              "small": {"is_correct": number == 59, "solution": "1 + 0 = 1\nA: 1" if number == 59 else "A: 2"}}
             for number in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_all_answers_to_a_problem_are_in_one_split(recorded, tmp_path):
    counts = make(recorded, tmp_path / "data")
    assert sum(counts.values()) == 119  # two models wrote the same
    rows = {split: [json.loads(line) for line in (tmp_path / "data" / f"{split}.jsonl").open()] for split in counts}
    problems = {split: {row["id"].split()[0] for row in some} for split, some in rows.items()}
    assert sum(map(len, problems.values())) == 60
    assert counts["train"] > counts["test"] > counts["validation"] > 0
    row = next(row for some in rows.values() for row in some if row["id"] == "7 large")
    assert row["question"] == "Problem 7?\n\nAnswer: 1 + 0 = 1\nA: 1"
    assert (row["answer"], row["api_answer"], row["kind"]) == ("right", "right", "large")
    config = load("benchmarks/gsm8k.yaml", [f"task.data={tmp_path / 'data'}"])
    task_class, settings = task_of(config, load_class(config.task.target, named=False), "gsm8k")
    task = task_class(settings, 1)
    api = list(task.corrector.api_right(task.rows.test))
    assert api == [row["answer"] == "right" for row in rows["test"]]


def test_what_is_no_recorded_answer_is_named(tmp_path):
    (tmp_path / "other.jsonl").write_text('{"question": "a", "model": {"text": "b"}}\n')
    with pytest.raises(UserError, match=r"other\.jsonl: no recorded answers"):
        make(tmp_path / "other.jsonl", tmp_path / "data")


def test_the_probability_of_a_right_answer():
    agreed = {"verdict": "correct", "final": "right", "box": [["COR", 0.8], ["RECT", 0.5]]}
    wrong = {"verdict": "override", "final": "wrong", "box": [["wrong", 0.9]]}
    neither = {"verdict": "override", "final": "7", "box": [["7", 0.9]]}
    assert [p_right(line) for line in (agreed, wrong, neither)] == pytest.approx([0.4, 0.1, 0.5])


def test_areas_by_hand():
    score, right = np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False])
    assert aurc(score, right) == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert auroc(score, right) == pytest.approx(3 / 4)
    assert auroc(np.zeros(4), right) == pytest.approx(0.5)


def test_an_order_that_knows_is_better_than_length():
    drawn = [(number, model, (number + len(model)) % 2) for number in range(12) for model in ("a", "bb")]
    lines = [{"id": f"{number} {model}", "kind": model, "question": f"P?\n\nAnswer: {'x' * (5 + number % 3)}",
              "answer": "right" if good else "wrong", "verdict": "correct", "final": "right",
              "box": [["CORRECT", 0.9 if good else 0.2]]} for number, model, good in drawn]
    found = measured(lines, resamples=50)
    assert (found["answers"], found["right"]) == (24, 0.5)
    assert found["auroc"]["adapter"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["auroc"]["gain"]["low"] > 0 > found["aurc"]["gain"]["high"]
    assert set(found["auroc_by_model"]) == {"a", "bb"}
