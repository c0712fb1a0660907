"""What a training pass takes: counted by hand, predicted for shapes that were not run, and said where it does not fit."""

import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.guards import dry_step as module
from grpo.guards.dry_step import PROBES, dry_step, largest_shape
from grpo.run import memory
from grpo.run.memory import GIB, available, counting_saved, memory_metrics, ran_out
from grpo.speed.layers import prepare_layers
from grpo.speed.micro_batches import split
from grpo.types import Problem, Prompt, UserError
from grpo.update import Updater
from tests.conftest import every, group_of, tiny_config, tiny_policy

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
    assert (saved.now, saved.most) == (48, 48)
    with counting_saved([weight]) as saved:
        z = (x @ weight).exp()  # and its result, 3 x 5
    assert saved.now == 48 + 60
    with counting_saved([weight]) as saved:
        ((x @ weight) * (x[:2].T @ torch.ones(2, 5)).sum()).sum().backward()
    # x once, although a view of it is kept too; 2 x 5 ones; 3 x 5; a sum. Nothing is left behind the backward pass
    assert (saved.now, saved.most) == (0, 4 + 40 + 48 + 60)
    with counting_saved([weight]) as saved:
        x[:2] @ weight  # a view keeps all that it is a view of
    assert (saved.now, saved.most) == (0, 48)
    with counting_saved([weight]) as saved:
        for _ in range(9):  # one after the other, where they lie is chance
            (x @ weight).exp().sum().backward()
    assert saved.most == 48 + 60
    with counting_saved([]) as saved:
        assert torch.equal(x @ weight, y)
    assert saved.most == 48 + 80
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


def prompt_of(length: int) -> Prompt:
    return Prompt(Problem("q", "custom", ()), (5,) * length, "")


@pytest.mark.parametrize(("budget", "group", "longest", "shape"), [
    (2048, 64, 96, [[96] * 21 + [22]]),  # 2048 - 10 tokens behind a prompt of 10
    (64, 64, 96, [[96]]), (10, 64, 96, [[96]]), (10**6, 64, 96, [[96] * 64] * 8), (2048, 2, 96, [[96] * 2] * 8),
    (1000, 2, 96, [[96, 94]] * 5)])  # five groups of 10 + 190, rather than four of 10 + 2 x 96, which read less
def test_the_largest_shape_by_hand(budget, group, longest, shape):
    assert largest_shape(tiny_config(f"train.micro_batch_tokens={budget}", f"rollout.group_size={group}",
                                     f"rollout.max_new_tokens={longest}"), prompt_of(10)) == shape


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 30), st.lists(st.lists(st.integers(1, 20), min_size=4, max_size=4), min_size=1,
                                                         max_size=6))
def test_no_micro_batch_reads_more_than_the_largest_shape(budget, length, lengths):
    config = tiny_config(f"train.micro_batch_tokens={budget}", "rollout.group_size=4", "rollout.max_new_tokens=20",
                         "rollout.prompts_per_step=6")
    shape, prompt = largest_shape(config, prompt_of(length)), prompt_of(length)
    groups = [group_of([5] * length, [[6] * n for n in rows]) for rows in lengths]
    for batch in split(groups, every(groups), budget):
        read = sum(length for _ in {p for p, _ in batch}) + sum(lengths[p][row] for p, row in batch)
        assert read <= module._read(shape, prompt) + len(shape)  # shares are rounded down
    own = [group_of([5] * length, [[6] * n for n in rows]) for rows in shape]
    assert len(split(own, every(own), budget)) == 1


def test_it_trains_nothing(policy, prompts):
    updater = Updater(policy, tiny_config(*SMALL))
    before = {name: p.detach().clone() for name, p in policy.parameters.items()}
    line, _ = dry_step(updater, prompts, ENGINE)
    assert re.fullmatch(r"memory: base and LoRA 0\.01 GiB, vLLM's weights 2\.00 GiB, KV cache 1\.00 GiB; a training pass "
                        r"takes up to activations 0\.0[1-3] GiB, passing buffers 0\.00 GiB, "
                        r"attention scores 0\.0\d GiB, logits 0\.00 GiB, "
                        r"gradients and optimizer 0\.00 GiB, of [\d.]+ GiB free", line)
    assert all(p.grad is None for p in policy.model.parameters())
    assert not any(updater.optimizer.state[p] for p in policy.parameters.values())
    assert all(torch.equal(p, before[name]) for name, p in policy.parameters.items())


@pytest.mark.parametrize(("groups", "rows", "tokens"), [(1, 4, 32), (8, 16, 8), (8, 2, 3)])
@pytest.mark.parametrize("layers", [0, 3])
def test_the_prediction_is_what_is_measured(policy, prompts, groups, rows, tokens, layers):
    updater = Updater(policy, tiny_config(f"rollout.group_size={rows}", f"rollout.max_new_tokens={tokens}",
                                          f"rollout.prompts_per_step={groups}", "train.micro_batch_tokens=100000",
                                          f"train.recompute_layers={layers}"))
    probed = module._kept(updater, prompts[1], PROBES)
    predicted = module._sizes(updater.config, updater, prompts[1], probed)["activations"]
    assert predicted == pytest.approx(module._kept(updater, prompts[1], [[[tokens] * rows] * groups])[0], rel=0.1)


