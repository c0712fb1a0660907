"""The configs of docs/evidence.md's sets, and the control that never sees the API's answer."""

from pathlib import Path

import pytest
import yaml

from adapter import dataset
from adapter.commands import task_of
from benchmarks.evidence import __main__ as program
from grpo.config import load
from grpo.run.tasks import load_class
from symbols.expression import GREEK, Op, evaluate, render
from symbols.prompt import EXAMPLES

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


def test_the_symbols_prompt_tells_no_more_than_the_experiment(tmp_path):
    """Its three examples are those of symbols/prompt.py, with the same answers of the API, and nothing else has a symbol."""
    path = Path("benchmarks/symbols_smollm2.yaml")
    shots = load(path).task.model_dump()["prompt"]["examples"]
    notation = {sign: Op(value) for sign, value in GREEK.items()}
    told = {render(expression, notation): (api, str(evaluate(expression))) for expression, api in EXAMPLES.items()}
    for shot in shots:
        api, truth = told.pop(shot["question"])
        assert (shot["api_answer"], shot["completion"]) == (api, f"\\boxed{{{'CORRECT' if api == truth else truth}}}")
    assert not told
    arguments = ["task.operands=[1,12]", "task.terms=[2,2]", "task.train=24", "task.validation=8", "task.test=8"]
    dataset.main(["configs/tiny.yaml", "--out", str(tmp_path / "data"), *arguments])
    config = load(path, [f"task.data={tmp_path / 'data'}"])
    task_class, settings = task_of(config, load_class(config.task.target, named=False), "symbols")
    task = task_class(settings, 1)
    *examples, question = task.train[0].messages
    instructions = config.task.model_dump()["prompt"]["instructions"] + "\n\n"
    shown = [f"{shot['question']} | API answer: {shot['api_answer']} ->" for shot in shots]
    assert [turn["content"] for turn in examples[1::2]] == [shot["completion"] for shot in shots]
    assert [turn["content"] for turn in examples[::2]] == [instructions + shown[0], *shown[1:]]
    assert len(question["content"].splitlines()) == 1
