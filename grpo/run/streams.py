"""Standard output and error: UTF-8 in any locale; a pipe or a terminal that is closed costs what would be written there."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
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
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            with suppress(OSError):
                self._stream.flush()  # what waits in its buffer would fail again


def outlast_readers() -> None:
    """From now on nothing ends because nobody reads stdout or stderr. One that was closed from the start is opened."""
    print_utf8()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
        setattr(sys, name, Lasting(stream))


def print_utf8() -> None:
    """From now on stdout and stderr are UTF-8, as every file is, and print every text: a locale may know no γ."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def typed(argument: str) -> str:
    """What a person typed as an argument: UTF-8, whatever Python took it for. Bytes that are no UTF-8 are the locale's."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        return argument
