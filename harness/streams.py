"""Standard output and error may go away: a pipe or a terminal that is closed costs what would be written there, no more."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO


class Lasting:
    """A text stream that raises no OSError: once it cannot be written, what is written there goes nowhere."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """See TextIO."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """See TextIO."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            with suppress(OSError):
                self._stream.flush()  # what waits in its buffer would fail again


def outlast_readers() -> None:
    """From now on nothing ends because nobody reads stdout or stderr. One that was closed from the start is opened."""
    for name in ("stdout", "stderr"):
        setattr(sys, name, Lasting(getattr(sys, name) or open(os.devnull, "w")))  # noqa: SIM115 - as long as the process
