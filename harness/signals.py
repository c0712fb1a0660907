"""Signals that ask a run to end stop it soon, at a moment when nothing is half done.

A signal raises `Interrupted` where it arrives, except within `deferred`: there it waits for the end of the block.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ALWAYS = (signal.SIGTERM, signal.SIGINT)
UNLESS_IGNORED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)  # as nohup ignores the first

_arrived: list[int] = []
_deferring = False


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end. `code` is what it exits with, 128 + its number: 143 for SIGTERM."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.code = 128 + signum


def listen() -> None:
    """From now on, a terminal's, a scheduler's and a person's ways to end a process raise Interrupted in the main thread.

    Python shows and drops what is raised while an object is freed: it is not shown, and `deferred` obeys it later.
    """
    shown = sys.unraisablehook
    sys.unraisablehook = lambda dropped: None if dropped.exc_type is Interrupted else shown(dropped)
    for signum in (*ALWAYS, *UNLESS_IGNORED):
        if signum in ALWAYS or signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _handle)


@contextmanager
def deferred() -> Iterator[None]:
    """Within it, nothing is interrupted; a signal that arrived, or that a library swallowed before, ends it."""
    global _deferring
    _stop_if_asked()
    _deferring = True
    try:
        yield
    finally:
        _deferring = False
    _stop_if_asked()


def ignore() -> None:
    """From now on, those signals do nothing."""
    for signum in (*ALWAYS, *UNLESS_IGNORED):
        signal.signal(signum, signal.SIG_IGN)


def _handle(signum: int, _frame: object) -> None:
    _arrived.append(signum)
    if not _deferring:
        raise Interrupted(signum)


def _stop_if_asked() -> None:
    if _arrived:
        raise Interrupted(_arrived[-1])
