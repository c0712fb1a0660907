"""A corrector for any questions: a file of JSON lines and a config, no code."""

import json
from pathlib import Path

import pytest

from adapter.corrector import Corrector
from adapter.prompt import ALONE, INSTRUCTIONS, TEMPLATE, filled
from adapter.questions import ApiAnswer, Row
from adapter.rows import divided, read_rows, same, written
from adapter.settings import Settings
from adapter.task import CorrectorTask
from grpo.run.schema import validated
from grpo.run.tasks import check_task, load_class
from grpo.types import UserError

ANIMALS = ("ant", "bee", "cat", "dog", "eel", "fly", "gnu", "hen", "ibis", "jay")
LEGS = (6, 6, 4, 4, 0, 6, 4, 2, 2, 2)


def row_of(n: int, **fields: object) -> dict[str, object]:
    """Legs of the n-th animal; every second answer of the API is right, and it talks."""
    said = LEGS[n % 10] if n % 2 else 7
    return {"question": f"How many legs have {n} + 1 times {ANIMALS[n % 10]}?", "answer": LEGS[n % 10] * (n + 1), "kind":
            ("insect" if LEGS[n % 10] == 6 else "other"), "api_answer": f"Well, it is {said * (n + 1)}."} | fields


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def task(path: Path, **settings: object) -> CorrectorTask:
    given = {"data": str(path), "verifier": "number", "upstream": "recorded"} | settings
    return CorrectorTask(validated(Settings, given, "task."), 0)


def test_a_file_becomes_a_task(tmp_path):
    made = task(write(tmp_path / "legs.jsonl", [row_of(n) for n in range(200)]))
    check_task(made, "corrector")
    assert [len(part) for part in (made.train, made.validation, made.test)] == [160, 20, 20]
    assert sum(map(len, made.rows)) == 200
    api = made.references["api"]
    right = [int(row.question.split()[4]) % 2 for row in made.rows.test]
    assert (api.label, api.accuracy["overall"]) == ("recorded API alone", sum(right) / 20)
    assert list(api.accuracy) == ["insect", "other", "overall"]
    bee = next(p for part in (made.train, made.validation, made.test) for p in part if p.name.endswith("1 + 1 times bee?"))
    assert [made.score(bee, text).reward for text in (
        r"\boxed{12}", r"\boxed{CORRECT}", r"\boxed{6}", "12", r"\boxed{12} \boxed{6}")] == [1.0, 1.0, 0.0, 0.0, 0.0]
    ant = next(p for part in (made.train, made.validation, made.test) for p in part if p.name.endswith("0 + 1 times ant?"))
    assert [made.score(ant, text).reward for text in (r"\boxed{6}", r"\boxed{CORRECT}")] == [1.0, 0.0]  # the API says 7


def test_the_names_of_a_config():
    assert load_class("corrector") is CorrectorTask
    assert load_class("symbols").__name__ == "SymbolTask"


def test_the_prompt_by_hand(tmp_path):
    path = write(tmp_path / "a.jsonl", [row_of(n) for n in range(60)])
    (message,) = task(path).train[0].messages
    row = task(path).rows.train[0]
    head = filled(INSTRUCTIONS, {"form": "a number: an integer, a decimal, or a fraction in lowest terms"})
    assert message["content"] == f"{head}\n\nAPI answer: {row.api.text}\n\nQuestion: {row.question}"
    shot = {"question": "How many legs has a cow?", "api_answer": "5", "completion": r"\boxed{4}"}
    told = task(path, prompt={"instructions": "Count: {form}.", "template": "{question} API: {api_extracted} ->",
                              "examples": [shot]}).train[0].messages
    assert [m["role"] for m in told] == ["user", "assistant", "user"]
    assert told[0]["content"].startswith("Count: a number")
    assert told[0]["content"].endswith("How many legs has a cow? API: 5 ->")
    assert told[2]["content"] == f"{row.question} API: {row.api.text.split()[-1].strip('.')} ->"


def test_what_is_not_shown_cannot_be_agreed_with(tmp_path):
    made = task(write(tmp_path / "a.jsonl", [row_of(n) for n in range(60)]), prompt={"template": "{question}"})
    assert made.train[0].messages[0]["content"].startswith(ALONE[:20])
    score = made.score(made.train[0], r"\boxed{CORRECT}")
    assert (score.reward, score.unparsed) == (0.0, True)
    assert [reference.label for reference in made.trivial] == ["always 4"] or len(made.trivial) == 1


def test_braces_in_a_question_stay_as_they_are():
    assert filled("{question} {x} {api_answer}", {"question": "{api_answer}", "api_answer": "{question}"}) == (
        "{api_answer} {x} {question}")
    assert "{question}" in TEMPLATE


