"""What a model, a file or an API wrote is escaped on its way to a terminal, which obeys some characters."""

import json

import pytest

import train
from adapter import ask, commands
from grpo import replay
from grpo.compare import __main__ as comparing
from grpo.guards import kept
from grpo.guards.alarms import Alarms
from grpo.report import __main__ as reporting
from grpo.run.evaluations import Evaluations
from grpo.run.files import printable
from grpo.run.records import RunLog
from grpo.types import Completion, Group, Problem, Prompt, Reference, Sample, Score, UserError
from grpo.update import Updater
from tests.conftest import tiny_config

EVIL = "\x1b]52;c;cm0=\x07\x1b[2J\x9b2J\r\u202e\udc80"
TAMED = "\\x1b]52;c;cm0=\\x07\\x1b[2J\\x9b2J\\r\\u202e\\udc80"


def group(answer: str) -> Group:
    wrong, right = (Completion(Sample((8, 2), (-1.0, -1.0), "stop"), answer, Score(r, answer=answer)) for r in (0.0, 1.0))
    return Group(Prompt(Problem("p", EVIL, ()), (5, 6, 7), "x"), (wrong, right))


def test_printable_by_hand():
    assert printable(EVIL) == TAMED
    assert printable("a\nb\tγ = × 🙂") == "a\\nb\\tγ = × 🙂"
    assert printable(f"a\n{EVIL}", keep="\n") == f"a\n{TAMED}"
    assert printable(ValueError("36 γ 52")) == "36 γ 52"


def raising(*_: object) -> None:
    raise UserError(f"a line\n{EVIL}")


@pytest.mark.parametrize(("module", "name", "command"), [
    (train, "train_as_told", lambda: train.main(["x.yaml"])),
    (replay, "replay", lambda: replay.main(["x"])),
    (comparing, "read_batch", lambda: comparing.main(["x"])),
    (reporting, "report", lambda: reporting.main(["x"])),
    (commands, "task_of", lambda: commands.run(lambda _: commands.task_of())),
])
def test_a_mistake_is_told_on_one_printable_line(module, name, command, monkeypatch, capsys):
    monkeypatch.setattr(module, name, raising)
    assert command() == 2
    assert capsys.readouterr().err == f"error: a line\\n{TAMED}\n"


def test_a_table_keeps_its_lines(tmp_path):
    found = Evaluations(tmp_path / "evaluation.json", {"api": Reference(EVIL, {EVIL: 0.5})}, 0)
    for split in ("test", "validation"):
        found.add(split, 0, {EVIL: 0.5, "overall": 0.5})
    found.keep(0)
    assert [line.isprintable() for line in str(found).splitlines()] == [True] * 5
    assert str(found).count(TAMED) == 2


def test_what_a_run_says_as_it_goes(tmp_path, capsys):
    log = RunLog(tmp_path, 0, 1)
    log.say(EVIL)
    kind = EVIL.replace("\udc80", "")  # which TensorBoard cannot write
    log.evaluation("test", 0, {kind: 0.5})
    log.step(1, {f"reward/{kind}": 1.0})
    log.close()
    told = capsys.readouterr().out
    assert told.count(printable(kind)) == 3
    assert not {*told.replace("\r", "")} & {*kind} - {*TAMED}  # the bar itself goes back to the line's beginning


def test_an_alarm_shows_the_beginning_of_an_answer():
    _, (line,) = Alarms().check([group(EVIL + "x" * 1000)] * 2)
    assert line.startswith(f"alarm: 100% of the completions answer {TAMED}xxx")
    assert line.isprintable()
    assert len(line) < 300


def test_a_kept_step_says_why_it_stopped(fp32_policy, tmp_path, capsys, monkeypatch):
    path = kept.keep(tmp_path, 1, Updater(fp32_policy, tiny_config()), [group("")], EVIL.replace("\udc80", ""))
    monkeypatch.setattr(replay, "Policy", lambda *_: fp32_policy)
    replay.main([str(path)])
    assert capsys.readouterr().out.startswith("step 1 stopped its run: " + TAMED.replace("\\udc80", ""))


def test_json_for_a_pipe_may_be_shown_too():
    answer = ask.ChainAnswer("36 γ 52", EVIL, "none", "override", "27", EVIL)
    line = ask._as_json(answer)
    assert line.isprintable()
    assert "36 γ 52" in line
    assert json.loads(line)["completion"] == EVIL
