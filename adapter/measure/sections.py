"""What a task adds to the report of adapter.evaluate: a part of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    name: str  # its key in report.json, and the name of its picture, NAME.png
    lines: Sequence[str]  # printed; each is cut at the report's width
    data: object = None  # of report.json: anything that JSON can hold
    draw: Callable[[Path, str], None] | None = None  # writes a PNG there; the text is what all pictures have below the title
