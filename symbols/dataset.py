"""The data set: expressions, half custom and half standard, each with its truth and the API's answer.

    python -m symbols.dataset --out data/mine                                     the simulated API
    python -m symbols.dataset --out data/haiku --upstream anthropic [--batch]     a real one; asks before it spends

A real API's answers are kept in data/answers.jsonl, whatever --out is, and asked for once. The command writes train.jsonl,
validation.jsonl and test.jsonl, one row an expression:

    {"expression": "36 γ 52", "kind": "custom", "truth": "1872", "api_answer": "none", "model": "simulated", "date": null}

The seed fixes the expressions, and the API's answers the rest: the same answers give the same bytes. A config uses the
folder by naming it: `task.data=data/mine`.
"""

import argparse
import json
import random
import re
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar, get_args

from adapter.commands import add_api_options, given, run, settings_from
from adapter.parse import parse_number
from grpo.run.files import at_home, write_text
from grpo.types import UserError
from symbols.expression import STANDARD, Expression, ExpressionError, Notation, evaluate, parse, render
from symbols.generate import Range, draw_many
from symbols.prompt import EXAMPLES
from symbols.settings import DRAWN, Settings, make_notation, make_range, make_upstream
from symbols.simulated import NONE, Question, Upstream, UpstreamAnswer

T = TypeVar("T")
Kind = Literal["custom", "standard"]
MAX_LINE = 10_000  # bytes; a row has about 200
MAX_TEXT = 1000  # characters of a text in a row
MAX_ROWS = 10**6  # as many as the command draws
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(frozen=True)
class Row:
    """One expression as the API and the adapter see it."""

    expression: str
    kind: Kind
    truth: Fraction
    api: UpstreamAnswer

    @property
    def api_answer(self) -> str:
        """A number, or "none"."""
        return self.api.text


class Splits(NamedTuple, Generic[T]):
    """Of each split one."""

    train: T
    validation: T
    test: T


def build(seed: int, sizes: Splits[int], within: Range, notation: Notation, upstream: Upstream) -> Splits[list[Row]]:
    """The rows of each split, so many, custom and standard in turn. The seed fixes them.

    No expression is in two splits, in either notation, nor in any where the prompts show it as an example. Raises ValueError
    where the range holds too few.
    """
    rng = random.Random(f"dataset/{seed}")
    test = draw_many(rng, within, sizes.test, frozenset(EXAMPLES))
    train = draw_many(rng, within, sizes.train, frozenset([*EXAMPLES, *test]))
    avoid = frozenset([*EXAMPLES, *test, *train])
    validation = draw_many(rng, within, sizes.validation, avoid)  # last: its size changes no other split
    questions = Splits(*([_question(expression, i % 2 == 0, notation) for i, expression in enumerate(expressions)]
                         for expressions in (train, validation, test)))
    answers = iter(upstream.answers([question for split in questions for question in split]))
    return Splits(*([Row(q.text, "custom" if q.custom else "standard", evaluate(q.expression), next(answers)) for q in split]
                    for split in questions))


def write(folder: Path, splits: Splits[list[Row]]) -> None:
    """Write the files, each whole or not at all. Raises UserError where they cannot be, or would replace other ones."""
    texts = {folder / f"{name}.jsonl": _lines(rows) for name, rows in splits._asdict().items()}
    try:
        for path, text in texts.items():
            new = text.encode()
            if path.exists() and (path.stat().st_size != len(new) or path.read_bytes() != new):
                raise UserError(f"--out {folder}: {path.name} is there already, and is another one; "
                                "choose another folder (a real API's answers are kept elsewhere, and serve there too)")
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            write_text(path, text)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from None


def read(folder: Path, notation: Notation) -> Splits[list[Row]]:
    """The rows of a folder, each checked. Raises UserError, naming file and line, where one is wrong or in two splits."""
    splits = Splits(*(_read_file(folder / f"{name}.jsonl", notation) for name in Splits._fields))
    first_in: dict[Expression, str] = {}
    for name, rows in splits._asdict().items():
        for number, row in enumerate(rows, 1):
            other = first_in.setdefault(parse(row.expression, _notation(row.kind, notation)), name)
            if other != name:
                raise UserError(f"{folder / f'{name}.jsonl'}: line {number}: {row.expression} is in {other}.jsonl too; "
                                "delete it from one of them")
    return splits


def check_said(settings: Settings, splits: Splits[list[Row]]) -> None:
    """Raises UserError where a key by which data sets are drawn is not its default, and is not true of this one."""
    said = {name for name in DRAWN if getattr(settings, name) != Settings.model_fields[name].default}
    within, notation = make_range(settings), make_notation(settings)
    for name, rows in splits._asdict().items():
        path, value = Path(settings.data) / f"{name}.jsonl", getattr(settings, name)
        if name in said and len(rows) != value:
            raise UserError(f"task.{name} = {value}: {path} has {len(rows)} rows; set task.{name}={len(rows)}, or make "
                            "another folder with python -m symbols.dataset")
        for number, row in enumerate(rows, 1):
            for key in sorted(within.misses(parse(row.expression, _notation(row.kind, notation))) & said):
                raise UserError(f"task.{key} = {getattr(settings, key)}: {path}: line {number}: {row.expression[:60]} is "
                                f"not within it; set task.{key} to what the folder was made with, or make another one with "
                                "python -m symbols.dataset")


