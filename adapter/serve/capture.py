"""What went through the gateway, written down: JSON lines that `python -m adapter.dataset --from-capture DIR` reads.

An answer waits for none of this (adapter.serve.background). What does not fit into the queue is lost, and counted; so is
what cannot be written: a full disk stops no request.
"""

import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from adapter.serve.background import Background
from adapter.serve.exchange import Exchange
from adapter.verifiers.worker import Caught
from grpo.run.files import brief
from grpo.types import UserError

Redact = Callable[[dict[str, object]], dict[str, object] | None]

FIELDS = ("id", "at", "question", "api_extracted", "completion", "verdict", "confidence", "final", "action", "why", "mode",
          "protocol", "model", "stream", "status", "step", "seconds", "api_seconds", "adapter_seconds", "input_tokens",
          "output_tokens", "cost")  # of an Exchange; one that is added there is captured once it is named here
NAME = re.compile(r"captured-([0-9]{8}-[0-9]{6})-([0-9]{1,9})\.jsonl")
LONGEST_LINE = 2**20  # bytes; rows.py reads no longer ones
FILES = 8  # that a full folder has, at least: the oldest one makes room
LEAST = FILES * LONGEST_LINE  # bytes of a folder
QUIET = 60.0  # seconds between two log lines about what could not be written

log = logging.getLogger(__name__)


class Capture:
    """Writes exchanges to captured-YYYYMMDD-HHMMSS-N.jsonl in a folder, the oldest of which makes room for the newest.

    `written` lines are in files. `lost` exchanges found the queue full. `failed` ones could not be written: the disk is
    full, the folder is gone, the line too long, redact raised. `dropped` ones redact left out.
    """

    def __init__(self, folder: Path, most_bytes: int = 2**30, redact: Redact | None = None):
        """Make the folder, for this user alone, and start the thread.

        most_bytes: of all files together. redact: what to do to each row before it is written; None leaves it out.
        Raises UserError where the folder cannot be written, or another process captures there.
        """
        if most_bytes < LEAST:
            raise UserError(f"a capture of {most_bytes:,} bytes at most: expected {LEAST:,} or more")
        self._folder, self._most, self._redact = folder, most_bytes, redact
        self.written = self.failed = self.dropped = 0
        self._lock, self._said = _locked(folder), -QUIET
        self._file, self._path, self._size, self._number = -1, folder, 0, 0
        self._queue = Background(self._write, "capture", at_end=self._finish)

    @property
    def lost(self) -> int:
        """Exchanges that found the queue full."""
        return self._queue.lost

    @property
    def notes(self) -> list[str]:
        """What is wrong, a line each, for the page."""
        lines = [f"capture: {self.lost} exchanges found the queue full, and are lost"] if self.lost else []
        return lines + ([f"capture: {self.failed} exchanges could not be written; the log says why"] if self.failed else [])

    def __call__(self, exchange: Exchange) -> None:
        """Put an exchange into the queue, and return. Raises nothing.

        One without a question, or without an answer of the API, teaches nothing, and is left out.
        """
        if exchange.question is None or exchange.api_text is None:
            return
        self._queue(exchange)

    def close(self, seconds: float = 10.0) -> None:
        """Write what waits, and flush it to the disk. Returns after `seconds` at the latest; what still waits is lost."""
        self._queue.close(seconds)

    def _finish(self) -> None:
        self._end_file()
        fcntl.flock(self._lock, fcntl.LOCK_UN)  # a child process may have it open still
        os.close(self._lock)

    def _write(self, exchange: Exchange) -> None:
        caught, line, row = Caught(), b"", _row(exchange)
        if (size := sum(len(value) for value in row.values() if isinstance(value, str))) > LONGEST_LINE:
            self._fail(f"a line of {size:,} characters; at most {LONGEST_LINE:,} bytes are captured")
            return
        with caught:  # redact is the user's
            line = self._line(row)
        if caught.fault:
            self._fail(f"the row could not be made: {caught.fault}")
        elif not line:
            self.dropped += 1
        elif len(line) > LONGEST_LINE:
            self._fail(f"a line of {len(line):,} bytes; at most {LONGEST_LINE:,} are captured")
        else:
            try:
                self._append(line)
                self.written += 1
            except OSError as error:
                self._fail(f"{self._folder}: cannot be written ({error.strerror}); make room, or restore the folder")
                self._give_up_file()

    def _line(self, row: dict[str, object]) -> bytes:
        """The row as a line; b"" where redact left it out. Raises what redact raises, and TypeError or ValueError."""
        kept = row if self._redact is None else self._redact(row)
        if kept is None:
            return b""
        if not isinstance(kept, dict) or not isinstance(kept.get("question"), str):
            raise TypeError("redact gave no row: expected a dict with the text question, or None")
        return (json.dumps(kept, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")

    def _append(self, line: bytes) -> None:
        if self._file >= 0 and (self._moved() or self._size + len(line) > self._most // FILES):
            self._end_file()
        if self._file < 0:
            self._make_room()
            self._open()
        done = 0
        while done < len(line):
            done += os.write(self._file, line[done:])
        self._size += len(line)

    def _moved(self) -> bool:
        """Whether the file is no longer there under its name: somebody took it away, or the folder."""
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return True
        return there.st_ino != os.fstat(self._file).st_ino

    def _make_room(self) -> None:
        """Delete the oldest files until another one fits."""
        files = files_in(self._folder)
        sizes = [path.stat().st_size for path in files]
        while files and sum(sizes) + self._most // FILES > self._most:
            files.pop(0).unlink()
            sizes.pop(0)

    def _open(self) -> None:
        self._number += 1
        self._path = self._folder / f"captured-{datetime.now(UTC):%Y%m%d-%H%M%S}-{self._number}.jsonl"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._size = 0

    def _end_file(self) -> None:
        if self._file >= 0:
            file, self._file = self._file, -1
            try:
                os.fsync(file)
            except OSError as error:
                self._say(f"{self._path}: cannot be flushed to the disk ({error.strerror})")
            finally:
                os.close(file)

    def _give_up_file(self) -> None:
        """No line follows half of one: cut that off, and begin another file."""
        if self._file >= 0:
            try:
                os.ftruncate(self._file, self._size)
            except OSError as error:  # it stays the file's last line, which the reader leaves out
                self._say(f"{self._path}: ends in half a line ({error.strerror})")
            self._end_file()

    def _fail(self, why: str) -> None:
        self.failed += 1
        self._say(why)

    def _say(self, why: str) -> None:
        if time.monotonic() - self._said >= QUIET:
            self._said = time.monotonic()
            log.error("capture: %s; %d exchanges could not be written so far, %d were lost", brief(why, 300), self.failed,
                      self.lost)


def files_in(folder: Path) -> list[Path]:
    """The captured files in a folder, the oldest first. Raises OSError."""
    named = ((NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return [path for _, _, path in sorted((match[1], int(match[2]), path) for match, path in named if match)]


def _row(exchange: Exchange) -> dict[str, object]:
    row = {name: getattr(exchange, name) for name in FIELDS}
    return {"question": row.pop("question"), "api_answer": exchange.api_text, **row}


def _locked(folder: Path) -> int:
    """Make the folder, and lock it for as long as this process lives: two would delete each other's files."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # one that is there keeps its mode; the files are 0600
        lock = os.open(folder / ".lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UserError(f"{folder}: nothing can be captured there ({error.strerror}); name a folder of your own") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise UserError(f"{folder}: another process captures there; name another folder") from None
    return lock
