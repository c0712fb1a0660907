"""python -m grpo.compare on real recorded steps, and a run that uses every kind of variant at once."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from grpo.compare.__main__ import main, possible
from grpo.compare.batch import read_batch
from grpo.compare.variants import sampled_logps, variant
from grpo.config import load
from grpo.guards.kept import keep
from grpo.presets import PRESETS
from grpo.report.records import read_rollout
from grpo.report.tokens import step_tokens
from grpo.types import UserError
from grpo.update import Updater
from tests.conftest import TOY, lines, train_here


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    """A copy of the toy run, to write into."""
    return shutil.copytree(toy[0], tmp_path_factory.mktemp("compare") / "run")


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """Refills, two epochs, KL to the base, mismatch correction, overlong penalty: a real run, with every checkpoint."""
    folder = tmp_path_factory.mktemp("varied") / "run"
    done = train_here(*TOY, "algorithm=dapo", "algorithm.epochs=2", "algorithm.beta=0.02", "algorithm.kl=unbiased",
                      "algorithm.correction=masked", f"run.dir={folder}", "run.steps=3", "eval.every=9", "optim.warmup=0",
                      "checkpoint.every=1", "checkpoint.keep=3", "rollout.group_size=16")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def compared(run, step: int, *arguments: str) -> dict:
    assert main([str(run / "rollouts" / f"step-{step:05d}.jsonl.gz"), *arguments]) == 0
    return json.loads((run / "compare" / f"step-{step:05d}.json").read_text())


def test_at_the_policy_that_sampled_the_numbers_are_the_runs_own(run, capsys):
    """With no update in between: every ratio is 1, weights are advantages, the gradient is the one the run had."""
    found = compared(run, 1, "--updates", "0", "dapo", "maxrl", "rloo", "loss=reinforce", "loss=cispo")
    variants = {v["name"]: v for v in found["variants"]}
    own, recorded = variants["the run's own"], lines(run / "metrics.jsonl")[0]
    assert own["grad_norm"] == pytest.approx(recorded["policy/grad_norm"], rel=1e-3)
    assert own["tokens"] == recorded["tokens/trained"]
    assert all(v["clipped"] == 0 for v in variants.values())
    for name in ("dapo", "loss=reinforce", "loss=cispo"):  # all the plain policy gradient at r = 1
        assert variants[name]["grad_norm"] == pytest.approx(own["grad_norm"], rel=1e-4)
    rollout = lines(run / "rollouts" / "step-00001.jsonl.gz")
    for p, group in enumerate(own["groups"]):
        of = rollout[32 * p : 32 * (p + 1)]
        right = [line for line in of if line["reward"] > 0]
        assert (group["right"], group["of"], group["problem"]) == (len(right), 32, of[0]["problem"])
        if 0 < len(right) < 32:
            assert group["success"] == pytest.approx(right[0]["advantage"], rel=1e-3)
            assert variants["maxrl"]["groups"][p]["success"] == pytest.approx(32 / len(right) - 1, rel=1e-3)
            assert variants["maxrl"]["groups"][p]["failure"] == pytest.approx(-1, rel=1e-3)
        elif len(right) == 32:
            assert group["success"] is None
            assert group["failure"] is None
    assert found["cosine"][0][1] == pytest.approx(1, abs=1e-5)
    assert 0 < found["cosine"][0][2] < 0.9999
    assert "maxrl" in capsys.readouterr().out


def test_after_an_update_ratios_differ_and_tight_bounds_clip(varied):
    found = compared(
        varied, 3, "gspo", "gspo,eps_low=0.9,eps_high=9", "dapo,eps_low=1e-5,eps_high=1e-5", "advantage=centred")
    own, gspo, wide, tight, centred = found["variants"]
    assert found["updates"] == 1
    assert own["clipped"] < tight["clipped"]  # narrower bounds clip what wider ones do, and more
    assert wide["clipped"] < gspo["clipped"]
    assert [own["settings"]["advantage"], centred["settings"]["advantage"]] == ["grpo", "centred"]
    assert gspo["paper"] == "arXiv 2507.18071"
    cosine = torch.tensor([[float("nan") if c is None else c for c in row] for row in found["cosine"]])
    assert cosine[1].isnan().all() == (gspo["grad_norm"] == 0)  # nothing has an angle with no gradient
    has = [n for n, v in enumerate(found["variants"]) if v["grad_norm"] > 0]
    assert len(has) >= 4
    cosine = cosine[has][:, has]
    torch.testing.assert_close(cosine, cosine.T)
    torch.testing.assert_close(cosine.diagonal(), torch.ones(len(has)), atol=1e-5, rtol=0)


def test_the_policy_is_the_one_that_sampled(varied):
    """The checkpoint before the step gives every token the log-prob that the run's trainer gave it."""
    logp = sampled_logps(read_batch(varied / "rollouts" / "step-00003.jsonl.gz", None))
    for at, line in enumerate(lines(varied / "rollouts" / "step-00003.jsonl.gz")):
        assert logp[divmod(at, 16)] == pytest.approx(line["logp_trainer"], abs=1e-4)


