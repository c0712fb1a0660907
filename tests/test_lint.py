"""`python -m adapter.lint`: what is wrong with a task is found before anything is trained, and said in a line each."""

import json
import sys

import pytest

from adapter import lint
from adapter.commands import run
from adapter.lint import BaseReport
from tests.conftest import tiny_config

VERIFIERS = '''
import random

def good(row, answer):
    return answer.lower() == row["answer"]

def substring(row, answer):
    return row["answer"] in answer

def banana(row, answer):
    if answer == "banana":
        raise KeyError(answer)
    return answer == row["answer"]

def dice(row, answer):
    return random.random() < 0.5
'''
CONFIG = """
run: {dir: runs/none, steps: 1}
model: {path: nowhere}
task: {target: corrector, data: words.jsonl, verifier: "verify.py:good", upstream: recorded}
"""


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """`python -m adapter.lint mine.yaml ...` in a folder of a user's own: its exit code and what it prints."""
    (tmp_path / "verify.py").write_text(VERIFIERS)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    rows = [{"question": f"spell {n} times {n % 7}", "answer": f"{'abcdefg'[n % 7] * 3}{n}", "api_answer": "abc"}
            for n in range(60)]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lint", *arguments])
        code = run(lint.main)
        return code, "".join(capsys.readouterr())

    return command


def test_a_task_that_holds_passes(told):
    code, said = told("mine.yaml", "--no-base")
    assert code == 0, said
    assert "wrong" not in said
    assert "API text    'abc' -> abc" in said
    assert "    An API has answered a question. Work the answer out yourself," in said


@pytest.mark.parametrize(("name", "words"), [
    ("substring", "wrong: junk pays: the answer within a longer text"), ("banana", "wrong: the verifier fails on"),
    ("dice", "wrong: scoring twice disagrees on")])
def test_planted_faults_are_found(told, name, words):
    code, said = told("mine.yaml", "--no-base", f"task.verifier=verify.py:{name}")
    assert (code, words in said) == (1, True), said


@pytest.mark.parametrize(("arguments", "words"), [
    (["mine.yaml", "model"], "error: model: expected key.path=value"), (["no.yaml"], "error: no.yaml: cannot be read"),
    (["mine.yaml", "--questions", "0"], "error: --questions 0: expected 1 or more"),
    (["mine.yaml"], "error: missing here: the model nowhere"),
    (["mine.yaml", "--no-base", "task.data=none.jsonl"], "error: none.jsonl: cannot be read"),
    (["mine.yaml", "task=examples.sums:Sums"], "which corrects no API")])
def test_mistakes_are_one_line(told, arguments, words):
    code, said = told(*arguments)
    assert (code, words in said, said.count("\n")) == (2, True, 1), said


def test_what_a_base_is_told_by_hand():
    config = tiny_config("rollout.max_new_tokens=9")
    fine = {"questions": 16, "right": 0.3, "once": 0.5, "mixed": 0.4, "truncated": 0.0, "unparsed": 0.1, "too_long": 0}
    cases = [({}, []), ({"right": 0.0}, ["GRPO cannot start: no completion of 128 was right"]),
             ({"right": 1.0}, ["GRPO has nothing to teach: all 128 completions were right"]),
             ({"mixed": 0.04}, ["GRPO would hardly start: 4.0% of groups are mixed"]), ({"mixed": 0.05}, []),
             ({"truncated": 0.51}, ["51% of the completions are cut off at rollout.max_new_tokens = 9"]),
             ({"too_long": 2}, ["2 prompts do not fit the model with rollout.max_new_tokens = 9"])]
    for change, words in cases:
        found = BaseReport(**(fine | change)).findings(config)
        assert len(found) == len(words)
        assert all(line.startswith(start) for line, start in zip(found, words, strict=True))


def test_a_base_that_had_better_agree_is_told_so():
    """Own answers are right in 45 % of the cases, the API's in 67 %."""
    found = BaseReport(16, 0.6, 0.8, 0.4, 0.0, 0.0, 0, 0.6, 0.45, 0.67)
    (note,) = found.notes()
    assert note.startswith("its own answers are right less often (45%) than the API's (67%): GRPO may learn to agree")
    assert BaseReport(16, 0.6, 0.8, 0.4, 0.0, 0.0, 0, 0.6, 0.67, 0.67).notes() == []
    assert BaseReport(16, 0.6, 0.8, 0.4, 0.0, 0.0, 0, 0.0, 0.45, 0.67).notes() == []  # it never agrees
    assert "; 60.0% agree with the API, " in str(found)


def test_a_base_is_asked(monkeypatch, capsys):
    """The embedded base, which is right at times; with two tokens it never is."""
    small = ["configs/tiny.yaml", "--questions", "16", "task.limit=999", "task.train=40", "task.validation=4", "task.test=4"]
    monkeypatch.setattr(sys, "argv", ["lint", *small])
    assert run(lint.main) == 0
    said = capsys.readouterr().out
    assert "base        models/tiny: 16 questions, 8 completions each: " in said
    assert "GRPO can start: " in said
    monkeypatch.setattr(sys, "argv", ["lint", *small, "rollout.max_new_tokens=2"])
    assert run(lint.main) == 1
    said = capsys.readouterr().out
    assert "wrong: 100% of the completions are cut off at rollout.max_new_tokens = 2" in said
    assert "wrong: GRPO cannot start: no completion of 128 was right" in said
