"""A user's function in processes of its own, many calls at once, with a time limit a call.

    trainer  ->  adapter.verifiers.server, one process  ->  its workers, which run the function

A call that takes too long has a typed result that says so. A function that raises, dies or returns no score is a
VerifierError: a bug in a verifier must not become a reward.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from queue import SimpleQueue

from adapter.questions import Row
from adapter.verifiers.base import Verified
from grpo.run.files import brief
from grpo.types import UserError, VerifierError

STILL = 300.0  # seconds without any answer, beside a call's own, after which the pool is given up
ROOT = str(Path(__file__).parents[2])
_START = "import sys; sys.path.append(sys.argv[4]); from adapter.verifiers import server; " \
         "server.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))"


@dataclass(frozen=True)
class Sample:
    """The call that a verifier failed on, to be kept in a file."""

    row: dict[str, object]
    answer: str  # as the function was given it
    completion: str  # the whole text, where there was one
    fault: str  # in one line
    traceback: str  # of the function; "" where its process died
    printed: str  # the last that the function wrote to stdout and stderr in this call


@dataclass(frozen=True)
class Call:
    """A call that runs, or waits for a free process. Pending of adapter.verifiers.base."""

    pool: "Pool" = field(repr=False)
    row: Row
    answer: str
    completion: str
    seconds: float
    reply: "Future[dict]" = field(repr=False)

    def result(self) -> Verified:
        """Waits for it. Raises VerifierError, one line, with the sample."""
        reply = None
        while reply is None:
            try:
                reply = self.reply.result(1.0)
            except TimeoutError:
                if time.monotonic() - self.pool.heard > self.seconds + STILL:
                    reply = {"fault": f"its processes have not answered for {STILL + self.seconds:.0f} s"}
        if "fault" not in reply:
            return Verified(reply.get("score", 0.0), reply.get("timed_out", False), reply.get("seconds", self.seconds))
        of = f"row {self.row.id}" if self.row.id else f"question {brief(repr(self.row.question), 60)}"
        raise VerifierError(
            f"{self.pool.target}: {brief(reply['fault'])} ({of}, answer {brief(repr(self.answer), 60)}); mend the function: "
            "it takes any text, and returns a float in [0, 1] or a bool",
            Sample(self.row.as_dict(), self.answer, self.completion, reply["fault"], reply.get("trace", ""),
                   reply.get("printed", "")))


class Pool:
    """The processes of one function. Use `shared_pool`, so that there is one of them."""

    def __init__(self, target: str, file: Path, name: str, processes: int):
        """Starts the server, which imports the file in a process that it throws away; the workers start with the first call.

        target: as the user wrote it. Raises UserError where the file cannot be imported, or has no such function.
        """
        self.target, self.heard, self._failure = target, time.monotonic(), ""
        first = Future()
        self._numbers, self._waiting, self._calls = count(), {-1: first}, SimpleQueue()
        command = [sys.executable, "-P", "-c", _START, f"{file}:{name}", str(processes), str(os.getpid()), ROOT]
        env = os.environ | {"PYTHONHASHSEED": "0"}  # the same score each time, whatever order a function's sets have
        self._server = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        start_new_session=True)  # signals to the trainer's group are the trainer's
        for loop in (self._read, self._write):
            threading.Thread(target=loop, daemon=True).start()
        atexit.register(self.close)
        loaded = first.result()
        if "fault" in loaded:
            self.close()
            raise UserError(f"{target}: {brief(loaded['fault'])}; expected a file that can be imported, with a function "
                            f"{name}(row: dict, answer: str) -> float | bool{_last_line_of(loaded, file)}")

    @property
    def alive(self) -> bool:
        """Whether it takes calls."""
        return not self._failure and self._server.poll() is None

    def submit(self, row: Row, answer: str, completion: str, seconds: float) -> Call:
        """Queue a call, and wait for nothing. Raises UserError where the row holds what JSON does not."""
        try:
            line = json.dumps({"row": json.dumps(row.as_dict()), "answer": answer, "seconds": seconds})
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{self.target}: row {brief(row.id or row.question, 60)}: {brief(error)}; a row for a function "
                            "of your own holds what JSON can write") from None
        number, reply, self.heard = next(self._numbers), Future(), time.monotonic()
        self._waiting[number] = reply
        self._calls.put(f'{{"id": {number}, {line[1:]}\n'.encode())
        if self._failure:
            self._fail()
        return Call(self, row, answer, completion, seconds, reply)

    def close(self) -> None:
        """End the server, and all that it started."""
        atexit.unregister(self.close)
        self._server.terminate()
        try:
            self._server.wait(20)
        except subprocess.TimeoutExpired:
            self._server.kill()  # its workers end with it
            self._server.wait()

    def _write(self) -> None:
        """In a thread: the trainer does not wait while the server is busy with starting processes."""
        with suppress(OSError):  # it has gone: _read says so to whoever waits
            while True:
                self._server.stdin.write(self._calls.get())
                self._server.stdin.flush()

    def _read(self) -> None:
        """In a thread: hand out the answers."""
        for line in self._server.stdout:
            reply = json.loads(line)
            self.heard = time.monotonic()
            self._waiting.pop(reply["id"]).set_result(reply)
        self._failure = "the process that runs it has ended"
        self._fail()

    def _fail(self) -> None:
        for number in list(self._waiting):
            if (waiting := self._waiting.pop(number, None)) is not None:
                waiting.set_result({"fault": self._failure})


def cores() -> int:
    """CPU cores for this process: its share of them, where torchrun has started others beside it."""
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, (os.cpu_count() or 1) // int(beside if beside.isascii() and beside.isdigit() and int(beside) else 1))


_POOLS: dict[tuple[int, str, str, int], Pool] = {}
_MAKING = threading.Lock()


def shared_pool(target: str, file: Path, name: str, processes: int | None) -> Pool:
    """The pool of a function, which all of this process share. Raises UserError as Pool does."""
    processes = processes or cores()
    key = (os.getpid(), str(file), name, processes)  # a fork has none of its parent's
    with _MAKING:
        if key not in _POOLS or not _POOLS[key].alive:
            _POOLS[key] = Pool(target, file, name, processes)
        return _POOLS[key]


def _last_line_of(loaded: dict, file: Path) -> str:
    """Where in the user's file it went wrong, in words."""
    lines = [line.split(",")[1].strip() for line in loaded.get("trace", "").splitlines() if f'"{file}", line' in line]
    return f" ({file.name}, {lines[-1]})" if lines else ""
