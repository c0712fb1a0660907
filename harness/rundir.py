"""The run directory before step 1: a new one never buries an earlier run, a resumed one goes on with its own settings."""

import fcntl
import os
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

from grpo.types import UserError
from harness.files import brief, free_name, writable, write_text

CONFIG = "config.yaml"
# between start and resume
MAY_CHANGE = ("run.steps", "run.dir", "run.give_up_after", "eval", "records", "checkpoint.every", "checkpoint.keep")

_held: dict[Path, IO] = {}  # the locks of this process, which end with it, however it ends


def begin(folder: Path, config: str, resume: bool) -> list[str]:
    """Make the folder and write config.yaml. An earlier run there is kept under another name, which the lines returned say.

    Raises UserError where the place holds something that is no run, or links out of itself, or cannot be written, or where
    another process is training.
    """
    said = []
    with writable(folder, "make room there, or choose another run.dir"):
        try:
            if not resume and folder.is_dir() and any(folder.iterdir()):
                if not (folder / CONFIG).is_file():
                    raise UserError(f"run.dir = {folder}: holds files that are no run; choose another name")
                _lock(folder)
                kept = folder.rename(free_name(folder))
                _held.pop(folder.absolute()).close()
                said = [f"the earlier run in {folder} is now in {kept}"]
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.rglob("*"):
                if path.is_symlink():  # one of a stranger's could make us write, or delete, anywhere
                    raise UserError(f"run.dir = {folder}: {path.relative_to(folder)} is a link; a run directory holds "
                                    "none; put the file itself there")
            _lock(folder)
            write_text(folder / CONFIG, config)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"run.dir = {folder}: cannot be written ({error.strerror}); choose another") from None
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
