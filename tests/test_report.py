"""What a report is made of: which steps are in it, the numbers of their tokens, and mistakes that are one line."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from grpo.report.__main__ import main
from grpo.report.page import page as report_page
from grpo.report.records import RolloutLine, read_run
from grpo.report.steps import asked, sample, spread
from grpo.report.tokens import step_tokens
from grpo.rollout import advantages
from grpo.run.metrics import completion_lines
from grpo.types import Completion, Group, Problem, Prompt, Sample, Score, UserError
from grpo.update import Updater
from tests.conftest import lines, randomize, sampled_by, tiny_config, tiny_policy, write_lines
from tests.report_run import small_run


@pytest.fixture(scope="module")
def fabricated(tmp_path_factory) -> Path:
    return small_run(tmp_path_factory.mktemp("report") / "small")


# ---- which steps


def test_steps_are_evenly_spaced_with_the_first_and_the_last():
    assert spread(range(1, 1001), 5) == [1, 251, 501, 750, 1000]
    assert spread([3, 7], 9) == [3, 7]
    assert spread([3, 7, 9], 1) == [9]


@pytest.mark.parametrize(("budget", "expected"), [(10**9, 1000), (40_000, 40), (1, 2)])
def test_the_sample_fits_and_only_what_is_in_it_is_read(budget, expected):
    """Steps take a tenth of their files, later ones a twentieth; the guess is from the files' sizes."""
    read = []
    sizes = dict.fromkeys(range(1, 1001), 10_000)
    steps = sample(sizes, lambda n: read.append(n) or "x" * (1000 if n < 900 else 500), budget)
    assert next(iter(steps)) == 1
    assert list(steps)[-1] == 1000
    assert expected <= len(steps) <= 1.1 * expected
    assert budget == 1 or sum(map(len, steps.values())) <= budget
    assert len(read) == len(set(read)) <= 3 * len(steps)
    gaps = [b - a for a, b in zip(list(steps), list(steps)[1:], strict=False)]
    assert max(gaps) - min(gaps) <= 2


def test_steps_that_are_asked_for():
    assert asked("12,40-42", range(1, 101)) == [12, 40, 41, 42]
    assert asked("99-200", range(1, 101)) == [99, 100]
    for text in ("", "a", "3-", "1,,2", "-1", "1-2-3", "9" * 99):
        with pytest.raises(UserError, match=r"--steps 12,40-60"):
            asked(text, [1])
    with pytest.raises(UserError, match=r"rollouts/ has steps 1 to 100"):
        asked("200", range(1, 101))


# ---- the numbers of a token


def line_of(**changes) -> RolloutLine:
    values = {"problem": "1", "prompt": "p", "token_ids": [7, 8], "logp_sampler": [-1.0, -2.0], "logp_trainer": [-1.0, -2.0],
              "entropy": [0.5, 0.5], "reward": 1.0, "advantage": 0.5, "finish_reason": "stop"}
    return RolloutLine(**(values | changes))


def test_contributions_worked_by_hand():
    """Two groups, 8 tokens. r is e^0.1 on the first token, e^0.5 on the second, which is clipped where A > 0 alone."""
    up, down = (line_of(reward=r, advantage=a, logp_last=[-0.9, -1.5]) for r, a in ((1.0, 0.5), (0.0, -0.5)))
    idle = line_of(logp_trainer=None, entropy=None, advantage=0.0)
    config = tiny_config("rollout.group_size=2", "algorithm.epochs=2")
    tokens = step_tokens([up, down, idle, idle], config.algorithm, config.rollout)
    assert tokens.rows == [0, 1]
    assert tokens.denominators.tokens == 8
    r1, r2 = 1.1051709, 1.6487213
    expected = torch.tensor([[r1 * 0.5 / 8, 0.0], [-r1 * 0.5 / 8, -r2 * 0.5 / 8]]).double()
    torch.testing.assert_close(tokens.contribution_BT, expected, atol=1e-7, rtol=1e-6)
    assert tokens.terms.clipped_BT.tolist() == [[False, True], [False, False]]
    assert tokens.clip_fraction == 0.25
    assert tokens.loss == pytest.approx(-(r1 * 0.5 + 1.2 * 0.5 - r1 * 0.5 - r2 * 0.5) / 8)


