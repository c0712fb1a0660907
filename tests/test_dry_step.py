"""What a training pass takes: counted by hand, predicted for shapes that were not run, and said where it does not fit."""

import re
import time
from types import SimpleNamespace

import pytest
import torch

from grpo.types import Problem, UserError
from grpo.update import Updater
from harness import dry_step as module
from harness import memory
from harness.dry_step import PROBES, dry_step, worst_shapes
from harness.memory import GIB, available, counting_saved, memory_metrics, ran_out
from tests.conftest import tiny_config, tiny_policy

CPU = torch.device("cpu")
SMALL = ("rollout.group_size=8", "rollout.max_new_tokens=24", "train.micro_batch_tokens=64")
ENGINE = (2 * GIB, GIB)


@pytest.fixture(scope="module")
def policy():
    return tiny_policy(tiny_config())


@pytest.fixture(scope="module")
def prompts(policy):
    return [policy.encode(Problem("q", "custom", ({"role": "user", "content": text},))) for text in ("1 + 2", "1 + 2 " * 20)]


def test_what_autograd_keeps_by_hand():
    x, weight = torch.ones(3, 4, requires_grad=True), torch.ones(4, 5, requires_grad=True)
    with counting_saved([weight]) as saved:
        y = x @ weight  # keeps x, 3 x 4 float32, for the gradient of the weight; the weight itself is there anyway
    assert sorted(saved.values()) == [48]
    with counting_saved([weight]) as saved:
        z = (x @ weight).exp()  # and its result, 3 x 5
    assert sorted(saved.values()) == [48, 60]
    with counting_saved([weight]) as saved:
        ((x @ weight) * (x[:2].T @ torch.ones(2, 5)).sum()).sum().backward()
    assert sorted(saved.values()) == [4, 40, 48, 60]  # x once, although a view of it is kept too; 2 x 5 ones; 3 x 5; a sum
    with counting_saved([weight]) as saved:
        x[:2] @ weight  # a view keeps all that it is a view of
    assert sorted(saved.values()) == [48]
    with counting_saved([]) as saved:
        assert torch.equal(x @ weight, y)
    assert sorted(saved.values()) == [48, 80]
    assert z.shape == y.shape


@pytest.mark.parametrize(("limit", "used", "stat", "free"), [
    ("10000", "6000", "anon 1\nactive_file 200\ninactive_file 300\n", 4500),
    ("10000", "9000", "active_file 0\ninactive_file 0\n", 1000), ("90000", "1000", "active_file 0\ninactive_file 0\n", 7000),
    ("max", "6000", "active_file 0\ninactive_file 0\n", 7000), ("10000", "6000", "anon 1\n", 7000),
    ("10000", "x", "active_file 0\ninactive_file 0\n", 7000)])
def test_a_containers_limit_counts(tmp_path, monkeypatch, limit, used, stat, free):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=7000))
    assert available(CPU) == 7000  # no container
    for name, text in (("max", limit), ("current", used), ("stat", stat)):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    assert available(CPU) == free


def test_memory_is_in_gib():
    metrics = memory_metrics(CPU)
    assert 0.05 < metrics["memory/host_rss_gib"] <= metrics["memory/peak_gib"] + 0.01 < 100


def test_what_says_that_memory_ran_out():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert ran_out(caught.value)
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory."))
    assert ran_out(MemoryError())
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"))


@pytest.mark.parametrize(("budget", "group", "longest", "shapes"), [
    (2048, 64, 96, [(21, 96), (64, 32)]),  # 2048 // 96 rows; 2048 // 64 tokens
    (64, 64, 96, [(1, 96), (64, 1)]), (10, 64, 96, [(1, 96), (10, 1)]), (10**6, 64, 96, [(64, 96)]),
    (2048, 2, 96, [(2, 96)])])
def test_the_worst_shapes_by_hand(budget, group, longest, shapes):
    assert worst_shapes(tiny_config(f"train.micro_batch_tokens={budget}", f"rollout.group_size={group}",
                                    f"rollout.max_new_tokens={longest}")) == shapes


def test_it_trains_nothing(policy, prompts):
    updater = Updater(policy, tiny_config(*SMALL))
    before = {name: p.detach().clone() for name, p in policy.parameters.items()}
    line = dry_step(updater, prompts, ENGINE)
    assert re.fullmatch(r"memory: base and LoRA 0\.01 GiB, vLLM's weights 2\.00 GiB, KV cache 1\.00 GiB; a training pass "
                        r"takes up to activations 0\.0[1-3] GiB, passing buffers 0\.00 GiB, logits 0\.00 GiB, "
                        r"gradients and optimizer 0\.00 GiB, of [\d.]+ GiB free", line)
    assert all(p.grad is None for p in policy.model.parameters())
    assert not any(updater.optimizer.state[p] for p in policy.parameters.values())
    assert all(torch.equal(p, before[name]) for name, p in policy.parameters.items())


