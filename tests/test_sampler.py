"""Real vLLM against the trainer: the swap is exact, and each way to get it wrong is caught.

In bfloat16 where the processor has AVX-512, else in float32: emulated, bfloat16 is slow and rounds otherwise.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from vllm.lora.request import LoRARequest

import grpo.sampler
from adapter.task import Settings, SymbolTask
from grpo.advantage import ADVANTAGES
from grpo.metrics import parity
from grpo.parity import loud_lora, self_test
from grpo.rollout import rollout, step_prompts
from grpo.sampler import Sampler, SyncError
from grpo.update import Updater
from tests.conftest import randomize, tiny_config, tiny_policy

DTYPE = "bfloat16" if "AVX512" in torch.backends.cpu.get_cpu_capability() else "float32"
LARGEST = {"bfloat16": 0.02, "float32": 1e-3}[DTYPE]  # |difference| of a log-prob, nats


class Loop:
    """Policy, engine and updater, as the trainer has them."""

    def __init__(self):
        self.config = tiny_config("model.device=cpu", f"model.dtype={DTYPE}", "rollout.group_size=16",
                                  "rollout.max_sequences=128", "optim.lr=1e-3", "optim.warmup=0.0")
        self.task = SymbolTask(Settings(limit=999, train=200, test=20), seed=0)
        self.policy = tiny_policy(self.config)
        self.prompts = [self.policy.encode(p) for p in self.task.train]
        self.sampler = Sampler(self.policy, self.config, context=300)
        self.updater = Updater(self.policy, self.config)

    def groups(self, step: int, seed: int = 0):
        prompts = step_prompts(self.prompts, step, 8, seed)
        return rollout(self.sampler, self.policy, self.task, prompts, step, seed, 16)

    def check(self):
        return self_test(self.policy, self.sampler, self.config, self.prompts[:2])

    def parity(self, step: int) -> tuple[float, float]:
        """Largest and mean |difference| over every token of 128 completions. Leaves no gradient."""
        groups = self.groups(step)
        _, logs = self.updater.accumulate(groups, torch.ones(8, 16), {})
        self.updater.optimizer.zero_grad()
        metrics = parity(groups, logs)
        return metrics["parity/logp_max_abs_diff"], metrics["parity/logp_mean_abs_diff"]


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.sampler.close()


def test_vllm_and_trainer_agree_before_and_after_ten_updates(loop):
    before = {name: t.clone() for name, t in loop.policy.lora().items()}
    largest, mean = loop.parity(step=1)
    assert largest <= LARGEST, mean
    for step in range(1, 11):
        groups = loop.groups(step)
        advantages = ADVANTAGES["grpo"](torch.tensor([[c.score.reward for c in g.completions] for g in groups]))
        loop.updater.step(step, groups, advantages)
        loop.sampler.swap_lora(loop.policy.lora())
    moved = max((t - before[name]).abs().max().item() for name, t in loop.policy.lora().items())
    assert moved > 1e-3
    largest, mean = loop.parity(step=11)
    assert largest <= LARGEST, mean


def test_a_swap_changes_vllms_logprobs(loop):
    samples = loop.sampler.sample(loop.prompts[:2], [1, 2], 4)
    kept = {name: t.clone() for name, t in loop.policy.lora().items()}
    loop.sampler.swap_lora(loud_lora(loop.policy, seed=5))
    louder = loop.sampler.sample(loop.prompts[:2], [1, 2], 4)
    loop.sampler.swap_lora(kept)
    assert louder != samples
    assert loop.sampler.sample(loop.prompts[:2], [1, 2], 4) == samples  # back again, to the last digit


def test_what_is_saved_is_what_is_swapped(loop, tmp_path):
    kept = {name: t.clone() for name, t in loop.policy.lora().items()}
    randomize(loop.policy, 0.05, seed=3)
    loop.sampler.swap_lora(loop.policy.lora())
    swapped = loop.sampler.sample(loop.prompts[:2], [1, 2], 4)
    loop.policy.save(tmp_path)
    engine = loop.sampler._llm.llm_engine
    engine.remove_lora(1)
    engine.add_lora(LoRARequest("policy", 1, str(tmp_path)))
    assert loop.sampler._llm.reset_prefix_cache()
    assert loop.sampler.sample(loop.prompts[:2], [1, 2], 4) == swapped
    loop.policy.load_tensors(kept)
    loop.sampler.swap_lora(kept)


def test_samples_depend_on_policy_prompt_and_seed_alone(loop):
    first = loop.sampler.sample(loop.prompts[:4], [1, 2, 3, 4], 8)
    loop.sampler.greedy(loop.prompts[:20])
    assert loop.sampler.sample(loop.prompts[:4], [1, 2, 3, 4], 8) == first
    assert loop.sampler.sample(loop.prompts[:4], [5, 6, 7, 8], 8) != first


def test_completions_end_with_the_stop_token_or_say_they_were_cut(loop):
    for samples in loop.sampler.sample(loop.prompts[:4], [1, 2, 3, 4], 8):
        for sample in samples:
            assert len(sample.token_ids) == len(sample.logp) <= 96
            assert (sample.token_ids[-1] in loop.policy.stop_ids) == (sample.finish_reason == "stop")


def test_the_self_test_passes_and_leaves_everything_as_it_was(loop):
    before = {name: t.clone() for name, t in loop.policy.lora().items()}
    sampled = loop.sampler.sample(loop.prompts[:2], [1, 2], 4)
    found = loop.check()
    assert found["gap"] < 0.1 * found["stale_gap"]
    assert all(torch.equal(t, before[name]) for name, t in loop.policy.lora().items())
    assert loop.sampler.sample(loop.prompts[:2], [1, 2], 4) == sampled


def break_stale_cache(loop, monkeypatch):
    monkeypatch.setattr(Sampler, "_salt", lambda self: "always the same")
    monkeypatch.setattr(loop.sampler._llm, "reset_prefix_cache", lambda: True)


def break_unswapped(loop, monkeypatch):
    monkeypatch.setattr(loop.sampler, "swap_lora", lambda lora: None)


def break_wrong_keys(loop, monkeypatch):
    pairs = grpo.sampler._pairs
    monkeypatch.setattr(grpo.sampler, "_pairs", lambda *a: {f"model.{name}": pair for name, pair in pairs(*a).items()})


def break_wrong_scale(loop, monkeypatch):
    pairs = grpo.sampler._pairs
    monkeypatch.setattr(grpo.sampler, "_pairs", lambda lora, scale: pairs(lora, 2 * scale))


def break_temperature(loop, monkeypatch):
    monkeypatch.setattr(loop.sampler, "_rollout", loop.config.rollout.model_copy(update={"temperature": 2.0}))


@pytest.mark.parametrize("fault", [
    break_stale_cache, break_unswapped, break_wrong_keys, break_wrong_scale, break_temperature])
def test_the_self_test_catches(loop, monkeypatch, fault):
    with monkeypatch.context() as broken:
        fault(loop, broken)
        with pytest.raises(SyncError):
            loop.check()
    loop.sampler.swap_lora(loop.policy.lora())


def test_the_cache_is_reset_or_the_run_stops(loop, monkeypatch):
    monkeypatch.setattr(loop.sampler._llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(SyncError, match="prefix cache"):
        loop.sampler.swap_lora(loop.policy.lora())


def test_only_sampler_py_touches_vllm():
    grpo_files = Path(grpo.sampler.__file__).parent.glob("*.py")
    assert [f.name for f in grpo_files if "import vllm" in f.read_text() or "from vllm" in f.read_text()] == ["sampler.py"]