def test_a_question_stays_in_its_split_as_the_file_grows():
    few, many = ([Row(f"q{n}", n) for n in range(size)] for size in (100, 1000))
    small, large = divided(few, (0.8, 0.1, 0.1)), divided(many, (0.8, 0.1, 0.1))
    for name in ("train", "validation", "test"):
        assert set(map(same, (r.question for r in getattr(small, name)))) <= {r.question for r in getattr(large, name)}
    assert abs(len(large.train) - 800) < 40
    assert len(divided([Row("a  b", 1), Row(" a b ", 2)] * 20, (0.4, 0.3, 0.3)).train) in (0, 40)  # one question


def test_a_row_is_written_and_read_back(tmp_path):
    rows = [Row("q", [1, "x"], "k", "mine", ApiAnswer("said", "claude", "2026-01-02"), {"note": {"a": [None]}}),
            Row("no answer yet", {"any": 1}, id="line 2")]
    write(tmp_path / "a.jsonl", [written(row).strip() for row in rows])
    assert read_rows(tmp_path / "a.jsonl", {}, lambda row: None) == rows


def test_windows_files_and_other_names_are_fine(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"prompt": "1 leg?", "answer": 1}\r\n\r\n{"prompt": "2 legs?", "answer": 2}\r\n'.encode())
    assert [row.question for row in read_rows(path, {"question": "prompt"}, lambda row: None)] == ["1 leg?", "2 legs?"]


def test_a_field_of_ours_beside_the_one_that_stands_for_it_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "1 leg?", "answer": "because", "final": 1}])
    with pytest.raises(UserError, match=r"line 1: has a field 'answer', and task.fields takes that from 'final'; rename or"):
        read_rows(path, {"question": "prompt", "answer": "final"}, lambda row: None)
    assert json.loads(written(Row("q", 1, more={"answer": 2, "kind": "x", "mine": 3})).strip()) == {
        "question": "q", "answer": 1, "kind": "all", "mine": 3}


GOOD = {"question": "q", "answer": 1, "api_answer": "1"}


@pytest.mark.parametrize(("line", "words"), [
    ({"answer": 1}, "has no field 'question'; add it, or say in task.fields"),
    ({"question": "q"}, "has no field 'answer'"),
    (GOOD | {"question": ""}, "question: is empty; leave the row out"),
    (GOOD | {"question": 7}, "question: expected a text, found 7"),
    (GOOD | {"question": None}, "question: expected a text, found null"),
    (GOOD | {"answer": None}, "answer: is empty"), (GOOD | {"answer": []}, "there is no answer"),
    (GOOD | {"answer": {}}, "{} is no number"), (GOOD | {"api_anwser": "1"}, "field 'api_anwser'; is api_answer meant?"),
    (GOOD | {"Kind": "a"}, "is kind meant?"),
    (GOOD | {"answer": "seven"}, "'seven' is no number"), (GOOD | {"answer": [1, "x"]}, "'x' is no number"),
    (GOOD | {"answer": {"a": 1}}, "is no number"), (GOOD | {"answer": True}, "True is no number"),
    (GOOD | {"kind": 3}, "kind: expected a text, found 3"), (GOOD | {"kind": "k" * 61}, "kind: expected at most 60"),
    (GOOD | {"api_answer": 5}, "api_answer: expected a text, found 5"),
    (GOOD | {"date": "yesterday"}, "date: expected YYYY-MM-DD"),
    ('{"question": "q", "answer": NaN}', "NaN is no JSON number"),
    ('{"question": "q", "question": "r"}', "'question' twice"),
    ({**GOOD, "kind": "overall"}, "kind: overall is a name under which the records have something else"),
    ('{"question": "r", "answer": 3.14159265358979323846}', "answer: holds a number of more digits"),
    ('{"question": "r", "answer": [1, 0.12345678901234567890]}', "answer: holds a number of more digits"),
    ('{"question": "r", "answer": 1, "more": 1e400}', "1e400 is no number that can be computed with"),
    (r'{"question": "r \ud83d", "answer": 1}', "holds half of a surrogate pair"),
    (GOOD | {"answer": 2}, "asks what line 1 asks, with another answer"),
    ("[1]", "no object"), ("{", "no JSON"), ("nothing", "no JSON"), ("[" * 10**5, "no JSON"),
    (json.dumps(GOOD | {"question": "q" * 10**7}), "longer than 1,048,576 bytes")], ids=lambda v: str(v)[:40])