@pytest.mark.parametrize("shape", [(4, 32), (16, 8), (16, 3)])
def test_the_prediction_is_what_is_measured(policy, prompts, shape):
    rows, tokens = shape
    updater = Updater(policy, tiny_config(f"rollout.group_size={rows}", f"rollout.max_new_tokens={tokens}",
                                          "train.micro_batch_tokens=100000"))
    predicted = module._sizes(updater.config, updater, module._kept(updater, prompts[1], PROBES))["activations"]
    assert predicted == pytest.approx(module._kept(updater, prompts[1], [shape])[0], rel=0.25)


def test_what_cannot_fit_is_said_before_it_is_run(policy, prompts):
    updater = Updater(policy, tiny_config("rollout.group_size=1000000", "train.micro_batch_tokens=100000000"))
    started = time.monotonic()
    with pytest.raises(UserError, match="the training pass does not fit: activations") as caught:
        dry_step(updater, prompts, ENGINE)
    assert time.monotonic() - started < 20
    said = str(caught.value)
    for words in ("logits 0.0", "gradients and optimizer 0.00 GiB", "KV cache 1.00 GiB", "vLLM's weights 2.00 GiB",
                  "lower train.micro_batch_tokens (now 100000000), to "):
        assert words in said
    assert float(re.search(r"activations ([\d.]+) GiB", said)[1]) > 1000
    assert all(p.grad is None for p in policy.model.parameters())


def test_the_cure_cures(policy, prompts, monkeypatch):
    """A group of 8 x 24 tokens in 20 MiB: what it is told to lower fits, and twice that does not."""
    monkeypatch.setattr(module, "available", lambda _: 20 * 2**20)
    config = ("rollout.group_size=8", "rollout.max_new_tokens=24", "train.head_chunk_tokens=32")
    with pytest.raises(UserError) as caught:
        dry_step(Updater(policy, tiny_config(*config, "train.micro_batch_tokens=5000")), prompts, ENGINE)
    tokens = int(re.search(r"train\.micro_batch_tokens \(now 5000\), to (\d+) or less", str(caught.value))[1])
    assert 24 <= tokens < 8 * 24
    dry_step(Updater(policy, tiny_config(*config, f"train.micro_batch_tokens={tokens}")), prompts, ENGINE)
    with pytest.raises(UserError, match="does not fit"):
        dry_step(Updater(policy, tiny_config(*config, f"train.micro_batch_tokens={2 * tokens}")), prompts, ENGINE)


def test_other_cures(policy, prompts, monkeypatch):
    monkeypatch.setattr(module, "available", lambda _: 2**20)
    with pytest.raises(UserError, match=r"rollout\.cpu_kv_cache_gib \(now 1\), rollout\.max_new_tokens \(now 24\) or the "):
        dry_step(Updater(policy, tiny_config(*SMALL)), prompts, ENGINE)
    monkeypatch.setattr(policy.head, "out_features", 10**7)
    with pytest.raises(UserError, match=r"logits 9\.54 GiB.*lower train\.head_chunk_tokens \(now 2048\)"):  # 16 x 10^7 x 64
        dry_step(Updater(policy, tiny_config(*SMALL)), prompts, ENGINE)


def allocate_too_much():
    torch.empty(2**50, dtype=torch.uint8)


def allocate_too_much_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("fail", [allocate_too_much, allocate_too_much_on_a_gpu])
@pytest.mark.parametrize(("passes", "words"), [(3, "the training pass does not fit: activations"),
                                               (0, "not even a training pass over one short completion fits")])
def test_memory_that_runs_out_in_a_pass_is_one_line(policy, prompts, monkeypatch, fail, passes, words):
    updater = Updater(policy, tiny_config(*SMALL))
    calls, accumulate = [], updater.accumulate

    def accumulate_a_few(*arguments):
        calls.append(accumulate(*arguments))
        if len(calls) > passes:
            fail()

    monkeypatch.setattr(updater, "accumulate", accumulate_a_few)
    with pytest.raises(UserError, match=words) as caught:
        dry_step(updater, prompts, ENGINE)
    assert "KV cache 1.00 GiB; lower " in str(caught.value)
    assert all(p.grad is None for p in policy.model.parameters())


def test_a_fault_in_a_pass_is_no_lack_of_memory(policy, prompts, monkeypatch):
    updater = Updater(policy, tiny_config(*SMALL))
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")

    def broken(*_):
        raise error

    monkeypatch.setattr(updater, "accumulate", broken)
    with pytest.raises(RuntimeError) as caught:
        dry_step(updater, prompts, ENGINE)
    assert caught.value is error
