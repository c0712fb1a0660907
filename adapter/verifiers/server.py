"""A small process between the trainer and the workers that run a user's function: it starts, times and kills them.

It is a process so that the trainer, which holds a GPU, threads and vLLM, neither forks nor is imported by its workers, and
so that all of them end when the trainer does, however that ends. It reads one JSON object a line and answers with one:

    {"id": 3, "row": "{...}", "answer": "7", "seconds": 5.0}     a call; the row is JSON within JSON
    {"id": 3, "score": 1.0, "seconds": 0.01}                     or {"id": 3, "timed_out": true}
    {"id": 3, "fault": "ValueError: ...", "trace": "...", "printed": "..."}

Its first line says whether the function could be loaded: {"id": -1} or {"id": -1, "fault": ..., "trace": ...}.
"""

import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import BinaryIO

from pebble import ProcessExpired, ProcessPool

from adapter.verifiers import worker

LOADING = 120.0  # seconds that importing a user's file may take
_killed = threading.local()  # .since: whether this thread has killed a worker since it last asked


class _Worker(SpawnProcess):
    """Pebble asks politely and waits for seconds; a worker may catch that signal, and has nothing to put in order."""

    def terminate(self) -> None:
        """Kill it and what it started."""
        _killed.since = True
        _kill_group(self.pid)
        self.kill()


class _Context(SpawnContext):
    Process = _Worker


def _kill_group(leader: int | None) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if leader is not None and leader != os.getpgrp():
            os.killpg(leader, signal.SIGKILL)


class Server:
    """The pool of one function."""

    def __init__(self, target: str, processes: int, replies: BinaryIO):
        self._target, self._processes, self._replies = target, processes, replies
        self._writing = threading.Lock()
        self._pool: ProcessPool | None = None  # started by the first call

    def check(self) -> None:
        """Load the function in a process that is thrown away, and say how that went."""
        with ProcessPool(1, initializer=worker.begin, context=_Context()) as pool:
            future = pool.schedule(worker.load, args=(self._target,), timeout=LOADING)
            self._say(-1, _outcome(future, f"importing it took longer than {LOADING:.0f} s"))
            pool.stop()

    def run(self, requests: BinaryIO) -> None:
        """Until there are no more requests."""
        for line in requests:
            call = json.loads(line)
            if self._pool is None:
                self._pool = ProcessPool(self._processes, initializer=worker.begin, initargs=(self._target,),
                                         context=_Context())
            try:
                future = self._pool.schedule(worker.call, args=(call["row"], call["answer"]), timeout=call["seconds"])
            except RuntimeError as error:  # the pool is broken
                self._say(call["id"], {"fault": f"its processes ended between two calls ({error})"})
            else:
                future.add_done_callback(lambda done, number=call["id"]: self._say(number, _outcome(done)))

    def stop(self) -> None:
        """Kill the workers and what they started."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()

    def _say(self, number: int, reply: dict[str, object]) -> None:
        with self._writing, suppress(OSError):  # the trainer has gone
            self._replies.write(json.dumps({"id": number, **reply}).encode() + b"\n")
            self._replies.flush()


def _outcome(future: Future, too_long: str = "") -> dict[str, object]:
    """A reply to the call of a future, which is waited for. Pebble calls back in the thread that kills."""
    _killed.since = False if too_long else getattr(_killed, "since", False)
    error = future.exception()
    killed, _killed.since = _killed.since, False
    match error:
        case None:
            return future.result()
        case TimeoutError() if too_long:
            return {"fault": too_long}
        case TimeoutError() if killed:
            return {"timed_out": True}
        case TimeoutError():  # of a process that went by itself, in C, with status 0
            return {"fault": "its process ended with status 0"}
        case ProcessExpired():
            _kill_group(error.pid)
            return {"fault": f"its process ended with {_status(error.exitcode)}"}
        case _:
            return {"fault": " ".join(f"{type(error).__name__}: {error}".split())}


def _status(code: int) -> str:
    if code >= 0:
        return f"status {0 if code == worker.EXIT_0 else code}"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    return name + (", as a machine does that is short of memory" if code == -signal.SIGKILL else "")


def _end_with(parent: int) -> None:
    """End where the trainer was killed while a process that it forked holds our input open."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)  # wakes the thread that reads


def main(target: str, processes: int, parent: int) -> None:
    """Serve stdin and stdout until the first is closed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    server = Server(target, processes, replies)
    try:
        server.check()
        server.run(sys.stdin.buffer)
    finally:
        server.stop()