def test_masked_completions_and_a_kl_worked_by_hand():
    """The cut completion is out of T = 2. KL k3 = ref/pi - log(ref/pi) - 1: its derivative is 1 - ref/pi."""
    kept = line_of(logp_ref=[-1.0, -2.5])
    config = tiny_config("rollout.group_size=2", "algorithm.beta=0.1", "algorithm.overlong=masked")
    tokens = step_tokens([kept, line_of(finish_reason="length", logp_ref=[0.0, 0.0])], config.algorithm, config.rollout)
    assert tokens.rows == [0]
    assert tokens.denominators.tokens == 2
    slope = 1 - 0.60653066
    torch.testing.assert_close(tokens.from_kl_BT, torch.tensor([[0.0, -0.1 * slope / 2]]).double(), atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(tokens.contribution_BT, torch.tensor([[0.25, 0.25 - 0.1 * slope / 2]]).double(),
                               atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("algorithm", [
    (), ("algorithm.epochs=3", "algorithm.loss=dual_clip"), ("algorithm.preset=gspo", "algorithm.epochs=2"),
    ("algorithm.preset=grpo", "algorithm.epochs=2", "algorithm.beta=0.1"),
    ("algorithm.preset=cispo", "algorithm.epochs=2", "algorithm.eps_high=0.05", "algorithm.correction=truncated"),
    ("algorithm.preset=dr_grpo", "algorithm.epochs=2", "algorithm.overlong=masked", "algorithm.correction=masked")])
def test_a_recorded_step_gives_its_metrics_again(algorithm):
    """The real update on random tokens: loss and clip fraction from the records are metrics.jsonl's, to rounding."""
    config = tiny_config("rollout.group_size=4", "optim.lr=3e-3", "optim.warmup=0", "train.compile=never", *algorithm)
    policy = tiny_policy(config)
    randomize(policy, 0.05)
    generator = torch.Generator().manual_seed(5)
    groups = sampled_by(policy, [Group(Prompt(Problem(str(p), "custom", ()), (5, 6, 7 + p), "p"), tuple(
        Completion(Sample(tuple(torch.randint(3, 480, (4 + n,), generator=generator).tolist()), (0.0,) * (4 + n),
                          "length" if n == 3 else "stop"), "", Score(float(n == 0 or p == 2)))
        for n in range(4))) for p in range(3)])
    advantages_PG = advantages(groups, config)
    metrics, logs = Updater(policy, config).step(1, groups, advantages_PG)
    recorded = [RolloutLine.model_validate_json(json.dumps(line))
                for line in completion_lines(1, groups, advantages_PG, logs)]
    tokens = step_tokens(recorded, config.algorithm, config.rollout)
    assert tokens.loss == pytest.approx(metrics["loss"], rel=1e-4, abs=3e-5)
    assert tokens.clip_fraction == pytest.approx(metrics["policy/clip_fraction"], abs=1e-6)
    assert tokens.mask_BT.sum() == metrics["tokens/trained"]
    if config.algorithm.epochs > 1:
        assert metrics["policy/clip_fraction"] > 0
        assert (tokens.terms.ratio_BT[tokens.mask_BT] - 1).abs().max() > 0.01
    if config.algorithm.beta > 0:
        assert tokens.terms.kl_BT[tokens.mask_BT].mean().item() == pytest.approx(metrics["policy/kl_ref"], rel=1e-3)


# ---- mistakes


def damage(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.unlink()  # others may be links to it
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(("what", "says"), [
    ("none", "no run there"), ("empty", "no step is recorded there yet"), ("metrics", "metrics.jsonl: line 1: "),
    ("cut", "metrics.jsonl: line 6: cut short"), ("infinite", "metrics.jsonl: line 1: "),
    ("rollout", "step-00001.jsonl.gz: line 1: "), ("numbers", "entropy has 1 numbers for"),
    ("group", "step-00001.jsonl.gz: 23 lines, expected 24"), ("more", "more than 24 lines, expected 24"),
    ("prompt", "line 9: prompt: missing"), ("plain", "line 1: no gzip data, or cut short; delete the file"),
    ("half", "no gzip data, or cut short"), ("flipped", "step-00001.jsonl.gz: line 1: "), ("lora", "lora.jsonl: line 1: "),
    ("evaluation", "evaluation.json: "), ("validation", "evaluation.json: validation"), ("kept", "evaluation.json: kept"),
    ("compare", "step-00002.json: "), ("config", "config.yaml"),
    ("--steps=77", "recorded no such step"), ("--steps=x", "steps and ranges were expected"),
    ("--out=/nowhere/at/all.html", "its folder does not exist")])
def test_mistakes_are_one_line(fabricated, tmp_path, capsys, what, says):
    run = tmp_path / "run"
    if what != "none":
        shutil.copytree(fabricated, run)
    (run / "report.html").unlink(missing_ok=True)
    first = run / "rollouts" / "step-00001.jsonl.gz"
    {"empty": lambda: (run / "metrics.jsonl").write_text(""),
     "metrics": lambda: damage(run / "metrics.jsonl", '"step": 1', '"step": "1"'),
     "cut": lambda: (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text()[:-9]),
     "infinite": lambda: damage(run / "metrics.jsonl", '"loss": -', '"loss": -Infinity, "x": '),
     "rollout": lambda: write_lines(first, [{**lines(first)[0], "token_ids": ["x"]}]),
     "numbers": lambda: write_lines(first, [{**lines(first)[0], "entropy": [1.0]}]),
     "group": lambda: write_lines(first, lines(first)[:23]),
     "more": lambda: write_lines(first, lines(first) * 2),
     "prompt": lambda: write_lines(first, lines(first)[:8] + lines(first)[9:] + lines(first)[:1]),
     "plain": lambda: first.write_text("{}"),
     "half": lambda: first.write_bytes(first.read_bytes()[:-2000]),
     "flipped": lambda: first.write_bytes(first.read_bytes()[:300] + b"garbage" + first.read_bytes()[307:]),
     "lora": lambda: damage(run / "lora.jsonl", "[", "["*50_000),
     "evaluation": lambda: (run / "evaluation.json").write_text('{"steps": 3}'),
     "validation": lambda: (run / "evaluation.json").write_text('{"steps": [], "validation": [{"step": "0"}]}'),
     "kept": lambda: (run / "evaluation.json").write_text('{"steps": [], "kept": 1e400}'),
     "compare": lambda: (run / "compare" / "step-00002.json").write_text("{}"),
     "config": lambda: (run / "config.yaml").write_text("run: [")}.get(what, lambda: None)()
    assert main([str(run), *([what] if what.startswith("--") else [])]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", printed.err)
    assert says in printed.err
    assert not (run / "report.html").exists()


def test_a_run_without_its_tokenizer_shows_ids(fabricated, tmp_path):
    shutil.copytree(fabricated, tmp_path / "run")
    damage(tmp_path / "run" / "config.yaml", "models/tiny", "models/none")
    html = report_page(read_run(tmp_path / "run"))
    assert "models/none holds no tokenizer here" in html
    assert '<script type="application/json" id="data-texts">{}</script>' in html
