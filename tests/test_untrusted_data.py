"""Data sets, answers, records and replies from an attacker: refused in one line, at once, and nothing else happens."""

import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adapter import dataset
from adapter import rows as data
from adapter.api import message_batches
from adapter.api.answers import LONGEST_LINE, LONGEST_TEXT, AnswerStore
from adapter.commands import run
from adapter.measure.records import read_evaluation, read_kept, read_metrics
from adapter.questions import Row
from grpo.types import UserError
from symbols import learning
from symbols import rows as expressions
from symbols.expression import GREEK
from symbols.learning import read_learning
from symbols.settings import Settings
from symbols.task import SymbolTask
from tests import messages_server
from tests.claude import KEY, expected, questions, rows, texts
from tests.symbol_rows import row

GOOD = {"question": "36 γ 52", "kind": "custom", "answer": "1872", "api_answer": "none", "model": "m", "date": None}
THREE = data.Splits([row("1 + 1", "none")], [row("1 + 3", "none")], [row("1 + 2", "none")])
DEEP = "[" * 9_000  # nested beyond what a recursive reader survives
BIG = 200 * 2**20  # bytes of a file of zeros, which takes no room on the disk


def refused(read: Callable[[], object], *words: str) -> None:
    """It raises a UserError of one short line with the words, and takes little memory."""
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert said.isprintable()
    assert len(said) < 600
    assert peak < BIG / 2


def zeros(path: Path) -> Path:
    path.write_bytes(b"")
    os.truncate(path, BIG)
    return path


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(("line", "words"), [
    (DEEP, "no JSON"), ('{"answer": ' + "9" * 9_000 + "}", "no JSON"), (zeros, "longer than 1,048,576 bytes"),
    ({"answer": "1e999999999"}, "answer is 1e9"), ({"answer": "9" * 999}, "answer is 999"),
    ({"answer": "1/" + "0" * 900 + "1"}, "answer is 1/0"),
    ({"question": " " * 5_000 + "36 γ 52"}, "question: expected at most 1,000 characters"),
    ({"model": "m" * 5_000}, "model: expected at most 1000 characters"),
    ({"model": "\x1b]0;yours\x07"}, "model: expected"), ({"model": "\ud800"}, "holds half of a surrogate pair"),
    ({"kind": "k" * 900}, "kind: expected at most 60"),
    ({"question": "1" + " γ 99" * 150}, "with the symbols in the config"),
    ({"date": [[1]]}, "date: expected a text, found [[1]]"), ({"date": "2" * 5_000}, "date: expected YYYY-MM-DD or null")])
def test_a_hostile_row_is_refused(tmp_path, line, words, split):
    data.write_splits(tmp_path, THREE)
    path = tmp_path / f"{split}.jsonl"
    if callable(line):
        line(path)
    else:
        path.write_text((json.dumps(GOOD | line) if isinstance(line, dict) else line) + "\n")
    refused(lambda: expressions.read(tmp_path, GREEK), f"{split}.jsonl: line 1: ", words)


def test_a_data_set_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MOST_ROWS", 5)
    data.write_splits(tmp_path, THREE._replace(train=[row(f"4 + {n}", "none") for n in range(6)]))
    refused(lambda: expressions.read(tmp_path, GREEK), "train.jsonl: line 6: more than 5 rows")


def test_the_names_of_models_stay_short(tmp_path):
    good = [row(f"4 + {n}", "none") for n in range(9)]
    named = [replace(r, api=replace(r.api, model=f"{n}" * 900)) for n, r in enumerate(good)]
    data.write_splits(tmp_path, THREE._replace(test=named))
    label = SymbolTask(Settings(data=str(tmp_path)), seed=0).references["api"].label
    assert label == f"{'0' * 100}, {'1' * 100}, {'2' * 100} and 6 others alone"


def test_a_data_set_is_written_through_no_link_and_over_nothing_else(tmp_path):
    victim, out = tmp_path / "victim", tmp_path / "out"
    out.mkdir()
    victim.write_text("precious")
    (out / ".train.jsonl.part").symlink_to(victim)
    data.write_splits(out, THREE)
    assert (victim.read_text(), (out / "train.jsonl").is_symlink()) == ("precious", False)
    zeros(out / "train.jsonl")
    refused(lambda: data.write_splits(out, THREE), "is another one")


