"""What a start is spending its time on: a line for all that takes longer than a few seconds, and a sum at the end."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

PATIENCE = 5.0  # seconds


class Startup:
    """The phases of a start: `with startup("starting vLLM"): ...`."""

    def __init__(self, tells: bool = True):
        """tells: whether this process prints; several ranks start alike."""
        self._tells, self._phases = tells, {}

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Time a phase. Once it has taken PATIENCE, a line says what it is."""
        timer = threading.Timer(PATIENCE, print, [f"{what} ..."], {"flush": True})
        timer.daemon = True
        if self._tells:
            timer.start()
        started = time.perf_counter()
        try:
            yield
        finally:
            timer.cancel()
            self._phases[what] = self._phases.get(what, 0.0) + time.perf_counter() - started

    def __str__(self) -> str:
        """Seconds from the start of the process until now, and the phases that took one or more."""
        whole = time.time() - psutil.Process().create_time()
        parts = [f"{what} {seconds:.0f}" for what, seconds in self._phases.items() if seconds >= 1]
        return f"started in {whole:.0f} s" + (f": {', '.join(parts)}" if parts else "")


QUIET = Startup(tells=False)
