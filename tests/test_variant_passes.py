"""Variants in use: their gradients in expectation, by exact enumeration, and those that the Updater adds up.

The second are compared with the triple loop of tests/reference.py, whose d loss / d logp goes backward through the plain
padded pass.
"""

import random
from dataclasses import replace

import pytest
import torch

from grpo.advantage import ADVANTAGES
from grpo.batch import pad
from grpo.config import Algorithm
from grpo.loss import TokenData, policy_loss
from grpo.presets import PRESETS
from grpo.rollout import advantages
from grpo.types import Group, Score, TokenLog
from grpo.update import Updater
from tests.conftest import group_of, padded_logps, randomize, sampled_by, tiny_config, tiny_policy
from tests.reference import Step, Told, by_loops
from tests.test_training_pass import gradients, relative

# ---- in expectation, over a vocabulary of five and completions of one token

THETA = torch.tensor([0.3, -1.0, 0.8, 0.0, -0.4], dtype=torch.float64, requires_grad=True)  # logits of pi
OLD, REF = torch.tensor([[-0.5, 0.2, 0.4, 1.0, -0.3], [1.0, 0.5, -0.7, 0.1, -1.5]], dtype=torch.float64).log_softmax(-1)


def of_theta(value: torch.Tensor) -> torch.Tensor:
    """d value / d theta."""
    return torch.autograd.grad(value, THETA)[0]


def expected_kl(name: str, old: torch.Tensor) -> torch.Tensor:
    """The loss's KL part, averaged over the tokens that pi_old may draw; differentiable in theta."""
    logp_BT = THETA.log_softmax(-1)[:, None]
    data = TokenData(old[:, None], REF[:, None], torch.zeros(5, 1), old.exp()[:, None], old[:, None])
    return policy_loss(logp_BT, data, Algorithm(beta=1.0, kl=name))[0]


def test_the_gradient_of_each_kl_in_expectation():
    def true_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return (p.exp() * (p - q)).sum()

    on, forward = THETA.detach().log_softmax(-1), true_kl(THETA.log_softmax(-1), REF)
    true, reverse = of_theta(forward), of_theta(true_kl(REF, THETA.log_softmax(-1)))
    assert relative(reverse, true) > 0.3
    for old, name, expected in ((on, "k2", true), (on, "unbiased", true), (OLD, "unbiased", true), (on, "k3", reverse),
                                (on, "k1", torch.zeros(5))):
        torch.testing.assert_close(of_theta(expected_kl(name, old)), expected.double(), atol=1e-12, rtol=0)
    assert relative(of_theta(expected_kl("k2", OLD)), true) > 0.1  # off policy it is another
    for old, name in ((on, "k1"), (on, "k3"), (on, "unbiased"), (OLD, "unbiased")):
        assert expected_kl(name, old).item() == pytest.approx(forward.item(), abs=1e-12)


def expected_ascent(rewards: list[float], size: int, advantage: str, drawn_from: torch.Tensor | None = None,
                    sampler: torch.Tensor | None = None, **keys) -> torch.Tensor:
    """- the gradient of the loss, averaged over every group of `size` tokens that may be drawn."""
    drawn_PG = torch.cartesian_prod(*[torch.arange(5)] * size)
    old = THETA.detach().log_softmax(-1) if drawn_from is None else drawn_from
    sampler = old if sampler is None else sampler
    weights_PG = sampler[drawn_PG].sum(1, keepdim=True).exp().expand(drawn_PG.shape) / size
    advantages_PG = ADVANTAGES[advantage](torch.tensor(rewards, dtype=torch.float64)[drawn_PG])
    data = TokenData(old[drawn_PG], None, advantages_PG, weights_PG, sampler[drawn_PG])
    return -of_theta(policy_loss(THETA.log_softmax(-1)[drawn_PG], data, Algorithm(**keys))[0])


