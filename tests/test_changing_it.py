"""docs/changing-it.md, done: its blocks go where they say, in a copy of the repository, and its commands are run."""

import json
import math
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from grpo.run.tasks import load_class
from grpo.types import Problem
from tests.conftest import LONG, ROOT, lines

DOCUMENT = ROOT / "docs" / "changing-it.md"
BLOCK = re.compile(r"(?:`([\w./-]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.S | re.M)
COPIED = ("grpo", "adapter", "symbols", "configs", "models", "train.py", "pyproject.toml")


class Step(NamedTuple):
    """Something to do: write or change the file at `path`, or run commands (kind sh)."""

    path: str
    kind: str
    text: str


def steps(number: int) -> list[Step]:
    """What exercise 1, 2 or 3 asks for, in its order."""
    section = re.split(r"^## \d", DOCUMENT.read_text(), flags=re.M)[number]
    return [Step(*found) for found in BLOCK.findall(section)]


def do(step: Step, folder: Path) -> list[subprocess.CompletedProcess]:
    """A step in a copy of the repository, and what its commands said."""
    path = folder / step.path
    if step.kind == "sh":
        return [run(command, folder) for command in step.text.splitlines()]
    assert step.path, f"no file is named above {step.text[:80]!r}"
    if step.kind == "diff":
        before, after = ("".join(f"{line[1:]}\n" for line in step.text.splitlines() if line[0] in kept)
                         for kept in (" -", " +"))
        there = path.read_text()
        assert there.count(before) == 1, f"{step.path} has no such lines: {before}"
        path.write_text(there.replace(before, after))
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text(step.text)
    return []


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    """`python ...`, in the folder."""
    program, *arguments = shlex.split(command)
    assert program == "python"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONPATH"))}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=clean, capture_output=True, text=True, timeout=LONG,
                          check=False)


def done(said: list[subprocess.CompletedProcess]) -> None:
    for process in said:
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-3000:]


@pytest.fixture
def copy(tmp_path) -> Path:
    """What the exercises may change."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in COPIED:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    return folder


def test_a_new_advantage(copy):
    exercise = steps(1)
    assert [(s.path, s.kind) for s in exercise] == [("grpo/advantage.py", "diff"), ("grpo/config.py", "diff"),
                                                    ("tests/test_median.py", "python"), ("", "sh")]
    for step in exercise:
        done(do(step, copy))
    metrics = lines(copy / "runs" / "median" / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [1, 2]
    assert metrics[0]["tokens/trained"] > 0
    assert "advantage: median" in (copy / "runs" / "median" / "config.yaml").read_text()
    seen = set()
    sampled = lines(copy / "runs" / "median" / "rollouts" / "step-00001.jsonl.gz")
    for group in (sampled[at : at + 8] for at in range(0, len(sampled), 8)):
        middle = statistics.median(c["reward"] for c in group)
        assert [c["advantage"] for c in group] == [c["reward"] - middle for c in group]
        assert all((c["logp_trainer"] is not None) == any(x["advantage"] for x in group) for c in group)
        seen |= {c["advantage"] for c in group}
    assert len(seen) > 1
    refused = run("python train.py configs/tiny.yaml algorithm.advantage=medain", copy)
    assert refused.returncode == 2
    assert "algorithm.advantage = 'medain'" in refused.stderr
    assert "'median'" in refused.stderr


def test_a_new_task(copy):
    exercise = steps(2)
    assert [(s.path, s.kind) for s in exercise] == [("ledger.py", "python"), ("ledger.yaml", "yaml"), ("", "sh")]
    for step in exercise:
        said = do(step, copy)
        done(said)
    metrics = lines(copy / "runs" / "ledger" / "metrics.jsonl")
    assert {"reward/charge", "reward/refund"} <= metrics[0].keys()
    assert metrics[0]["reward/mean"] < 0.6
    assert metrics[-1]["reward/mean"] > 0.8
    assert all("the API, which is silent" in process.stdout for process in said)
    after = json.loads((copy / "runs" / "ledger" / "evaluation.json").read_text())["steps"][-1]
    assert (after["step"], after["overall"]) == (8, pytest.approx(1.0, abs=0.3))
    refused = run("python train.py ledger.yaml task.larges=50", copy)
    assert refused.returncode == 2
    assert "largest" in refused.stderr


@pytest.mark.parametrize(("text", "reward", "unparsed", "answers"), [
    ("θ = + ; \\boxed{19}", 1.0, False, 1), ("\\boxed{5} \\boxed{19}", 1.0, False, 2),
    ("\\boxed{19} \\boxed{5}", 0.0, False, 2),
    ("\\boxed{none}", 0.0, True, 1), ("19", 0.0, True, 0), ("\\boxed{19} \\boxed{}", 0.0, True, 2), ("", 0.0, True, 0)])
def test_the_ledgers_scores_by_hand(text, reward, unparsed, answers, tmp_path):
    (tmp_path / "ledger.py").write_text(steps(2)[0].text)
    ledger = load_class(f"{tmp_path}/ledger.py:Ledger")
    task = ledger(ledger.Settings(train=6, test=4), seed=1)
    score = task.score(Problem("12 θ 7", "charge", (), "19"), text)
    assert (score.reward, score.unparsed, score.answers) == (reward, unparsed, answers)
    assert [p.kind for p in (*task.train, *task.test)] == ["charge", "refund"] * 5
    assert len({p.name for p in (*task.train, *task.test)}) == 10
    for p in task.train:
        a, sign, b = p.name.split()
        assert int(p.data) == int(a) + (int(b) if sign == "θ" else -int(b))


def test_a_new_sampler_and_one_that_samples_from_another_distribution(copy):
    *exercise, another = steps(3)
    assert [(s.path, s.kind) for s in exercise] == [("generate_sampler.py", "python"), ("train_by_generate.py", "python"),
                                                    ("", "sh")]
    for step in exercise:
        said = do(step, copy)
        done(said)
    assert "self-test:" in said[0].stdout
    metrics = lines(copy / "runs" / "generate" / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [1, 2]
    trained = [m for m in metrics if m["tokens/trained"]]
    assert trained
    assert all(m["parity/logp_mean_abs_diff"] < 1e-5 for m in trained)
    sampled = lines(copy / "runs" / "generate" / "rollouts" / "step-00001.jsonl.gz")
    assert len(sampled) == 3 * 8
    assert len({tuple(line["token_ids"]) for line in sampled}) > 3
    assert all(line["token_ids"][-1] == 2 and 2 not in line["token_ids"][:-1] for line in sampled
               if line["finish_reason"] == "stop")
    do(another, copy)
    (stopped,) = do(exercise[-1], copy)
    assert stopped.returncode == 1, stopped.stderr[-3000:]
    found = re.search(r"stopped: .*log-probs differ from the trainer's by (\S+) nats on average", stopped.stderr)
    assert 0.2 * math.log(4 / 3) / 22 < float(found[1]) < 5 * math.log(4 / 3) / 22
