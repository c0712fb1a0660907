"""The start-up self-test: it passes a healthy engine, and stops each way to serve another LoRA than the policy's."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import grpo.guards.selftest
from grpo.guards.parity import SyncError, bound, check_parity
from grpo.guards.selftest import MARGIN, check_modules, random_lora
from tests import swap_faults
from tests.loop import Loop


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.sampler.close()


def test_the_self_test_passes_and_leaves_everything_as_it_was(loop):
    before = {name: t.clone() for name, t in loop.policy.lora().items()}
    sampled = loop.sampler.sample(loop.prompts[:2], [1, 2], 4)
    found = loop.check()
    assert found.gap < MARGIN * found.stale
    assert found.stale > 10 * found.noise  # a LoRA that is heard
    assert found.module <= 0.02
    assert loop.updater.noise == found.noise
    assert all(torch.equal(t, before[name]) for name, t in loop.policy.lora().items())
    assert loop.sampler.sample(loop.prompts[:2], [1, 2], 4) == sampled


@pytest.mark.parametrize("fault", [
    swap_faults.stale_cache, swap_faults.unswapped, swap_faults.wrong_keys, swap_faults.half_the_modules,
    swap_faults.one_module, swap_faults.wrong_scale, swap_faults.transposed, swap_faults.exchanged, swap_faults.temperature])
def test_the_self_test_catches(loop, monkeypatch, fault):
    with monkeypatch.context() as broken:
        fault(loop, broken)
        with pytest.raises(SyncError):
            loop.check()
    loop.sampler.swap_lora(loop.policy.lora())


@pytest.mark.parametrize("fault", [
    swap_faults.unswapped, swap_faults.half_the_modules, swap_faults.one_module, swap_faults.wrong_scale,
    swap_faults.transposed, swap_faults.exchanged, swap_faults.one_module_ignores_its_lora])
def test_the_modules_alone_catch_it_too(loop, monkeypatch, fault):
    """Without reading the buffers back: an engine may hold the LoRA and compute something else."""
    kept = {name: t.clone() for name, t in loop.policy.lora().items()}
    with monkeypatch.context() as broken:
        fault(loop, broken)
        loop.policy.load_tensors(random_lora(loop.policy, 1.0, seed=11))
        loop.sampler.swap_lora(loop.policy.lora())
        with pytest.raises(SyncError, match="as the trainer does"):
            check_modules(loop.policy, loop.sampler, seed=0)
    loop.sampler.swap_lora(loop.policy.lora())
    assert check_modules(loop.policy, loop.sampler, seed=0) <= 0.02
    loop.policy.load_tensors(kept)
    loop.sampler.swap_lora(kept)


@pytest.mark.parametrize("fault", [
    swap_faults.stale_cache, swap_faults.unswapped, swap_faults.half_the_modules, swap_faults.wrong_scale,
    swap_faults.transposed, swap_faults.temperature])
def test_log_probs_alone_catch_it_too(loop, monkeypatch, fault):
    """Without a look at buffers or modules: a compiled or cached pass may compute what they do not."""
    with monkeypatch.context() as broken:
        fault(loop, broken)
        broken.setattr(grpo.guards.selftest, "check_served", lambda *_: None)
        broken.setattr(grpo.guards.selftest, "check_modules", lambda *_: 0.0)
        with pytest.raises(SyncError, match=r"log-probs differ|does not sample at"):
            loop.check()
    loop.sampler.swap_lora(loop.policy.lora())


@pytest.mark.parametrize("gaps", [[0.0, 0.2], [0.0, float("nan")], [float("nan"), 0.0], [0.2, 0.0]])
def test_either_turn_can_stop_it(loop, monkeypatch, gaps):
    """The second alone sees the first one's prefix cache; what is no number is no agreement."""
    turns = iter(gaps)
    monkeypatch.setattr(grpo.guards.selftest, "_served", lambda *_: (next(turns), 0.5))
    with pytest.raises(SyncError, match="does not serve the policy's LoRA"):
        loop.check()
    loop.sampler.swap_lora(loop.policy.lora())


def test_what_is_no_number_is_no_agreement(loop, monkeypatch):
    """The base's log-probs, a module's outputs, a trained token's log-prob."""
    nan = float("nan")
    with monkeypatch.context() as broken:
        broken.setattr(grpo.guards.selftest, "_gap", lambda *_: nan)
        with pytest.raises(SyncError, match="by nan nats"):
            grpo.guards.selftest.check_base(loop.updater, [])
    with monkeypatch.context() as broken:
        outputs = loop.sampler.module_outputs
        broken.setattr(loop.sampler, "module_outputs", lambda noise: {n: nan * x for n, x in outputs(noise).items()})
        with pytest.raises(SyncError, match="differ by nan"):
            check_modules(loop.policy, loop.sampler, seed=0)
    groups = loop.groups(1)
    logs = loop.updater.logps(groups)
    row, log = next(iter(logs.items()))
    logs[row] = replace(log, logp=[nan, *log.logp[1:]])
    with pytest.raises(SyncError, match="by nan nats"):
        check_parity(groups, logs, torch.float32, 0.0)


def test_a_few_tokens_may_hold_one_that_is_far_off_and_many_may_not():
    assert bound(0.04, 1000, torch.bfloat16) == pytest.approx(8 * 0.04 + 0.003)
    assert bound(0.001, 2, torch.bfloat16) == pytest.approx(0.15 + 1.5)
    assert bound(1e-6, 1000, torch.float32) == pytest.approx(1e-4 + 5e-5)
