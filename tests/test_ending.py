"""Every way a run can end: what is finished is saved, the first error is the one that is told, and the exit code fits."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

import grpo.trainer
from grpo.guards import checkpoint
from grpo.guards.kept import keep_or_say_why, read_kept
from grpo.guards.parity import SyncError
from grpo.run import signals
from grpo.run.streams import Lasting
from grpo.trainer import Trainer
from grpo.types import Completion, NonFiniteError, Sample, Score, UserError
from grpo.update import Updater
from tests.conftest import ROOT, TOY, group_of, lines, randomize, sampled_by, tiny_config, tiny_policy, train_here
from tests.forked import run_forked

SMALL = (*TOY, "run.steps=6", "rollout.prompts_per_step=4", "rollout.group_size=8", "rollout.max_new_tokens=24",
         "task.test=8", "task.validation=8", "eval.every=100", "checkpoint.every=100")


def saved(folder: Path) -> list[int]:
    """The steps of the checkpoints, of which the newest is whole, and goes with what was recorded."""
    found, passed_over = checkpoint.newest(folder / "checkpoints")
    assert not passed_over
    assert json.loads((found / "state.json").read_text())["step"] == lines(folder / "metrics.jsonl")[-1]["step"]
    return sorted(int(p.name.removeprefix("step-")) for p in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(("trips", "says", "traceback"), [
    ("nan", "stopped: step 4: the task scored ", False), ("raise", "KeyError: 'a field that the answer lacks'", True)])
def test_a_verifier_that_trips_costs_its_own_step(tmp_path, trips, says, traceback):
    target = "task.target=tests.tasks.late_task:LateTask"
    done = run_forked(tmp_path, "train", *SMALL, f"run.dir={tmp_path}/run", target, f"task.trips={trips}")
    assert done.returncode == 1
    assert says in done.stderr.strip().splitlines()[-1]
    assert ("Traceback" in done.stderr) == traceback
    assert "step 3 is saved; --resume goes on from there" in done.stdout
    assert saved(tmp_path / "run") == [3]
    if not traceback:
        return
    done = train_here(*SMALL, f"run.dir={tmp_path}/run", target, "--resume", "--allow-change=task.trips")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [m["step"] for m in lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_reader_that_goes_ends_nothing_and_a_hang_up_saves(tmp_path):
    """As when a connection drops under `train.py | tee log`: the pipe is closed first, the signal comes later."""
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "train.py", *SMALL, f"run.dir={folder}", "run.steps=4000"], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))  # nohup would be inherited
    try:
        while b"step 0: test" not in process.stdout.readline():
            assert process.poll() is None
        process.stdout.close()
        while (folder / "metrics.jsonl").read_bytes().count(b"\n") < 4:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=120) == 129
    finally:
        process.kill()
    assert saved(folder)


def test_what_nohup_ignores_stays_ignored(monkeypatch):
    kept = {signum: signal.getsignal(signum) for signum in (*signals.ALWAYS, *signals.UNLESS_IGNORED)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.listen()
    found = {signum: signal.getsignal(signum) for signum in kept}
    for signum, handler in kept.items():
        signal.signal(signum, handler)
    assert found == dict.fromkeys(kept, signals._handle) | {signal.SIGHUP: signal.SIG_IGN}


# ---- what is saved


@pytest.fixture
def ended(monkeypatch):
    """A run that ends after step 5, the last checkpoint being of step 2; `said` is what it prints."""
    monkeypatch.setattr(grpo.trainer, "ignore", lambda: None)
    run = SimpleNamespace(ranks=SimpleNamespace(first=True), done=5, saved=2, updater=SimpleNamespace(ahead=False), said=[])
    run.say = run.said.append
    run.save = lambda: run.said.append("saves")
    return run


def test_finished_steps_are_saved_once_by_the_first_rank_if_the_policy_is_theirs(ended):
    Trainer.rescue(ended)
    assert ended.said == ["saves", "step 5 is saved; --resume goes on from there"]
    for changes in ({"saved": 5}, {"updater": SimpleNamespace(ahead=True)}, {"ranks": SimpleNamespace(first=False)}):
        run = SimpleNamespace(**vars(ended) | changes)
        Trainer.rescue(run)
    assert len(ended.said) == 2


@pytest.mark.parametrize("second", [OSError(28, "No space left"), SyncError("the base has changed"), UserError("a mistake"),
                                    RuntimeError("CUDA error:\nunknown")])
def test_an_error_while_saving_does_not_hide_the_first_one(ended, second):
    def save():
        raise second

    def run():
        try:
            raise KeyError("the first")
        finally:
            Trainer.rescue(ended)

    ended.save = save
    with pytest.raises(KeyError, match="the first"):
        run()
    (said,) = ended.said
    assert said.startswith("step 5 is finished, and could not be saved: ")
    assert said.isprintable()


def test_the_policy_is_a_steps_until_the_optimizer_moves(monkeypatch):
    """With two epochs a failure in the second one leaves a policy between two steps."""
    policy = tiny_policy(tiny_config())
    groups = sampled_by(policy, [group_of([5, 9, 33], [[40, 41, 2], [43, 2]])])
    updater = Updater(policy, tiny_config("algorithm.epochs=2"))
    with pytest.raises(NonFiniteError):
        updater.step(1, groups, torch.tensor([[float("nan"), 1.0]]))
    assert not updater.ahead
    updater.optimizer.zero_grad()
    updater.step(1, groups, torch.zeros(1, 2))
    assert not updater.ahead  # no group has a signal: nothing moves
    moves = iter([updater.optimizer.step])
    monkeypatch.setattr(updater.optimizer, "step", lambda: next(moves)())
    with pytest.raises(StopIteration):
        updater.step(1, groups, torch.tensor([[1.0, -1.0]]))
    assert updater.ahead


def test_a_batch_of_another_policy_is_not_trained_on():
    policy = tiny_policy(tiny_config())
    randomize(policy, 0.02)
    groups = sampled_by(policy, [group_of([5, 9, 33], [[40, 41, 2], [43, 2]])])
    randomize(policy, 0.05, seed=1)
    before = {name: p.detach().clone() for name, p in policy.parameters.items()}
    updater = Updater(policy, tiny_config())
    with pytest.raises(SyncError, match="log-probs differ from the trainer's"):
        updater.step(1, groups, torch.tensor([[1.0, -1.0]]))
    assert all(torch.equal(p, before[name]) for name, p in policy.parameters.items())
    assert not updater.ahead


def test_a_gradient_is_cut_to_its_largest_norm_and_recorded_as_it_was(monkeypatch):
    policy, moved = tiny_policy(tiny_config()), []
    updater = Updater(policy, tiny_config("optim.max_grad_norm=0.01"))
    monkeypatch.setattr(updater.optimizer, "step", lambda: moved.extend(
        p.grad.norm().item() for p in policy.parameters.values()))
    groups = sampled_by(policy, [group_of([5, 9, 33], [[40, 41, 2], [43, 2]])])
    metrics, _ = updater.step(1, groups, torch.tensor([[1.0, -1.0]]))
    assert math.hypot(*moved) == pytest.approx(0.01, rel=1e-3)
    assert metrics["policy/grad_norm"] > 0.02
    assert math.hypot(*(n.item() for n in updater.gradient_norms.values())) == pytest.approx(metrics["policy/grad_norm"])


def test_a_kept_step_is_read_as_it_was(fp32_policy, tmp_path):
    updater, group = Updater(fp32_policy, tiny_config("run.seed=7")), group_of([5, 9], [[40, 2], [41, 42]])
    group = replace(group, completions=(group.completions[0], Completion(
        Sample((41, 42), (-0.5, -0.25), "length"), "cut", Score(0.5))))
    updater.recompute(2)  # as the dry step found to fit
    updater.noise, updater.logp_old = 0.125, {(0, 1): [-1.5, -2.5]}
    assert "runs it again" in keep_or_say_why(tmp_path, 3, updater, [group], "why", writes=False)
    assert not list(tmp_path.iterdir())  # another rank's
    assert "python -m grpo.replay " in keep_or_say_why(tmp_path, 3, updater, [group], "why", writes=True)
    kept = read_kept(tmp_path / "step-00003.safetensors", ["optim.lr=0.5"])
    assert (kept.step, kept.reason, kept.noise, kept.logp_old) == (3, "why", 0.125, {(0, 1): [-1.5, -2.5]})
    assert kept.groups == [group]
    assert (kept.config.run.seed, kept.config.train.recompute_layers, kept.config.optim.lr) == (7, 2, 0.5)
    updater.recompute(0)
    (tmp_path / "file").touch()
    assert keep_or_say_why(tmp_path / "file", 3, updater, [group], "why", writes=True) == (
        "its batch could not be kept (File exists)")
    deep = torch.frombuffer(bytearray(b"[" * 100_000), dtype=torch.uint8)
    (tmp_path / "deep.safetensors").write_bytes(save({"step": deep}))
    with pytest.raises(UserError, match="no step that a run kept"):
        read_kept(tmp_path / "deep.safetensors")


# ---- streams


@pytest.mark.parametrize("buffered", [True, False])
def test_a_stream_outlasts_its_reader(buffered):
    reader, writer = os.pipe()
    with open(writer, "w", buffering=-1 if buffered else 1) as stream:
        lasting = Lasting(stream)
        print("heard", file=lasting, flush=True)
        assert os.read(reader, 100) == b"heard\n"
        os.close(reader)
        for _ in range(3):
            print("x" * 100_000, file=lasting)
            lasting.flush()
        assert lasting.fileno() == writer
        assert not lasting.isatty()


@pytest.mark.parametrize("streams", ["", ">&-", "2>&-", ">&- 2>&-", ">/dev/full", ">/dev/full 2>/dev/full"])
def test_a_process_outlasts_its_streams(tmp_path, streams):
    """One that is closed from the start, one on a full disk; nothing is left to fail when the process ends."""
    program = ("import sys; from tqdm import tqdm\n"
               "from grpo.run.streams import outlast_readers; outlast_readers()\n"
               "bar = tqdm(total=2, file=sys.stdout, dynamic_ncols=True); bar.update()\n"
               "bar.write('a line', file=sys.stdout); print('out'); print('error', file=sys.stderr)\n"
               "bar.close(); sys.exit(3)\n")
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(["sh", "-c", f"exec {sys.executable} {tmp_path}/program.py {streams}"], cwd=ROOT, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert ("out" in done.stdout, done.stderr) == (streams in ("", "2>&-"), "" if "2>" in streams else "error\n")
