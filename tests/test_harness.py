"""What keeps a run safe: files whole or absent, readers with a limit, signals that wait, records that go on."""

import errno
import json
import os
import threading

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from grpo.run import files, rundir
from grpo.run.evaluations import Evaluations
from grpo.run.files import brief, fault, new_directory, read_object, read_text, sha256, writable, write_text
from grpo.run.records import RunLog
from grpo.types import UserError


def failing(number: int):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_text_is_replaced_whole_or_stays(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    write_text(path, "old\n")
    write_text(path, "new\n")
    assert path.read_text() == "new\n"
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    monkeypatch.setattr(files, "flush", failing(errno.ENOSPC))  # where a full disk says so
    with pytest.raises(OSError, match="No space"):
        write_text(path, "newest\n")
    assert path.read_text() == "new\n"


def test_a_directory_is_new_or_stays(tmp_path, monkeypatch):
    final = tmp_path / "checkpoints" / "step-00001"
    with new_directory(final) as part:
        assert part.parent == final.parent
        assert not list(part.iterdir())
        (part / "a").write_text("1")
        (part / "b").write_text("2")
        assert not final.exists()
    assert json.loads((final / "manifest.json").read_text()) == {
        "a": "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b",  # printf 1 | sha256sum
        "b": "d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35"}
    with new_directory(final) as part:
        (part / "a").write_text("3")
    assert {p.name for p in final.iterdir()} == {"a", "manifest.json"}

    def fails_inside():
        with new_directory(final) as part:
            (part / "a").write_text("4")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails_inside()
    monkeypatch.setattr(files, "flush", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"), new_directory(final) as part:
        (part / "a").write_text("5")
    assert (final / "a").read_text() == "3"
    assert fault(final, {"a"}) is None
    assert [p.name for p in final.parent.iterdir()] == ["step-00001"]


@pytest.mark.parametrize(("damage", "words"), [
    (lambda d: (d / "manifest.json").unlink(), "manifest.json is missing or damaged"),
    (lambda d: (d / "manifest.json").write_text('{"a": '), "manifest.json is missing or damaged"),
    (lambda d: (d / "manifest.json").write_text("[" * 100_000), "manifest.json is missing or damaged"),
    (lambda d: (d / "manifest.json").write_text("[]"), "manifest.json is missing or damaged"),
    (lambda d: (d / "manifest.json").write_text('{"a": ""}'), "manifest.json names other files than a, b"),
    (lambda d: (d / "manifest.json").write_text('{"a": "", "b": "", "../c": ""}'),
     "manifest.json names other files than a, b"),
    (lambda d: (d / "b").unlink(), "b is missing"),
    (lambda d: ((d / "b").unlink(), (d / "b").mkdir()), "b is missing"),
    (lambda d: (d / "a").write_text("2"), "a is damaged"),
    (lambda d: (d / "a").write_text(""), "a is damaged"),
    (lambda d: (d / "manifest.json").write_text('{"a": null, "b": 1}'), "a is damaged")])
def test_what_is_wrong_with_a_directory(tmp_path, damage, words):
    with new_directory(tmp_path / "d") as part:
        (part / "a").write_text("1")
        (part / "b").write_text("2")
    assert fault(tmp_path / "d", {"a", "b"}) is None
    damage(tmp_path / "d")
    assert fault(tmp_path / "d", {"a", "b"}) == words


def test_the_hash_of_a_file(tmp_path):
    (tmp_path / "empty").touch()
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EIO, errno.ENAMETOOLONG])
def test_no_room_is_a_mistake_with_a_cure(tmp_path, number):
    with pytest.raises(UserError) as caught, writable(tmp_path, "make room"):
        failing(number)()
    assert str(caught.value) == f"{tmp_path}: cannot be written ({os.strerror(number)}); make room"


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "no such file"), ConnectionError(), KeyboardInterrupt()])
def test_other_errors_are_not_called_no_room(tmp_path, error):
    with pytest.raises(type(error)) as caught, writable(tmp_path, "make room"):
        raise error
    assert caught.value is error


def test_readers_have_a_limit(tmp_path):
    path = tmp_path / "text"
    path.write_text("αβ12")  # 6 bytes
    assert read_text(path, 6) == "αβ12"
    with pytest.raises(ValueError, match="text is longer than 5 bytes, the most that is read"):
        read_text(path, 5)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        read_text(path)
    path.write_text('{"a": [1]}')
    assert read_object(path) == {"a": [1]}
    for text in ("[]", "3", "", "{", "[" * 100_000, '{"a":' * 100_000):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"no JSON object|Expecting"):
            read_object(path)


def test_a_strangers_value_in_a_message():
    assert brief("θ ÷ 2") == "θ ÷ 2"
    assert brief("a\nb\x1b[2J") == r"a\nb\x1b[2J"
    assert brief("x" * 200) == "x" * 200
    assert brief("x" * 10**6) == "x" * 200 + "..."
    assert brief(ValueError("v"), 3) == "v"


def test_what_a_kill_left_does_no_harm(tmp_path):
    run = tmp_path / "run"
    rundir.begin(run, "run: 1\n", resume=False)
    for left in (".config.yaml.part", ".evaluation.json.part", "metrics.part", "evaluation.json"):
        (run / left).write_text('{"steps": []}')
    for left in (".adapter.part", "checkpoints/.step-00002.part"):
        (run / left).mkdir(parents=True)
        (run / left / "half").write_text("a")
    assert rundir.begin(run, "run: 2\n", resume=True) == []
    assert (run / "config.yaml").read_text() == "run: 2\n"
    log = RunLog(run, 0, 3)
    log.step(1, {"reward/mean": 0.5})
    log.close()
    for final in (run / "checkpoints" / "step-00001", run / "adapter"):
        with new_directory(final) as part:
            (part / "whole").write_text("b")
        assert fault(final, {"whole"}) is None
    Evaluations(run / "evaluation.json", {}, before=1).add("test", 0, {"overall": 0.5})
    assert not [p for p in run.rglob("*") if p.name.endswith(".part")]


def test_records_go_on_after_the_step_that_was_saved(tmp_path):
    log = RunLog(tmp_path, 0, 9)
    for step in (1, 2, 3):
        log.step(step, {"loss": step / 2})
        log.completions(step, [{"step": step}])
        log.modules(step, {"q": (0.5, None, step)})
    log.close()
    (tmp_path / "rollouts" / "step-notes.jsonl").touch()
    for name in ("metrics.jsonl", "lora.jsonl"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + '{"step": 2, "lo')  # as a kill in mid-write leaves it
    RunLog(tmp_path, 2, 9).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 1.0}\n'
    assert (tmp_path / "lora.jsonl").read_text().count('"modules":{"q":[0.5,null,') == 2
    assert sorted(p.name for p in (tmp_path / "rollouts").iterdir()) == [
        "step-00001.jsonl.gz", "step-00002.jsonl.gz", "step-notes.jsonl"]


def test_a_full_disk_under_tensorboard_is_raised_and_prints_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # not pytest's
    log = RunLog(tmp_path, 0, 3)
    monkeypatch.setattr(RecordWriter, "write", failing(errno.ENOSPC))

    def steps():
        for step in range(1, 100):
            log.step(step, {"loss": 1.0})
            log.flush()

    with pytest.raises(OSError, match="No space"):
        steps()
    assert "Exception" not in capsys.readouterr().err
