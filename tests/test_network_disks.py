"""Disks that are not a local one: what they cannot do costs no checkpoint, and what fails on them is one line."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from grpo.run import files
from grpo.run.files import flush, new_directory, remove, steps_in, writable
from grpo.types import UserError


def fill(final: Path, text: str) -> None:
    with new_directory(final) as part:
        (part / "a").write_text(text)


@pytest.fixture
def nfs(monkeypatch):
    """A disk on which an open file stays in its folder, under another name, and with it the folder."""
    whole = shutil.rmtree

    def rmtree(folder: Path, ignore_errors: bool = False) -> None:
        for path in list(Path(folder).glob("*")):
            if path.name == "a":
                path.rename(path.with_name(".nfs0001"))
            elif path.name != ".nfs0001":
                path.unlink()
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(folder))

    monkeypatch.setattr(files.shutil, "rmtree", rmtree)
    return lambda: monkeypatch.setattr(files.shutil, "rmtree", whole)


def test_a_file_that_somebody_has_open_does_not_keep_a_folder(tmp_path, nfs):
    folder = tmp_path / "step-00001"
    for text in ("1", "2", "3"):
        fill(folder, text)
        assert (folder / "a").read_text() == text
        assert list(steps_in(tmp_path)) == [1]
    remove(folder)
    assert not steps_in(tmp_path)
    nfs()  # it is closed
    fill(tmp_path / "step-00002", "4")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00002"]


def test_a_disk_that_flushes_no_directories_is_written_to(tmp_path, monkeypatch):
    flushed, real = [], os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flushed.append(path.name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    fill(tmp_path / "step-00001", "1")
    assert sorted(flushed) == ["a", "manifest.json"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_a_file_that_is_not_flushed_is_not_passed_over(tmp_path, monkeypatch, number):
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "a").write_text("1")
    with pytest.raises(OSError, match=os.strerror(number)):
        flush(tmp_path / "a")


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_a_disk_that_went_away_is_one_line(tmp_path, number):
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be written .{os.strerror(number)}.; look at it"), \
            writable(tmp_path, "look at it"):
        raise OSError(number, os.strerror(number))