ANSWER = {"key": "k", "text": "7", "error": None, "date": "2026-11-23", "stop_reason": None}


@pytest.mark.parametrize("line", [DEEP, ANSWER | {"date": ["2026"]}, ANSWER | {"date": {}}, zeros])
def test_a_hostile_line_of_answers_is_refused(tmp_path, line):
    path = tmp_path / "answers.jsonl"
    if callable(line):
        line(path)
    else:
        path.write_text((line if isinstance(line, str) else json.dumps(line)) + "\n")
    refused(lambda: AnswerStore(path).read(), f"{path}: line 1 is no answer; delete that line")


def test_answers_are_added_through_no_link(server, claude):
    claude.store.parent.mkdir()
    claude.store.symlink_to(claude.store.parent / "victim")
    refused(lambda: claude.answers(questions(1)), "answers.jsonl: is a link")
    assert (server.asked, list(claude.store.parent.iterdir())) == ([], [claude.store])


@pytest.mark.parametrize("text", ["9" * 2 * LONGEST_LINE, "\0" * LONGEST_LINE, "5" + " " * 10_000 + "apples"])
def test_a_reply_of_any_length_leaves_a_line_that_is_read(server, claude, text):
    """Even beside the longest question, both of characters that JSON writes as six."""
    server.faults.append({"content": [{"type": "text", "text": text}]})
    kept = text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " [cut off]"
    longest = [Row("\0" * LONGEST_TEXT, 1)]
    assert texts(claude, longest) == texts(replace(claude), longest) == [kept]
    assert len(server.asked) == 1  # it is paid for, so it is an answer
    assert claude.store.stat().st_size < LONGEST_LINE


def test_a_reply_that_is_no_message_is_kept_as_an_error(server, claude, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(messages_server._Handler, "send", lambda self, *_, **__: self.send_raw(200, b"[" * 100_000))
        refused(lambda: claude.answers(questions(1)), "1 of 1 questions have no answer yet (1 x RecursionError")
    server.faults.append({"stop_reason": {"end": ["turn"]}})
    refused(lambda: claude.answers(questions(1)), "a reply that is no message")
    server.faults.append({"usage": {"input_tokens": "9" * 10**6, "output_tokens": 2}})
    assert texts(claude, questions(1)) == expected(questions(1))
    assert [r["usage"] for r in rows(claude)] == [None, None, {"output_tokens": 2}]


NOTE = {"id": "msgbatch_1", "submitted": "2026-11-23T00:00:00+00:00", "requests": {}}


@pytest.mark.parametrize("note", [DEEP, NOTE | {"id": "../../models"}, NOTE | {"id": ["b"]}, zeros,
                                  NOTE | {"submitted": "2026-11-23T00:00:00"}])
def test_a_hostile_record_of_a_batch_is_refused(server, claude, monkeypatch, note):
    monkeypatch.setattr(message_batches, "LONGEST", 10_000)
    path = claude.store.with_name("answers.jsonl.batch.json")
    path.parent.mkdir()
    zeros(path) if callable(note) else path.write_text(note if isinstance(note, str) else json.dumps(note))
    refused(lambda: replace(claude, batch=True).answers(questions(1)), "no record of a batch")


def test_a_batch_is_written_down_through_no_link(server, claude):
    victim = claude.store.parent / "victim"
    victim.parent.mkdir()
    victim.write_text("precious")
    (victim.parent / ".answers.jsonl.batch.json.part").symlink_to(victim)
    assert texts(replace(claude, batch=True), questions(3)) == expected(questions(3))
    assert victim.read_text() == "precious"


API = {"overall": 0.5}
FIRST = {"step": 0, "overall": 0.5}


@pytest.mark.parametrize("text", [DEEP, zeros, json.dumps({"api": {"x" * 10**6: 2}, "steps": []}),
                                  json.dumps({"api": {"custom": 0.1, "overall": 0.5, "x" * 10**6: 0.1}, "steps": []}),
                                  json.dumps({"api": API, "steps": [FIRST | {"step": -(10**400)}]})])
def test_a_hostile_evaluation_is_refused(tmp_path, text):
    path = tmp_path / "evaluation.json"
    zeros(path) if callable(text) else path.write_text(text)
    refused(lambda: read_evaluation(tmp_path, 9, API), f"{path}: ")


@pytest.mark.parametrize("part", [
    *({"validation": rows} for rows in (3, None, {"x" * 10**6: 1}, [[]], [FIRST | {"step": 2**53}], [FIRST | {"step": "0"}],
                                        [FIRST | {"overall": 1.5}], [{"step": 0}])),
    *({"kept": kept} for kept in (-1, 2**53, 10**400, "9", "x" * 10**6, 0.5, True, [9], {"step": 9}))])
def test_a_hostile_validation_or_kept_step_is_refused(tmp_path, part):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"api": API, "steps": [FIRST]} | part))
    refused(lambda: read_evaluation(tmp_path, 9, API), f"{path}: {next(iter(part))}", "delete the file to go on without it")
    refused(lambda: read_kept(tmp_path), f"{path}: {next(iter(part))}", "delete the file to go on without it")


