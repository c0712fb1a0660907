"""Make a data set of a config's task: its questions, their answers, and what the API says to each.

    python -m adapter.dataset configs/tiny.yaml --out data/mine                             the simulated API
    python -m adapter.dataset configs/vague.yaml --out data/haiku task.upstream=anthropic   a real one; asks before it spends
    python -m adapter.dataset my.yaml --from-capture captured --out data/again              what a gateway captured

writes train.jsonl, validation.jsonl and test.jsonl, one row a question:

    {"question": "How many legs has a spider?", "kind": "animals", "answer": 8, "id": "line 1", "api_answer": "Six.",
     "model": "simulated", "date": null}

A config uses the folder by naming it: `task.data=data/mine`. A real API's answers are kept in task.api_answers, whatever
--out is, and asked for once. The same answers give the same bytes.

--from-capture asks nobody. Of each question the newest answer is taken. Where the config's data knows the question, the row
has its answer, and stays in its split; `--out data/again.jsonl` writes one file instead. All others go to to_label.jsonl
beside it, with "answer": null, which no config reads until a person has put the answer there. Without a config all do.
"""

import argparse
import sys
from pathlib import Path

from adapter.commands import run, task_of
from adapter.questions import Row
from adapter.rows import Splits, same, write_new, write_splits, written
from adapter.serve.captured import known_and_not, newest, read_captured, unlabelled
from adapter.task import CorrectorTask
from grpo.config import Config, load
from grpo.run.files import at_home
from grpo.run.tasks import load_class
from grpo.types import UserError

TO_LABEL = "to_label.jsonl"


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m adapter.dataset", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="a YAML file, such as configs/tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's")
    parser.add_argument("--out", required=True, type=at_home, help="the folder to write; or, with --from-capture, a .jsonl")
    parser.add_argument("--from-capture", type=at_home, metavar="DIR", help="the folder that a gateway captured to")
    parser.add_argument("--yes", action="store_true", help="spend without asking first")
    options = parser.parse_intermixed_args(arguments)
    if options.from_capture is not None:
        if options.yes:
            raise UserError("--yes: --from-capture asks no API; leave it out")
        from_capture(options)
        return
    if options.config is None:
        raise UserError("there is no config; expected a YAML file, such as configs/tiny.yaml, or --from-capture DIR")
    config, task_class, settings = configured(options)
    if lacking := task_class.missing(settings):
        raise UserError(f"missing here: {'; '.join(lacking)}")
    task = task_class(settings, config.run.seed)
    write_splits(options.out, task.rows)
    right = sum(sum(task.corrector.api_right(rows)) for rows in task.rows)
    sizes = ", ".join(f"{len(rows)} {name}" for name, rows in task.rows._asdict().items())
    label = task.references["api"].label.removesuffix(" alone")
    print(f"{options.out}: {sizes} rows; {label} is right on {right} of them")


def configured(options: argparse.Namespace) -> tuple[Config, type[CorrectorTask], object]:
    """The config, its task's class, and the task's settings. Raises UserError."""
    if bad := [o for o in options.overrides if "=" not in o]:
        raise UserError(f"{bad[0]}: expected key.path=value, such as task.upstream=anthropic")
    overrides = options.overrides + (["task.api_yes=true"] if options.yes else [])
    config = load(options.config, overrides)
    named = any(o.startswith(("task=", "task.target=")) for o in overrides)
    return config, *task_of(config, load_class(config.task.target, named), options.config)


def from_capture(options: argparse.Namespace) -> None:
    """Make a data set of what a gateway captured, and say what became of it. Raises UserError."""
    found, truths, corrector, renamed = read_captured(options.from_capture), Splits({}, {}, {}), None, {}
    if options.config is not None:
        config, task_class, settings = configured(options)
        corrector, renamed = task_class.make_corrector(settings), getattr(settings, "fields", {})
        rows = task_class.read_rows(settings, config.run.seed, corrector)
        truths = Splits(*({same(row.question): row for row in some} for some in rows))
    latest = newest(found.lines)
    known, others = known_and_not(latest, {name: row for some in truths for name, row in some.items()})
    print(f"{options.from_capture}: {len(found.lines)} lines in {found.files} files, {len(latest)} questions"
          + "".join(f"; {name} ends in half a line, as a crash leaves it, which is left out" for name in found.torn))
    told = [write_captured(options.out, known, truths) if known else "no answer is known"]
    if known:
        told.append(f"the API is right on {sum(corrector.api_right(known))} of them")
    if known and renamed:
        told.append("its fields have their own names: train with task.fields={}")
    if others:
        folder = options.out.parent if options.out.suffix == ".jsonl" else options.out
        write_new(options.out, folder, {TO_LABEL: "".join(map(unlabelled, others))})
        told.append(f"{folder / TO_LABEL}: {len(others)} rows wait for a person to put their answers in")
    print("; ".join(told))


def write_captured(out: Path, known: list[Row], truths: Splits[dict[str, Row]]) -> str:
    """Write the rows whose answers are known: to a file, or to a folder, each in its question's split. Returns what was
    written, in words. Raises UserError."""
    if out.suffix == ".jsonl":
        write_new(out, out.parent, {out.name: "".join(map(written, known))})
        return f"{out}: {len(known)} rows"
    splits = Splits(*([row for row in known if same(row.question) in some] for some in truths))
    if lacking := [name for name, rows in splits._asdict().items() if not rows]:
        raise UserError(f"--out {out}: no captured question is one of {lacking[0]} in the config's data, and a split cannot "
                        f"be empty; name a file, which is divided anew: --out {out}.jsonl")
    write_splits(out, splits)
    return f"{out}: " + ", ".join(f"{len(rows)} {name}" for name, rows in splits._asdict().items()) + " rows"


if __name__ == "__main__":
    sys.exit(run(main))
