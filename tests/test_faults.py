"""Faults from outside, on a real run: killed anywhere, told to stop, a full disk, a batch that cannot be trained on."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from grpo import replay
from grpo.guards import checkpoint
from tests.conftest import LONG, ROOT, TOY, lines, train_here
from tests.forked import Forked, run_forked

KILLS, SEED = int(os.environ.get("KILLS", "3")), os.environ.get("KILLS_SEED", "0")  # make torture: 20
STEPS = 36 if KILLS <= 3 else 54
SMALL = (*TOY, f"run.steps={STEPS}", "rollout.prompts_per_step=4", "rollout.group_size=8", "rollout.max_new_tokens=24",
         "eval.every=9", "checkpoint.every=2", "run.seed=2")  # with that seed, in 36 steps, the 18th is the best


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert start(folder, log := folder.with_name("log")).wait() == 0, log.read_text()[-3000:]
    assert 0 < evaluation(folder)["kept"] < STEPS or KILLS > 3, "another seed is needed: its best step is an end"
    return folder


def evaluation(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def start(folder: Path, log: Path, *more: str) -> Forked:
    resume = ["--resume"] if (folder / "config.yaml").is_file() else []
    return Forked("train", *SMALL, f"run.dir={folder}", *more, *resume, out=log)


def ended(folder: Path, *more: str) -> str:
    """Train, in this process, from the newest checkpoint to the end. What it said."""
    done = train_here(*SMALL, f"run.dir={folder}", *more, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def steps_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def run_until(process: Forked, folder: Path, more: int) -> None:
    """Wait until the process has recorded `more` further steps, or has ended."""
    while process.poll() is None and not (folder / "checkpoints").exists() and steps_done(folder) < more:
        time.sleep(0.02)
    before = steps_done(folder)
    while process.poll() is None and steps_done(folder) < min(before + more, STEPS):
        time.sleep(0.02)


def equal(ours: Path, theirs: Path, until: int = STEPS) -> None:
    """Every token, reward, log-prob and metric of two runs; at the end also every accuracy, weight and moment."""
    for step in range(1, until + 1):
        a, b = (lines(run / "rollouts" / f"step-{step:05d}.jsonl.gz") for run in (ours, theirs))
        assert a == b, f"step {step}"
    a, b = ([{k: v for k, v in m.items() if not k.startswith(("time/", "memory/"))}
             for m in lines(run / "metrics.jsonl")[:until]] for run in (ours, theirs))
    assert a == b
    assert lines(ours / "lora.jsonl")[:until] == lines(theirs / "lora.jsonl")[:until]
    if until == STEPS:
        assert (ours / "evaluation.json").read_bytes() == (theirs / "evaluation.json").read_bytes()
        best = [p.relative_to(ours) for p in sorted(ours.glob("best/*/*.safetensors"))]
        assert best == [p.relative_to(theirs) for p in sorted(theirs.glob("best/*/*.safetensors"))]
        for file in ("adapter/adapter_model.safetensors", *best, *(f"checkpoints/step-{STEPS:05d}/{name}.safetensors"
                                                            for name in ("adapter_model", "optimizer"))):
            a, b = (load_file(run / file) for run in (ours, theirs))
            assert a.keys() == b.keys()
            assert all(bytes(a[name].numpy()) == bytes(b[name].numpy()) for name in a), file
        assert any("state1" in name for name in b)


def newest_step(folder: Path) -> int:
    found, passed_over = checkpoint.newest(folder / "checkpoints")
    assert not passed_over
    return int(found.name.removeprefix("step-"))


def test_stopped_anywhere_it_ends_as_if_undisturbed(undisturbed, tmp_path):
    """Kill -9 at random moments, start-up included; SIGTERM and SIGINT; a damaged checkpoint; then to the end."""
    folder, log, rng, moments = tmp_path / "run", tmp_path / "log", random.Random(SEED), []
    for kill in range(KILLS):
        process = start(folder, log)
        if kill % 3 == 2:
            time.sleep(rng.uniform(0, 12))  # while it starts
        else:
            run_until(process, folder, rng.randint(1, max(1, min(8, (STEPS - 28) // KILLS * 2))))
            time.sleep(rng.uniform(0, 0.6))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        moments.append(steps_done(folder))
    for signum, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(folder, log)
        run_until(process, folder, 9 - steps_done(folder) % 9)  # to an evaluation
        time.sleep(0 if signum == signal.SIGTERM else rng.uniform(0.5, 2))  # and beyond it
        before = steps_done(folder)
        process.send_signal(signum)
        time.sleep(0.05)
        process.send_signal(signum)  # a nervous second one
        assert process.wait(timeout=LONG) == code, log.read_text()[-3000:]
        assert steps_done(folder) <= before + 2  # one while it was counted, and the one that was past sampling
        assert newest_step(folder) == lines(folder / "metrics.jsonl")[-1]["step"]  # no finished step is lost
    assert "interrupted by SIGTERM; --resume goes on" in log.read_text()
    damaged = folder / "checkpoints" / f"step-{newest_step(folder):05d}"
    with (damaged / "optimizer.safetensors").open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"\xff" * 50)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "rew')  # as a kill in mid-write leaves it
    assert start(folder, log).wait() == 0, log.read_text()[-3000:]
    assert f"passed over {damaged}: optimizer.safetensors is damaged" in log.read_text()
    assert "Traceback" not in log.read_text()
    print(f"{KILLS} kills (seed {SEED}), after steps {moments}")
    equal(folder, undisturbed)


def kept_weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_that_falls_apart_ends_as_good_as_it_was(tmp_path):
    """The learning rate rises until nothing is left. What is measured at the end is the LoRA that was kept."""
    ended(folder := tmp_path / "run", "run.seed=1", "optim.lr=1.5e-2", "optim.warmup=1", f"eval.test_every={STEPS}")
    first, kept, last = evaluation(folder)["steps"]
    assert (first["step"], kept["step"], last["step"]) == (0, evaluation(folder)["kept"], STEPS)
    assert last["overall"] < 0.3 < first["overall"] < kept["overall"]
    assert kept_weights(folder) == (folder / "best" / f"step-{kept['step']:05d}" / "adapter_model.safetensors").read_bytes()


def test_stopped_in_its_last_evaluation_it_finishes_it(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(folder / "adapter")
    kept = (found := evaluation(folder)).pop("kept")
    (folder / "evaluation.json").write_text(json.dumps(found | {"steps": [r for r in found["steps"] if r["step"] != kept]}))
    said = ended(folder)
    equal(folder, undisturbed)
    assert f"step {kept}: test custom " in said
    assert "validation custom" not in said  # nothing that was measured is measured again


def test_a_best_lora_that_is_damaged_is_not_kept(undisturbed, tmp_path):
    """The best one is then chosen among the steps from the checkpoint on; here that is the last alone."""
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    kept = evaluation(folder)["kept"]
    with (folder / "best" / f"step-{kept:05d}" / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"\xff" * 50)
    said = ended(folder)
    assert (f"best: step-{kept:05d}: adapter_model.safetensors is damaged; it is now in "
            f"damaged-step-{kept:05d}.1; the best LoRA is chosen among steps from") in said
    assert f"; step {STEPS} is kept" in said
    assert evaluation(folder)["kept"] == STEPS
    assert kept_weights(folder) == (folder / "checkpoints" / f"step-{STEPS:05d}" / "adapter_model.safetensors").read_bytes()
    assert kept_weights(folder) != kept_weights(undisturbed)


def test_the_last_is_kept_by_who_asks_for_it_and_the_best_again(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    before = sorted(folder.glob("best/*/*"))
    ended(folder, "eval.keep=last")
    assert evaluation(folder)["kept"] == STEPS
    assert [row["step"] for row in evaluation(folder)["steps"]] == [0, evaluation(undisturbed)["kept"], STEPS]
    assert kept_weights(folder) == (folder / "checkpoints" / f"step-{STEPS:05d}" / "adapter_model.safetensors").read_bytes()
    assert sorted(folder.glob("best/*/*")) == before
    ended(folder)
    assert [row["step"] for row in evaluation(folder)["steps"]] == [0, evaluation(undisturbed)["kept"], STEPS]
    assert (evaluation(folder)["kept"], kept_weights(folder)) == (evaluation(undisturbed)["kept"], kept_weights(undisturbed))


def test_a_signal_while_it_starts_is_obeyed(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "train.py", *SMALL, f"run.dir={tmp_path}/run"], cwd=ROOT, stdout=log,
                                   stderr=log)
    time.sleep(4)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=LONG) == 143
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_memory_does_not_grow(undisturbed):
    """Over 50 steps and 5 evaluations. The allocator's own tide, seen over 300 steps, is 3.5 % and comes back."""
    resident = [m["memory/host_rss_gib"] for m in lines(undisturbed / "metrics.jsonl")]
    assert len(resident) == STEPS
    assert resident[-1] - resident[3] < 0.05 * resident[3], resident


