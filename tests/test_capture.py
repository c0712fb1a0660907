"""What a gateway captures: whole lines, in bounded room, and nothing that an answer would wait for."""

import json
import logging
import resource
import shutil
import threading
from pathlib import Path

import pytest

from adapter.serve import background
from adapter.serve.capture import FIELDS, FILES, LEAST, Capture, files_in
from adapter.serve.redaction import load_redaction
from grpo.types import UserError
from tests.exchanges import AT, exchange


def captured(folder: Path) -> list[dict]:
    return [json.loads(line) for path in files_in(folder) for line in path.read_bytes().splitlines()]


def until(true) -> None:
    """Returns once it is so; the writer is another thread."""
    for _ in range(3000):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came to be so")


def test_an_exchange_is_a_line_and_the_files_are_the_users_alone(tmp_path):
    folder = tmp_path / "deep" / "captured"
    capture = Capture(folder)
    capture(exchange(1))
    capture(exchange(2, question="Wie groß?\n\u2028\U0001f600", stream=True))
    capture(exchange(3, question=None))  # of another kind
    capture(exchange(4, api_text=None, status=529))
    capture(exchange(5, question="half \ud800 a pair"))
    capture.close()
    assert (capture.written, capture.lost, capture.failed, capture.dropped) == (3, 0, 0, 0)
    rows = captured(folder)
    assert rows[0] == {
        "question": "What is 1 + 1?", "api_answer": "It is 1.", "id": "x1", "at": AT + 1, "api_extracted": "1",
        "completion": "\\boxed{2}", "verdict": "override", "confidence": 0.875, "final": "2", "action": "corrected",
        "why": "", "mode": "on", "protocol": "anthropic", "model": "claude-haiku-4-5", "stream": False, "status": 200,
        "step": 40, "seconds": 0.5, "api_seconds": 0.3, "adapter_seconds": 0.15, "input_tokens": 20, "output_tokens": 5,
        "cost": 0.0001}
    assert set(rows[0]) == {"question", "api_answer", *FIELDS}
    assert [row["question"] for row in rows[1:]] == ["Wie groß?\n\u2028\U0001f600", "half ? a pair"]
    (file,) = files_in(folder)
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_folder_that_is_there_keeps_its_mode(tmp_path):
    """It may be one that others use."""
    tmp_path.chmod(0o755)
    Capture(tmp_path).close()
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_full_queue_costs_lines_and_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "MOST_WAITING", 5)
    begun, go_on = threading.Event(), threading.Event()

    def slow(row):
        begun.set()
        assert go_on.wait(60)
        return row

    capture = Capture(tmp_path, redact=slow)
    capture(exchange(0))
    assert begun.wait(60)  # the writer has the first, and stands
    for number in range(1, 9):
        capture(exchange(number))
    assert capture.lost == 3
    go_on.set()
    capture.close()
    assert [row["id"] for row in captured(tmp_path)] == ["x0", "x1", "x2", "x3", "x4", "x5"]
    capture(exchange(9))  # after the end
    assert (capture.written, capture.lost) == (6, 4)
    assert capture.notes == ["capture: 4 exchanges found the queue full, and are lost"]


def test_characters_bound_the_queue_too(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "MOST_CHARACTERS", 1000)
    capture = Capture(tmp_path)
    capture(exchange(1, api_text="x" * 1000))
    capture.close()
    assert (capture.written, capture.lost) == (0, 1)


def test_closing_waits_no_longer_than_it_is_told(tmp_path):
    go_on = threading.Event()
    capture = Capture(tmp_path, redact=lambda row: go_on.wait(60) and row)
    capture(exchange(1))
    until(lambda: not capture._queue.waiting)
    capture(exchange(2))
    capture.close(seconds=0.01)
    assert capture.lost == 1
    go_on.set()


def test_the_oldest_files_make_room_for_the_newest(tmp_path):
    (tmp_path / "mine.jsonl").write_text("not the gateway's\n")
    (tmp_path / "captured-20200101-000000-12.jsonl").write_bytes(b"x" * 2**20)  # of an earlier process
    capture = Capture(tmp_path, most_bytes=LEAST)
    for number in range(40):
        capture(exchange(number, api_text="y" * 300_000))
        until(lambda number=number: capture.written == number + 1)
        assert sum(path.stat().st_size for path in files_in(tmp_path)) <= LEAST
    capture.close()
    sizes = [path.stat().st_size for path in files_in(tmp_path)]
    assert max(sizes) <= LEAST // FILES
    ids = [row["id"] for row in captured(tmp_path)]
    assert ids == [f"x{number}" for number in range(40 - len(ids), 40)]
    assert len(ids) > 18  # of 27 that would fit, files being whole
    assert (tmp_path / "mine.jsonl").is_file()


