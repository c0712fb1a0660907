"""Make a data set of a config's task: its questions, their answers, and what the API says to each.

    python -m adapter.dataset configs/tiny.yaml --out data/mine                             the simulated API
    python -m adapter.dataset configs/vague.yaml --out data/haiku task.upstream=anthropic   a real one; asks before it spends

writes train.jsonl, validation.jsonl and test.jsonl, one row a question:

    {"question": "How many legs has a spider?", "kind": "animals", "answer": 8, "id": "line 1", "api_answer": "Six.",
     "model": "simulated", "date": null}

A config uses the folder by naming it: `task.data=data/mine`. A real API's answers are kept in task.api_answers, whatever
--out is, and asked for once. The same answers give the same bytes.
"""

import argparse
import sys

from adapter.commands import run, task_of
from adapter.rows import write_splits
from grpo.config import load
from grpo.run.files import at_home
from grpo.run.tasks import load_class
from grpo.types import UserError


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m adapter.dataset", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, such as configs/tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's")
    parser.add_argument("--out", required=True, type=at_home, help="the folder to write")
    parser.add_argument("--yes", action="store_true", help="spend without asking first")
    options = parser.parse_intermixed_args(arguments)
    if bad := [o for o in options.overrides if "=" not in o]:
        raise UserError(f"{bad[0]}: expected key.path=value, such as task.upstream=anthropic")
    overrides = options.overrides + (["task.api_yes=true"] if options.yes else [])
    config = load(options.config, overrides)
    named = any(o.startswith(("task=", "task.target=")) for o in overrides)
    task_class, settings = task_of(config, load_class(config.task.target, named), options.config)
    if lacking := task_class.missing(settings):
        raise UserError(f"missing here: {'; '.join(lacking)}")
    task = task_class(settings, config.run.seed)
    write_splits(options.out, task.rows)
    right = sum(sum(task.corrector.api_right(rows)) for rows in task.rows)
    sizes = ", ".join(f"{len(rows)} {name}" for name, rows in task.rows._asdict().items())
    label = task.references["api"].label.removesuffix(" alone")
    print(f"{options.out}: {sizes} rows; {label} is right on {right} of them")


if __name__ == "__main__":
    sys.exit(run(main))
