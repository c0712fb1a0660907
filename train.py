"""python train.py CONFIG [key.path=value ...] [--resume [DIR]] [--allow-change KEY ...]

Reads a config, builds the task it names, and trains. Exit codes: 0 done, 1 the run stopped itself, because going on would
have been silently wrong, 2 a mistake in the command or the config, or no room to write, 130 and 143 interrupted.
"""

import argparse
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path

from grpo.config import Config, load
from grpo.types import Aborted, Task, UserError
from harness.preflight import missing
from harness.schema import validated
from harness.signals import Interrupted, listen


def main(argv: list[str]) -> int:
    """Parse, check, compose, train."""
    parser = argparse.ArgumentParser(prog="train.py", description="GRPO with a LoRA, from one config.")
    parser.add_argument("config", help="a YAML file, such as configs/tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's")
    parser.add_argument("--resume", nargs="?", const="", metavar="DIR",
                        help="go on from the newest checkpoint of the run in DIR (default: the config's run.dir)")
    parser.add_argument("--allow-change", action="append", default=[], metavar="KEY",
                        help="resume although this key, or data, or base, is not the checkpoint's")
    args = parser.parse_intermixed_args(argv)
    try:
        if bad := [o for o in args.overrides if "=" not in o]:
            raise UserError(f"{bad[0]}: expected key.path=value, such as run.steps=10")
        if args.resume and "=" in args.resume:
            raise UserError(f"--resume {args.resume}: expected a directory; put overrides before --resume")
        overrides = args.overrides + ([f"run.dir={args.resume}"] if args.resume else [])
        named = any(o.startswith(("task=", "task.target=")) for o in overrides)
        run(load(args.config, overrides), named, args.resume is not None, args.allow_change)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Aborted as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupt:
        print(f"interrupted by {interrupt}; --resume goes on from the last finished step", file=sys.stderr)
        return interrupt.code
    return 0


def run(config: Config, named: bool, resume: bool, allowed: list[str]) -> None:
    """Train, and print the table. Light checks come first: PyTorch and vLLM take seconds to import."""
    task_class = load_class(config.task.target, named)
    settings = validated(task_class.Settings, config.task.model_dump(exclude={"target"}), "task.")
    lacking = missing(config.model.path, config.model.device, config.run.dir)
    lacking += task_class.missing(settings) if hasattr(task_class, "missing") else []
    if lacking:
        raise UserError(f"missing here: {'; '.join(lacking)}; on a machine without them use configs/tiny.yaml")
    if resume and not (Path(config.run.dir) / "config.yaml").is_file():
        raise UserError(f"--resume: {config.run.dir} holds no checkpoints, and is no run; run without --resume")
    task = task_class(settings, seed=config.run.seed)
    from grpo.trainer import train

    print(train(config, task, resume, allowed))


def load_class(target: str, named: bool = True) -> type[Task]:
    """The class that `task.target` names: in a module, in a file, or as an installed entry point of the group grpo.tasks.

    named: the user named it on the command line. A config alone, which may be a stranger's, runs no file from elsewhere.
    """
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
            if not named and not Path(place).resolve().is_relative_to(Path.cwd()):
                raise UserError(f"task.target = {target}: a config may name files below the current directory only; if you "
                                f"trust that one, say so on the command line: task.target={target}")
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        elif place.endswith("__main__") or place.split(".")[0] in {"", *sys.stdlib_module_names}:
            raise ImportError(f"{place} holds no task")  # and importing antigravity, or a program, does things
        else:
            module = importlib.import_module(place)
        if not hasattr(task_class := getattr(module, name), "Settings"):
            raise AttributeError(f"{name} is no task: it has no Settings")
        return task_class
    except (ImportError, FileNotFoundError, AttributeError, SyntaxError) as error:
        raise UserError(f"task.target = {target}: {error}; {wanted}") from None


if __name__ == "__main__":
    listen()
    sys.exit(main(sys.argv[1:]))
