"""The command is told to serve another LoRA: which it takes, by which confidence, and how callers get one that is new."""

import asyncio
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapter import dataset
from adapter.chain import Chain
from adapter.commands import run as run_command
from adapter.confidence import FILE, FOLDER
from adapter.rows import Splits
from adapter.trained import TrainedAdapter
from grpo.config import load
from symbols.task import SymbolTask
from tests.conftest import TOY, lines, run_train
from tests.gateway import wait_until
from tests.gateway_command import Answer, Command, ask, serving
from tests.streaming_server import StreamingServer

TAKEN = {"", "unparsed", "below the threshold"}  # why, of an answer that the adapter was asked for


def evaluated(run: Path, step: int, temperature: float, threshold: float | None) -> None:
    """What adapter.evaluate writes."""
    (run / FOLDER).mkdir(exist_ok=True)
    (run / FOLDER / FILE).write_text(json.dumps({"step": step, "temperature": temperature, "threshold": threshold}))


@pytest.fixture(scope="module")
def questions(toy) -> list[str]:
    """Of the toy run's data, from each split."""
    config = load(toy[0] / "config.yaml")
    settings = SymbolTask.Settings(**config.task.model_dump(exclude={"target"}))
    rows = SymbolTask.read_rows(settings, config.run.seed, SymbolTask.make_corrector(settings))
    return [row.question for some, count in zip(rows, (20, 6, 6), strict=True) for row in some[:count]]


@pytest.fixture(scope="module")
def command(toy, tmp_path_factory) -> Iterator[Command]:
    """With --threshold auto, on a link to a copy of the toy run, behind an API that says 7."""
    folder = tmp_path_factory.mktemp("reload")
    shutil.copytree(toy[0], folder / "first")
    evaluated(folder / "first", TrainedAdapter(toy[0]).step, 2.0, 0.0)
    (folder / "current").symlink_to("first")
    api = StreamingServer()
    with serving(folder / "current", api.url, folder, "--threshold", "auto") as running:
        yield running
    api.stop()


def lead_to(command: Command, name: str) -> None:
    """The run that is served is another one: ln -sfn."""
    command.run.unlink()
    command.run.symlink_to(name)


def logit(p: str) -> float:
    return math.log(float(p) / (1 - float(p)))


def test_temperature_and_threshold_are_those_of_the_lora_that_is_served(command, questions):
    """Evaluated again, the same LoRA has others; what was kept below the old threshold is judged by the new one."""
    first = command.run.resolve()
    step = command.health()["step"]
    before = asyncio.run(ask(command.url, questions))
    assert {answer.told["why"] for answer in before} <= {"", "unparsed"}
    surest = max(float(answer.told["confidence"]) for answer in before)
    evaluated(first, step, 1.0, 0.9999)
    told = command.reload()
    assert (told.status_code, told.json()) == (200, {"step": step, "before": step, "temperature": 1.0, "threshold": 0.9999})
    assert "temperature 1, threshold 0.9999" in command.log.read_text().splitlines()[-1]
    assert (command.health()["temperature"], command.health()["threshold"]) == (1.0, 0.9999)
    assert (command.metric("corrector_temperature"), command.metric("corrector_threshold")) == (1.0, 0.9999)
    after = asyncio.run(ask(command.url, questions))
    for old, new in zip(before, after, strict=True):
        if 0.01 < float(old.told["confidence"]) < min(surest, 0.99):  # the header has four digits
            assert logit(new.told["confidence"]) == pytest.approx(2 * logit(old.told["confidence"]), rel=0.05)
        if old.told["action"] == "corrected" and float(new.told["confidence"]) < 0.9999:
            assert (new.told["action"], new.told["why"], new.text) == ("kept", "below the threshold", "7")
    assert [a.told["action"] for a in before].count("corrected") > [a.told["action"] for a in after].count("corrected")
    evaluated(first, step, 2.0, 0.0)
    assert command.reload().json()["threshold"] == 0.0


@pytest.mark.parametrize(("left", "said"), [
    ("nothing", "threshold auto: none is chosen for the adapter of step {step} of"),
    ("nothing", "(it has no evaluate/confidence.json)"),
    ("another step", "(its evaluate/confidence.json is of step {other})"), ("no threshold", "and chose no threshold"),
    ("damage", "confidence.json: ")])
def test_a_lora_whose_threshold_is_not_known_is_refused_and_the_one_before_goes_on(command, questions, left, said):
    first, health = command.run.resolve(), command.health()
    step = health["step"]
    kept = (first / FOLDER / FILE).read_text()
    made = {"another step": {"step": step + 1, "temperature": 1, "threshold": 0.5},
            "no threshold": {"step": step, "temperature": 1, "threshold": None}, "damage": {"step": step}}
    (first / FOLDER / FILE).unlink()
    if left != "nothing":
        (first / FOLDER / FILE).write_text(json.dumps(made[left]))
    try:
        told = command.reload()
        said = said.format(step=step, other=step + 1)
        assert told.status_code == 409
        assert said in told.json()["error"]
        assert {name: told.json()[name] for name in ("step", "temperature", "threshold")} == {
            "step": step, "temperature": 2.0, "threshold": 0.0}
        assert said in command.health()["reload"]
        assert (command.health()["status"], command.metric("corrector_reload_refused")) == ("ok", 1)
        last = command.log.read_text().splitlines()[-1]
        assert said in last
        assert f"the LoRA of step {step} is served, temperature 2, threshold 0" in last
        (answer,) = asyncio.run(ask(command.url, questions[:1]))
        assert answer.told["why"] in ("", "unparsed")  # it is judged as before
    finally:
        (first / FOLDER / FILE).write_text(kept)
    assert command.reload().status_code == 200
    assert command.health() == health
    assert command.metric("corrector_reload_refused") == 0


