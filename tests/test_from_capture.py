"""From what a gateway captured to a data set: the newest answer of each question, with its truth where that is known."""

import sys

import pytest

from adapter import dataset
from adapter.commands import run, task_of
from adapter.rows import read_rows
from adapter.serve.capture import Capture
from grpo.config import load
from grpo.run.tasks import load_class
from grpo.types import UserError
from tests.conftest import lines, write_lines
from tests.exchanges import exchange

CONFIG = """
run: {{dir: {here}/run, steps: 1}}
model: {{path: models/tiny}}
task: {{target: corrector, data: {here}/{data}, verifier: number, upstream: recorded}}
"""


@pytest.fixture
def make(tmp_path, monkeypatch, capsys):
    """`python -m adapter.dataset ... --out tmp_path/NAME`: exit code and what it says."""

    def command(name: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dataset", *arguments, "--out", str(tmp_path / name)])
        code = run(dataset.main)
        out, err = capsys.readouterr()
        return code, out + err

    return command


@pytest.fixture
def captured(tmp_path):
    """Questions 1 to 6, the first asked twice: the API has learned in between."""
    capture = Capture(tmp_path / "captured")
    for number in range(1, 7):
        capture(exchange(number))
    capture(exchange(7, question="What is  1 + 1?", api_text="It is 2.", verdict="correct", model="claude-new"))
    capture.close()
    return tmp_path / "captured"


def config(tmp_path, data: str) -> str:
    (tmp_path / "my.yaml").write_text(CONFIG.format(here=tmp_path, data=data))
    return str(tmp_path / "my.yaml")


def test_without_a_config_all_wait_for_a_person(make, captured, tmp_path):
    code, said = make("new", "--from-capture", str(captured))
    assert code == 0
    assert "7 lines in 1 files, 6 questions" in said
    assert "no answer is known" in said
    assert "to_label.jsonl: 6 rows wait for a person" in said
    rows = lines(tmp_path / "new" / "to_label.jsonl")
    assert [row["id"] for row in rows] == ["x2", "x3", "x4", "x5", "x6", "x7"]  # x7 agreed with the API: last
    assert rows[5] == {"question": "What is  1 + 1?", "answer": None, "api_answer": "It is 2.", "model": "claude-new",
                       "date": "2023-11-14", "id": "x7"}
    with pytest.raises(UserError, match=r"to_label.jsonl: line 1: answer: is empty; give what the verifier compares"):
        read_rows(tmp_path / "new" / "to_label.jsonl", {}, lambda row: None)
    write_lines(tmp_path / "new" / "to_label.jsonl", [row | {"answer": at} for at, row in enumerate(rows)])
    assert [row.answer for row in read_rows(tmp_path / "new" / "to_label.jsonl", {}, lambda row: None)] == [0, 1, 2, 3, 4, 5]
    code, said = make("new", "--from-capture", str(captured))
    assert (code, "to_label.jsonl is there already, and is another one" in said) == (2, True)  # a person's work is kept


def test_known_truths_are_joined_into_one_file(make, captured, tmp_path):
    truths = [{"question": f"What is {n} + 1?", "answer": n + 1, "kind": "sums", "level": n, "api_answer": "old"}
              for n in (1, 2, *range(9, 60))]
    write_lines(tmp_path / "data.jsonl", truths)
    code, said = make("again.jsonl", config(tmp_path, "data.jsonl"), "--from-capture", str(captured))
    assert code == 0, said
    assert "again.jsonl: 2 rows; the API is right on 1 of them" in said
    assert lines(tmp_path / "again.jsonl") == [
        {"question": "What is 2 + 1?", "kind": "sums", "answer": 3, "id": "x2", "api_answer": "It is 2.",
         "model": "claude-haiku-4-5", "date": "2023-11-14", "level": 2},
        {"question": "What is 1 + 1?", "kind": "sums", "answer": 2, "id": "x7", "api_answer": "It is 2.",
         "model": "claude-new", "date": "2023-11-14", "level": 1}]
    assert [row["id"] for row in lines(tmp_path / "to_label.jsonl")] == ["x3", "x4", "x5", "x6"]


@pytest.fixture
def splits(tmp_path):
    """Truths of questions 1 to 6 in a folder: 1 to 4 train, 5 validation, 6 test."""
    (tmp_path / "data").mkdir()
    for name, numbers in (("train", (1, 2, 3, 4)), ("validation", (5,)), ("test", (6,))):
        write_lines(tmp_path / "data" / f"{name}.jsonl", [
            {"question": f"What is {n} + 1?", "answer": n + 1, "api_answer": str(n)} for n in numbers])


def test_a_question_stays_in_its_split(make, captured, splits, tmp_path):
    """Else a test question of the last run is trained on in the next."""
    code, said = make("again", config(tmp_path, "data"), "--from-capture", str(captured))
    assert code == 0, said
    assert "again: 4 train, 1 validation, 1 test rows; the API is right on 1 of them\n" in said
    found = [[row["id"] for row in lines(tmp_path / "again" / f"{name}.jsonl")] for name in ("train", "validation", "test")]
    assert found == [["x2", "x3", "x4", "x7"], ["x5"], ["x6"]]
    assert not (tmp_path / "again" / "to_label.jsonl").exists()
    read = load(config(tmp_path, "again"))
    task_class, settings = task_of(read, load_class("corrector"), "")
    assert [len(rows) for rows in task_class(settings, 1).rows] == [4, 1, 1]  # what train.py reads


def test_a_split_without_a_captured_question(make, splits, tmp_path):
    capture = Capture(tmp_path / "few")
    capture(exchange(1))
    capture.close()
    code, said = make("again", config(tmp_path, "data"), "--from-capture", str(tmp_path / "few"))
    assert (code, "no captured question is one of validation in the config's data" in said) == (2, True)
    assert f"--out {tmp_path}/again.jsonl" in said
    assert make("again.jsonl", config(tmp_path, "data"), "--from-capture", str(tmp_path / "few"))[0] == 0


def test_half_a_line_after_a_crash_is_left_out_and_said(make, captured, tmp_path):
    (file,) = captured.glob("captured-*.jsonl")
    whole = file.read_bytes()
    (captured / "captured-20990101-000000-1.jsonl").write_bytes(whole[:-30])
    code, said = make("new", "--from-capture", str(captured))
    assert code == 0
    assert "13 lines in 2 files, 6 questions; captured-20990101-000000-1.jsonl ends in half a line" in said


@pytest.mark.parametrize(("damage", "words"), [
    (b"{broken}\n", "no JSON in UTF-8"), (b"\xff\xfe\n", "no JSON in UTF-8"), (b"[1]\n", "no JSON object"),
    (b'{"question": "a", "at": 1}\n', "api_answer: expected a text"),
    (b'{"question": "a", "api_answer": "b", "at": true}\n', "at: expected a number"),
    (b'{"question": "a", "api_answer": "b", "at": 1e300}\n', "at: expected seconds since 1970"),
    (b'{"question": "a", "question": "c", "api_answer": "b", "at": 1}\n', "has the field 'question' twice"),
    (b'{"question": " ", "api_answer": "b", "at": 1}\n', "question: is empty"),
    (b'{"question": "a", "api_answer": "' + b"b" * 2**20 + b'", "at": 1}\n', "longer than 1,048,576 bytes"),
    (b"[" * 100_000 + b"\n", "no JSON in UTF-8"),
])
def test_damage_is_named_by_file_and_line(make, captured, damage, words):
    (file,) = captured.glob("captured-*.jsonl")
    rest = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([rest[0], damage, *rest[1:]]))
    code, said = make("new", "--from-capture", str(captured))
    assert (code, f"{file.name}: line 2: {words}" in said) == (2, True), said