def test_rloo_is_unbiased_and_centring_shrinks():
    rewards = [0.3, 1.0, -2.0, 0.5, 0.0]
    true = of_theta((THETA.softmax(-1) * torch.tensor(rewards)).sum())
    wide = {"clip": {"eps_low": 0.99, "eps_high": 1e3}, "cispo": {"eps_high": 1e3}}
    for size in (2, 3):
        for loss in ("clip", "dual_clip", "cispo", "reinforce"):
            torch.testing.assert_close(expected_ascent(rewards, size, "rloo", loss=loss), true)
            torch.testing.assert_close(expected_ascent(rewards, size, "centred", loss=loss), true * (size - 1) / size)
        for loss, limits in wide.items():  # off policy the ratio mends it, ...
            torch.testing.assert_close(expected_ascent(rewards, size, "rloo", OLD, loss=loss, **limits), true)
        assert relative(expected_ascent(rewards, size, "rloo", OLD, loss="reinforce"), true) > 0.1  # without it nothing does
        torch.testing.assert_close(expected_ascent(  # and where the sampler is another, the correction does
            rewards, size, "rloo", None, OLD, loss="reinforce", correction="truncated", correction_high=1e3), true)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_maxrl_climbs_the_likelihood_of_success(size):
    """E = (1 - (1 - p)^(G-1)) / p grad p, p the chance of success: of log p = -sum_k (1-p)^k / k the first G - 1 terms.

    G completions without a baseline give G terms; subtracting the mean costs one. As G grows it is grad log p.
    """
    p = (THETA.softmax(-1) * torch.tensor([0.0, 1, 0, 0, 1])).sum()
    truncated = -sum((1 - p) ** k / k for k in range(1, size))
    torch.testing.assert_close(expected_ascent([0, 1, 0, 0, 1], size, "maxrl", loss="reinforce"), of_theta(truncated))


# ---- through the Updater

HOT = 4.0  # at 1 the random tokens have log-probs of -28, whose rounding of 1e-5 the ratios take on
LIMIT = ("rollout.max_new_tokens=6", f"rollout.temperature={HOT}")
CASES = {  # overrides; is the policy another than the one that sampled?
    **{name: ((f"algorithm={name}",), False) for name in PRESETS},
    **{f"{name}, second epoch": ((f"algorithm={name}",), True) for name in PRESETS},
    "gspo, wide": (("algorithm=gspo", "algorithm.eps_low=0.1", "algorithm.eps_high=0.1"), True),
    "gspo, unbiased": (("algorithm=gspo", "algorithm.beta=0.3", "algorithm.kl=unbiased", "algorithm.eps_high=0.1"), True),
    "cispo, sequence": (("algorithm=cispo", "algorithm.ratio=sequence", "algorithm.eps_high=0.1"), True),
    "dual clip": (("algorithm.loss=dual_clip", "algorithm.dual_clip_at=1.3", "algorithm.advantage=batch_std"), True),
    **{kl: (("algorithm.beta=0.3", f"algorithm.kl={kl}"), True) for kl in ("k1", "k2", "unbiased")},
    "truncated": (("algorithm.correction=truncated", "algorithm.correction_high=1.2"), False),
    "masked": (("algorithm.correction=masked", "algorithm.correction_low=0.8", "algorithm.correction_high=1.2"), True),
    **{f"overlong, {agg}": (("algorithm.overlong=masked", f"algorithm.aggregation={agg}", "algorithm.beta=0.1"), True)
       for agg in ("token_mean", "sequence_mean", "constant")},
}


def rewarded_groups() -> list[Group]:
    """Three groups of four, of 1 to 6 tokens; the longest are truncated. The last group has no signal."""
    rng = random.Random(3)
    groups = []
    for p, rewards in enumerate([(1.0, 0.0, 0.5, 0.0), (0.0, 1.0, 1.0, 0.0), (1.0,) * 4]):
        lengths = [6, *rng.sample(range(1, 6), 3)] if p < 2 else [2, 3, 1, 4]
        ids = [[rng.randrange(10, 300) for _ in range(n - 1)] + [2 if n < 6 else 77] for n in lengths]
        group = group_of([rng.randrange(10, 300) for _ in range(3 + 2 * p)], ids)
        groups.append(replace(group, completions=tuple(
            replace(c, score=Score(reward), sample=replace(c.sample, finish_reason="length" if n == 6 else "stop"))
            for c, reward, n in zip(group.completions, rewards, lengths, strict=True))))
    return groups


