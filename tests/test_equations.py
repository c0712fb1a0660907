"""Advantage, ratio, clip, KL and aggregation, against numbers worked out by hand."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.advantage import ADVANTAGES, centred, grpo
from grpo.batch import Denominators, MicroBatch, token_weights
from grpo.config import Algorithm
from grpo.loss import CORRECTIONS, KLS, LOSSES, RATIOS, TokenData, clip, k1, k2, k3, policy_loss, token_ratio, unbiased
from grpo.speed.micro_batches import split
from tests.conftest import every, group_of


def test_every_name_in_the_config_has_its_function():
    for key, functions in {"advantage": ADVANTAGES, "ratio": RATIOS, "loss": LOSSES, "kl": KLS,
                           "correction": CORRECTIONS}.items():
        assert set(get_args(Algorithm.model_fields[key].annotation)) == set(functions)
    for name in get_args(Algorithm.model_fields["aggregation"].annotation):
        assert token_weights(torch.ones(1, 1, dtype=torch.bool), name, Denominators(1, 1, 1)) == 1


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])  # m = 1/4; s^2 = (9/16 + 3/16)/3 = 1/4, s = 1/2 (Bessel)
    assert centred(rewards).tolist() == [[0.75, -0.25, -0.25, -0.25]]
    torch.testing.assert_close(grpo(rewards), torch.tensor([[0.75, -0.25, -0.25, -0.25]]) / 0.5001)


def test_std_is_bessels_not_numpys():
    rewards = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(grpo(torch.tensor([rewards])).numpy()[0], expected, rtol=1e-6)
    assert not np.allclose(expected, (rewards - rewards.mean()) / (rewards.std(ddof=0) + 1e-4), rtol=1e-3)


def test_the_one_success_in_64_weighs_8():
    rewards = torch.zeros(1, 64)
    rewards[0, 5] = 1.0
    assert grpo(rewards)[0, 5].item() == pytest.approx(7.87, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_equal_rewards_have_no_advantage(value):
    assert not grpo(torch.full((2, 64), value)).any()
    assert not centred(torch.full((2, 64), value)).any()


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8), st.floats(-100, 100))
def test_advantages_ignore_a_shift(rewards, shift):
    rewards_PG = torch.tensor([rewards], dtype=torch.float64)
    torch.testing.assert_close(centred(rewards_PG + shift), centred(rewards_PG), atol=1e-9, rtol=0)


def test_ratio_and_clip_by_hand():
    logp_old = torch.tensor([-1.0, -1.0, -1.0, -1.0])
    logp = logp_old + torch.tensor([0.5, 1.5, 0.5, 1.5]).log()
    advantage = torch.tensor([2.0, 2.0, -2.0, -2.0])
    r = token_ratio(logp, logp_old, torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(r, torch.tensor([0.5, 1.5, 0.5, 1.5]))
    loss, clipped = clip(logp, r, advantage, Algorithm(eps_low=0.2, eps_high=0.28))
    # min(.5*2, .8*2)=1; min(1.5*2, 1.28*2)=2.56; min(-.5*2, -.8*2)=-1.6; min(-1.5*2, -1.28*2)=-3
    torch.testing.assert_close(loss, -torch.tensor([1.0, 2.56, -1.6, -3.0]))
    assert clipped.tolist() == [False, True, True, False]


def test_at_ratio_one_clip_has_the_plain_policy_gradient():
    logp = torch.tensor([-0.3, -2.0], requires_grad=True)
    advantage = torch.tensor([1.5, -0.5])
    for surrogate in LOSSES.values():
        r = token_ratio(logp, logp.detach(), torch.ones(2, dtype=torch.bool))
        (grad,) = torch.autograd.grad(surrogate(logp, r, advantage, Algorithm())[0].sum(), logp)
        torch.testing.assert_close(grad, -advantage)


def test_kl_estimators_by_hand():
    logp, logp_ref = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    r = torch.tensor([2.0])
    assert k1(logp, logp_ref, r).item() == pytest.approx(math.log(2))
    assert k2(logp, logp_ref, r).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert k3(logp, logp_ref, r).item() == pytest.approx(0.5 + math.log(2) - 1)
    assert unbiased(logp, logp_ref, r).item() == pytest.approx(2 * (0.5 + math.log(2) - 1))


@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_average_to_the_kl(estimator):
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    kl = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * estimator(p.log(), q.log(), torch.ones(3))).sum(), kl)


def two_completions() -> MicroBatch:
    """The worked example of grpo/batch.py: [a b c <eos>] and [d <eos>] after [p q r]."""
    return MicroBatch.of([group_of([21, 22, 23], [[11, 12, 13, 2], [14, 2]])], [(0, 0), (0, 1)], torch.device("cpu"))


def test_the_worked_example_of_the_batch():
    batch = two_completions()
    assert batch.targets_BT.tolist() == [[11, 12, 13, 2], [14, 2, 0, 0]]
    assert batch.mask_BT.tolist() == [[True] * 4, [True, True, False, False]]  # <eos> = 2 is inside
    assert batch.tokens_N.tolist() == [21, 22, 23, 11, 12, 13, 14]
    assert batch.positions_N.tolist() == [0, 1, 2, 3, 4, 5, 3]
    assert batch.predicts_M.tolist() == [2, 3, 4, 5, 2, 6]
    assert batch.layout.offsets.tolist() == [0, 3, 0, 4, 0, 3, 4]
    assert batch.layout.sizes.tolist() == [1, 3, 3, 4, 3]


def test_a_batch_of_two_prompts_by_hand():
    groups = [group_of([21, 22], [[2], [11, 12, 2]]), group_of([23, 24, 25], [[13, 2], [14, 15]])]
    batch = MicroBatch.of(groups, [(0, 1), (0, 0), (1, 1)], torch.device("cpu"))
    assert batch.tokens_N.tolist() == [21, 22, 23, 24, 25, 11, 12, 2, 14]  # a single token is read, though nothing follows
    assert batch.positions_N.tolist() == [0, 1, 0, 1, 2, 2, 3, 2, 3]
    assert batch.predicts_M.tolist() == [1, 5, 6, 1, 4, 8]
    assert batch.targets_BT.tolist() == [[11, 12, 2], [2, 0, 0], [14, 15, 0]]
    assert batch.layout.offsets.tolist() == [0, 2, 5, 0, 3, 4, 0, 2, 3, 4]
    assert batch.layout.sizes.tolist() == [2, 5, 3, 3, 2]


@pytest.mark.parametrize(("aggregation", "expected"), [
    ("token_mean", [[1 / 6] * 4, [1 / 6, 1 / 6, 0, 0]]),
    ("sequence_mean", [[1 / 8] * 4, [1 / 4, 1 / 4, 0, 0]]),
    ("constant", [[1 / 20] * 4, [1 / 20, 1 / 20, 0, 0]]),
])
def test_aggregation_by_hand(aggregation, expected):
    weights = token_weights(two_completions().mask_BT, aggregation, Denominators(tokens=6, completions=2, max_tokens=10))
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_policy_loss_by_hand():
    batch = two_completions()
    logp = torch.full((2, 4), -1.0, requires_grad=True)
    old = logp.detach() - math.log(1.1)
    data = TokenData(old, torch.full((2, 4), -1.5), torch.tensor([[2.0], [-1.0]]).expand(2, 4),
                     token_weights(batch.mask_BT, "token_mean", Denominators(6, 2, 10)), old)
    loss, sums = policy_loss(logp, data, Algorithm(beta=0.5, kl="k1"))
    # r = 1.1 everywhere: (4 * -2.2 + 2 * 1.1) / 6, and 0.5 * k1 = 0.25 on each of 6 tokens
    assert loss.item() == pytest.approx((4 * -2.2 + 2 * 1.1) / 6 + 0.25, abs=1e-6)
    assert {name: x.item() for name, x in sums.items()} == {"clipped": 0.0, "kl_ref": pytest.approx(3.0), "correction": 6.0}
    loss.backward()
    assert logp.grad[1, 2:].tolist() == [0.0, 0.0]  # padding gets no gradient


def test_padding_cannot_poison_the_loss():
    batch = two_completions()
    logp = torch.full((2, 4), -1.0)
    logp[1, 2:] = float("nan")
    logp.requires_grad_()
    data = TokenData(torch.full((2, 4), -1.0), None, torch.ones(2, 4),
                     token_weights(batch.mask_BT, "token_mean", Denominators(6, 2, 10)), torch.full((2, 4), -1.0))
    loss, _ = policy_loss(logp, data, Algorithm())
    loss.backward()
    assert loss.item() == pytest.approx(-1.0)
    assert logp.grad.isfinite().all()


@given(st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(1, 50), min_size=2, max_size=20)), min_size=1,
                max_size=5), st.integers(1, 400))
def test_split_covers_every_row_within_budget(shapes, budget):
    groups = [group_of([5] * prompt, [[6] * n for n in lengths]) for prompt, lengths in shapes]
    batches = split(groups, every(groups), budget)
    assert sorted(row for batch in batches for row in batch) == every(groups)
    for batch in batches:
        assert [p for p, _ in batch] == sorted(p for p, _ in batch)  # those of one group stand together
        read = sum(shapes[p][0] for p in {p for p, _ in batch}) + sum(shapes[p][1][row] for p, row in batch)
        assert len(batch) == 1 or read <= budget


def test_a_group_that_does_not_fit_is_cut_into_few_parts():
    groups = [group_of([5] * 4, [[6] * n for n in (1, 2, 3, 4, 5, 6)]), group_of([5], [[6], [6]])]
    assert split(groups, every(groups), 100) == [every(groups)]
    assert split(groups, every(groups), 16) == [  # 4 + 6 + 5 + 1; 4 + 4 + 3 + 2, and the other group's 3
        [(0, 0), (0, 4), (0, 5)], [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]]
    assert split(groups, every(groups)[6:], 1) == [[(1, 0)], [(1, 1)]]
