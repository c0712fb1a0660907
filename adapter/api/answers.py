"""What a real API answered: one JSON line a request, kept for good, because every answer is paid for.

    key          SHA-256 of the request: model, parameters and prompt; not the server's address
    request      what was sent; no credential is part of it
    text         the whole answer; null where there is none
    stop_reason, usage, date
    error        what went wrong instead, in words; such a request is asked again

Lines are only ever appended, each in one write: a kill costs the line being written, no more. The API's key is no part of a
line, though a server may repeat it.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from adapter.api.faults import without_keys
from adapter.api.replies import Reply
from grpo.types import UserError

LONGEST_LINE = 2**21  # bytes; one that is written here is shorter, as its texts are
LONGEST_TEXT = 100_000  # characters of a question, and of an answer; as JSON, one has 6 bytes at most
Request = dict[str, Any]  # the body that is sent: the arguments of the Messages API, or of OpenAI's chat completions


class Stored(NamedTuple):
    """An answer as it was kept."""

    text: str
    date: str  # YYYY-MM-DD, UTC
    stop_reason: str | None


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
                while (line := file.readline(LONGEST_LINE)).endswith(b"\n") or len(line) == LONGEST_LINE:
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
            key, text, error, date = row["key"], row["text"], row["error"], row["date"]
            if not all(isinstance(value, str) for value in (key, date, text if error is None else error)):
                raise TypeError
            if error is None:
                text = text.encode(errors="replace").decode()  # half a surrogate pair fits in no prompt and no file
                self._answers[key] = Stored(text, date[:10], row["stop_reason"])
        except (ValueError, KeyError, TypeError, RecursionError):  # no UTF-8, no JSON, or a part of a longer line
            raise UserError(f"{self.path}: line {self._lines + 1} is no answer; delete that line, "
                            "and it is asked again") from None

    @contextmanager
    def appending(self) -> Iterator[None]:
        """Within it, `add` works. Raises UserError where the file cannot be written, is a link, or another process is adding
        to it."""
        if self.path.is_symlink():  # one of a stranger's could make us write anywhere
            raise UserError(f"{self.path}: is a link; name the file itself, to which answers may be added")
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
            self.read()
            file.truncate(self._end)  # what a kill cut short
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

    def add_reply(self, request: Request, reply: Reply) -> None:
        """Append an API's reply. The text of one that is longer than LONGEST_TEXT is cut there, and marked."""
        text = without_keys(reply.text)
        if len(text) > LONGEST_TEXT:
            text = f"{text[:LONGEST_TEXT]} [cut off]"
        self.add(request, text, reply.stop_reason and without_keys(reply.stop_reason)[:50], reply.usage)
