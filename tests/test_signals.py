"""Signals that ask a run to end: obeyed soon, at a moment when nothing is half done, and never lost."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from grpo.run import signals
from grpo.run.signals import Interrupted, deferred, listen


@pytest.fixture
def listening(monkeypatch):
    """Signals raise Interrupted, and afterwards all is as it was."""
    handlers = {signum: signal.signal(signum, signal.SIG_DFL) for signum in (*signals.ALWAYS, *signals.UNLESS_IGNORED)}
    monkeypatch.setattr(signals, "_arrived", [])
    monkeypatch.setattr(signals, "_deferring", False)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    listen()
    yield lambda signum: os.kill(os.getpid(), signum)
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize(("name", "code"), [
    ("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129), ("SIGUSR1", 138), ("SIGUSR2", 140), ("SIGXCPU", 152)])
def test_a_signal_interrupts(listening, name, code):
    with pytest.raises(Interrupted, match=name) as caught:
        listening(signal.Signals[name])
    assert caught.value.code == code
    assert isinstance(caught.value, KeyboardInterrupt)  # which no library's `except Exception` stops


def test_a_signal_waits_for_the_end_of_a_block(listening):
    done = []

    def steps():
        with deferred():
            listening(signal.SIGTERM)
            done.append("all of it")
        done.append("not this")

    with pytest.raises(Interrupted) as caught:
        steps()
    assert done == ["all of it"]
    assert caught.value.code == 143


def test_a_block_that_fails_says_so_and_defers_no_longer(listening):
    def fails():
        with deferred():
            listening(signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    with pytest.raises(Interrupted):
        listening(signal.SIGINT)


def test_a_signal_that_a_library_swallowed_is_not_lost(listening):
    begun = []
    with suppress(BaseException):  # as a callback from C does
        listening(signal.SIGINT)
    with pytest.raises(Interrupted) as caught, deferred():
        begun.append(True)
    assert not begun
    assert caught.value.code == 130


def test_a_signal_while_an_object_is_freed_shows_nothing_and_is_not_lost():
    program = """
import os, signal, weakref
from grpo.run.signals import Interrupted, deferred, listen
listen()
thing = set()
weakref.finalize(thing, os.kill, os.getpid(), signal.SIGTERM)
del thing
try:
    with deferred():
        print("not this")
except Interrupted as interrupt:
    print(interrupt.code)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (told.stdout, told.stderr) == ("143\n", "")


def test_blocks_without_a_signal_are_not_interrupted(listening):
    for _ in range(2):
        with deferred():
            pass
