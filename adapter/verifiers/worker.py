"""In a process of its own: load a user's function, and call it. What a stranger's code does here stays here.

It may print, fork, exit, change the current directory, catch every signal, or never return. adapter.verifiers.server, which
runs such processes with a time limit, kills and replaces them.
"""

import ctypes
import importlib.util
import inspect
import io
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

LONGEST = 4000  # characters of a traceback, and of what was printed: the last ones
EXIT_0 = 222  # the status of a worker whose function ended it with status 0, which Pebble would take for an end in order
_PR_SET_PDEATHSIG = 1
_loaded: dict[str, object] = {}  # "function", or "failed": why there is none; and the "home" directory


class Caught:
    """Within it, whatever a stranger's code raises, SystemExit too, becomes text."""

    fault = ""
    trace = ""

    def __enter__(self) -> "Caught":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> bool:
        if kind is not None:
            self.fault = " ".join("".join(traceback.format_exception_only(kind, error)).split())[:300]
            self.trace = "".join(traceback.format_exception(kind, error, where))[-LONGEST:]
        return True


class Tail(io.RawIOBase):
    """A stream that keeps the last bytes written to it."""

    kept = b""

    def writable(self) -> bool:
        """See RawIOBase."""
        return True

    def fileno(self) -> int:
        """Of the null device, for a program that a function starts."""
        return 1

    def write(self, some: bytes) -> int:
        """See RawIOBase."""
        self.kept = (self.kept + bytes(some[-LONGEST:]))[-LONGEST:]
        return len(some)


def begin(target: str | None = None) -> None:
    """Prepare this process: it leads its own group, ends with its parent, and has no terminal. Then load the target."""
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    _loaded["home"] = os.getcwd()
    worker, leave = os.getpid(), os._exit
    os._exit = lambda status: leave(status or EXIT_0 if os.getpid() == worker else status)
    _capture()
    if target is not None:
        load(target)


def load(target: str) -> dict[str, str]:
    """The function that PATH.py:FUNCTION names, kept for `call`. Returns {}, or {"fault": ..., "trace": ...}."""
    path, _, name = target.rpartition(":")
    _loaded.pop("function", None)
    with Caught() as caught:
        function = getattr(load_module(Path(path)), name)
        if not callable(function):
            raise TypeError(f"{name} is no function")
        _check_arguments(function)
        _loaded["function"] = function
    failed = {"fault": caught.fault, "trace": caught.trace} if caught.fault else {}
    _loaded["failed"] = failed
    return failed


def call(row: str, answer: str) -> dict[str, object]:
    """The function's verdict on a row, as JSON, and an answer.

    Returns {"score": ..., "seconds": ...}, or {"fault": ..., "trace": ..., "printed": ...}.
    """
    if "function" not in _loaded:
        return _loaded["failed"]
    tail, process, score, start = _capture(), os.getpid(), 0.0, time.perf_counter()
    with Caught() as caught:
        score = checked(_loaded["function"](json.loads(row), answer))
    took = time.perf_counter() - start
    if os.getpid() != process:
        os._exit(0)  # the function forked, and this is the child
    signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm of the function's own must not strike the next call
    with suppress(OSError):
        os.chdir(str(_loaded["home"]))
    if not caught.fault:
        return {"score": score, "seconds": took}
    return {"fault": caught.fault, "trace": caught.trace, "printed": tail.kept.decode("utf-8", "replace")}


def checked(result: object) -> float:
    """A function's result as a score; NumPy's and PyTorch's scalars too. Raises TypeError or ValueError where it is none."""
    if type(result).__module__ in ("numpy", "torch") and getattr(result, "shape", None) == ():
        result = result.item()
    if not isinstance(result, bool | int | float):
        raise TypeError(f"returned {repr(result)[:100]}, of type {type(result).__name__}; expected a float in [0, 1] or a "
                        "bool")
    score = float(result)
    if not (math.isfinite(score) and 0 <= score <= 1):
        raise ValueError(f"returned {score}; expected a float in [0, 1] or a bool")
    return score


def _capture() -> Tail:
    tail = Tail()
    sys.stdout = sys.stderr = io.TextIOWrapper(tail, "utf-8", "backslashreplace", write_through=True)
    return tail


def load_module(path: Path) -> object:
    """A file as a module, which may import what lies beside it. Raises whatever the file raises."""
    sys.path.append(str(path.parent))  # last: a random.py there must replace nothing
    spec = importlib.util.spec_from_file_location(path.stem if path.stem.isidentifier() else str(path), path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    if spec.name not in sys.modules:  # dataclasses look themselves up there
        sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _check_arguments(function: Callable) -> None:
    try:
        inspect.signature(function).bind({}, "")
    except TypeError as error:
        raise TypeError(f"it takes other arguments than (row: dict, answer: str): {error}") from None
    except ValueError:  # one written in C says nothing
        return
