"""python train.py CONFIG [key.path=value ...] [--resume [DIR]]

Reads a config, builds the task it names, and trains. Exit codes: 0 done, 2 a mistake in the command or the config,
130 interrupted.
"""

import argparse
import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path

from grpo.config import Config, load, validated
from grpo.preflight import missing
from grpo.types import Task, UserError


def main(argv: list[str]) -> int:
    """Parse, check, compose, train."""
    parser = argparse.ArgumentParser(prog="train.py", description="GRPO with a LoRA, from one config.")
    parser.add_argument("config", help="a YAML file, such as configs/tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's")
    parser.add_argument("--resume", nargs="?", const="", metavar="DIR",
                        help="go on from the newest checkpoint of the run in DIR (default: the config's run.dir)")
    args = parser.parse_intermixed_args(argv)
    try:
        if bad := [o for o in args.overrides if "=" not in o]:
            raise UserError(f"{bad[0]}: expected key.path=value, such as run.steps=10")
        if args.resume and "=" in args.resume:
            raise UserError(f"--resume {args.resume}: expected a directory; put overrides before --resume")
        overrides = args.overrides + ([f"run.dir={args.resume}"] if args.resume else [])
        run(load(args.config, overrides), resume=args.resume is not None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the newest checkpoint", file=sys.stderr)
        return 130
    return 0


def run(config: Config, resume: bool) -> None:
    """Train, and print the table. Light checks come first: PyTorch and vLLM take seconds to import."""
    task_class = load_class(config.task.target)
    settings = validated(task_class.Settings, config.task.model_dump(exclude={"target"}), "task.")
    lacking = missing(config) + (task_class.missing(settings) if hasattr(task_class, "missing") else [])
    if lacking:
        raise UserError(f"missing here: {'; '.join(lacking)}; on a machine without them use configs/tiny.yaml")
    if resume and not (Path(config.run.dir) / "checkpoints").is_dir():
        raise UserError(f"--resume: {config.run.dir} holds no checkpoints; run without --resume")
    task = task_class(settings, seed=config.run.seed)
    from grpo.trainer import train

    print(train(config, task, resume))


def load_class(target: str) -> type[Task]:
    """The class that `task.target` names: in a module, in a file, or as an installed entry point of the group grpo.tasks."""
    wanted = "name a class, as module:Class or path/to/file.py:Class"
    try:
        if ":" not in target:
            tasks = entry_points(group="grpo.tasks")
            if target not in tasks.names:
                raise UserError(f"task.target = {target}: no entry point of the group grpo.tasks has that name (installed: "
                                f"{', '.join(sorted(tasks.names)) or 'none'}); install its package, or {wanted}")
            return tasks[target].load()
        place, name = target.rsplit(":", 1)
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        return getattr(module, name)
    except (ImportError, FileNotFoundError, AttributeError, SyntaxError) as error:
        raise UserError(f"task.target = {target}: {error}; {wanted}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
