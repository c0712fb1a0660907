"""A task's file is a module like any other; the names it chooses are nobody else's in the records."""

import json
import sys
from types import SimpleNamespace

import pytest

from grpo.run.evaluations import Evaluations
from grpo.run.metrics import rollout_metrics
from grpo.run.schema import validated
from grpo.run.tasks import TAKEN_KINDS, TAKEN_REFERENCES, check_task, load_class
from grpo.types import Problem, Reference, UserError
from tests.conftest import group_of

TASK = """from __future__ import annotations
from dataclasses import dataclass
from typing import Literal
from pydantic import BaseModel
{imports}
Mode = Literal["a", "b"]

@dataclass
class Item:
    mode: Mode

class MyTask:
    class Settings(BaseModel):
        mode: {mode} = "a"
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Loads MyTask from a file of its own folder. What it leaves in sys is taken out again."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)

    def load(name: str = "the_task.py", mode: str = "Mode", imports: str = "") -> type:
        (tmp_path / name).write_text(TASK.format(mode=mode, imports=imports))
        return load_class(f"{tmp_path / name}:MyTask")

    yield load
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_annotations_that_are_text_are_resolved(task):
    settings = task().Settings
    assert validated(settings, {"mode": "b"}, "task.").mode == "b"
    with pytest.raises(UserError, match=r"task\.mode = 'c': must be 'a' or 'b'"):
        validated(settings, {"mode": "c"}, "task.")


def test_a_task_imports_what_lies_beside_it(task, tmp_path):
    (tmp_path / "beside_the_task.py").write_text("import the_task\n")
    found = task(imports="import beside_the_task")
    assert sys.modules["beside_the_task"].the_task is sys.modules[found.__module__]
    assert found.__module__ == "the_task"


@pytest.mark.parametrize("name", ["random.py", "antigravity.py", "grpo.py", "my.task.py", "__main__.py", "a-task.py"])
def test_a_file_with_another_modules_name_replaces_nothing(task, tmp_path, name):
    taken = {stem: sys.modules.get(stem) for stem in ("random", "antigravity", "grpo", "my", "__main__")}
    assert task(name).__module__ == str(tmp_path / name)
    assert {stem: sys.modules.get(stem) for stem in taken} == taken
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(("text", "words"), [
    ("import pydantic\nclass MyTask:\n    class Settings(pydantic.BaseModel):\n        n = 3\n", "non-annotated attribute"),
    ("class MyTask: pass\n", "is no task: it has no Settings"),
    ("class MyTask:\n    Settings = dict\n", "is no task: it has no Settings"),
    ("MyTask = 3\n", "is no task"),
    ("import no_such_module\n", "No module named 'no_such_module'"),
    ("import pydantic\nclass MyTask:\n    class Settings(pydantic.BaseModel):\n        target: int\n", "have a key target"),
    ("class MyTask\n", "the_task.py, line 1"),
])
@pytest.mark.usefixtures("task")
def test_a_file_that_holds_no_task_is_one_line(tmp_path, text, words):
    (tmp_path / "the_task.py").write_text(text)
    with pytest.raises(UserError) as caught:
        load_class(f"{tmp_path}/the_task.py:MyTask")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_of_a_type_that_is_nowhere_are_one_line(task):
    with pytest.raises(UserError) as caught:
        validated(task(mode="Nowhere").Settings, {"mode": "b"}, "task.")
    assert "Settings of the_task" in str(caught.value)
    assert "`Nowhere`" in str(caught.value)
    assert "\n" not in str(caught.value)


def names(kinds: tuple[object, ...] = ("easy", "no carry"), reference: str = "api") -> SimpleNamespace:
    """A task whose test problems have these kinds."""
    return SimpleNamespace(train=[Problem("a", "easy", ())], validation=[Problem("b", "easy", ())],
                           test=[Problem(str(kind), kind, ()) for kind in kinds],
                           references={reference: Reference("an API", {"overall": 0.0})}, score=len)


def test_a_tasks_names_are_nobody_elses():
    check_task(names(), "tasks:Mine")
    for kind in ("mean", "overall", "step", "", 3, None):
        with pytest.raises(UserError, match=rf"tasks:Mine: its task has problems of kind {kind!r}; .*rename it"):
            check_task(names(("easy", kind)), "tasks:Mine")
    for name in ("steps", "validation", "kept"):
        with pytest.raises(UserError, match=f"tasks:Mine: its task has a reference '{name}', .*rename it"):
            check_task(names(reference=name), "tasks:Mine")
    with pytest.raises(UserError, match="kinds 'no carry' and 'no_carry', which TensorBoard writes alike"):
        check_task(names(("no carry", "no_carry")), "tasks:Mine")


@pytest.mark.parametrize(("part", "value", "words"), [
    ("train", [], "no train problems"), ("train", None, "no train problems"), ("validation", 3, "no validation problems"),
    ("test", iter([Problem("a", "easy", ())]), "no test problems"), ("test", ["a"], "no test problems"),
    ("references", None, "no references"), ("references", {"api": 0.5}, "no references"), ("score", None, "cannot score")])
def test_what_a_task_lacks_is_one_line(part, value, words):
    task = names()
    setattr(task, part, value)
    with pytest.raises(UserError, match=f"tasks:Mine: its task .*{words}; give it `{part}"):
        check_task(task, "tasks:Mine")


def test_what_a_tasks_names_may_not_be_is_what_the_records_have(tmp_path):
    found = Evaluations(tmp_path / "evaluation.json", {}, 0)
    found.add("test", 0, {"overall": 0.5})
    found.keep(0)
    table = json.loads(found.path.read_text())
    assert set(table) == set(TAKEN_REFERENCES)
    rewards = [key.removeprefix("reward/") for key in rollout_metrics([group_of([1], [[2]])], []) if "reward/" in key]
    assert {*table["steps"][0], *rewards} - {"custom"} == set(TAKEN_KINDS)