def test_what_is_not_finite_is_not_trained_on_and_can_be_run_again(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    done = run_forked(tmp_path, "train", *SMALL[:1], f"run.dir={folder}", "run.steps=2", "rollout.group_size=8",
                      "rollout.max_new_tokens=16", "task={target: tests.tasks.overflow_task:OverflowTask}")
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("stopped: step 1: loss nan")
    assert "the optimizer did not move" in line
    assert not lines(folder / "metrics.jsonl")
    assert not (folder / "checkpoints").exists()
    monkeypatch.chdir(ROOT)
    assert replay.main([re.search(r"\S+\.safetensors", line)[0]]) == 1
    assert "it stops here too: loss nan" in capsys.readouterr().out


def test_a_file_that_is_no_kept_step(tmp_path, capsys):
    for content in (b"", b"{}", b"\xff" * 100, save({"a": torch.zeros(1)}), save({"a": torch.zeros(1)}, {"step": "[]"})):
        (tmp_path / "file").write_bytes(content)
        assert replay.main([str(tmp_path / "file")]) == 2
        assert "no step that a run kept" in capsys.readouterr().err
    assert replay.main([str(tmp_path / "nowhere")]) == 2


def in_a_small_disk(tmp_path: Path, *commands: str) -> subprocess.CompletedProcess:
    """Run shell commands where $DISK is a tmpfs of 6 MB, in a mount namespace of their own. Skips where that is refused."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = " && ".join([f"mount -t tmpfs -o size=6m none {disk}", f"export DISK={disk}"]) + "; " + "; ".join(commands)
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run(
            [*unshare, f"mount -t tmpfs none {disk}"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs of his own")
    return subprocess.run([*unshare, script], cwd=ROOT, capture_output=True, text=True, timeout=LONG, check=False)


def test_a_full_disk_and_a_read_only_one_are_one_line_and_cost_no_checkpoint(undisturbed, tmp_path):
    train = f"{shlex.join([sys.executable, 'train.py', *SMALL])} run.dir=$DISK/run"
    done = in_a_small_disk(tmp_path, train, "echo code $?", f"cp -r $DISK/run {tmp_path}/kept",
                           "mount -o remount,ro $DISK", f"{train} --resume", "echo code $?")
    assert done.stdout.count("code 2") == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    full, read_only = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "cannot be written (No space left on device); checkpoints there are whole; make room" in full
    assert "a place to write (run.dir: " in read_only
    kept = tmp_path / "kept"
    assert not list(kept.rglob("*.part"))
    equal(kept, undisturbed, until=newest_step(kept))
