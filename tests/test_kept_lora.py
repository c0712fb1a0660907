"""What a finished run says of the LoRA it kept, and which one a reader of a run takes, whatever state the run is in."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from adapter.trained import TrainedAdapter
from grpo.guards.parity import SyncError
from grpo.policy import Policy
from grpo.run.evaluations import Evaluations
from grpo.run.files import new_directory
from grpo.types import Problem, Prompt, Reference, Sample, UserError
from tests.conftest import ROOT, tiny_config, tiny_policy
from tests.kept_run import Run, damage

# ---- evaluation.json and the table


def finished(path: Path, validation: dict[int, float], kept: int) -> Evaluations:
    found = Evaluations(path, {"api": Reference("the API", {"word": 0.25, "overall": 0.25})}, 1)
    for step, value in validation.items():
        found.add("validation", step, {"word": value, "overall": value})
    for step in {0, kept}:
        found.add("test", step, {"word": step / 100, "overall": step / 100})
    found.keep(kept)
    return found


@pytest.mark.parametrize(("validation", "kept", "last"), [
    ({0: 0.5, 40: 0.975, 60: 0.9}, 40, "step 40 was best on validation (97.5 % overall), of 3 measured"),
    ({0: 0.5, 40: 0.975, 60: 0.9}, 60, "step 40 was best on validation (97.5 % overall), of 3 measured; step 60 is kept"),
    ({0: 0.5, 60: 0.25}, 0, "step 0 was best on validation (50.0 % overall), of 2 measured: nothing better was learned, and "
                            "adapter/ holds step 0's LoRA, B = 0")])
def test_the_table_says_which_step_is_kept_and_why(tmp_path, validation, kept, last):
    lines = str(finished(tmp_path / "evaluation.json", validation, kept)).splitlines()
    label = f"adapter, step {kept} (kept)"
    assert lines == [f"{'':<{len(label)}}        word     overall", f"{'the API':<{len(label)}}      25.0 %      25.0 %",
                     f"{'base, before GRPO':<{len(label)}}       0.0 %       0.0 %",
                     f"{label}{kept:>8}.0 %{kept:>8}.0 %", last]


def test_the_file_names_the_kept_step_only_while_adapter_is_of_it(tmp_path):
    path = tmp_path / "evaluation.json"
    finished(path, {0: 0.5, 40: 0.975, 60: 0.9}, 40)
    text = json.loads(path.read_text())
    assert list(text) == ["api", "steps", "validation", "kept"]
    assert [row["step"] for row in text["steps"]] == [0, 40]
    assert text["kept"] == 40
    again = Evaluations(path, {}, 61)
    assert "kept" not in json.loads(path.read_text())  # a run that goes on may end with another
    assert (again.has("test", 40), again.has("test", 60), again.has("validation", 60)) == (True, False, True)
    assert [row["step"] for row in Evaluations(path, {}, 60).rows["validation"]] == [0, 40]
    again.add("test", 20, {"overall": 0.5})  # in the order of steps, though measured later
    assert [row["step"] for row in json.loads(path.read_text())["steps"]] == [0, 20, 40]


# ---- the base, beside it


def test_an_error_while_the_base_answers_is_told_and_the_lora_answers_next(run):
    """vLLM with requests in it keeps its prefix cache, and refuses a swap."""
    adapter, served = written(run, kept=40, adapter=40), []

    class Engine:
        def swap_lora(self, lora):
            if served and served[-1] is None:
                served.append("refused")
                raise SyncError("vLLM kept its prefix cache")
            served.append(any(t.any() for t in lora.values()))

        def greedy(self, prompts):
            return []

    adapter._engine = Engine()
    adapter.complete([])
    with adapter.base_only():
        adapter.complete([])
    adapter.complete([])
    adapter.complete([])
    assert served == [False, True]  # zeros, then the LoRA; once each

    def interrupted():
        with adapter.base_only():
            adapter.complete([])
            served.append(None)  # a request is left in the engine
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(SyncError):
        adapter.complete([])  # no answer of the base in the adapter's name
    adapter.complete([])
    assert served == [False, True, False, None, "refused", True]
    served.append(None)
    with pytest.raises(SyncError), adapter.base_only():
        adapter.complete([])
    adapter.complete([])
    assert served[6:] == [None, "refused", True]  # whichever the refused swap left


# ---- what a reader takes


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(tiny_config())


@pytest.fixture
def run(policy, tmp_path) -> Run:
    return Run(tmp_path, policy)


def written(run: Run, steps: int = 60, kept: int | None = None, keep: str = "best", **loras: int) -> TrainedAdapter:
    """A run of so many steps, read. loras: in which folder there is which step's; "best" and "checkpoint" are of theirs."""
    config = tiny_config(f"run.steps={steps}", f"eval.keep={keep}", f"model.path={ROOT}/models/tiny")
    (run.folder / "config.yaml").write_text(config.dump())
    table = {"step": 0, "overall": 0.5}
    (run.folder / "evaluation.json").write_text(json.dumps(
        {"api": {"overall": 0.5}, "steps": [table], "validation": [table]} | ({} if kept is None else {"kept": kept})))
    if "adapter" in loras:
        with new_directory(run.folder / "adapter") as part:
            run.at(loras["adapter"]).save(part)
    if "best" in loras:
        with new_directory(run.folder / "best" / f"step-{loras['best']:05d}") as part:
            run.at(loras["best"]).save(part)
    if "checkpoint" in loras:
        run.checkpoint(loras["checkpoint"])
    return TrainedAdapter(run.folder)


