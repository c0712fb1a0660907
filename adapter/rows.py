"""Data sets: JSON lines to rows, each checked; how one file is divided; and rows to JSON lines.

    {"question": "How many legs has a spider?", "answer": 8, "kind": "animals", "api_answer": "Six.", "id": "a-17"}

question and answer are needed. api_answer is the API's whole text, where it is known. model and date say who gave it, and
when. Other fields are the task's own: a user's verifier is given them.

A folder has train.jsonl, validation.jsonl and test.jsonl. A single file is divided by a hash of each question, so that a
question stays where it is as the file grows.
"""

import errno
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from adapter import strict_json
from adapter.questions import ApiAnswer, Row
from grpo.run.files import brief, write_text
from grpo.run.tasks import TAKEN_KINDS
from grpo.types import UserError

T = TypeVar("T")
LONGEST_LINE = 2**20  # bytes
MOST_ROWS = 10**6
LONGEST = {"kind": 60, "id": 200, "model": 1000}  # characters
KNOWN = ("question", "answer", "kind", "id", "api_answer", "model", "date")
RECORDED = "recorded"  # the model of an answer that names none
_ID = re.compile("line [0-9]+")  # of a row that has none of its own
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class Splits(NamedTuple, Generic[T]):
    """Of each split one."""

    train: T
    validation: T
    test: T


def read_data(
    place: Path, shares: Sequence[float], fields: Mapping[str, str], check: Callable[[Row], None]
) -> Splits[list[Row]]:
    """The rows of a folder's three files, or of one file, divided. shares: of train, validation and test.

    check raises ValueError, in words, for a row that cannot be used. Raises UserError, naming file and line, where a row is
    wrong, a question is in two files, or a split is empty.
    """
    if not folder_of_splits(place):
        parts = divided(read_rows(place, fields, check), shares)
        for name, rows in parts._asdict().items():
            if not rows:
                raise UserError(f"{place}: no question falls to {name}; add questions, give it a larger share in "
                                "task.shares, or name a folder with train.jsonl, validation.jsonl and test.jsonl")
        return parts
    first_in: dict[str, str] = {}
    splits = Splits(*(read_rows(place / f"{name}.jsonl", fields, check) for name in Splits._fields))
    for name, rows in splits._asdict().items():
        for row in rows:
            if (other := first_in.setdefault(same(row.question), name)) != name:
                raise UserError(f"{place / f'{name}.jsonl'}: {brief(row.id)}: {brief(repr(row.question), 60)} is in "
                                f"{other}.jsonl too; delete it from one of them")
    return splits


def folder_of_splits(place: Path) -> bool:
    """Whether a place is a folder. Raises UserError where it is neither that nor a file."""
    try:
        if place.exists() and not place.is_file() and not place.is_dir():
            raise OSError(errno.EINVAL, "it is neither a file nor a folder")
        return place.is_dir()
    except OSError as error:  # a name that is too long, a link to itself
        raise _unread(place, error) from None


def read_rows(path: Path, fields: Mapping[str, str], check: Callable[[Row], None]) -> list[Row]:
    """The rows of a file, blank lines left out. Raises UserError, naming file and line, where one is wrong."""
    rows, number, ids, asked, seen = [], 0, {}, {}, set()
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                try:
                    if row := _row(line, number, fields, seen):
                        if (other := ids.setdefault(row.id, number)) != number and not _ID.fullmatch(row.id):
                            raise ValueError(f"id {brief(repr(row.id), 60)} is that of line {other} too; rename one of them")
                        check(row)
                        before, answer = asked.setdefault(same(row.question), (number, row.answer))
                        if answer != row.answer:
                            raise ValueError(f"asks what line {before} asks, with another answer; keep one of them")
                        rows.append(row)
                    if len(rows) > MOST_ROWS:
                        raise ValueError(f"more than {MOST_ROWS:,} rows; cut the file")
                except ValueError as error:
                    raise UserError(f"{path}: line {number}: {error}") from None
    except OSError as error:
        raise _unread(path, error) from None
    if rows and (missed := sorted(fields.keys() - seen)):
        raise UserError(f"{path}: task.fields takes {missed[0]} from {brief(repr(fields[missed[0]]), 60)}, which no row "
                        "has; mend that name, or leave it out")
    if not rows:
        raise UserError(f'{path}: holds no rows; give one JSON object a line, such as {{"question": "2 + 2", "answer": 4}}')
    return rows


def _unread(path: Path, error: OSError) -> UserError:
    return UserError(f"{brief(str(path), 200)}: cannot be read ({error.strerror}); task.data names a .jsonl file, or a "
                     "folder with train.jsonl, validation.jsonl and test.jsonl, as python -m adapter.dataset CONFIG --out "
                     f"{brief(str(path.parent), 200)} makes")


def same(question: str) -> str:
    """What makes two questions one: white space does not."""
    return " ".join(question.split())