ONE_GROUP = ("rollout.group_size=32", "rollout.max_new_tokens=24", "rollout.prompts_per_step=1",
             "train.head_chunk_tokens=32")


def leave(monkeypatch, policy, prompts, share: float, *config: str) -> None:
    """So much memory as that share of what the largest pass takes."""
    updater = Updater(policy, tiny_config(*ONE_GROUP, *config))
    sizes = module._sizes(updater.config, updater, prompts[1], module._kept(updater, prompts[1], PROBES))
    monkeypatch.setattr(module, "available", lambda _: int(share * sum(sizes.values())))


def test_layers_run_twice_where_memory_asks_for_it_and_no_more(policy, prompts, monkeypatch):
    layers = []
    for share in (1.05, 0.9, 0.7):
        leave(monkeypatch, policy, prompts, share)
        (line,) = dry_step(Updater(policy, tiny_config(*ONE_GROUP)), prompts, ENGINE)
        layers.append(int(found[1]) if (found := re.search(r"; (\d) of 4 layers keep none and run twice", line)) else 0)
    assert layers[0] == 0 < layers[1] < layers[2] <= 4
    with pytest.raises(UserError, match="does not fit"):
        dry_step(Updater(policy, tiny_config(*ONE_GROUP, "train.recompute_layers=0")), prompts, ENGINE)


def test_what_cannot_fit_is_said_before_it_is_run(policy, prompts):
    updater = Updater(policy, tiny_config("rollout.group_size=1000000", "train.micro_batch_tokens=100000000"))
    with pytest.raises(UserError, match="the training pass does not fit: activations") as caught:
        dry_step(updater, prompts, ENGINE)
    said = str(caught.value)
    for words in ("logits 0.0", "gradients and optimizer 0.00 GiB", "KV cache 1.00 GiB", "vLLM's weights 2.00 GiB",
                  "lower train.micro_batch_tokens (now 100000000), to "):
        assert words in said
    assert float(re.search(r"activations ([\d.]+) GiB", said)[1]) > 100
    assert all(p.grad is None for p in policy.model.parameters())


def test_the_cure_cures(policy, prompts, monkeypatch):
    """A group in half the memory it takes: what it is told to lower fits, and twice that does not."""
    never = "train.recompute_layers=0"
    leave(monkeypatch, policy, prompts, 0.5, never)
    with pytest.raises(UserError) as caught:
        dry_step(Updater(policy, tiny_config(*ONE_GROUP, never, "train.micro_batch_tokens=5000")), prompts, ENGINE)
    tokens = int(re.search(r"train\.micro_batch_tokens \(now 5000\), to (\d+) or less", str(caught.value))[1])
    dry_step(Updater(policy, tiny_config(*ONE_GROUP, never, f"train.micro_batch_tokens={tokens}")), prompts, ENGINE)
    with pytest.raises(UserError, match="does not fit"):
        dry_step(Updater(policy, tiny_config(*ONE_GROUP, never, f"train.micro_batch_tokens={2 * tokens}")), prompts, ENGINE)


def test_other_cures(policy, prompts, monkeypatch):
    monkeypatch.setattr(module, "available", lambda _: 2**20)
    with pytest.raises(UserError, match=r"rollout\.cpu_kv_cache_gib \(now 1\), rollout\.max_new_tokens \(now 24\) or the "):
        dry_step(Updater(policy, tiny_config(*SMALL)), prompts, ENGINE)
    monkeypatch.setattr(policy.head, "out_features", 10**7)
    with pytest.raises(UserError, match=r"logits 3\.58 GiB.*lower train\.head_chunk_tokens \(now 2048\)"):  # 16 x 10^7 x 24
        dry_step(Updater(policy, tiny_config(*SMALL)), prompts, ENGINE)


def allocate_too_much():
    torch.empty(2**50, dtype=torch.uint8)


def allocate_too_much_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("fail", [allocate_too_much, allocate_too_much_on_a_gpu])
@pytest.mark.parametrize(("passes", "words"), [(2, "the training pass does not fit: activations"),
                                               (0, "not even a training pass over two short completions fits")])
def test_memory_that_runs_out_in_a_pass_is_one_line(policy, prompts, monkeypatch, fail, passes, words):
    updater = Updater(policy, tiny_config(*SMALL, "train.recompute_layers=0"))
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


@pytest.mark.parametrize("passes", [0, 2])  # the first small pass, or the largest
def test_memory_that_runs_out_once_lets_layers_run_twice(policy, prompts, monkeypatch, passes):
    updater, calls = Updater(policy, tiny_config(*SMALL)), []
    accumulate = updater.accumulate

    def accumulate_but_once(*arguments):
        calls.append(arguments)
        if len(calls) == passes + 1:
            allocate_too_much()
        return accumulate(*arguments)

    monkeypatch.setattr(updater, "accumulate", accumulate_but_once)
    assert re.search(r"; [1-4] of 4 layers keep none and run twice", dry_step(updater, prompts, ENGINE)[0])
    prepare_layers(policy.decoder, compiled=False, recomputed=0)


def test_a_fault_in_a_pass_is_no_lack_of_memory(policy, prompts, monkeypatch):
    updater = Updater(policy, tiny_config(*SMALL))
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")

    def broken(*_):
        raise error

    monkeypatch.setattr(updater, "accumulate", broken)
    with pytest.raises(RuntimeError) as caught:
        dry_step(updater, prompts, ENGINE)
    assert caught.value is error