@pytest.mark.parametrize("text", [zeros, DEEP + "\n", json.dumps({"step": -(10**400)}) + "\n"])
def test_hostile_metrics_are_refused(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    zeros(path) if callable(text) else path.write_text(text)
    refused(lambda: read_metrics(tmp_path, 9), f"{path}: line 1: ")


def test_what_is_no_file_is_not_opened(tmp_path):
    (tmp_path / "rollouts").mkdir()
    for name in ("metrics.jsonl", "evaluation.json", "rollouts/step-00001.jsonl"):
        (tmp_path / name).symlink_to("/dev/zero")  # a pipe would be waited for
    assert (read_metrics(tmp_path, 9), read_evaluation(tmp_path, 9, API)) == ([], None)
    assert read_kept(tmp_path) is None
    assert read_learning(tmp_path, 1, 1, GREEK).missing == 1


def test_more_steps_than_anyone_could_count(tmp_path):
    (tmp_path / "rollouts").mkdir()
    line = {"step": 7, "problem": "2 γ 3", "kind": "custom", "completion": "γ = ×", "reward": 1.0}
    (tmp_path / "rollouts" / "step-00007.jsonl").write_text(json.dumps(line) + "\n")
    found = learning.read_learning(tmp_path, 10**15, 1, GREEK)
    assert (found.curves["γ"], found.steps, found.missing) == ({7: 1.0}, 1, 10**15 - 1)


def test_the_key_is_in_no_file(server, tmp_path, monkeypatch):
    """Though the server repeats it: in an error, in an answer, and as the reason to stop."""
    said = {"content": [{"type": "text", "text": f"you are {KEY}"}]}
    server.faults += ["400", said, {"stop_reason": KEY}, {"usage": {"input_tokens": KEY, "output_tokens": KEY}}]
    monkeypatch.setattr(sys, "argv", ["dataset", "configs/tiny.yaml", "--out", str(tmp_path / "data"), "task.train=20",
                                      "task.validation=6", "task.test=10", "--yes", "task.upstream=anthropic",
                                      f"task.api_answers={tmp_path}/answers.jsonl"])
    assert [run(dataset.main), run(dataset.main)] == [2, 0]  # an answer is missing; it is asked for again
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"train.jsonl", "validation.jsonl", "test.jsonl", "answers.jsonl"}
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert (tmp_path / "answers.jsonl").read_text().count("[ANTHROPIC_API_KEY]") == 3
    assert {header["authorization"] for header in server.headers} == {f"Bearer {KEY}"}


def test_a_key_that_is_a_common_word_spoils_no_answer(server, claude, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "1")  # as for a server that wants none
    asked = questions(3)
    assert texts(claude, asked) == expected(asked)


def test_a_question_that_no_line_could_hold_is_refused_before_it_is_asked(server, claude):
    refused(lambda: claude.answers([Row("x" * (LONGEST_TEXT + 1), 1, id="a-1")]), "row a-1: has 100,001 characters")
    assert not server.asked
