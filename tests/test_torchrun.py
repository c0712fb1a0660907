"""`torchrun train.py`, with a real engine a rank: the same run as one process's, and what happens when a rank is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from grpo.guards import checkpoint
from tests.conftest import LONG, ROOT, TOY, lines, train_here
from tests.test_docs import RANKS

TWO = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
RUN = (*TOY, "eval.every=10", "checkpoint.every=50")


def start(log: Path, *arguments: str, restarts: int = 0) -> subprocess.Popen:
    with log.open("ab") as output:
        return subprocess.Popen([*TWO, f"--max-restarts={restarts}", "train.py", *RUN, *arguments], cwd=ROOT, stdout=output,
                                stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})


def kill_rank(launcher: subprocess.Popen, rank: int, folder: Path, after: int) -> None:
    """kill -9 a rank once a step is recorded."""
    while steps_of(folder) < after:
        assert launcher.poll() is None
        time.sleep(0.05)
    workers = [p for p in psutil.Process(launcher.pid).children() if "train.py" in p.cmdline()]
    workers.sort(key=lambda p: int(p.environ()["RANK"]))
    assert len(workers) == 2
    workers[rank].send_signal(signal.SIGKILL)


def steps_of(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def lost(tmp_path_factory) -> tuple[Path, Path]:
    """A run of two ranks, the second of which is killed after three steps, and what was printed."""
    folder, log = tmp_path_factory.mktemp("ranks") / "run", tmp_path_factory.mktemp("ranks") / "log"
    launcher = start(log, f"run.dir={folder}", "run.steps=20")
    kill_rank(launcher, 1, folder, after=3)
    assert launcher.wait(timeout=LONG) == 1, log.read_text()[-3000:]  # not the half hour that ranks wait for each other
    return folder, log


def test_two_ranks_sample_what_one_process_samples(lost, toy):
    for step in (1, 2, 3):
        ours, theirs = (lines(run / "rollouts" / f"step-{step:05d}.jsonl.gz") for run in (lost[0], toy[0]))
        for name in ("problem", "token_ids", "reward", "advantage", "finish_reason"):
            assert [line[name] for line in ours] == [line[name] for line in theirs], (step, name)
    assert all(lines(lost[0] / "metrics.jsonl")[0][key] > 0 for key in RANKS)
    for ours, theirs in list(zip(*(lines(run / "metrics.jsonl") for run in (lost[0], toy[0])), strict=False))[:3]:
        assert ours["policy/grad_norm"] == pytest.approx(theirs["policy/grad_norm"], rel=1e-4)
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
        for name in ("reward/custom", "groups/mixed", "tokens/trained", "completion/mean_tokens", "policy/lr"):
            assert ours[name] == theirs[name]


def test_a_lost_rank_ends_the_job_and_no_finished_step_is_lost(lost):
    folder, log = lost
    text = log.read_text()
    found, _ = checkpoint.newest(folder / "checkpoints")
    assert found.name == f"step-{steps_of(folder):05d}"
    assert "exitcode  : -9" in text  # torchrun's summary names the one that was lost
    assert "stopped: another rank has ended" in text or "interrupted by SIGTERM" in text
    assert text.count("Traceback") == 1  # torchrun's own, around that summary
    assert text.count("2 ranks, gradients over gloo") == 1


def test_a_checkpoint_of_two_ranks_goes_on_with_one(lost):
    folder, _ = lost
    done = steps_of(folder)
    alone = train_here(*RUN, f"run.dir={folder}", f"run.steps={done + 1}", "--resume")
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert [line["step"] for line in lines(folder / "metrics.jsonl")] == list(range(1, done + 2))


def test_torchrun_restarts_and_the_run_goes_on_where_it_was(tmp_path):
    """--resume begins a run where there is none; rank 0 is killed, whose steps since the last checkpoint are done again."""
    folder, log = tmp_path / "run", tmp_path / "log"
    launcher = start(log, f"run.dir={folder}", "run.steps=7", "checkpoint.every=2", "rollout.prompts_per_step=2",
                     "rollout.group_size=8", "task.validation=8", "task.test=8", "--resume", restarts=1)
    kill_rank(launcher, 0, folder, after=3)
    assert launcher.wait(timeout=LONG) == 0, log.read_text()[-3000:]
    assert [line["step"] for line in lines(folder / "metrics.jsonl")] == list(range(1, 8))
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "run.1").exists()
    found = json.loads((folder / "evaluation.json").read_text())
    assert [(row["step"], type(row["step"])) for row in found["validation"]] == [(0, int), (7, int)]
    assert [row["step"] for row in found["steps"]] == sorted({0, found["kept"]})
    assert "Traceback" not in log.read_text()


def test_what_stops_all_ranks_is_said_once(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "run"
    launcher = start(log, f"run.dir={folder}", "rollout.prompts_per_step=1")
    assert launcher.wait(timeout=LONG) == 1
    text = log.read_text()
    assert text.count("error: rollout.prompts_per_step = 1: 2 ranks need as many") == 1
    assert text.count("Traceback") == 1
    assert not folder.exists()
