"""The configs of docs/evidence.md's sets, and the control that never sees the API's answer."""

import pytest
import yaml

from adapter.commands import task_of
from benchmarks.evidence import __main__ as program
from grpo.config import load
from grpo.run.tasks import load_class

pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize("name", program.SETS)
def test_each_set_and_its_control_ask_as_they_should(name, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "RUNS", tmp_path)
    corrected, alone = (load(program.config_of(name, kind)) for kind in ("1", "alone"))
    shown = []
    for config in (corrected, alone):
        task_class, settings = task_of(config, load_class(config.task.target, named=False), name)
        assert (settings.train, settings.validation, settings.test) == (1600, 200, 400)
        shown.append(task_class.make_corrector(settings).prompt)
    assert [prompt.may_agree for prompt in shown] == [True, False]
    assert {**corrected.model_dump(), "task": None} == {**alone.model_dump(), "task": None}
    assert "CORRECT" not in yaml.safe_dump(alone.task.model_dump())
    assert len(shown[0].shots) == len(shown[1].shots) == 3


def test_a_line_of_lint_is_read():
    line = ("base  models/smollm2: 64 questions, 8 completions each: 17.0% right; of 51.6% of the questions at least one; "
            "43.0% agree with the API, 4.1% cut off, 4.9% without an answer")
    assert program.LINT.search(line).groupdict() == {
        "questions": "64", "right": "17.0", "once": "51.6", "agreed": "43.0", "cut": "4.1", "none": "4.9"}
