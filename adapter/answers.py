"""What a real API answered: one JSON line a request, kept for good, because every answer is paid for.

    key          SHA-256 of the request: model, parameters and prompt
    request      what was sent; no credential is part of it
    text         the answer; null where there is none
    stop_reason, usage, date
    error        what went wrong instead, in words; such a request is asked again

Lines are only ever appended, each in one write: a kill costs the line being written, no more.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from grpo.types import UserError

if TYPE_CHECKING:
    from anthropic.types import Message

Request = dict[str, Any]  # the Messages API's arguments


class Stored(NamedTuple):
    """An answer as it was kept."""

    text: str
    date: str  # YYYY-MM-DD, UTC
    stop_reason: str


def key_of(request: Request) -> str:
    """The name of a request, the same for the same model, parameters and prompt."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class AnswerStore:
    """A JSONL file of answers by key."""

    def __init__(self, path: Path):
        self.path = path
        self._file = None
        self._answers: dict[str, Stored] = {}
        self._lines, self._end = 0, 0  # how many have been read, and where they end

    def read(self) -> dict[str, Stored]:
        """The answers by key, errors left out. What was read before is not read again, as lines are only appended.

        A last line that a kill cut short is no damage: it is as if it had never been asked. Raises UserError, naming the
        line, where another one is damaged.
        """
        try:
            with self.path.open("rb") as file:
                if self._end > self.path.stat().st_size:  # another file under the same name
                    self._answers, self._lines, self._end = {}, 0, 0
                file.seek(self._end)
                while (line := file.readline()).endswith(b"\n"):
                    self._take(line)
                    self._lines, self._end = self._lines + 1, self._end + len(line)  # a damaged one is met again
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); choose another file") from None
        return self._answers

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            key, text, error = row["key"], row["text"], row["error"]
            if not isinstance(key, str) or not isinstance(text if error is None else error, str):
                raise TypeError
            if error is None:
                self._answers[key] = Stored(text, row["date"][:10], row["stop_reason"])
        except (ValueError, KeyError, TypeError):  # ValueError: no UTF-8, or no JSON
            raise UserError(f"{self.path}: line {self._lines + 1} is no answer; delete that line, "
                            "and it is asked again") from None

    @contextmanager
    def appending(self) -> Iterator[None]:
        """Within it, `add` works. Raises UserError where the file cannot be written, or another process is adding to it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); choose another file") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go when the process ends, however it ends
            except OSError:
                raise UserError(f"{self.path}: another process is collecting answers in it; wait for it, "
                                "or every question is paid for twice") from None
            with self.path.open("rb") as earlier:
                file.truncate(sum(len(line) for line in earlier if line.endswith(b"\n")))  # what a kill cut short
            self._file = file
            yield
            self._file = None

    def add(self, request: Request, text: str | None, stop_reason: str | None, usage: dict[str, int] | None,
            error: str | None = None) -> None:
        """Append an answer, or what went wrong instead, at once. Raises UserError where the disk takes no more."""
        row = {"key": key_of(request), "request": request, "text": text, "stop_reason": stop_reason, "usage": usage,
               "error": error, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        line = json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
        try:
            fault = "" if self._file.write(line) == len(line) else "the disk is full"
        except OSError as error:
            fault = error.strerror
        if fault:
            raise UserError(f"{self.path}: {fault}; what was answered before is kept; make room and run again")

    def add_reply(self, request: Request, reply: "Message") -> str:
        """Append an API's reply. Returns what is wrong with it, in words, or ""."""
        try:
            text = "".join(block.text for block in reply.content if block.type == "text")
            usage = reply.usage and reply.usage.model_dump(include={"input_tokens", "output_tokens"})
        except (AttributeError, TypeError):  # the SDK takes any JSON for a message
            self.add(request, None, None, None, error="a reply that is no message")
            return "a reply that is no message"
        self.add(request, text, reply.stop_reason, usage)
        return ""