def divided(rows: Sequence[Row], shares: Sequence[float]) -> Splits[list[Row]]:
    """Each row in one of three splits, by a hash of its question; shares of train, validation and test, which sum to 1."""
    splits = Splits([], [], [])
    for row in rows:
        at = int.from_bytes(hashlib.sha256(same(row.question).encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
        splits[(at >= shares[0]) + (at >= shares[0] + shares[1])].append(row)
    return splits


def written(row: Row) -> str:
    """A row as a line of a file."""
    line: dict[str, object] = {"question": row.question, "kind": row.kind, "answer": row.answer}
    line |= {} if not row.id or _ID.fullmatch(row.id) else {"id": row.id}
    if row.api is not None:
        line |= {"api_answer": row.api.text, "model": row.api.model, "date": row.api.date}
    return json.dumps(row.more | line, ensure_ascii=False) + "\n"


def write_splits(folder: Path, splits: Splits[Sequence[Row]]) -> None:
    """Write the files, each whole or not at all. Raises UserError as write_new does."""
    write_new(folder, folder, {f"{name}.jsonl": "".join(map(written, rows)) for name, rows in splits._asdict().items()})


def write_new(out: Path, folder: Path, texts: Mapping[str, str]) -> None:
    """Write files by name. out: what the user named. Raises UserError where they cannot be, or would replace other ones."""
    try:
        for name, text in texts.items():
            new, path = text.encode(), folder / name
            if path.exists() and (path.stat().st_size != len(new) or path.read_bytes() != new):
                raise UserError(f"--out {out}: {name} is there already, and is another one; "
                                "choose another folder (a real API's answers are kept elsewhere, and serve there too)")
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from None


def _row(line: bytes, number: int, fields: Mapping[str, str], seen: set[str]) -> Row | None:
    """A line as a row; None where it is blank. Adds to `seen` which of `fields` it has. Raises ValueError, in words."""
    if len(line) > LONGEST_LINE:
        raise ValueError(f"longer than {LONGEST_LINE:,} bytes; shorten it, or leave it out")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")  # a mark, as editors on Windows write it
        if not text.strip():
            return None
        found = strict_json.read(text)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8; save the file as UTF-8") from None
    except strict_json.RefusedError:
        raise
    except (ValueError, RecursionError):
        raise ValueError('no JSON; expected an object on one line, such as {"question": "2 + 2", "answer": 4}') from None
    if not isinstance(found, dict):
        raise ValueError('no object; expected one, such as {"question": "2 + 2", "answer": 4}')
    values = {}
    for name in KNOWN:
        theirs = fields.get(name, name)
        if theirs in found:
            values[name] = found.pop(theirs)
            seen.add(name)
        elif name in ("question", "answer"):
            raise ValueError(f"has no field {brief(repr(theirs), 60)}; add it, or say in task.fields what it is called here"
                             + (f" ({name}: {theirs})" if name in fields else f", such as {{{name}: prompt}}"))
    if twice := sorted(found.keys() & fields.keys()):
        raise ValueError(f"has a field {twice[0]!r}, and task.fields takes that from {brief(repr(fields[twice[0]]), 60)}; "
                         "rename or delete one of them")
    for name in found:
        if known := _NEAR.get(_letters(name)):
            raise ValueError(f"has a field {brief(repr(name), 60)}; is {known} meant? Say so in task.fields, or rename it")
    if not strict_json.same_numbers(values["answer"], json.loads(text, parse_float=Decimal)[fields.get("answer", "answer")]):
        raise ValueError("answer: holds a number of more digits than a JSON number keeps; write it as a text")
    return _checked(values, found, number)


def _letters(name: str) -> str:
    """A name without what a slip of the keyboard changes: the order of its letters, their case, and signs between them."""
    return "".join(sorted(filter(str.isalnum, name.lower())))


_NEAR = {_letters(name): name for name in KNOWN}


def _checked(values: dict[str, object], more: dict[str, object], number: int) -> Row:
    for name in ("question", "kind", "id", "api_answer", "model", "date"):
        if not isinstance(values.get(name, ""), str) and not (name == "id" and type(values["id"]) is int) \
                and not (name in ("date", "api_answer") and values[name] is None):
            raise ValueError(f"{name}: expected a text, found {brief(json.dumps(values[name]), 60)}")
    for name in ("question", "kind", "model", "id"):
        if name in values and not str(values[name]).strip():
            raise ValueError(f"{name}: is empty; " + ("leave the row out" if name == "question" else "leave it out"))
    if values["answer"] is None or values["answer"] == "":
        raise ValueError("answer: is empty; give what the verifier compares with, or leave the row out")
    if (kind := values.get("kind")) in TAKEN_KINDS:
        raise ValueError(f"kind: {kind} is a name under which the records have something else; rename it")
    for name, most in LONGEST.items():  # they are printed
        if len(text := str(values.get(name, ""))) > most or not text.isprintable():
            raise ValueError(f"{name}: expected at most {most} characters, all of them printable")
    if (day := values.get("date")) is not None and not _DAY.fullmatch(str(day)):
        raise ValueError(f"date: expected YYYY-MM-DD or null, found {brief(repr(day), 60)}")
    if values.get("api_answer") is None and (names := {"model", "date"} & {n for n, v in values.items() if v is not None}):
        raise ValueError(f"{min(names)}: says who gave an api_answer, and there is none; leave it out, or add the answer")
    api = None
    if values.get("api_answer") is not None:
        api = ApiAnswer(str(values["api_answer"]), str(values.get("model", RECORDED)), values.get("date"))
    return Row(str(values["question"]), values["answer"], str(values.get("kind", "all")),
               str(values.get("id", f"line {number}")), api, more)
