"""rollouts/: which steps it holds, how large it is, and that it is said."""

import shutil

import numpy as np
import pytest
import torch

from grpo.compare.__main__ import main as compare
from grpo.config import load
from grpo.report.__main__ import report
from grpo.run import rundir
from grpo.run.metrics import completion_lines
from grpo.run.records import RunLog
from grpo.run.rollouts import TOKEN, KeptSteps, rollout_files, write_rollout
from grpo.types import Completion, Group, Problem, Prompt, Sample, Score, TokenLog
from symbols.expression import GREEK
from symbols.learning import read_learning
from tests.conftest import lines
from tests.report_run import SMALL, fabricate


def test_of_which_steps_completions_are_kept(tmp_path):
    log = RunLog(tmp_path, 0, 9, KeptSteps(every=4))
    for step in range(1, 10):
        log.completions(step, [{"step": step}] if step % 4 == 1 else iter(lambda: pytest.fail("made for nothing"), None))
    log.close()
    assert {step: lines(path) for step, path in rollout_files(tmp_path / "rollouts").items()} == {
        step: [{"step": step}] for step in (1, 5, 9)}
    assert not list((tmp_path / "rollouts").glob("*.part"))
    for name in ("step-3.jsonl", "step-00003.jsonl.part", f"step-{10**15}.jsonl", "step-00007.jsonl", "step-00002.jsonl"):
        (tmp_path / "rollouts" / name).touch()
    (tmp_path / "rollouts" / "step-00003.jsonl").mkdir()
    assert [*rollout_files(tmp_path / "rollouts")] == [1, 2, 5, 7, 9]  # in order, as a folder's listing need not be
    assert not any(KeptSteps(every=0).has(step) for step in range(1, 10))


@pytest.mark.parametrize(("keys", "every", "gib", "says"), [
    # 16 x 64 completions of at most 2,000 tokens of 15 bytes: 29.3 MiB a step, 28.6 GiB in all
    (["rollout.max_new_tokens=2000"], 10, 2.86, "steps 1, 11, 21, ..., 2.9 GiB at most; records.rollouts=all keeps those "
                                                "of all steps, 28.6 GiB"),
    (["rollout.max_new_tokens=2000", "algorithm.beta=0.1", "algorithm.epochs=2"], 10, 4.01, "steps 1, 11, 21, ..."),
    (["rollout.max_new_tokens=256"], 1, 3.66, "the completions of all steps, 3.7 GiB at most"),
    (["rollout.max_new_tokens=2000", "records.rollouts=all"], 1, 28.6, "the completions of all steps, 28.6 GiB at most"),
    (["records.rollouts=7"], 7, 0.524, "steps 1, 8, 15, ..."),
    (["records.rollouts=none"], 0, 0, "no completions are kept"),
    # 4 GiB a step: of three, every second one is two
    (["rollout.max_new_tokens=279620", "run.steps=3"], 5, 4.0, "steps 1, 6, 11"),
    (["rollout.max_new_tokens=99999999", "run.steps=3"], 5, 1430, "steps 1, 6, 11")])  # one step is more than there may be
def test_the_default_keeps_a_long_run_small_and_says_so(keys, every, gib, says):
    kept = KeptSteps.of(load("configs/vague.yaml", keys))
    assert (kept.every, kept.size / 2**30) == (every, pytest.approx(gib, rel=0.01))
    assert says in str(kept)


def test_a_thinned_run_is_read(tmp_path, capsys):
    """The report has the steps that are there; a step that is not is named."""
    run = tmp_path / "run"
    fabricate(run, *SMALL, "records.rollouts=5", "task.terms=[2,2]", distinct=6)
    assert [int(path.name[5:10]) for path in sorted((run / "rollouts").iterdir())] == [1, 6]
    assert report(run, run / "report.html")
    assert 'id="data-step-6"' in (run / "report.html").read_text()
    assert 'id="data-step-5"' not in (run / "report.html").read_text()
    assert compare([str(run / "rollouts" / "step-00005.jsonl.gz")]) == 2
    assert "no recorded step" in capsys.readouterr().err
    shutil.rmtree(run / "rollouts")  # as records.rollouts=none leaves it, empty or not there
    assert report(run, run / "report.html")
    assert read_learning(run, 6, 24, GREEK).missing == 6


def test_a_resumed_run_may_keep_others():
    rundir.check_unchanged({"records": {"rollouts": 2}}, {}, allowed=())  # one that began before there was the key, too


def test_a_large_step_takes_no_more_than_is_said(tmp_path):
    """Of random tokens, which no compression helps, the prompt once a group. By far the most of it are numbers."""
    rng = np.random.default_rng(0)

    def completion() -> Completion:
        logp = tuple((-rng.random(500) ** 4).tolist())
        return Completion(Sample(tuple(rng.integers(1000, 150_000, 500).tolist()), logp, "stop"), "y" * 1500, Score(0.0))

    prompts = [Prompt(Problem(str(p), "k", ()), (1,), "".join(map(chr, rng.integers(33, 126, 40_000)))) for p in range(2)]
    groups = [Group(prompt, tuple(completion() for _ in range(32))) for prompt in prompts]
    logs = {(p, row): TokenLog((rng.random(500) * -1e-3 + c.sample.logp).tolist(), rng.random(500).tolist())
            for p, group in enumerate(groups) for row, c in enumerate(group.completions)}
    write_rollout(tmp_path, 1, completion_lines(1, groups, torch.zeros(2, 32), logs))
    (path,) = tmp_path.iterdir()
    assert [line.get("prompt") for line in lines(path)[::32]] == [prompt.text for prompt in prompts]
    assert sum("prompt" in line for line in lines(path)) == 2
    assert path.stat().st_size - 80_000 < TOKEN * 2 * 32 * 500