def test_names_that_callers_chose_are_no_rows_fault(make, tmp_path):
    capture = Capture(tmp_path / "odd")
    capture(exchange(1, model="\x1b[31m" + "m" * 2000, id=""))
    capture.close()
    assert make("new", "--from-capture", str(tmp_path / "odd"))[0] == 0
    (row,) = lines(tmp_path / "new" / "to_label.jsonl")
    assert (row["model"], "id" in row) == ("recorded", False)


def test_mistakes_are_one_line(make, captured, tmp_path):
    assert "there is no config; expected a YAML file" in make("new")[1]
    (tmp_path / "empty").mkdir()
    assert "holds no captured line" in make("new", "--from-capture", str(tmp_path / "empty"))[1]
    assert "cannot be read (No such file" in make("new", "--from-capture", str(tmp_path / "absent"))[1]
    assert "--yes: --from-capture asks no API" in make("new", "--yes", "--from-capture", str(captured))[1]


def test_captured_text_is_data(make, tmp_path):
    """No template and no box of a stranger's does anything on the way to a file."""
    hostile = "{question} {api_answer} \\boxed{CORRECT} %s ${HOME} <script>"
    capture = Capture(tmp_path / "odd")
    capture(exchange(1, question=hostile, api_text=hostile))
    capture.close()
    assert make("new", "--from-capture", str(tmp_path / "odd"))[0] == 0
    (row,) = lines(tmp_path / "new" / "to_label.jsonl")
    assert (row["question"], row["api_answer"]) == (hostile, hostile)

