"""The start-up self-test: it passes a healthy engine, and stops each way to serve another LoRA than the policy's."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import grpo.guards.selftest
from grpo.guards.parity import SyncError, bound, check_parity, parity_metrics
from grpo.guards.selftest import FIRST, MARGIN, NOISIEST, QUIETEST, check_modules, check_served, noisiest, random_lora
from grpo.types import Group, Problem, Prompt, TokenLog
from tests import swap_faults
from tests.conftest import group_of, tiny_config
from tests.loop import Loop


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.sampler.close()


def test_the_self_test_passes_and_leaves_everything_as_it_was(loop, monkeypatch):
    noises = []
    monkeypatch.setattr(grpo.guards.selftest, "check_parity", lambda *a: noises.append(a[3]) or check_parity(*a))
    before = {name: t.clone() for name, t in loop.policy.lora().items()}
    sampled = loop.sampler.sample(loop.prompts[:2], [1, 2], 4)
    found = loop.check()
    assert found.gap < MARGIN * found.stale
    assert found.stale > 10 * found.noise  # a LoRA that is heard
    assert found.module <= 0.02
    assert loop.updater.noise == found.noise
    assert noises == [found.noise]  # the rule of every step holds for the policy that is to be trained
    assert all(torch.equal(t, before[name]) for name, t in loop.policy.lora().items())
    assert loop.sampler.sample(loop.prompts[:2], [1, 2], 4) == sampled


@pytest.mark.parametrize("fault", [
    swap_faults.stale_cache, swap_faults.unswapped, swap_faults.wrong_keys, swap_faults.half_the_modules,
    swap_faults.one_module, swap_faults.wrong_scale, swap_faults.transposed, swap_faults.exchanged, swap_faults.temperature,
    swap_faults.a_hair])
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


def test_a_gap_near_what_another_lora_would_show_stops_it(loop, monkeypatch):
    gap = 0.9 * NOISIEST[loop.policy.dtype]
    monkeypatch.setattr(grpo.guards.selftest, "_served", lambda *_: (gap, 2 * gap))
    with pytest.raises(SyncError, match="does not serve the policy's LoRA"):
        loop.check()
    loop.sampler.swap_lora(loop.policy.lora())


def test_where_a_base_is_chaotic_a_quieter_lora_is_tried_and_a_fault_is_not_excused(loop, monkeypatch):
    """The engines differ by more than rounding may under a LoRA that is 20 times as loud as it need be."""
    too_much = 2 * NOISIEST[loop.policy.dtype]
    for quieter, passes in ((0.001, True), (0.1, False)):
        turns = iter([(too_much, 20 * QUIETEST), (quieter, 2 * QUIETEST), (0.001, 2 * QUIETEST)])
        monkeypatch.setattr(grpo.guards.selftest, "_served", lambda *_, turns=turns: next(turns))
        if passes:
            assert loop.check().loudness == FIRST / 2
        else:
            with pytest.raises(SyncError, match=f"by {quieter:.3g} on average"):
                loop.check()
        loop.sampler.swap_lora(loop.policy.lora())


def test_rounding_is_divided_by_the_temperature_as_logits_are(loop):
    rollout = loop.updater.config.rollout.model_copy(update={"temperature": 0.5})
    updater = SimpleNamespace(policy=loop.policy, config=loop.updater.config.model_copy(update={"rollout": rollout}))
    assert noisiest(updater) == 2 * NOISIEST[loop.policy.dtype]


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
        check_parity(groups, logs, torch.float32, 0.0, 1.0)


def test_a_few_tokens_may_hold_one_that_is_far_off_and_many_may_not():
    assert bound(0.04, 1000, torch.bfloat16, 1.0) == pytest.approx(8 * 0.04 + 0.003)
    assert bound(0.001, 2, torch.bfloat16, 1.0) == pytest.approx(0.15 + 1.5)
    assert bound(1e-6, 1000, torch.float32, 1.0) == pytest.approx(1e-4 + 5e-5)
    assert bound(0.04, 1000, torch.bfloat16, 0.5) == pytest.approx(8 * 0.04 + 0.006)  # the noise was measured at 0.5
    assert bound(0.001, 2, torch.bfloat16, 0.5) == pytest.approx(0.3 + 3.0)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 0.005), (torch.bfloat16, 0.15)])
def test_the_base_may_be_so_noisy_and_no_noisier(monkeypatch, dtype, most):
    updater = SimpleNamespace(policy=SimpleNamespace(dtype=dtype), config=tiny_config(), logps=lambda groups: {})
    monkeypatch.setattr(grpo.guards.selftest, "_gap", lambda *_: most)
    assert grpo.guards.selftest.check_base(updater, []) == most
    monkeypatch.setattr(grpo.guards.selftest, "_gap", lambda *_: 1.01 * most)
    with pytest.raises(SyncError, match=f"rounding explains {most} in {dtype}"):
        grpo.guards.selftest.check_base(updater, [])


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_another_temperature_that_fits_better_is_named(monkeypatch, factor):
    config = tiny_config("rollout.temperature=0.6")
    updater = SimpleNamespace(policy=SimpleNamespace(dtype=torch.bfloat16), config=config, logps=lambda groups: {})

    def check(noise: float, there: float) -> float:
        monkeypatch.setattr(grpo.guards.selftest, "_gap", lambda *_: {
            0.6: noise, 0.6 * factor: there}.get(updater.config.rollout.temperature, 1.0))
        return grpo.guards.selftest.check_base(updater, [])

    assert [check(0.1, 0.1), check(0.01, 0.0)] == [0.1, 0.01]  # with so little noise no other is tried
    with pytest.raises(SyncError, match=rf"by 0\.1 nats on average, and by less at {0.6 * factor}"):
        check(0.1, 0.09)
    assert updater.config is config


def test_what_the_buffers_hold_by_hand():
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.1]])
    policy = SimpleNamespace(lora=lambda: {"q.lora_A.weight": a, "q.lora_B.weight": b}, scale=2.0, dtype=torch.bfloat16)
    held = {"q.lora_A.weight": a.bfloat16(), "q.lora_B.weight": torch.tensor([[6.0], [0.2]]).bfloat16()}
    check_served(policy, SimpleNamespace(served_lora=lambda: held))
    for wrong in ({"q.lora_B.weight": b.bfloat16()}, {"q.lora_A.weight": 2 * held["q.lora_A.weight"]}):
        with pytest.raises(SyncError, match=f"vLLM does not hold {next(iter(wrong))} as the policy has it"):
            check_served(policy, SimpleNamespace(served_lora=lambda wrong=wrong: held | wrong))
    with pytest.raises(SyncError, match=r"vLLM does not hold q\.lora_B\.weight"):
        check_served(policy, SimpleNamespace(served_lora=lambda: {"q.lora_A.weight": held["q.lora_A.weight"]}))


def test_the_metrics_by_hand():
    gaps = (0.25, -0.5)  # the KL is the mean of exp d - 1 - d: 0.0340 and 0.1065
    assert parity_metrics([(-1.5 + gap, -1.5) for gap in gaps]) == {
        "parity/logp_max_abs_diff": 0.5, "parity/logp_mean_abs_diff": 0.375, "parity/kl": pytest.approx(0.0702780, abs=1e-7)}
    assert set(parity_metrics([]).values()) == {None}


@pytest.mark.parametrize("off", [0, 1])
def test_one_prompt_that_is_off_stops_it_and_rounding_does_not(off):
    """Of two prompts with 100 tokens in float32: 1e-4 + 0.05 / 100 is rounding. One is off by as much above as below."""
    groups = [Group(Prompt(Problem(name, "custom", ()), (5,), ""), group_of([5], [[7] * 100]).completions) for name in "ab"]

    def check(gap: float, noise: float = 0.0, temperature: float = 1.0) -> float:
        logs = {(p, 0): TokenLog([gap if t % 2 else -gap for t in range(100)] if p == off else [0.0] * 100, [1.0] * 100)
                for p in (0, 1)}
        return check_parity(groups, logs, torch.float32, noise, temperature)["parity/logp_mean_abs_diff"]

    assert check(0.00059) == pytest.approx(0.000295)
    with pytest.raises(SyncError, match=rf"by 0\.00061 nats on average on the completions of '{'ab'[off]}'"):
        check(0.00061)
    with pytest.raises(SyncError, match="by nan nats"):
        check(float("nan"))
    assert check(0.00119, temperature=0.5) == pytest.approx(0.000595)
    with pytest.raises(SyncError, match=r"rounding explains 0\.0012 at most"):
        check(0.00121, temperature=0.5)
    assert check(0.00129, noise=1e-4) == pytest.approx(0.000645)  # 8 times as much, and the 0.05 / 100
    with pytest.raises(SyncError, match=r"rounding explains 0\.0013 at most in torch\.float32, and 0\.0001 at the start"):
        check(0.00131, noise=1e-4)
