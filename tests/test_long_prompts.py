"""What a long prompt takes where scores are written out, which is off FlashAttention: little, and foretold."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grpo.guards import dry_step
from grpo.speed import attention, padded
from grpo.speed.attention import Layout, scores_bytes
from grpo.speed.padded import Sight
from grpo.types import UserError
from grpo.update import Updater
from tests.conftest import tiny_config, tiny_policy
from tests.test_dry_step import ENGINE, prompt_of


class Largest(TorchDispatchMode):
    """Of the tensors that are made within it: the most numbers of one."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run it, and look at what comes out."""
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def test_scores_are_there_a_block_at_a_time(monkeypatch):
    """A prompt of 400 tokens has 320,000 scores with 2 heads; 10 completions of 40 see it, which are as many again."""
    monkeypatch.setattr(padded, "SCORES", 8000)
    layout = Layout.of([400], [400], [40] * 10, torch.device("cpu"))
    at, prompts, groups, rows = attention._stretches(*layout)
    q, k, v = torch.randn(3, 800, 2, 4).unbind()
    o, lse = torch.randn(800, 2, 4), torch.randn(2, 800)
    for part, of_q, of_k, keys in ((slice(0, at), prompts, prompts, slice(0, at)), (slice(at, None), groups, prompts,
                                   slice(0, at)), (slice(at, None), rows, rows, slice(at, None))):
        given = q[part], k[keys], v[keys]
        with Largest() as largest:
            attention._forward(*given, of_q, of_k, Sight(part == keys), 0.5)
            attention._backward(o[part], *given, o[part], lse[:, part], of_q, of_k, Sight(part == keys), 0.5)
        assert 3200 <= largest.numbers <= 8000


def test_what_scores_take_by_hand():
    like = torch.empty(0)
    assert scores_bytes([100], [30], [10, 20], 2, like) == 3 * 4 * 2 * 100 * 100  # more than 2 x 30 x 100, 2 x 2 x 20 x 20
    assert scores_bytes([10, 40], [200, 5], [100, 100, 5], 1, like) == 3 * 4 * 3 * 100 * 100  # three, padded to the longest
    assert scores_bytes([5000], [8], [8], 6, like.double()) == 3 * 8 * 6 * 279 * (17 * 279)  # of 2^23, with 5000 keys
    flash = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    assert scores_bytes([5000], [8], [8], 6, flash) == scores_bytes([5000], [8], [8], 6, flash, window=5008) == 0
    assert scores_bytes([100], [30], [10, 20], 2, flash, window=119) == 3 * 4 * 2 * 100 * 100  # no kernel has such a window


def test_the_forecast_knows_the_scores_and_reads_no_long_prompt(monkeypatch):
    """A CPU kills what does not fit, so that the pass with the long prompt must not be tried."""
    config = tiny_config("rollout.max_new_tokens=24", "train.recompute_layers=0")
    policy, read = tiny_policy(config), []
    updater = Updater(policy, config)
    monkeypatch.setattr(updater, "accumulate", lambda groups, *more, run=updater.accumulate: (
        read.append(len(groups[0].prompt.token_ids)), run(groups, *more))[1])
    monkeypatch.setattr(dry_step, "available", lambda device: 2**27)
    with pytest.raises(UserError, match=r"attention scores 0\.09 GiB"):  # 12 bytes of 2^23
        dry_step.dry_step(updater, [prompt_of(3000)], ENGINE)
    assert max(read) <= 64


@pytest.mark.parametrize("length", [10, 300])
def test_a_short_probe_foretells_a_long_prompt(length):
    policy = tiny_policy(tiny_config())
    updater, prompt = Updater(policy, tiny_config("train.micro_batch_tokens=500", "rollout.group_size=4")), prompt_of(length)
    probed = dry_step._kept(updater, replace(prompt, token_ids=prompt.token_ids[: dry_step.PROBED]), dry_step.PROBES)
    predicted = dry_step._sizes(updater.config, updater, prompt, probed)["activations"]
    measured = dry_step._kept(updater, prompt, [dry_step.largest_shape(updater.config, prompt)])[0]
    assert predicted == pytest.approx(measured, rel=0.1)
