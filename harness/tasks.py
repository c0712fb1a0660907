"""The task that a config names: in a module, in a file, or as an installed entry point."""

import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path

from grpo.types import Task, UserError


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