def _question(expression: Expression, custom: bool, notation: Notation) -> Question:
    return Question(render(expression, notation if custom else STANDARD), expression, custom)


def _lines(rows: list[Row]) -> str:
    return "".join(json.dumps({"expression": row.expression, "kind": row.kind, "truth": str(row.truth),
                               "api_answer": row.api.text, "model": row.api.model, "date": row.api.date},
                              ensure_ascii=False) + "\n" for row in rows)


def _notation(kind: Kind, custom: Notation) -> Notation:
    return custom if kind == "custom" else STANDARD


def _read_file(path: Path, notation: Notation) -> list[Row]:
    rows = []
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE):
                try:
                    if len(rows) == MAX_ROWS:
                        raise ValueError(f"more than {MAX_ROWS:,} rows")
                    rows.append(_read_row(line, notation))
                except ValueError as error:
                    raise UserError(f"{path}: line {len(rows) + 1}: {error}; "
                                    "make it anew with python -m symbols.dataset") from None
    except OSError as error:
        again = (", with the options that made the folder: the other files stay as they are, and no answer that is kept is "
                 "asked for again" if path.stem == "validation" else "")
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it with "
                        f"python -m symbols.dataset --out {path.parent}{again}") from None
    if not rows:
        raise UserError(f"{path}: holds no rows; make it anew with python -m symbols.dataset")
    return rows


def _read_row(line: bytes, notation: Notation) -> Row:
    """Raises ValueError, in words, for anything but a whole, true row."""
    if not line.endswith(b"\n"):
        raise ValueError("longer than any row" if len(line) == MAX_LINE else "cut short")
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (ValueError, RecursionError):
        raise ValueError("no JSON") from None
    names = ("expression", "kind", "truth", "api_answer", "model")
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in names):
        raise ValueError(f"expected an object with the texts {', '.join(names)}")
    for name in names:  # they are printed, and part of every prompt
        if len(row[name]) > MAX_TEXT or not row[name].isprintable():
            raise ValueError(f"{name}: expected at most {MAX_TEXT:,} characters, all of them printable")
    if row["kind"] not in get_args(Kind):
        raise ValueError(f"kind is {row['kind'][:20]!r}, expected {' or '.join(get_args(Kind))}")
    try:
        truth = evaluate(parse(row["expression"], _notation(row["kind"], notation)))
    except ExpressionError as error:
        raise ValueError(f"expression: {error}") from None
    except ZeroDivisionError:
        raise ValueError("expression: division by zero") from None
    if parse_number(row["truth"]) != truth:
        raise ValueError(f"truth is {row['truth'][:20]}, but {row['expression'][:60]} is {str(truth)[:40]} with the symbols "
                         "in the config")
    if row["api_answer"] != NONE and parse_number(row["api_answer"]) is None:
        raise ValueError(f"api_answer is {row['api_answer'][:20]!r}, expected a number or {NONE!r}")
    if (day := row.get("date")) is not None and not (isinstance(day, str) and _DAY.fullmatch(day)):
        raise ValueError("date: expected YYYY-MM-DD or null")
    return Row(row["expression"], row["kind"], truth, UpstreamAnswer(row["api_answer"], row["model"], day))


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m symbols.dataset", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=at_home, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0, help="decides the expressions, and the simulated answers (default 0)")
    about = {name: field.description for name, field in Settings.model_fields.items()}
    for name in (*Splits._fields, "limit"):
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS, help=about[name])
    for name in ("operands", "terms"):
        parser.add_argument(f"--{name}", type=int, nargs=2, default=argparse.SUPPRESS, help=about[name])
    parser.add_argument("--symbols", nargs=4, metavar="S", help="four pairs such as θ+ α− γ× β÷ (the default)")
    add_api_options(parser)
    parser.add_argument("--batch", dest="api_batch", action="store_true", help=about["api_batch"])
    parser.add_argument("--yes", dest="api_yes", action="store_true", help=about["api_yes"])
    options = parser.parse_args(arguments)
    symbols = {"symbols": {pair[:1]: pair[1:] for pair in options.symbols}} if options.symbols else {}
    del options.symbols
    settings = settings_from(given(options), **symbols)
    notation, within, upstream = make_notation(settings), make_range(settings), make_upstream(settings, options.seed)
    try:
        splits = build(options.seed, Splits(settings.train, settings.validation, settings.test), within, notation, upstream)
    except ValueError as error:
        raise UserError(f"--operands, --terms, --limit: {error}; widen them, or lower --train, --validation and "
                        "--test") from None
    write(options.out, splits)
    right = sum(parse_number(row.api_answer) == row.truth for rows in splits for row in rows)
    sizes = ", ".join(f"{len(rows)} {name}" for name, rows in splits._asdict().items())
    print(f"{options.out}: {sizes} rows; {upstream.label} is right on {right} of them")


if __name__ == "__main__":
    sys.exit(run(main))
