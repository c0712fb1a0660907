"""Files that are whole or absent, directories that prove what they hold, and readers that a huge file cannot hurt.

A file or directory is written under a temporary name, flushed to disk, and renamed: a kill, at any moment, leaves no half of
it. A directory's manifest.json holds the SHA-256 of each of its files.
"""

import errno
import gzip
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from grpo.types import UserError

MANIFEST = "manifest.json"
LONGEST_LINE = 16 * 2**20  # bytes of a record; a completion of 10,000 tokens has under 1 MB
MOST = 8 * 2**20  # bytes of a file that is read whole; the largest of ours, a long run's evaluations, has under 1 MB
NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
                errno.ENAMETOOLONG, errno.ELOOP, errno.EBUSY, errno.EXDEV, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT}


def at_home(name: str) -> Path:
    """A path, its ~ expanded, which a shell leaves after a `=`. Raises UserError where that is nobody's home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"{brief(name)}: there is no such user; write the path in full, or ./~ for such a name") from None


def read_text(path: Path, most: int = MOST) -> str:
    """A UTF-8 text file of at most `most` bytes. Raises OSError, and ValueError where it is longer or no text."""
    with path.open("rb") as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise ValueError(f"{path.name} is longer than {most} bytes, the most that is read")
    return raw.decode("utf-8-sig")  # as editors on Windows write it


def read_object(path: Path, most: int = MOST) -> dict[str, Any]:
    """A JSON object. Raises OSError, and ValueError where the file holds anything else."""
    try:
        value = json.loads(read_text(path, most))
    except RecursionError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return value


def brief(value: object, most: int = 200) -> str:
    """A value of a stranger's in a message: one line, printable, cut after `most` characters."""
    text = str(value)
    return printable(text[:most]) + ("" if len(text) <= most else "...")


def printable(text: object, keep: str = "") -> str:
    """What a terminal may be given: characters that it would obey are escaped, but for those in `keep`.

    A model, a file or an API may have written any part of a line; every line goes through here on its way out.
    """
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in str(text))


Line = TypeVar("Line", bound=BaseModel)


def read_lines(path: Path, kind: type[Line], cure: str) -> Iterator[tuple[int, Line]]:
    """The lines of a JSONL file, gzip'd if its name ends in .gz, with their numbers.

    Raises UserError, naming file, line and cure, where one is damaged.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while text := file.readline(LONGEST_LINE):
                number += 1
                if not text.endswith(b"\n"):
                    fault = "too long" if len(text) == LONGEST_LINE else "cut short"
                    raise UserError(f"{path}: line {number}: {fault}; {cure}")
                try:
                    yield number, kind.model_validate_json(text)
                except ValidationError as error:
                    raise UserError(f"{path}: line {number}: {first_fault(error)}; {cure}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError(f"{path}: line {number + 1}: no gzip data, or cut short; {cure}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a folder that train.py wrote") from None


def first_fault(error: ValidationError) -> str:
    """The first thing wrong, in a few words."""
    fault = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, fault["loc"]))
    return " ".join(f"{brief(where) + ': ' if where else ''}{brief(fault['msg'])}".split())


def write_text(path: Path, text: str) -> None:
    """Write or replace a file: whole, or as it was."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # a link would be written through
    with part.open("xb") as file:
        file.write(text.encode())
    flush(part)
    part.replace(path)


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """Gives an empty folder to fill; then adds its manifest, and it becomes `final`, after an older one is removed.

    Nothing of it stays where that fails.
    """
    part = final.with_name(f".{final.name}.part")
    try:
        for left_by_a_kill in final.parent.glob(f".{final.name.partition('-')[0]}*.part"):  # another step's too
            if left_by_a_kill.is_dir():
                shutil.rmtree(left_by_a_kill, ignore_errors=True)
            else:
                left_by_a_kill.unlink()
        part.mkdir(parents=True)
        yield part
        manifest = {file.name: sha256(file) for file in sorted(part.iterdir())}
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for path in [*part.iterdir(), part]:
            flush(path)
        if final.exists():
            remove(final)
        part.rename(final)
        flush(final.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a folder. It loses its name first: on NFS a file that somebody has open lingers in it, until a later save."""
    numbered = (folder.with_name(f".{folder.name}.{n}.part") for n in range(10**6))
    shutil.rmtree(folder.rename(next(path for path in numbered if not path.exists())), ignore_errors=True)


def steps_in(folder: Path) -> dict[int, Path]:
    """The folders step-NNNNN within a folder, by step, the first step first. What is named otherwise is left out."""
    named = ((re.fullmatch(r"step-([0-9]{1,15})", path.name), path) for path in folder.glob("step-*"))
    return dict(sorted((int(match[1]), path) for match, path in named if match and path.is_dir()))


def free_name(path: Path) -> Path:
    """`path`.1, or the next number that nothing there has."""
    return next(p for n in range(1, 10**6) if not (p := path.with_name(f"{path.name}.{n}")).exists())


def set_aside(path: Path) -> Path:
    """Rename what is damaged: nothing counts it, writes over it or deletes it from now on. Returns where it is."""
    return path.rename(free_name(path.with_name(f"damaged-{path.name}")))


def fault(folder: Path, names: set[str]) -> str | None:
    """What is wrong with a directory that should hold `names` and a manifest of them, or None."""
    try:
        manifest = read_object(folder / MANIFEST)
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or damaged"
    if manifest.keys() != names:
        return f"{MANIFEST} names other files than {', '.join(sorted(names))}"
    for name, digest in sorted(manifest.items()):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != digest:
            return f"{name} is damaged"
    return None


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Return when the file or directory is on the disk itself. Some network disks do not flush directories, and say so."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


@contextmanager
def writable(folder: Path, cure: str) -> Iterator[None]:
    """Within it, a disk that is full, read-only or broken is a UserError that names the folder and the cure."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror}); {cure}") from None