def test_another_lora_than_the_one_that_sampled_is_noticed(varied, tmp_path, capsys):
    changed = shutil.copytree(varied, tmp_path / "run")
    shutil.rmtree(changed / "checkpoints" / "step-00002")
    shutil.copytree(changed / "checkpoints" / "step-00003", changed / "checkpoints" / "step-00002")
    assert main([str(changed / "rollouts" / "step-00003.jsonl.gz")]) == 1
    assert "vLLM's log-probs differ from the trainer's" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "words"), [
    (["rollouts/step-00005.jsonl.gz"], "steps that can be compared: 1, 17; checkpoint.every"),
    (["rollouts/step-00099.jsonl.gz"], "no recorded step; name a file such as"),
    (["config.yaml"], "no recorded step"), (["repro/step-00001.safetensors"], "no step that a run kept"),
    (["rollouts/step-00001.jsonl.gz", "dapi"], "algorithm.preset = 'dapi'"),
    (["rollouts/step-00001.jsonl.gz", "eps_high=["], "eps_high=[: no key=value"),
    (["rollouts/step-00001.jsonl.gz", "eps_high={a: 1"], "no key=value"),
    (["rollouts/step-00001.jsonl.gz", "dapo,eps"], "eps: expected a preset, then key=value"),
    (["rollouts/step-00001.jsonl.gz", "eps_hi=0.3"], "algorithm.eps_hi: unknown key; did you mean eps_high?"),
    (["rollouts/step-00001.jsonl.gz", "--updates", "-1"], "--updates -1: expected 0 or more")])
def test_mistakes_are_one_line(run, capsys, arguments, words):
    assert main([str(run / arguments[0]), *arguments[1:]]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_the_step_that_stopped_a_run_is_compared_unless_its_policy_had_moved(run, capsys):
    batch = read_batch(run / "rollouts" / "step-00001.jsonl.gz", None)
    updater = Updater(batch.policy, batch.config)
    path = keep(run / "repro", 1, updater, batch.groups, "a test says so")
    assert int.from_bytes(path.read_bytes()[:8], "little") < 10_000  # a header of 100 MB, as completions have, is not read
    assert main([str(path), "maxrl"]) == 0
    assert "maxrl" in capsys.readouterr().out
    updater.logp_old = {(0, 0): [-1.0]}  # as in a second epoch
    assert main([str(keep(run / "repro", 1, updater, batch.groups, "a test says so"))]) == 2
    assert "stopped in its second epoch or later" in capsys.readouterr().err


def test_maxrl_is_left_out_of_all_presets_where_a_reward_is_negative(run, capsys):
    batch = read_batch(run / "rollouts" / "step-00001.jsonl.gz", None)
    assert possible(batch) == list(PRESETS)
    completion = batch.groups[0].completions[0]
    below = replace(batch.groups[0], completions=(
        replace(completion, score=replace(completion.score, reward=-1.0)), *batch.groups[0].completions[1:]))
    assert set(possible(replace(batch, groups=[below, *batch.groups[1:]]))) == set(PRESETS) - {"maxrl"}
    assert "maxrl is left out" in capsys.readouterr().out


def test_a_variant_is_a_preset_with_keys_on_top_or_the_runs_own_with_keys(run):
    config = load(run / "config.yaml")
    assert variant(config, "dapo").algorithm.eps_high == 0.28
    assert variant(config, "dapo,eps_high=0.4").algorithm.eps_high == 0.4
    own = variant(config, "advantage=maxrl,overlong=masked").algorithm
    assert own == config.algorithm.model_copy(update={"advantage": "maxrl", "overlong": "masked"})
    assert variant(config, "preset=dapo") == variant(config, "dapo")
    dapo = config.model_copy(update={"algorithm": variant(config, "dapo").algorithm})
    assert variant(dapo, "advantage=rloo").algorithm.preset is None  # what it is now has no paper
    assert variant(dapo, "advantage=rloo").algorithm.refills == 3
    with pytest.raises(UserError, match="needs rewards of 0 or more"):
        variant(config, "maxrl,overlong=penalised")


def test_every_kind_of_variant_trains_and_is_recorded(varied):
    steps, config = lines(varied / "metrics.jsonl"), load(varied / "config.yaml")
    assert steps[0]["groups/replaced"] > 0  # the base knows the standard operators: all right, no signal
    assert steps[0]["policy/kl_ref"] > 0  # after the first of two updates
    assert (config.algorithm.preset, config.algorithm.eps_high, config.algorithm.beta) == ("dapo", 0.28, 0.02)
    for step, metrics in enumerate(steps, 1):
        assert metrics["policy/correction"] == pytest.approx(1, abs=0.01)
        read = read_rollout(varied / "rollouts" / f"step-{step:05d}.jsonl.gz", config.rollout)
        assert any(line.logp_last != line.logp_trainer for line in read)
        assert all(line.logp_ref for line in read)
        found = step_tokens(read, config.algorithm, config.rollout)
        assert found.clip_fraction == pytest.approx(metrics["policy/clip_fraction"], abs=2e-3)
        assert found.loss == pytest.approx(metrics["loss"], abs=1e-4)
        assert len(lines(varied / "lora.jsonl")[step - 1]["modules"]) == 28