def told_by(policy, groups: list[Group], off: bool) -> Step:
    """The padded pass's log-probs, as floats; the sampler's and, where it is another, the old policy's, with noise."""
    rng = random.Random(4)

    def noisy(logps: list[float], std: float) -> list[float]:
        return [x + rng.gauss(0, std) for x in logps]

    step: Step = []
    for group in groups:
        with torch.no_grad():
            logp_BT = padded_logps(policy, group, HOT).tolist()
            with policy.base_only():
                ref_BT = padded_logps(policy, group, HOT).tolist()
        step.append([])
        for c, logp, ref in zip(group.completions, logp_BT, ref_BT, strict=True):
            n = len(c.sample.token_ids)
            old = noisy(logp[:n], 0.2 if off else 0.0)
            step[-1].append(Told(
                c.score.reward, c.sample.finish_reason == "length", logp[:n], old, ref[:n], noisy(old, 0.3)))
    return step


@pytest.mark.parametrize("case", CASES)
def test_the_updaters_gradient_equals_the_loops_through_the_padded_pass(fp32_policy, case):
    overrides, off = CASES[case]
    config = tiny_config(*overrides, *LIMIT)
    step = told_by(fp32_policy, rewarded_groups(), off)
    groups = [replace(g, completions=tuple(
        replace(c, sample=replace(c.sample, logp=tuple(told.sampler))) for c, told in zip(g.completions, row, strict=True)))
        for g, row in zip(rewarded_groups(), step, strict=True)]
    loss, slopes, _ = by_loops(step, config.algorithm, 6)
    for group, rows in zip(groups, slopes, strict=True):
        padded_logps(fp32_policy, group, HOT).backward(gradient=pad(rows, torch.float32))
    theirs = gradients(fp32_policy)
    assert theirs.norm() > 1e-3
    found = {}
    for budget in (14, 1000):
        updater = Updater(fp32_policy, tiny_config(*overrides, *LIMIT, f"train.micro_batch_tokens={budget}"))
        if off:
            updater.logp_old = {(p, i): c.old for p, row in enumerate(step) for i, c in enumerate(row)}
        metrics, logs = updater.accumulate(groups, advantages(groups, config))
        found[budget] = gradients(fp32_policy)
        assert relative(found[budget], theirs) < 1e-5
        assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
        masked, penalty = config.algorithm.overlong == "masked", config.algorithm.beta > 0
        assert all((log.ref is not None) is penalty for log in logs.values())  # without a KL the base is not asked
        assert {p for p, _ in logs} == ({0, 1, 2} if penalty else {0, 1})
        assert all(groups[p].completions[i].sample.finish_reason == "stop" for p, i in logs) is masked
    assert relative(found[14], found[1000]) < 1e-5


@pytest.mark.parametrize("overrides", [("algorithm=gspo",), ("algorithm=cispo", "algorithm.eps_high=0.05"),
                                       ("algorithm=grpo", "algorithm.kl=unbiased")], ids=str)
def test_the_second_epoch_has_the_loss_of_the_loops(overrides):
    policy = tiny_policy(tiny_config())
    randomize(policy, 0.02)
    config = tiny_config(*overrides, LIMIT[0], "algorithm.epochs=2", "optim.warmup=0.0", "optim.lr=0.02")
    groups = sampled_by(policy, rewarded_groups())
    metrics, logs = Updater(policy, config).step(1, groups, advantages(groups, config))
    step: Step = []
    for p, group in enumerate(groups):
        step.append([])
        for i, c in enumerate(group.completions):
            nothing = [-1.0] * len(c.sample.token_ids)  # of a group without a signal: that they are so many counts
            log = logs.get((p, i), TokenLog(nothing, nothing, nothing, nothing))
            step[-1].append(Told(c.score.reward, False, log.last, log.logp, log.ref or nothing, log.logp))
    assert max(abs(a - b) for log in logs.values() for a, b in zip(log.last, log.logp, strict=True)) > 0.01
    assert metrics["loss"] == pytest.approx(by_loops(step, config.algorithm, 6)[0], abs=1e-5)


def test_a_step_of_truncated_completions_alone_trains_on_nothing(fp32_policy):
    groups = [replace(g, completions=tuple(replace(c, sample=replace(c.sample, finish_reason="length"))
                                           for c in g.completions)) for g in rewarded_groups()]
    config = tiny_config("algorithm.overlong=masked", "algorithm.beta=0.1", *LIMIT)
    metrics, logs = Updater(fp32_policy, config).accumulate(groups, advantages(groups, config))
    assert (metrics["loss"], metrics["tokens/trained"], logs) == (0, 0, {})
    assert all(p.grad is None for p in fp32_policy.parameters.values())
