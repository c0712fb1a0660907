"""Where a run may be written is known before anything heavy starts, and what lies there stays."""

import errno
import fcntl
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import train
from grpo.run import preflight, rundir
from grpo.run.files import writable
from grpo.types import UserError
from tests.conftest import ROOT, tiny_config

CONFIG = tiny_config().dump()


@pytest.fixture
def run(tmp_path) -> Path:
    """An earlier run."""
    folder = tmp_path / "run"
    rundir.begin(folder, CONFIG, resume=False)
    (folder / "metrics.jsonl").write_text("precious\n")
    rundir._held.clear()
    return folder


def test_a_check_leaves_all_as_it_is(run, tmp_path):
    for resume in (True, False):
        rundir.check(run, resume)
    rundir.check(tmp_path / "new" / "run", resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (run / "metrics.jsonl").read_text() == "precious\n"
    assert rundir.begin(run, CONFIG, resume=False) == [f"the earlier run in {run} is now in {run}.1"]


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EACCES])
def test_an_earlier_run_that_cannot_be_renamed_is_one_line(run, monkeypatch, number):
    def refuses(path: Path, target: Path) -> Path:
        raise OSError(number, os.strerror(number), str(path), None, str(target))

    monkeypatch.setattr(Path, "rename", refuses)
    for step in (rundir.check, lambda folder, resume: rundir.begin(folder, CONFIG, resume)):
        with pytest.raises(UserError) as caught:
            step(run, False)
        assert f"run.dir = {run}: the earlier run there cannot be renamed ({os.strerror(number)})" in str(caught.value)
        step(run, True)
    assert (run / "metrics.jsonl").read_text() == "precious\n"


def test_another_process_is_noticed_before_anything_heavy_starts(run):
    with (run / ".lock").open() as other:  # as another process would hold it
        fcntl.flock(other, fcntl.LOCK_EX)
        for resume in (True, False):
            with pytest.raises(UserError, match="another process is training there"):
                rundir.check(run, resume)


def test_a_disk_without_locks_is_trained_on(run, monkeypatch):
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuses)
    rundir.check(run, resume=True)
    assert rundir.begin(run, CONFIG, resume=True) == []


def test_a_lock_that_links_elsewhere_makes_no_file_there(run, tmp_path):
    (run / ".lock").unlink()
    (run / ".lock").symlink_to(tmp_path / "elsewhere")
    for resume in (True, False):
        with pytest.raises(UserError, match=r"is a link|levels of symbolic links"):
            rundir.check(run, resume)
    assert not (tmp_path / "elsewhere").exists()


def test_a_place_that_is_read_only_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # whom it is asked for may be root
    assert preflight.missing(f"{ROOT}/models/tiny", "cpu", f"{tmp_path}/a/b") == [
        f"a place to write (run.dir: {tmp_path} is read-only)"]


def test_no_rename_of_a_runs_parts_is_a_traceback(tmp_path):
    for number in (errno.EBUSY, errno.EXDEV):
        with pytest.raises(UserError, match="cannot be written"), writable(tmp_path, "make room"):
            raise OSError(number, os.strerror(number))


def test_a_mount_point_is_refused_at_once(tmp_path):
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not mount here")
    script = (f"mkdir {tmp_path}/volume && mount -t tmpfs tmpfs {tmp_path}/volume && touch {tmp_path}/volume/config.yaml && "
              f"{sys.executable} train.py configs/tiny.yaml run.dir={tmp_path}/volume")
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: run.dir = {tmp_path}/volume: the earlier run there cannot be renamed (Device or")
    assert done.stdout == ""


def test_the_folder_one_stands_in_is_refused(run, monkeypatch):
    monkeypatch.chdir(run)
    with pytest.raises(UserError, match=r"cannot be renamed \(the current directory is in it"):
        rundir.check(Path(), resume=False)


@pytest.fixture
def told(monkeypatch, capsys):
    """What train.py says, up to where it would make the task."""
    class Reached(Exception):
        """All checks passed."""

    def reached(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr("symbols.task.SymbolTask.__init__", reached)

    def tell(*arguments: str) -> str:
        with suppress(Reached):
            assert train.main([str(ROOT / "configs" / "tiny.yaml"), f"model.path={ROOT}/models/tiny", *arguments]) == 2
        out, err = capsys.readouterr()
        return out + err

    return tell


def test_what_can_be_refused_is_refused_before_the_task_is_made(told, run, tmp_path):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "train.log").write_text("")
    assert "holds files that are no run" in told(f"run.dir={tmp_path}/log")
    assert "holds files that are no run" in told(f"run.dir={tmp_path}/log", "--resume")
    assert "Not a directory" in told(f"run.dir={tmp_path}/log/train.log")
    assert "Not a directory" in told(f"run.dir={tmp_path}/log/train.log/below")
    (run / "rollouts").symlink_to(tmp_path)
    assert "rollouts is a link" in told(f"run.dir={run}", "--resume")


def test_a_bare_resume_begins_where_there_is_no_run(told, run, tmp_path):
    """Or where a kill left a folder without a config."""
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".lock").write_text("")
    for name in ("new", "begun"):
        assert told(f"run.dir={tmp_path}/{name}", "--resume") == f"--resume: no run in {tmp_path}/{name} yet; one begins\n"
        assert told("--resume", f"{tmp_path}/{name}").startswith(f"error: --resume {tmp_path}/{name}: is no run (no config")
    assert told(f"run.dir={run}", "--resume") == told("--resume", str(run)) == ""


def test_a_new_run_never_buries_what_is_there(tmp_path):
    folder, config = tmp_path / "run", tiny_config().dump()
    assert rundir.begin(folder, config, resume=False) == []
    (folder / "metrics.jsonl").write_text("precious\n")
    assert rundir.begin(folder, config, resume=True) == []
    assert f"is now in {tmp_path}/run.1" in rundir.begin(folder, config, resume=False)[0]
    assert f"is now in {tmp_path}/run.2" in rundir.begin(folder, config, resume=False)[0]
    assert (tmp_path / "run.1" / "metrics.jsonl").read_text() == "precious\n"
    with (folder / ".lock").open() as other:  # as another process would hold it
        rundir._held.clear()
        fcntl.flock(other, fcntl.LOCK_EX)
        for resume in (True, False):
            with pytest.raises(UserError, match="another process is training there"):
                rundir.begin(folder, config, resume)
    assert not (tmp_path / "run.3").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious\n")
    (tmp_path / "file").write_text("precious\n")
    for place in (tmp_path, tmp_path / "other", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"run\.dir"):
            rundir.begin(place, config, resume=False)
    assert (tmp_path / "other" / "thesis.tex").read_text() == (tmp_path / "file").read_text() == "precious\n"
