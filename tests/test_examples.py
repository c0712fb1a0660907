"""The example: a task from a data set, a config and a user's own verifier, no code besides; and tasks by entry point."""

import json
from collections import Counter
from dataclasses import replace
from datetime import date
from functools import cache

import pytest

from adapter.questions import ApiAnswer, Row
from adapter.task import CorrectorTask
from adapter.verifiers.own import Own
from examples import iso_base
from examples.iso_dates import make
from examples.iso_dates.make import DAYS, FORMS, line
from examples.iso_dates.verify import verify
from examples.sums import Sums
from grpo.config import load
from grpo.run.schema import validated
from grpo.run.tasks import load_class
from grpo.types import Problem, Score, UserError
from tests.conftest import ROOT, lines, run_train, train_here

CONFIG = "examples/iso_dates/config.yaml"
FOLDER = ROOT / "examples" / "iso_dates"


@cache
def task() -> CorrectorTask:
    """The config's. Its verifier runs in processes of its own, as in training."""
    settings = load(ROOT / CONFIG).task.model_dump(exclude={"target"})
    return CorrectorTask(validated(CorrectorTask.Settings, settings, "task."), seed=1)


def scored(text: str, api: str = "2005-03-04") -> Score:
    """Of a completion for 03/04/2005, which means the 3rd of April."""
    row = Row("03/04/2005", "2005-04-03", "digits", api=ApiAnswer(api, "recorded"))
    found = task().score(Problem(row.question, row.kind, (), row), text)
    return found if isinstance(found, Score) else found.result()


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """The base, as the example makes it, in half its steps: what it knows then is enough to start from."""
    folder = str(tmp_path_factory.mktemp("base"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(iso_base, "RECIPE", replace(iso_base.RECIPE, steps=400))
        iso_base.main(folder)
    return folder


def test_it_learns_which_order_is_meant(base, tmp_path):
    done = train_here(CONFIG, f"model.path={base}", f"run.dir={tmp_path}/run", "run.steps=12", "eval.every=12")
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
    assert "recorded API alone" in done.stdout


@pytest.mark.parametrize(("text", "reward", "unparsed"), [
    ("day first ; \\boxed{2005-04-03}", 1.0, False),
    ("\\boxed{2005-03-04} no: \\boxed{ 2005-04-03 }", 1.0, False),
    ("\\boxed{2005-04-03} no: \\boxed{2005-03-04}", 0.0, False),
    ("\\boxed{CORRECT}", 0.0, False),
    ("\\boxed{2005-4-3}", 1.0, False),
    ("\\boxed{2005-04-03} \\boxed{who knows}", 0.0, False),
    ("\\boxed{It is 2005-04-03}", 0.0, False),
    ("\\boxed{2005-004-03}", 0.0, False),
    ("2005-04-03", 0.0, True),
    ("\\boxed{٢٠٠٥-٠٤-٠٣}", 0.0, False),
    ("\\boxed{ }", 0.0, True),
    ("", 0.0, True)])
def test_scores_by_hand(text, reward, unparsed):
    score = scored(text)
    assert (score.reward, score.unparsed) == (reward, unparsed)


@pytest.mark.parametrize(("text", "answer", "answers"), [
    ("\\boxed{2005-04-03}", "2005-04-03", 1), ("\\boxed{CORRECT}", "CORRECT", 1),
    ("\\boxed{2005} \\boxed{CORRECT}", "CORRECT", 2), ("2005-04-03", None, 0)])
def test_what_was_answered_and_how_often(text, answer, answers):
    assert (scored(text).answer, scored(text).answers) == (answer, answers)


@pytest.mark.parametrize(("api", "reward"), [
    ("2005-04-03", 1.0), ("2005-4-3", 1.0), ("2005-03-04", 0.0), ("", 0.0)])
def test_agreeing_is_right_where_the_api_is(api, reward):
    assert scored("\\boxed{CORRECT}", api).reward == reward
    assert not scored("\\boxed{CORRECT}", api).unparsed


def test_the_verifier_is_the_file_that_readers_see_and_runs_in_the_pool():
    own = task().corrector.verifier
    assert isinstance(own, Own)
    assert (own.file, own.function) == (FOLDER / "verify.py", "verify")
    row = Row("3 April 2005", "2005-04-03")
    answers = ["2005-04-03", "2005-4-03", "2005-04-3", "2005-04-03\n", "2005/04/03", "05-04-03", "2005-04-30", "x" * 10**4]
    expected = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    calls = [own.submit(row, answer) for answer in answers]
    assert [call.result().score for call in calls] == expected
    assert [float(verify(row.as_dict(), answer)) for answer in answers] == expected


def test_readmes_verifier_is_the_examples():
    _, _, code = (ROOT / "examples" / "plurals" / "verify.py").read_text().partition('"""\n\n\n')
    assert f"```python\n{code}```" in (ROOT / "README.md").read_text()


def test_the_plurals_are_divided_and_each_is_its_own_plural():
    settings = load(ROOT / "examples" / "plurals" / "config.yaml").task.model_dump(exclude={"target"})
    plurals = CorrectorTask(validated(CorrectorTask.Settings, settings, "task."), seed=1)
    assert [len(rows) for rows in plurals.rows] == [200, 41, 46]
    right = [plurals.score(problem, f"\\boxed{{{plurals.true_answer(problem.data)}}}") for problem in plurals.test]
    assert {score.result().reward for score in right} == {1.0}


def test_regular_plurals_follow_the_rule_of_their_kind():
    """English's: a consonant and y becomes ies; s, x, ch and sh take es; all others take s."""
    for row in lines(ROOT / "examples" / "plurals" / "plurals.jsonl"):
        word, kind = row["question"], row["kind"]
        rule = "es" if word.endswith(("s", "x", "ch", "sh")) else "regular"
        rule = "ies" if word[-1] == "y" and word[-2] not in "aeiou" else rule
        if kind != "irregular":
            assert kind == rule
            assert row["answer"] == {"ies": word[:-1] + "ies", "es": word + "es", "regular": word + "s"}[kind]


def test_trivial_policies_by_hand():
    always_correct, always = task().trivial
    assert (always_correct.label, always_correct.accuracy) == ("always CORRECT", task().references["api"].accuracy)
    assert always.label == "always 2000-01-02"  # no date comes twice: the first of the calendar that is drawn
    assert "2000-01-02" in {row.answer for row in task().rows.train}
    assert always.accuracy == {"digits": 0.0, "named": 0.0, "overall": 0.0}  # and none of train is in test


def test_the_prompt_is_the_one_that_the_base_is_taught():
    text = ("An API writes dates as YYYY-MM-DD. End with \\boxed{CORRECT} if it is right, else with the date in \\boxed{}."
            "\n\nAPI answer: %s | date: %s ->")
    taught = iso_base.read_prompt()
    for row, problem in zip(task().rows.test, task().test, strict=True):
        content = text % (row.api.text or "none", row.question)
        assert list(problem.messages) == [{"role": "user", "content": content}]
        assert taught.messages(row.question, row.api.text, None) == list(problem.messages)
    silent = next(row for row in task().rows.test if not row.api.text)
    assert "API answer: none |" in task().corrector.problem(silent).messages[0]["content"]


def test_what_the_base_is_taught_by_hand():
    class Drawn:
        """Named or digits, which order, the day, and whether the API is right, as a test wants them."""

        def __init__(self, kind: str, order: str, luck: float):
            self.picks, self.order, self.luck = iter([kind, date(2005, 4, 3), "2005-03-04"]), order, luck

        def choice(self, of: list) -> object:
            return next(self.picks)

        def choices(self, of: list, weights: list) -> list:
            assert dict(zip(of, weights, strict=True)) == {"day first": 1, "month first": 2}
            return [self.order]

        def random(self) -> float:
            return self.luck

    def taught(*drawn) -> tuple[str, str]:
        chat, completion = iso_base.draw(Drawn(*drawn), iso_base.read_prompt())
        return chat[0]["content"].split("API answer: ")[1], completion

    assert taught("digits", "day first", 0) == (
        "2005-03-04 | date: 03/04/2005 ->", "day first ; 2005-04-03 ; \\boxed{2005-04-03}")
    assert taught("digits", "month first", 0) == (
        "2005-04-03 | date: 04/03/2005 ->", "month first ; 2005-04-03 ; \\boxed{CORRECT}")
    assert taught("named", "day first", 0.7) == ("2005-04-03 | date: 3 April 2005 ->", "2005-04-03 ; \\boxed{CORRECT}")
    assert taught("named", "day first", 0.8) == ("2005-03-04 | date: 3 April 2005 ->", "2005-04-03 ; \\boxed{2005-04-03}")


def test_the_data_are_what_the_program_makes(tmp_path):
    make.main(str(tmp_path / "made"))
    for name, size in {"train": 800, "validation": 100, "test": 200}.items():
        made = (tmp_path / "made" / f"{name}.jsonl").read_bytes()
        assert made == (FOLDER / f"{name}.jsonl").read_bytes()
        assert made.count(b"\n") == size
        assert len(made) < 100_000


def test_splits_share_no_date_and_the_api_is_wrong_as_it_says():
    splits = {name: lines(FOLDER / f"{name}.jsonl") for name in ("train", "validation", "test")}
    rows = [row for split in splits.values() for row in split]
    assert len({row["answer"] for row in rows}) == len({row["question"] for row in rows}) == len(rows) == 1100
    wrong = Counter()
    for row in rows:
        day = date.fromisoformat(row["answer"])
        assert row["question"] == (f"{day:%d/%m/%Y}" if row["kind"] == "digits" else f"{day.day} {day:%B %Y}")
        wrongs = {f"{day:%Y-%d-%m}": "swapped", f"{day.year - 100}{day:-%m-%d}": "century off", "": "silent"}
        wrong[row["kind"], {row["answer"]: "right", **wrongs}[row["api_answer"]]] += 1
    assert wrong["digits", "swapped"] == 550  # all of them
    assert 370 < wrong["named", "right"] < 455  # 550 * 3 / 4 = 412 expected
    assert all(25 < wrong["named", fault] < 70 for fault in ("swapped", "century off", "silent"))  # 550 / 4 / 3 = 46
    for split, size in (("train", 800), ("validation", 100), ("test", 200)):
        assert Counter(row["kind"] for row in splits[split]) == {"named": size // 2, "digits": size // 2}
    api = task().references["api"]
    assert api.label == "recorded API alone"
    assert api.accuracy["digits"] == 0.0
    assert api.accuracy["named"] == sum(row["api_answer"] == row["answer"] for row in splits["test"]) / 100
    assert date(2005, 4, 3) in DAYS
    assert date(2005, 4, 4) not in DAYS  # day and month must differ to be swapped
    assert date(2005, 4, 13) not in DAYS


def test_who_writes_the_month_first_is_read_as_meant():
    drawn = line(None, date(2005, 4, 3), "digits", "month first")
    assert drawn == {"question": "04/03/2005", "answer": "2005-04-03", "kind": "digits", "api_answer": "2005-04-03"}
    assert set(FORMS) == {"day first", "month first"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with two entry points, one of them broken."""
    info = tmp_path / "sums-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sums\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[grpo.tasks]\ntwo-sums = examples.sums:Sums\nbroken = examples.sums:No\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize(("name", "complaint"), [
    ("two-sums", "task.terms = 4: must be less than or equal to 3"),  # so it was found, and asked
    ("two-sum", "nor an entry point of the group grpo.tasks (known here: broken, corrector, gym, symbols, two-sums)"),
    ("broken", "task.target = broken: module 'examples.sums' has no attribute 'No'; name a class")])
def test_a_task_by_entry_point(package, name, complaint):
    done = run_train("configs/smollm2_cpu.yaml", f"task.target={name}", "task.terms=4")
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_three_ways_to_name_a_task():
    assert load_class("examples.sums:Sums") is Sums
    assert load_class(f"{ROOT}/examples/sums.py:Sums").__name__ == "Sums"
    with pytest.raises(UserError, match=r"\(known here: corrector, gym, symbols\); install its package, or name a class"):
        load_class("two-sums")
