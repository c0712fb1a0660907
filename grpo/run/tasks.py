"""The task that a config names: in a module, in a file, or as an installed entry point."""

import importlib.util
import re
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from grpo.run.files import at_home, brief
from grpo.types import Problem, Reference, Task, UserError

NAMED = {"corrector": "adapter.task:CorrectorTask", "gym": "adapter.gym:GymTask", "symbols": "symbols.task:SymbolTask"}
TAKEN_KINDS = ("mean", "overall", "step")  # reward/mean; of a row of evaluation.json the mean over all kinds, and the step
TAKEN_REFERENCES = ("steps", "validation", "kept")  # what else evaluation.json has


def load_class(target: str, named: bool = True) -> type[Task]:
    """The class that `task.target` names: one of NAMED, in a module, in a file, or an entry point of the group grpo.tasks.

    named: the user named it on the command line. A config alone, which may be a stranger's, runs no file from elsewhere.
    Raises UserError where there is none, or it is no task.
    """
    wanted = "name a class, as module:Class or path/to/file.py:Class"
    try:
        if ":" not in (found := NAMED.get(target, target)):
            tasks = entry_points(group="grpo.tasks")
            if target not in tasks.names:
                known = ", ".join(sorted({*NAMED, *tasks.names}))
                raise UserError(f"task.target = {target}: no task has that name, nor an entry point of the group grpo.tasks "
                                f"(known here: {known}); install its package, or {wanted}")
            task_class = tasks[target].load()
        else:
            place, name = found.rsplit(":", 1)
            task_class = getattr(_module(place, target, named), name)
        if not (isinstance(task_class, type) and _is_a_model(getattr(task_class, "Settings", None))):
            raise AttributeError(f"{target} is no task: it has no Settings, a pydantic model")
        if "target" in task_class.Settings.model_fields:
            raise AttributeError("its Settings have a key target, and task.target names the class; rename that key")
        return task_class
    except (ImportError, OSError, AttributeError, SyntaxError, PydanticUserError, PydanticUndefinedAnnotation) as error:
        raise UserError(f"task.target = {target}: {brief(' '.join(str(error).split()))}; {wanted}") from None


def check_task(task: Task, target: str) -> None:
    """Raises UserError, which names the task, where it lacks problems, or chose a name that is another's in the records."""
    where, kinds = f"task.target = {target}: its task", set()
    for split in ("train", "validation", "test"):
        problems = getattr(task, split, None)
        if not (isinstance(problems, Sequence) and problems and all(isinstance(p, Problem) for p in problems)):
            raise UserError(f"{where} has no {split} problems; give it `{split}`, a list of one or more grpo.types.Problem "
                            "that are in no other split")
        kinds |= {problem.kind for problem in problems}
    tags: dict[str, str] = {}
    for kind in sorted(kinds, key=str):
        if kind in TAKEN_KINDS or not isinstance(kind, str) or not kind:
            raise UserError(f"{where} has problems of kind {brief(repr(kind))}; a kind is a text, and its name none of "
                            f"{', '.join(TAKEN_KINDS)}, under which the records have something else; rename it")
        if (other := tags.setdefault(re.sub(r"[^-\w./]", "_", kind), kind)) != kind:
            raise UserError(f"{where} has kinds {brief(repr(other))} and {brief(repr(kind))}, which TensorBoard writes "
                            "alike; rename one of them")
    references = getattr(task, "references", None)
    if not (isinstance(references, dict) and all(isinstance(r, Reference) for r in references.values())):
        raise UserError(f"{where} has no references; give it `references`, a dict from names to grpo.types.Reference, which "
                        "may be empty")
    if not callable(getattr(task, "score", None)):
        raise UserError(f"{where} cannot score; give it `score(problem, text)`, which returns a grpo.types.Score")
    for name in TAKEN_REFERENCES:
        if name in references:
            raise UserError(f"{where} has a reference {name!r}, under which evaluation.json has something else; rename it")


def _module(place: str, target: str, named: bool) -> ModuleType:
    if place.endswith(".py"):
        file = at_home(place).resolve()
        if not named and not file.is_relative_to(Path.cwd()):
            raise UserError(f"task.target = {target}: a config may name files below the current directory only; if you "
                            f"trust that one, say so on the command line: task.target={target}")
        return _run(file)
    if place.endswith("__main__") or place.split(".")[0] in {"", *sys.stdlib_module_names}:
        raise ImportError(f"{place} holds no task")  # and importing antigravity, or a program, does things
    return importlib.import_module(place)


def _run(path: Path) -> ModuleType:
    """A file as a module: dataclasses and pydantic find it in sys.modules, and it may import what lies beside it."""
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: a random.py there must replace nothing
    simple = path.stem.isidentifier() and path.stem != "__main__"
    spec = importlib.util.find_spec(path.stem) if simple else None
    if spec is None or spec.origin != str(path):  # the name is another module's
        spec = importlib.util.spec_from_file_location(str(path), path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _is_a_model(settings: object) -> bool:
    return isinstance(settings, type) and issubclass(settings, BaseModel)
