"""What a gateway captured, read back: a data set for what is known, and a file to label for what is not."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from adapter import strict_json
from adapter.questions import ApiAnswer, Row
from adapter.rows import LONGEST, MOST_ROWS, RECORDED, same
from adapter.serve.capture import LONGEST_LINE, files_in
from grpo.run.files import brief
from grpo.types import UserError

NEEDED = {"question": str, "api_answer": str, "at": (int, float)}
LATEST = 253402300799  # seconds since 1970: the end of the year 9999


class Captured(NamedTuple):
    """One line of a captured file."""

    row: Row  # its answer is not known
    at: float  # seconds since 1970
    overridden: bool  # the adapter gave another answer than the API's


@dataclass(frozen=True)
class Found:
    """The lines of a folder, the oldest first."""

    lines: Sequence[Captured]
    files: int
    torn: Sequence[str]  # the names of files that end in half a line, which is left out


def read_captured(folder: Path) -> Found:
    """The lines of all captured-*.jsonl in a folder.

    Half a line at the end of a file, as a crash leaves it, is left out. Raises UserError, naming file and line, for any
    other that is damaged, and where there is none.
    """
    lines: list[Captured] = []
    torn = []
    try:
        files = files_in(folder)
        for path in files:
            if not _read_into(lines, path):
                torn.append(path.name)
    except OSError as error:
        raise UserError(f"--from-capture {brief(folder)}: cannot be read ({error.strerror}); name the folder that the "
                        "gateway captures to") from None
    if not lines:
        raise UserError(f"--from-capture {brief(folder)}: holds no captured line; expected files captured-*.jsonl, which "
                        "the gateway writes")
    return Found(sorted(lines, key=lambda line: line.at), len(files), torn)


def newest(lines: Sequence[Captured]) -> list[Captured]:
    """Of each question the newest line, in the order of their times. lines: the oldest first."""
    latest = {same(line.row.question): line for line in lines}
    return sorted(latest.values(), key=lambda line: line.at)


def known_and_not(lines: Sequence[Captured], truths: Mapping[str, Row]) -> tuple[list[Row], list[Row]]:
    """The rows whose answer is known, with it, and the others: first those where the adapter overrode the API.

    truths: a row for each question, by `same`. Its kind and its other fields are taken too, as a verifier may need them.
    """
    known, others = [], []
    for line in sorted(lines, key=lambda line: not line.overridden):
        truth = truths.get(same(line.row.question))
        if truth is None:
            others.append(line.row)
        else:
            known.append((line.at, replace(truth, id=line.row.id, api=line.row.api)))
    return [row for _, row in sorted(known, key=lambda pair: pair[0])], others


def unlabelled(row: Row) -> str:
    """A row as a line for a person to complete: rows.py refuses it, by its number, as long as the answer is null."""
    line = {"question": row.question, "answer": None, "api_answer": row.api.text, "model": row.api.model,
            "date": row.api.date} | ({"id": row.id} if row.id else {})
    return json.dumps(line, ensure_ascii=False) + "\n"


def _read_into(lines: list[Captured], path: Path) -> bool:
    """Add a file's lines. Returns whether its last one is whole."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            try:
                lines.append(_captured(line))
            except ValueError as error:
                if line.endswith(b"\n") or len(line) > LONGEST_LINE:
                    raise UserError(f"{path}: line {number}: {error}; delete the line") from None
                return False
            if len(lines) > MOST_ROWS:
                raise UserError(f"{path}: more than {MOST_ROWS:,} lines up to here; move files to another folder")
    return True


def _captured(line: bytes) -> Captured:
    """A line. Raises ValueError, in words."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"longer than {LONGEST_LINE:,} bytes")
    try:
        found = strict_json.read(line.decode())
    except strict_json.RefusedError:
        raise
    except (ValueError, RecursionError):
        raise ValueError("no JSON in UTF-8") from None
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    for name, kind in NEEDED.items():
        if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
            raise ValueError(f"{name}: expected {'a number' if name == 'at' else 'a text'}")
    if not 0 <= found["at"] <= LATEST:
        raise ValueError(f"at: expected seconds since 1970, found {brief(found['at'], 40)}")
    if not found["question"].strip():
        raise ValueError("question: is empty")
    day = datetime.fromtimestamp(found["at"], UTC).strftime("%Y-%m-%d")
    row = Row(found["question"], None, id=_name(found, "id"),
              api=ApiAnswer(found["api_answer"], _name(found, "model") or RECORDED, day))
    return Captured(row, found["at"], found.get("verdict") == "override")


def _name(found: Mapping[str, object], field: str) -> str:
    """A field as rows.py takes it; "" where it would not: a caller chose the model's name, and may have chosen anything."""
    value = found.get(field)
    fits = isinstance(value, str) and len(value) <= LONGEST[field] and value.isprintable() and value.strip()
    return value if fits else ""