def test_a_wrong_row_is_one_line_with_file_and_number(tmp_path, line, words):
    path = write(tmp_path / "a.jsonl", [GOOD, "", line])
    with pytest.raises(UserError) as caught:
        task(path)
    assert str(caught.value).startswith(f"{path}: line 3: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_question_in_two_splits_is_named(tmp_path):
    for n, name in enumerate(("train", "validation", "test")):
        write(tmp_path / f"{name}.jsonl", [GOOD | {"question": f"q {n}"}, GOOD | {"question": "both" if n != 1 else "one"}])
    with pytest.raises(UserError, match=r"test\.jsonl: line 2: 'both' is in train\.jsonl too; delete it from one of them"):
        task(tmp_path)


@pytest.mark.parametrize(("settings", "words"), [
    ({"verifier": "numbr"}, "task.verifier"),
    ({"verifier": {"name": "text", "tolerance": 1.0}}, "text does not use tolerance"),
    ({"verifier": "nowhere.py:verify"}, "there is no such file"),
    ({"shares": [0.5, 0.5, 0.5]}, "expected three shares above 0 that sum to 1"),
    ({"fields": {"prompt": "x"}}, "prompt is no field"),
    ({"prompt": {"template": "API: {api_answer}"}}, "expected {question} in it"),
    ({"prompt": {"examples": [{"question": "q", "completion": "4"}]}}, "expected a \\boxed{} in it"),
    ({"prompt": {"template": "{question} {api_anwser}"}}, "did you mean {api_answer}?"),
    ({"prompt": {"examples": [{"question": "q", "completion": r"\boxed{seven}"}]}}, "ends in no answer that would count"),
    ({"prompt": {"template": "{question}", "examples": [{"question": "q", "completion": r"\boxed{CORRECT}"}]}},
     "CORRECT needs {api_answer} in the template"),
    ({"data": "/" + "a" * 300 + ".jsonl"}, "cannot be read (File name too long)"),
    ({"data": "/dev/null"}, "it is neither a file nor a folder"), ({"verifier": "x/" + "a" * 300 + ".py:f"}, "no such file"),
    ({"fields": {"id": "name"}}, "task.fields takes id from 'name', which no row has"),
    ({"api_model": "gpt"}, "upstream=recorded does not read it"), ({"upstream": "openai"}, "name a model"),
    ({"simulated": {"right": 0.9}}, "shares sum to")], ids=str)
def test_a_wrong_setting_is_one_line(tmp_path, settings, words):
    path = write(tmp_path / "a.jsonl", [row_of(n) for n in range(60)])
    with pytest.raises(UserError) as caught:
        task(path, **settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shares_beside_a_folder_are_refused_and_can_be_taken_back(tmp_path):
    for n, name in enumerate(("train", "validation", "test")):
        write(tmp_path / f"{name}.jsonl", [GOOD | {"question": f"q {n}"}])
    with pytest.raises(UserError, match=r"leave them out, or say task.shares=\[0.8,0.1,0.1\]"):
        task(tmp_path, shares=[0.5, 0.25, 0.25])
    assert len(task(tmp_path, shares=[0.8, 0.1, 0.1]).test) == 1


def test_an_examples_api_answer_is_shown_as_a_rows_is(tmp_path):
    shot = {"question": "legs of a cow?", "api_answer": "It is 5.", "completion": r"\boxed{4}"}
    made = task(write(tmp_path / "a.jsonl", [*map(row_of, range(60))]),
                prompt={"template": "{question} API: {api_extracted}", "examples": [shot]})
    assert made.train[0].messages[0]["content"].endswith("legs of a cow? API: 5")


def test_an_empty_list_is_a_json_answer(tmp_path):
    made = task(write(tmp_path / "a.jsonl", [row_of(n, answer=[[], {}][n % 2]) for n in range(60)]), verifier="json")
    problem = next(problem for problem in made.train if problem.data.answer == [])
    assert (made.score(problem, r"\boxed{[]}").reward, made.score(problem, r"\boxed{{}}").reward) == (1.0, 0.0)


def test_the_commonest_answer_of_lists(tmp_path):
    made = task(write(tmp_path / "a.jsonl", [row_of(n, answer=[1, 2]) for n in range(60)]), verifier="json")
    assert [(r.label, r.accuracy["overall"]) for r in made.trivial][1] == ("always [1, 2]", 1.0)


def test_a_row_without_an_api_answer_is_named(tmp_path):
    silent = {"question": "and this?", "answer": 1, "id": "mine"}
    path = write(tmp_path / "a.jsonl", [*map(row_of, range(60)), silent])
    with pytest.raises(UserError, match="row mine: has no api_answer, and upstream=recorded asks no API"):
        task(path)


def test_a_long_question_is_named_by_its_start_and_its_row():
    settings = validated(Settings, {"data": "x.jsonl", "verifier": "text"}, "task.")
    corrector: Corrector = CorrectorTask.make_corrector(settings)
    names = [corrector.problem(Row("word " * 100, "x", id=f"line {n}")).name for n in (1, 2)]
    assert len({*names}) == 2
    assert all(name.startswith("word word") and len(name) < 100 for name in names)