@pytest.mark.parametrize(("given", "folder", "step", "until"), [
    # finished; then its other LoRAs deleted; or a checkpoint kept that a higher run.steps wrote
    ({"kept": 40, "adapter": 40, "best": 40, "checkpoint": 60}, "adapter", 40, 60),
    ({"kept": 40, "adapter": 40}, "adapter", 40, 60),
    ({"kept": 40, "adapter": 40, "checkpoint": 60}, "adapter", 40, 60),
    ({"kept": 40, "adapter": 40, "best": 40, "checkpoint": 60, "steps": 50}, "adapter", 40, 60),
    ({"kept": 0, "adapter": 0, "best": 0, "checkpoint": 60}, "adapter", 0, 60),
    ({"kept": 60, "adapter": 60, "checkpoint": 60, "keep": "last"}, "adapter", 60, 60),
    # never finished: in its course, before the first best one was saved, in its last evaluation
    ({"best": 20, "checkpoint": 30}, "best/step-00020", 20, 30),
    ({"best": 40, "checkpoint": 30}, "best/step-00040", 40, 40),
    ({"best": 0}, "best/step-00000", 0, 0),
    ({"best": 40, "checkpoint": 60}, "best/step-00040", 40, 60),
    ({"checkpoint": 30}, "checkpoints/step-00030", 30, 30),
    ({"checkpoint": 30, "keep": "last"}, "checkpoints/step-00030", 30, 30),
    ({"best": 20, "checkpoint": 30, "keep": "last"}, "checkpoints/step-00030", 30, 30),
    # finished, then extended: just begun, in its course, in its last evaluation; adapter/ is of the earlier end
    ({"steps": 90, "kept": 40, "adapter": 40, "best": 40, "checkpoint": 60}, "best/step-00040", 40, 60),
    ({"steps": 90, "adapter": 40, "best": 70, "checkpoint": 80}, "best/step-00070", 70, 80),
    ({"steps": 90, "adapter": 40, "best": 70, "checkpoint": 90}, "best/step-00070", 70, 90),
    ({"steps": 90, "adapter": 60, "checkpoint": 90, "keep": "last"}, "checkpoints/step-00090", 90, 90),
    ({"steps": 90, "adapter": 60, "checkpoint": 80, "keep": "last"}, "checkpoints/step-00080", 80, 80),
    # of before there was a validation split: finished, copied without its checkpoints, unfinished, extended
    ({"adapter": 60, "checkpoint": 60}, "adapter", 60, 60), ({"adapter": 60}, "adapter", 60, 60),
    ({"steps": 90, "adapter": 60, "checkpoint": 70}, "checkpoints/step-00070", 70, 70),
    ({"steps": 90, "adapter": 60, "checkpoint": 90}, "checkpoints/step-00090", 90, 90)])
def test_the_lora_that_the_run_keeps_is_read(run, given, folder, step, until):
    found = written(run, **given)
    assert (found.folder, found.step, found.until) == (run.folder / folder, step, until)
    assert run.holds(folder, step)
    assert all(torch.equal(tensor, run.policy.lora()[name]) for name, tensor in found.lora().items())


def test_a_kept_step_beyond_the_run_is_refused(run):
    with pytest.raises(UserError, match=r"evaluation\.json: kept is 61, and the run has 60 steps; delete the file"):
        written(run, kept=61, adapter=60, checkpoint=60)


@pytest.mark.parametrize("place", ["adapter", "best/step-00040", "checkpoints/step-00060"])
def test_a_damaged_lora_is_not_read(run, place):
    folders = {"adapter": {"kept": 40, "adapter": 40}, "best/step-00040": {"best": 40}, "checkpoints/step-00060": {
        "adapter": 40, "checkpoint": 60, "steps": 90}}
    written(run, **folders[place])
    damage(run.folder / place)
    with pytest.raises(UserError, match=r"no LoRA that can be read|no complete checkpoint"):
        TrainedAdapter(run.folder)


# ---- how long prompts and completions may be


class Engine:
    """In vLLM's place: how many tokens it was started for."""

    def __init__(self, chat, config, context: int):
        self.context = context

    def serve(self, policy) -> None:
        pass

    def greedy(self, prompts):
        return [Sample((2,), (0.0,), "stop") for _ in prompts]


@pytest.mark.parametrize(("positions", "new", "first", "then", "context"), [
    (32768, 4000, 200, 4096, 8096), (32768, 28000, 200, 4096, 32096),  # what trains, with a prompt of 200, is asked as well
    (32768, 28000, 4700, 4700, 32700), (32768, 32500, 268, 268, 32768), (1024, 96, 200, 928, 1024)])
def test_what_was_trained_on_can_be_asked(run, tmp_path, monkeypatch, positions, new, first, then, context):
    base = shutil.copytree(ROOT / "models" / "tiny", tmp_path / "base")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": positions}))
    written(run, kept=60, adapter=60)
    text = (run.folder / "config.yaml").read_text()
    (run.folder / "config.yaml").write_text(re.sub("path: .*", f"path: {base}", re.sub(
        "max_new_tokens: .*", f"max_new_tokens: {new}", text)))
    monkeypatch.setattr("grpo.sampler.Sampler", Engine)
    adapter = TrainedAdapter(run.folder)
    monkeypatch.setattr(adapter, "encode", lambda problem: Prompt(problem, (7,) * int(problem.name), ""))
    assert [c.truncated for c in adapter.complete([Problem(str(first), "custom", ())])] == [False]
    assert adapter._engine.context == context
    adapter.complete([Problem(str(then), "custom", ())])
    with pytest.raises(UserError, match=f"its prompt has {then + 1} tokens; at most {then} leave the adapter room"):
        adapter.complete([Problem(str(then + 1), "custom", ())])