def test_a_full_disk_costs_lines_leaves_no_half_one_and_is_said_once(tmp_path, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    capture = Capture(tmp_path)
    capture(exchange(1))
    until(lambda: capture.written == 1)
    with caplog.at_level(logging.ERROR):
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))  # a file takes one line, and half of another
        try:
            for number in range(2, 6):
                capture(exchange(number, api_text="z" * 700))
            until(lambda: capture.failed == 4)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    capture(exchange(6))
    capture.close()
    assert [row["id"] for row in captured(tmp_path)] == ["x1", "x6"]
    assert (capture.written, capture.failed) == (2, 4)
    assert capture.notes == ["capture: 4 exchanges could not be written; the log says why"]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "cannot be written (File too large); make room" in said


def test_a_folder_or_file_that_is_taken_away(tmp_path, caplog):
    folder = tmp_path / "captured"
    capture = Capture(folder)
    capture(exchange(1))
    until(lambda: capture.written == 1)
    (first,) = files_in(folder)
    first.rename(tmp_path / "taken.jsonl")
    capture(exchange(2))
    until(lambda: capture.written == 2)
    assert [row["id"] for row in captured(folder)] == ["x2"]
    shutil.rmtree(folder)
    for number in (3, 4):
        capture(exchange(number))
    until(lambda: capture.failed == 2)
    assert not folder.exists()  # on a disk that is unmounted, another disk would fill
    folder.mkdir()
    capture(exchange(5))
    capture.close()
    assert [row["id"] for row in captured(folder)] == ["x5"]
    assert sum("No such file" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(("redact", "failed"), [
    (lambda row: 1 / 0, 1), (lambda row: "text", 1), (lambda row: row | {"more": object()}, 1),
    (lambda row: row | {"seconds": float("nan")}, 1), (lambda row: {"api_answer": ""}, 1), (lambda row: None, 0)])
def test_what_redact_does_not_allow_is_not_written(tmp_path, redact, failed):
    capture = Capture(tmp_path, redact=redact)
    capture(exchange(1))
    capture.close()
    assert (capture.failed, capture.dropped, captured(tmp_path)) == (failed, 1 - failed, [])


def test_a_redaction_of_the_users_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def redact(row):\n"
                    "    return None if row['id'] == 'x2' else row | {'question': row['question'].upper()}\n")
    capture = Capture(tmp_path / "captured", redact=load_redaction(f"{file}:redact"))
    for number in (1, 2, 3):
        capture(exchange(number))
    capture.close()
    assert [row["question"] for row in captured(tmp_path / "captured")] == ["WHAT IS 1 + 1?", "WHAT IS 3 + 1?"]


def test_the_examples_redaction():
    redact = load_redaction("examples/serving/redact.py:redact")
    row = {"question": "Mail jo.doe@example.com the key sk-ant-api03-abcdefghijklmnop0123", "api_answer": "+49 30 1234567",
           "completion": None, "final": None, "status": 200}
    assert redact(row) == row | {"question": "Mail [mail] the key [key]", "api_answer": "[phone]"}


@pytest.mark.parametrize(("target", "words"), [
    ("mine.py", "there is no such file; expected path/to/file.py:function"),
    ("absent.py:redact", "there is no such file"),
    ("broken.py:redact", "ZeroDivisionError"),
    ("other.py:absent", "has no attribute 'absent'"),
    ("other.py:number", "takes no row; expected def number(row)"),
    ("other.py:without", "takes no row; expected def without(row)"),
])
def test_a_redaction_that_cannot_be_had_is_one_line(tmp_path, target, words):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "other.py").write_text("number = 7\ndef without():\n    pass\n")
    with pytest.raises(UserError) as error:
        load_redaction(f"{tmp_path}/{target}")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_one_process_a_folder(tmp_path):
    first = Capture(tmp_path)
    with pytest.raises(UserError, match="another process captures there"):
        Capture(tmp_path)
    first.close()
    Capture(tmp_path).close()


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="nothing can be captured there"):
        Capture(tmp_path / "file")
    with pytest.raises(UserError, match="expected 8,388,608 or more"):
        Capture(tmp_path / "captured", most_bytes=1000)
