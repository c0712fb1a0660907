"""The run directory before step 1: a new one never buries an earlier run, a resumed one goes on with its own settings."""

import errno
import fcntl
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from grpo.run.files import brief, free_name, writable, write_text
from grpo.types import UserError

CONFIG = "config.yaml"
BEGUN = {".lock", f".{CONFIG}.part"}  # all that a kill leaves before there is a config
# between start and resume
MAY_CHANGE = ("run.steps", "run.dir", "run.give_up_after", "eval", "records", "checkpoint.every", "checkpoint.keep")

_held: dict[Path, IO] = {}  # the locks of this process, which end with it, however it ends


def check(folder: Path, resume: bool) -> None:
    """Raises UserError where `begin` would: before anything heavy starts. What lies there stays as it is.

    Whether an earlier run can be renamed is known by trying: a mount point cannot, nor what a container's image brought.
    """
    with _refusing(folder):
        if _earlier(folder, resume):
            _lock(folder)
            _aside(folder).rename(folder)
        elif folder.exists():
            _check_links(folder)
            if resume:
                _lock(folder)
        elif not next(place for place in folder.absolute().parents if place.exists()).is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def begin(folder: Path, config: str, resume: bool) -> list[str]:
    """Make the folder and write config.yaml. An earlier run there is kept under another name, which the lines returned say.

    Raises UserError where the place holds something that is no run, or links out of itself, or cannot be written, or an
    earlier run that cannot be renamed, or where another process is training.
    """
    said = []
    with _refusing(folder):
        if _earlier(folder, resume):
            _lock(folder)
            kept = _aside(folder)
            _held.pop(folder.absolute()).close()
            said = [f"the earlier run in {folder} is now in {kept}"]
        folder.mkdir(parents=True, exist_ok=True)
        _check_links(folder)
        _lock(folder)
        write_text(folder / CONFIG, config)
    return said


def check_unchanged(now: dict[str, Any], then: dict[str, Any], allowed: Collection[str]) -> None:
    """Raises UserError, naming every key, where trees differ in more than MAY_CHANGE and `allowed`.

    A key that is allowed stands for all below it: `optim` allows `optim.lr`.
    """
    here, there = _flat(now), _flat(then)
    differing = [key for key in sorted(here.keys() | there.keys())
                 if here.get(key) != there.get(key)
                 and not any(f"{key}.".startswith(f"{free}.") for free in (*MAY_CHANGE, *allowed))]
    if differing:
        says = "; ".join(f"{brief(key)} is {brief(repr(here.get(key)))} here and {brief(repr(there.get(key)))} in the "
                         "checkpoint" for key in differing)
        raise UserError(f"--resume: {says}; resume with the run's own settings, or start another run, or add "
                        + " ".join(f"--allow-change {brief(key)}" for key in differing))


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    with writable(folder, "make room there, or choose another run.dir"):
        try:
            yield
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"run.dir = {folder}: cannot be written ({error.strerror}); choose another") from None


def _earlier(folder: Path, resume: bool) -> bool:
    """Whether a run lies there that is not to go on. Raises UserError where something else does."""
    if resume or not folder.exists() or {path.name for path in folder.iterdir()} <= BEGUN:
        return False
    if not (folder / CONFIG).is_file():
        raise UserError(f"run.dir = {folder}: holds files that are no run; choose another name")
    return True


def _aside(folder: Path) -> Path:
    """Rename an earlier run. Returns where it is."""
    try:
        if Path.cwd().is_relative_to(folder.resolve()):
            raise OSError(errno.EBUSY, "the current directory is in it")
        return folder.rename(free_name(folder))
    except OSError as error:
        raise UserError(f"run.dir = {folder}: the earlier run there cannot be renamed ({error.strerror}), as a mount or "
                        f"what an image holds; choose another, such as {folder / 'second'}, or add --resume") from None


def _check_links(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_symlink():  # one of a stranger's could make us write, or delete, anywhere
            raise UserError(f"run.dir = {folder}: {path.relative_to(folder)} is a link; a run directory holds none; put the "
                            "file itself there")


def _lock(folder: Path) -> None:
    if folder.absolute() not in _held:
        file = os.fdopen(os.open(folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644), "r+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"run.dir = {folder}: another process is training there; wait for its end, or choose another "
                            "run.dir") from None
        except OSError:  # a network disk that has no locks
            pass
        _held[folder.absolute()] = file


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
