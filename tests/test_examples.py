"""The example: a task from a user's own file trains, without a change in grpo/; and tasks named by entry point."""

import json
from collections import Counter
from datetime import date

import pytest

from examples import iso_base
from examples.iso_dates import DAYS, IsoDates, accuracy
from grpo.run.tasks import load_class
from grpo.types import Problem, UserError
from tests.conftest import ROOT, run_train

CONFIG = "examples/iso_dates.yaml"


def dates(**settings) -> IsoDates:
    return IsoDates(IsoDates.Settings(**settings), seed=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """The base, as the example makes it."""
    folder = str(tmp_path_factory.mktemp("base"))
    iso_base.main(folder)
    return folder


def test_it_learns_which_order_is_meant(base, tmp_path):
    done = run_train(CONFIG, f"model.path={base}", f"run.dir={tmp_path}/run", "run.steps=12", "eval.every=12",
                     "task.test=100", "task.validation=50")
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rewards = [m["reward/digits"] for m in metrics if "reward/digits" in m]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15, rewards
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    before, after = evaluation["steps"][0], evaluation["steps"][-1]
    assert after["step"] == evaluation["kept"] == 12
    assert evaluation["api"]["digits"] == 0
    assert before["digits"] < 0.2
    assert after["digits"] > 0.7
    assert after["named"] > before["named"] - 0.2
    assert "simulated API alone" in done.stdout


@pytest.mark.parametrize(("text", "reward", "unparsed"), [
    ("day first ; \\boxed{2005-04-03}", 1.0, False),
    ("\\boxed{2005-03-04} no: \\boxed{ 2005-04-03 }", 1.0, False),
    ("\\boxed{2005-04-03} no: \\boxed{2005-03-04}", 0.0, False),
    ("\\boxed{CORRECT}", 0.0, False),
    ("\\boxed{2005-4-3}", 0.0, True),
    ("\\boxed{2005-04-03} \\boxed{who knows}", 0.0, True),
    ("2005-04-03", 0.0, True),
    ("\\boxed{٢٠٠٥-٠٤-٠٣}", 0.0, True),
    ("", 0.0, True)])
def test_scores_by_hand(text, reward, unparsed):
    wrong = Problem("03/04/2005", "digits", (), ("2005-04-03", "2005-03-04"))
    score = dates(train=1, test=1).score(wrong, text)
    assert (score.reward, score.unparsed) == (reward, unparsed)


@pytest.mark.parametrize(("text", "answer", "answers"), [
    ("\\boxed{2005-04-03}", "2005-04-03", 1), ("\\boxed{CORRECT}", "CORRECT", 1),
    ("\\boxed{2005} \\boxed{CORRECT}", "CORRECT", 2),
    ("\\boxed{none}", None, 1), ("2005-04-03", None, 0)])
def test_what_was_answered_and_how_often(text, answer, answers):
    score = dates(train=1, test=1).score(Problem("03/04/2005", "digits", (), ("2005-04-03", "2005-03-04")), text)
    assert (score.answer, score.answers) == (answer, answers)


def test_trivial_policies_by_hand():
    task = dates(train=4, test=4)
    always_correct, always = task.trivial
    assert (always_correct.label, always_correct.accuracy) == ("always CORRECT", task.references["api"].accuracy)
    assert always.label == f"always {task.train[0].data[0]}"  # no date comes twice, so the first is as common as any
    assert always.accuracy == {"digits": 0.0, "named": 0.0, "overall": 0.0}  # and none is in the test problems
    assert accuracy(task.test, lambda truth, api: truth == task.test[2].data[0]) == {
        "digits": 0.0, "named": 0.5, "overall": 0.25}


def test_agreeing_is_right_where_the_api_is():
    task = dates(train=1, test=1)
    right, silent = (Problem("3 April 2005", "named", (), ("2005-04-03", api)) for api in ("2005-04-03", "none"))
    assert task.score(right, "\\boxed{CORRECT}").reward == 1.0
    assert task.score(silent, "\\boxed{CORRECT}").reward == 0.0
    assert task.score(silent, "\\boxed{none}").unparsed


def test_splits_share_no_date_and_the_api_is_wrong_as_it_says():
    task, again = dates(), dates()
    assert [p.messages for p in task.train] == [p.messages for p in again.train]
    truths = [p.data[0] for p in (*task.train, *task.validation, *task.test)]
    assert len(set(truths)) == len(truths) == 2200
    assert Counter(p.kind for p in task.validation) == {"named": 100, "digits": 100}
    fewer = dates(validation=7)
    assert (fewer.train, fewer.test) == (task.train, task.test)  # its size moves no other split
    assert Counter(p.kind for p in task.train) == {"named": 800, "digits": 800}
    for p in task.test:
        day = date.fromisoformat(p.data[0])
        assert p.name in (f"{day:%d/%m/%Y}", f"{day.day} {day:%B %Y}")
        assert f"API answer: {p.data[1]} | date: {p.name} ->" in p.messages[0]["content"]
    wrong = Counter(len(api) for truth, api in (p.data for p in task.train if p.kind == "named") if truth != api)
    assert 30 < wrong[len("none")] < 110  # 800 / 4 / 3 = 67 expected
    assert task.references["api"].accuracy["digits"] == 0.0
    assert 0.65 < task.references["api"].accuracy["named"] < 0.85
    assert dates(order="month first").references["api"].accuracy["digits"] == 1.0
    assert date(2005, 4, 3) in DAYS
    assert date(2005, 4, 4) not in DAYS  # day and month must differ to be swapped
    assert date(2005, 4, 13) not in DAYS


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with two entry points, one of them broken."""
    info = tmp_path / "dates-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dates\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[grpo.tasks]\niso-dates = examples.iso_dates:IsoDates\n"
                                           "broken = examples.iso_dates:No\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize(("name", "complaint"), [
    ("iso-dates", "task.order = 'year first': must be 'day first' or 'month first'"),  # so it was found, and asked
    ("iso-date", "nor an entry point of the group grpo.tasks (known here: broken, corrector, gym, iso-dates, symbols)"),
    ("broken", "task.target = broken: module 'examples.iso_dates' has no attribute 'No'; name a class")])
def test_a_task_by_entry_point(package, name, complaint):
    done = run_train(CONFIG, f"task.target={name}", "task.order=year first")
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_three_ways_to_name_a_task():
    assert load_class("examples.iso_dates:IsoDates") is IsoDates
    assert load_class(f"{ROOT}/examples/iso_dates.py:IsoDates").__name__ == "IsoDates"
    with pytest.raises(UserError, match=r"\(known here: corrector, gym, symbols\); install its package, or name a class"):
        load_class("iso-dates")