def test_other_questions_are_no_other_prompt_and_another_prompt_is_refused(command):
    file = command.run.resolve() / "config.yaml"
    text = file.read_text()
    step = command.health()["step"]

    def reloaded(was: str, becomes: str):
        assert text.count(was) == 1, was
        file.write_text(text.replace(was, becomes))
        return command.reload()

    try:
        for was, becomes in (("train: 200", "train: 100"), ("limit: 999", "limit: 500"), ("- 99", "- 77"),
                             ("test: 40", "test: 40\n  upstream: anthropic\n  api_max_tokens: 65")):
            told = reloaded(was, becomes)
            assert (told.status_code, told.json()["step"]) == (200, step), told.text
        for was, becomes, key in (("condition: vague", "condition: explicit", "task.condition"),
                                  ("max_new_tokens: 40", "max_new_tokens: 39", "rollout.max_new_tokens"),
                                  ("test: 40", "test: 40\n  upstream: vertex\n  api_prompt: '{question}!'", "api_prompt")):
            told = reloaded(was, becomes)
            assert told.status_code == 409
            assert key in told.json()["error"]
    finally:
        file.write_text(text)
    assert command.reload().status_code == 200


def test_a_number_is_a_threshold_of_the_calibrated_confidence_of_each_lora(command, toy, tmp_path, questions):
    run, step = shutil.copytree(toy[0], tmp_path / "run"), command.health()["step"]
    evaluated(run, step, 1.0, None)  # evaluate chose none
    with serving(run, command.upstream, tmp_path, "--threshold", "0.6") as running:
        evaluated(run, step, 2.0, 0.9)
        told = {"step": step, "before": step, "temperature": 2.0, "threshold": 0.6}
        assert running.reload().json() == told
        (run / FOLDER / FILE).unlink()
        answer = running.reload()
        assert answer.status_code == 409
        assert f"threshold 0.6: {run} has no calibrated confidence of step {step} (it has no " in answer.json()["error"]
        assert {name: answer.json()[name] for name in told} == told
        for answer in asyncio.run(ask(running.url, questions)):
            below = float(answer.told["confidence"]) < 0.6
            assert answer.told["why"] != "below the threshold" or below
            assert answer.told["action"] != "corrected" or not below


def test_from_callers_to_a_new_lora_that_is_served_while_they_ask(command, questions, monkeypatch, capsys):
    """Capture, data set, training, reload. No request is dropped, and each answer is the one of the LoRA that it names."""
    folder, old_step = command.run.parent, command.health()["step"]
    before = asyncio.run(ask(command.url, questions))
    wait_until(lambda: command.metric("corrector_captured_written") == command.metric("corrector_requests_total"), 60)
    monkeypatch.setattr(sys, "argv", ["dataset", str(folder / "first" / "config.yaml"), "--from-capture",
                                      str(folder / "captured"), "--out", str(folder / "again")])
    assert run_command(dataset.main) == 0, capsys.readouterr()
    assert [{row["question"] for row in lines(folder / "again" / f"{name}.jsonl")} for name in Splits._fields] == [
        {*questions[:20]}, {*questions[20:26]}, {*questions[26:]}]
    done = run_train(*TOY, f"run.dir={folder}/second", f"task.data={folder}/again", "task.train=20", "task.validation=6",
                     "task.test=6", "run.steps=3", "eval.keep=last", "eval.every=3", "rollout.group_size=8",
                     "rollout.prompts_per_step=4")
    assert done.returncode == 0, done.stderr[-3000:]
    lead_to(command, "second")
    assert "step 3 of" in command.reload().json()["error"]  # nobody has evaluated it
    evaluated(folder / "second", 3, 1.5, 0.25)

    async def reloaded_in_the_middle() -> list[Answer]:
        asked = asyncio.create_task(ask(command.url, questions * 4))
        await asyncio.to_thread(wait_until, lambda: command.metric("corrector_adapter_in_flight") > 0, 60)
        told, more = await asyncio.gather(asyncio.to_thread(command.reload), ask(command.url, questions * 2))
        assert told.json() == {"step": 3, "before": old_step, "temperature": 1.5, "threshold": 0.25}
        return await asked + more

    during = asyncio.run(reloaded_in_the_middle())
    after = asyncio.run(ask(command.url, questions))
    assert {answer.told["step"] for answer in after} == {"3"}
    assert len(during) == 6 * len(questions)
    assert {answer.told["why"] for answer in during} <= TAKEN
    assert {answer.told["step"] for answer in during} <= {str(old_step), "3"}
    known = {(question, answer.told["step"]): (answer.told["action"], answer.text)
             for some in (before, after) for question, answer in zip(questions, some, strict=True)}
    assert all((a.told["action"], a.text) == known[q, a.told["step"]] for q, a in zip(questions * 6, during, strict=True))
    chain = Chain(folder / "second", threshold=0.25)
    rows = [chain.read({"question": question, "api_answer": "7"}) for question in questions]
    own = chain.answer(rows)
    chain.close()
    assert [(a.told["verdict"], float(a.told["confidence"])) for a in after] == [
        (one.verdict, pytest.approx(one.confidence, abs=2e-4)) for one in own]
    assert [a.text for a in after] == [one.answer for one in own]
    assert {(b.told["confidence"], b.text) for b in before} != {(a.told["confidence"], a.text) for a in after}
