"""The data set as files: the seed fixes every byte, damage is named by file and line, and training reads it."""

import json
import sys

import pytest

from adapter import dataset
from adapter.commands import run
from adapter.questions import ApiAnswer, Row
from adapter.rows import read_rows, write_splits, written
from grpo.types import UserError
from symbols.expression import GREEK, STANDARD, evaluate, parse, render
from symbols.rows import read
from symbols.settings import Settings
from symbols.task import SymbolTask
from tests.conftest import lines

FILES = ("train.jsonl", "validation.jsonl", "test.jsonl")


@pytest.fixture
def make(tmp_path, monkeypatch, capsys):
    """`python -m adapter.dataset configs/tiny.yaml --out tmp_path/NAME ...`: exit code and its last line."""

    def command(name: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dataset", "configs/tiny.yaml", "--out", str(tmp_path / name), *arguments])
        code = run(dataset.main)
        out, err = capsys.readouterr()
        return code, (out + err).strip().splitlines()[-1]

    return command


def test_the_sources_data_set(make, tmp_path):
    assert make("data", "task.train=1600", "task.test=400", "run.seed=0", "task.upstream=simulated")[0] == 0
    splits = [lines(tmp_path / "data" / name) for name in FILES]
    assert [len(rows) for rows in splits] == [1600, 200, 400]
    assert [sum(row["kind"] == "custom" for row in rows) for rows in splits] == [800, 100, 200]
    assert len({row["question"] for rows in splits for row in rows}) == 2200
    for row in (row for rows in splits for row in rows):
        assert set(row) == {"question", "kind", "answer", "api_answer", "model", "date"}
        assert (row["model"], row["date"]) == ("simulated", None)
        assert row["answer"] == str(evaluate(parse(row["question"], GREEK if row["kind"] == "custom" else STANDARD)))


def test_the_seed_fixes_every_byte(make, tmp_path):
    small = ("task.train=60", "task.validation=16", "task.test=20", "task.limit=999")
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert make(name, *small, f"run.seed={seed}")[0] == 0
    a, b, c = ([(tmp_path / n / f).read_bytes() for f in FILES] for n in "abc")
    assert a == b
    drawn_by_a, drawn_by_c = ({json.loads(line)["question"] for line in files[0].splitlines()} for files in (a, c))
    assert len(drawn_by_a & drawn_by_c) < 6  # not only the API's answers differ
    assert make("a", *small, "run.seed=1")[0] == 0  # again: the same bytes, so nothing is lost
    code, line = make("a", *small, "run.seed=2")
    assert (code, "is there already, and is another one" in line) == (2, True)
    assert a[0] == (tmp_path / "a" / "train.jsonl").read_bytes()


@pytest.mark.parametrize(("arguments", "words"), [
    (["task.train=0"], "train = 0: must be greater than or equal to 1"),
    (["task.operands=[9,1]"], "task.operands = [9, 1]: expected two numbers"),
    (["task.terms=[1,2]"], "terms = [1, 2]"),
    (["task.operands=[1,2]", "task.terms=[2,2]"], "holds too few expressions"),
    (["task.operands=[10,99]"], "no operands from 10 to 99"),
    (["task.symbols={a: +, b: +, c: ×, d: ÷}"], "one for each of + − × ÷"),
    (["task.symbols={+: ×, −: ÷, ×: +, ÷: −}"], "four new single characters"),
    (["task.symbols={\"*\": +, b: −, c: ×, d: ÷}"], "four new single characters"),
    (["task.symbols={\u200b: +, b: −, c: ×, d: ÷}"], "four new single characters"),
    (["task.terms=[2,100000]"], "terms = [2, 100000]: expected two numbers from 2 to 50"),
    (["task.operands=[1,100000]"], "operands = [1, 100000]"),
    (["task.train=99999999999999999999"], "train = 99999999999999999999"),
    (["task.api_batch=true"], "task.api_batch = True: upstream=simulated does not read it; choose upstream anthropic"),
    (["task.upstream=vertex"], "GOOGLE_CLOUD_PROJECT"),
    (["task.upstream=anthropic"], "ANTHROPIC_API_KEY"),
])
def test_mistakes_are_one_line_and_nothing_is_written(make, tmp_path, monkeypatch, arguments, words):
    for name in ("ANTHROPIC_API_KEY", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_REGION"):
        monkeypatch.delenv(name, raising=False)
    code, line = make("data", *arguments)
    assert (code, words in line) == (2, True), line
    assert not (tmp_path / "data").exists()


def test_another_symbol_table_and_range(make, tmp_path):
    assert make("data", "task.symbols={♠: ÷, ♥: ×, ♦: −, ♣: +}", "task.operands=[2,9]", "task.terms=[3,3]", "task.train=40",
                "task.validation=10", "task.test=10")[0] == 0
    task = SymbolTask(Settings(data=str(tmp_path / "data"), symbols={"♠": "÷", "♥": "×", "♦": "−", "♣": "+"}), seed=0)
    assert len(task.train) == 40
    custom = next(p for p in task.train if p.kind == "custom")
    assert task.score(custom, f"\\boxed{{{custom.data.answer}}}").reward == 1.0
    with pytest.raises(UserError, match=r"train.jsonl: line 1: question: expected one of θ α γ β at position"):
        SymbolTask(Settings(data=str(tmp_path / "data")), seed=0)


@pytest.fixture
def folder(make, tmp_path):
    make("data", "task.train=30", "task.validation=8", "task.test=10", "task.limit=999")
    return tmp_path / "data"


def test_what_is_written_is_read_back(folder):
    write_splits(folder, read(folder, GREEK))  # would complain if a byte differed
    task = SymbolTask(Settings(data=str(folder)), seed=5)
    assert [p.name for p in task.train] == [row["question"] for row in lines(folder / "train.jsonl")]
    assert task.references["api"].label == "simulated API alone"


@pytest.mark.parametrize("api", [None, ApiAnswer("", "m", "2020-01-31"), ApiAnswer("Six.", "m")])
def test_a_row_is_read_back_whatever_the_api_said(tmp_path, api):
    """An API that answered nothing has been asked: the row says so, and nobody asks again."""
    row = Row("How many legs has a spider?", 8, "animals", "a-17", api, {"legs": "many"})
    (tmp_path / "rows.jsonl").write_text(written(row))
    assert read_rows(tmp_path / "rows.jsonl", {}, lambda row: None) == [row]


@pytest.mark.parametrize(("damage", "words"), [
    (lambda row: b"{broken\n", "no JSON"),
    (lambda row: b"\xff" + row, "not UTF-8"),
    (lambda row: b"[]\n", "no object; expected one"),
    (lambda row: row.replace(b'"kind": "custom"', b'"kind": "greek"'), "kind is 'greek', expected custom or standard"),
    (lambda row: row.replace(b'"answer": "', b'"answer": "9'), "answer is 9"),
    (lambda row: row.replace(b'"api_answer": "', b'"api_said": "'), "model: says who gave an api_answer, and there is none"),
    (lambda row: b'{"question": "4 \xce\xb2 0", "kind": "custom", "answer": "0", "api_answer": "0", "model": "m"}\n',
     "division by zero"),
    (lambda row: b'{"question": "' + b"9" * 2 * 10**6 + b'"}\n', "longer than 1,048,576 bytes"),
])
def test_a_damaged_row_is_named_by_file_and_line(folder, damage, words):
    rows = (folder / "train.jsonl").read_bytes().splitlines(keepends=True)
    rows[16] = damage(rows[16])
    (folder / "train.jsonl").write_bytes(b"".join(rows))
    with pytest.raises(UserError) as caught:
        read(folder, GREEK)
    assert "train.jsonl: line 17: " in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_file_cut_short_leaking_or_absent_is_named(folder):
    whole = (folder / "test.jsonl").read_bytes()
    (folder / "test.jsonl").write_bytes(whole[:-5])
    with pytest.raises(UserError, match=r"test.jsonl: line 10: no JSON"):
        read(folder, GREEK)
    (folder / "test.jsonl").write_bytes(whole + (folder / "train.jsonl").read_bytes().splitlines(keepends=True)[3])
    with pytest.raises(UserError, match=r"test.jsonl: line 11: .* is in train.jsonl too"):
        read(folder, GREEK)
    seen = next(p for p in lines(folder / "train.jsonl") if p["kind"] == "standard")
    meant = render(parse(seen["question"]), GREEK)  # the same in symbols is a leak too
    leak = json.dumps(seen | {"question": meant, "kind": "custom"}, ensure_ascii=False) + "\n"
    (folder / "test.jsonl").write_bytes(whole + leak.encode())
    with pytest.raises(UserError, match=rf"test.jsonl: line 11: {meant} is in train.jsonl too"):
        read(folder, GREEK)
    (folder / "test.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match=r"test.jsonl: holds no rows"):
        read(folder, GREEK)
    (folder / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"test.jsonl: cannot be read .*, as python -m adapter.dataset"):
        read(folder, GREEK)


def test_no_question_is_in_two_splits(folder):
    whole = {name: (folder / name).read_bytes() for name in FILES}
    for first, second, line in (("train", "validation", 9), ("train", "test", 11), ("validation", "test", 11)):
        for kind in ("custom", "standard"):
            seen = next(row for row in lines(folder / f"{first}.jsonl") if row["kind"] != kind)
            notations = (GREEK, STANDARD) if kind == "custom" else (STANDARD, GREEK)
            meant = render(parse(seen["question"], notations[1]), notations[0])
            leak = json.dumps(seen | {"question": meant, "kind": kind}, ensure_ascii=False) + "\n"
            (folder / f"{second}.jsonl").write_bytes(whole[f"{second}.jsonl"] + leak.encode())
            with pytest.raises(UserError) as caught:
                read(folder, GREEK)
            assert str(caught.value) == (f"{folder / second}.jsonl: line {line}: {meant} is in {first}.jsonl too; "
                                         "delete it from one of them")
            (folder / f"{second}.jsonl").write_bytes(whole[f"{second}.jsonl"])
    read(folder, GREEK)


def test_a_folder_of_before_there_was_a_validation_split_gets_one(server, tmp_path, make):
    api = ("task.train=20", "task.test=10", "--yes", "task.upstream=anthropic", f"task.api_answers={tmp_path}/answers.jsonl")
    assert make("data", *api, "task.validation=6")[0] == 0
    whole = {name: (tmp_path / "data" / name).read_bytes() for name in FILES}
    (tmp_path / "data" / "validation.jsonl").unlink()
    says = r"validation\.jsonl: cannot be read \(No such file or directory\); task.data names a \.jsonl file, or a folder .*"
    with pytest.raises(UserError, match=says + r", as python -m adapter\.dataset CONFIG --out .*/data makes"):
        read(tmp_path / "data", GREEK)
    asked = len(server.asked)
    code, line = make("data", *api, "task.validation=6")
    assert (code, "20 train, 6 validation, 10 test rows" in line) == (0, True)
    assert {name: (tmp_path / "data" / name).read_bytes() for name in FILES} == whole
    assert len(server.asked) == asked == 36


def test_rows_say_who_answered_and_when(server, tmp_path, make):
    api = ("task.test=10", "task.validation=4", "--yes", "task.upstream=anthropic", "task.api_model=claude-opus-5",
           f"task.api_answers={tmp_path}/answers.jsonl")
    code, line = make("data", "task.train=20", *api)
    assert code == 0, line
    row = json.loads((tmp_path / "data" / "test.jsonl").read_text().splitlines()[0])
    assert row["model"] == "claude-opus-5"
    assert len(row["date"]) == 10
    assert len(server.asked) == 34
    code, line = make("data", "task.train=24", *api)
    assert (code, "choose another folder" in line) == (2, True)
    assert make("more", "task.train=24", *api)[0] == 0
    assert len(server.asked) == len(set(server.asked))  # another folder, but no answer is paid for twice
