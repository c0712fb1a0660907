"""A user's own function, with all that a stranger's code may do: the trainer goes on, and no bug becomes a reward."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapter.questions import ApiAnswer, Row
from adapter.verifiers.base import submit
from adapter.verifiers.own import Own
from adapter.verifiers.pool import shared_pool
from adapter.verifiers.settings import VerifierSettings, make_verifier
from grpo.types import Aborted, UserError, VerifierError
from tests.conftest import LONG, ROOT
from tests.odd_functions import FUNCTIONS


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "beside.py").write_text("NAME = ''\n", encoding="utf-8")
    (folder / "random.py").write_text("raise SystemExit('replaced the standard library')\n", encoding="utf-8")
    (folder / "verify.py").write_text(FUNCTIONS, encoding="utf-8")
    return folder / "verify.py"


def own(file: Path, function: str = "does", seconds: float = LONG, processes: int = 2) -> Own:
    return make_verifier(VerifierSettings(name=f"{file}:{function}", seconds=seconds, processes=processes))


def row(**more) -> Row:
    return Row("Which gas?", "H2O", "all", "q7", ApiAnswer("CO2", "m"), more)


def test_a_function_scores(file):
    verifier = own(file, "same")
    assert [verifier.right(row(), answer) for answer in ("H2O", "CO2")] == [1.0, 0.0]
    assert own(file).right(row(), "half") == 0.5
    assert (own(file).right(row(), "numpy"), own(file).right(row(part=True), "numpy")) == (1.0, 0.5)
    assert verifier.normal(" H2O\n") == "H2O"
    assert [verifier.normal(" "), verifier.normal("x" * 10**6)] == [None, None]
    assert verifier.extract(r"It is \boxed{CO2}") == "CO2"


def test_an_apis_text_without_a_box_is_searched_as_the_config_says(file):
    said = {"6 + 7 = 13.": "13", "1,200 kg": "1200", r"It is \boxed{CO2}, 3 of it": "CO2", "none": None}
    number = make_verifier(VerifierSettings(name=f"{file}:same", found="number"))
    assert [number.extract(text) for text in said] == list(said.values())
    assert own(file, "same").extract(" 6 + 7 = 13. ") == "6 + 7 = 13."
    with pytest.raises(ValueError, match="number does not use found"):
        VerifierSettings(name="number", found="number")


def test_what_runs_at_once_comes_back_in_its_place(file):
    calls = [submit(own(file, "same"), row(), answer) for answer in ("H2O", "CO2", "H2O") * 20]
    assert [call.result().score for call in calls] == [1.0, 0.0, 1.0] * 20


@pytest.mark.parametrize("what", ["print", "fork", "cd", "alarm", "close", "torch", "input", "mutate"])
def test_what_a_function_does_besides_is_survived(file, what, capfd):
    verifier = own(file, processes=1)
    assert verifier.right(row(), what) == 1.0
    assert verifier.right(row(sleep=0.01, cwd=os.getcwd()), "where") == 1.0  # in the same process
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("what", "words"), [
    ("raise", r"KeyError: 'boom\\nsecond'"), ("odd", "Odd: <exception str"), ("exit", "SystemExit: 0"),
    ("exit 0", "ended with status 0"),
    ("exit 3", "its process ended with status 3"), ("crash", "its process ended with SIGSEGV"),
    ("none", "returned None, of type NoneType"),
    ("nan", "returned nan; expected a float in"), ("two", "returned 2.0"), ("text", "returned '1.0', of type str"),
    ("lambda", "of type function"), ("timeout error", "TimeoutError: mine")])
def test_a_bug_stops_the_run_with_its_sample(file, what, words):
    verifier = own(file)
    with pytest.raises(VerifierError, match=words) as caught:
        submit(verifier, row(level=3), what, "So \\boxed{it}.").result()
    message, sample = str(caught.value), caught.value.sample
    assert isinstance(caught.value, Aborted)
    assert "\n" not in message
    assert message.startswith(f"verifier {file}:does: ")
    assert "(row q7, answer '" in message
    assert (sample.answer, sample.completion, sample.row["level"]) == (what, "So \\boxed{it}.", 3)
    assert verifier.right(row(), "half") == 0.5  # and the pool goes on


@pytest.mark.parametrize(("what", "then"), [("fork", "reap"), ("alarm", "slow")])
def test_what_a_function_leaves_behind_does_not_strike_the_next_call(file, what, then):
    verifier = own(file, seconds=60.0, processes=1)
    assert [verifier.right(row(), answer) for answer in (what, then)] == [1.0, 1.0]


def test_the_sample_has_the_traceback_and_what_was_printed(file):
    with pytest.raises(VerifierError) as caught:
        own(file).right(row(), "raise")
    assert caught.value.sample.printed == "before the fall\nmore\n"
    assert "verify.py" in caught.value.sample.traceback


@pytest.mark.parametrize("what", ["hang", "stubborn", "regex"])
def test_what_hangs_scores_a_counted_zero(file, what):
    verifier = own(file, seconds=0.5)
    calls = [submit(verifier, row(), answer) for answer in (what, "half", what, "half")]
    results = [call.result() for call in calls]
    assert [result.timed_out for result in results] == [True, False, True, False]
    assert [result.score for result in results] == [0.0, 0.5, 0.0, 0.5]
    assert verifier.right(row(), what) == 0.0


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(true) -> None:
    start = time.monotonic()
    while not true():
        time.sleep(0.05)
        if time.monotonic() > start + LONG:
            pytest.fail("it did not happen")


def test_what_it_started_is_killed_with_it(file, tmp_path):
    assert submit(own(file, seconds=2.0), row(pid=str(tmp_path / "pid")), "child hangs").result().timed_out
    wait_for(lambda: gone(int((tmp_path / "pid").read_text())))


PARENT = """
import sys, time, os
from adapter.questions import Row
from adapter.verifiers.base import submit
from adapter.verifiers.settings import VerifierSettings, make_verifier
verifier = make_verifier(VerifierSettings(name=sys.argv[1], seconds=3600.0, processes=2))
calls = [submit(verifier, Row("?", 1, more={"pid": sys.argv[2] + what[:3]}), what) for what in ("pid", "child hangs")]
while not all(os.path.exists(sys.argv[2] + n) for n in ("pid", "chi")): time.sleep(0.05)
if os.fork() == 0: time.sleep(10**6)  # and holds its pipes
print(verifier.pool._server.pid, flush=True)
if len(sys.argv) == 3: time.sleep(10**6)
"""


@pytest.mark.parametrize("end", ["killed", "ends"])
def test_nothing_outlives_the_program(file, tmp_path, end):
    command = [sys.executable, "-c", PARENT, f"{file}:does", f"{tmp_path}/", *(["go"] if end == "ends" else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                          start_new_session=True) as parent:
        server = int(parent.stdout.readline())
        if end == "killed":
            parent.kill()
        wait_for(lambda: gone(parent.pid))
        pids = [server, *(int((tmp_path / name).read_text()) for name in ("pid", "chi"))]
        wait_for(lambda: all(map(gone, pids)))
        os.killpg(parent.pid, signal.SIGKILL)  # the fork that holds its pipes
        assert parent.stderr.read() == ""


def test_a_killed_server_is_one_line_and_a_new_one_starts(file):
    verifier = own(file)
    call = verifier.submit(row(), "hang")
    os.kill(verifier.pool._server.pid, signal.SIGKILL)
    with pytest.raises(VerifierError, match="the process that runs it has ended"):
        call.result()
    assert verifier.right(row(), "half") == 0.5


def test_one_function_has_one_pool(file):
    assert own(file).pool is own(file, seconds=1.0).pool is shared_pool("other words", file, "does", 2)


@pytest.mark.parametrize(("content", "words"), [
    (None, "there is no such file; expected path/to/file.py:function"), ("def verify(:", "SyntaxError"),
    ("", "has no attribute 'verify'"),
    ("verify = 5", "verify is no function"), ("import no_such_thing", "No module named 'no_such_thing'.*file.py, line 1"),
    ("def verify(row): return 1", r"other arguments than \(row: dict, answer: str\)"),
    ("raise SystemExit(3)", "SystemExit: 3"),
    ("def verify(row, answer, *, strict): return 1", "missing a required"),
    ("import os; os._exit(0)", "ended with status 0"),
    ("import os; os.kill(os.getpid(), 11)", "ended with SIGSEGV"), ("\0", "null bytes")])
def test_a_file_that_holds_no_verifier_is_one_line(tmp_path, content, words):
    if content is not None:
        (tmp_path / "file.py").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        own(tmp_path / "file.py", "verify")
    assert "\n" not in str(caught.value)
    assert "file.py:verify" in str(caught.value)


def test_a_config_alone_runs_no_file_from_elsewhere(file, tmp_path, monkeypatch):
    settings = VerifierSettings(name=f"{file}:same", processes=2)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="below the current directory only; copy it there"):
        make_verifier(settings, named=False)
    monkeypatch.chdir(file.parent)
    assert make_verifier(settings, named=False).right(row(), "H2O") == 1.0


def test_a_row_that_json_cannot_write_is_one_line(file):
    with pytest.raises(UserError, match="row q7: Object of type set is not JSON serializable; a row for a function"):
        own(file).right(row(seen={1}), "half")
