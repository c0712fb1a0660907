"""Every variant's equations: numbers worked out by hand, the triple loop of tests/reference.py, and invariances."""

import itertools
import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.advantage import ADVANTAGES, overlong_penalty
from grpo.config import Algorithm, Config
from grpo.loss import CORRECTIONS, KLS, LOSSES, RATIOS, TokenData, policy_loss, token_terms
from grpo.presets import PRESETS, idle
from grpo.types import UserError
from tests.conftest import tiny_config
from tests.reference import Ours, Step, Told, by_grpo, by_loops, drawn_step, flat

TINY = tiny_config("rollout.max_new_tokens=4")
LN2 = math.log(2)
CHOICES = {name: get_args(Algorithm.model_fields[name].annotation)
           for name in ("advantage", "ratio", "loss", "aggregation", "correction", "overlong")}
KLS_OF = [{}, *({"kl": kl, "beta": 0.3} for kl in get_args(Algorithm.model_fields["kl"].annotation))]


def config_of(**keys) -> Config:
    """configs/tiny.yaml with another algorithm; completions have at most 4 tokens, penalised from 3 on. Idle keys, which
    Algorithm refuses, are left out."""
    keys = {"overlong_buffer": 0.5, **keys}
    unread = idle({**Algorithm(preset=keys.get("preset")).model_dump(), **keys})
    return TINY.model_copy(update={"algorithm": Algorithm(**{key: x for key, x in keys.items() if key not in unread})})


def possible(chosen: dict) -> bool:
    """Algorithm refuses the others."""
    return not (chosen["ratio"] == "sequence" and chosen["loss"] == "reinforce") and not (
        chosen["advantage"] == "maxrl" and chosen["overlong"] == "penalised")


def assert_same(ours: Ours, loss: float, gradient, advantages=None) -> None:
    assert ours.loss == pytest.approx(loss, rel=1e-6, abs=1e-6)
    assert flat(ours.gradient) == pytest.approx(flat(gradient), rel=1e-6, abs=1e-6)
    assert advantages is None or flat(ours.advantages) == pytest.approx(flat(advantages), rel=1e-6, abs=1e-6)


# ---- by hand


@pytest.mark.parametrize(("name", "expected"), [
    ("centred", [[3 / 4, -1 / 4, -1 / 4, -1 / 4], [1, -1, -1, 1]]),  # m = 1/4 and 2
    # s^2 = (9/16 + 3/16) / 3 = 1/4; (1 + 1 + 1 + 1) / 3 = 4/3
    ("grpo", [[0.75 / 0.5001] + [-0.25 / 0.5001] * 3, [x / (math.sqrt(4 / 3) + 1e-4) for x in (1, -1, -1, 1)]]),
    # all eight: sum 9, squares 1 + 9 + 1 + 1 + 9 = 21, s^2 = (21 - 81/8) / 7 = 87/56
    ("batch_std", [[x / (math.sqrt(87 / 56) + 1e-4) for x in row] for row in ([.75, -.25, -.25, -.25], [1, -1, -1, 1])]),
    ("rloo", [[1, -1 / 3, -1 / 3, -1 / 3], [3 - 5 / 3, 1 - 7 / 3, 1 - 7 / 3, 3 - 5 / 3]]),
    ("maxrl", [[3, -1, -1, -1], [1 / 2, -1 / 2, -1 / 2, 1 / 2]]),
])
def test_advantages_of_two_groups_by_hand(name, expected):
    rewards_PG = torch.tensor([[1, 0, 0, 0], [3, 1, 1, 3]], dtype=torch.float64)
    torch.testing.assert_close(ADVANTAGES[name](rewards_PG), torch.tensor(expected, dtype=torch.float64))
    assert not ADVANTAGES[name](torch.tensor([[0.3] * 3, [0.0] * 3])).any()


def test_maxrl_refuses_a_reward_below_0():
    assert not ADVANTAGES["maxrl"](torch.zeros(2, 3)).any()
    with pytest.raises(UserError, match=r"it divides by a group's mean reward, and a reward is -0\.5; give rewards of 0"):
        ADVANTAGES["maxrl"](torch.tensor([[1.0, 0.0], [1.0, -0.5]]))


@pytest.mark.parametrize(("loss", "r", "advantage", "expected", "slope", "clipped"), [
    # clipped at 0.8 and 1.28, dual_clip_at = 3, log pi = -0.5. slope: d loss / d log pi, where d r / d log pi = r
    ("clip", 0.5, 2, -1.0, -1.0, False), ("clip", 1.5, 2, -2.56, 0, True),  # min(3, 2.56)
    ("clip", 0.5, -2, 1.6, 0, True), ("clip", 1.5, -2, 3.0, 3.0, False),  # min(-1, -1.6); min(-3, -2.56)
    ("dual_clip", 0.5, 2, -1.0, -1.0, False), ("dual_clip", 5, 2, -2.56, 0, True),  # as clip where A > 0
    ("dual_clip", 0.5, -2, 1.6, 0, True), ("dual_clip", 2.5, -2, 5.0, 5.0, False), ("dual_clip", 5, -2, 6.0, 0, True),
    ("cispo", 0.5, 2, 0.5, -1.0, False), ("cispo", 1.5, 2, 1.28, -2.56, True),  # -1.28 * 2 * -0.5; no bound below
    ("cispo", 0.5, -2, -0.5, 1.0, False), ("cispo", 1.5, -2, -1.28, 2.56, True),  # whatever the sign of A
    ("reinforce", 0.5, 2, 1.0, -2, False), ("reinforce", 5, -2, -1.0, 2, False),
])
def test_surrogates_and_their_slopes_by_hand(loss, r, advantage, expected, slope, clipped):
    step = [[Told(0.0, False, [-0.5], [-0.5 - math.log(r)], [0.0], [-0.5 - math.log(r)])]]
    a, logp = config_of(loss=loss, eps_high=0.28).algorithm, torch.tensor([[-0.5]], requires_grad=True)
    old = torch.tensor([step[0][0].old])
    terms = token_terms(logp, TokenData(old, None, torch.tensor([[float(advantage)]]), torch.ones(1, 1), old), a)
    terms.loss_BT.sum().backward()
    assert (terms.loss_BT.item(), logp.grad.item()) == (pytest.approx(expected), pytest.approx(slope))
    assert terms.clipped_BT.item() is clipped


def test_a_ratio_at_its_limit_is_not_clipped():
    r = torch.tensor([0.5, 1.5, 3.0])  # limits that floats hold: 1 - 1/2, 1 + 1/2; A < 0 is bounded at c = 3
    a, logp = Algorithm(eps_low=0.5, eps_high=0.5, dual_clip_at=3.0), torch.zeros(3)
    for name, advantages in (("clip", (-1.0, 1.0)), ("dual_clip", (-1.0, 1.0, -1.0)), ("cispo", (1.0, 1.0))):
        n = len(advantages)
        assert LOSSES[name](logp[:n], r[:n], torch.tensor(advantages), a)[1].tolist() == [False] * n


def test_gspo_by_hand():
    # log r = ln 1.44 and 0: s = sqrt(1.44) = 1.2 at both tokens, and d s / d log pi_t = s / 2
    logp = torch.tensor([[-1.0, -2.0, 5.0]], requires_grad=True)  # 5: padding
    old = torch.tensor([[-1.0 - math.log(1.44), -2.0, 9.0]])
    weights = torch.tensor([[0.5, 0.5, 0.0]])  # sequence_mean of one completion
    assert RATIOS["sequence"](logp, old, weights > 0)[0].tolist() == [pytest.approx(1.2)] * 3
    for eps_high, loss, slope in ((0.25, -1.2, -0.6), (0.1, -1.1, 0.0)):  # min(s, 1 + eps_high)
        data = TokenData(old, None, torch.ones(1, 3), weights, old)
        value, sums = policy_loss(logp, data, Algorithm(ratio="sequence", eps_high=eps_high))
        (grad,) = torch.autograd.grad(value, logp)
        assert value.item() == pytest.approx(loss)
        assert grad[0].tolist() == pytest.approx([slope, slope, 0.0])
        assert sums["clipped"] == (0 if slope else 2)


@pytest.mark.parametrize(("name", "value", "slope"), [
    # pi = 1/2, ref = 1/4, r = 2. k3 = 1/2 + ln 2 - 1, its slope 1 - 1/2; unbiased: 2 k3, and 2 k3 + 2 * 1/2
    ("k1", LN2, 1), ("k2", LN2**2 / 2, LN2), ("k3", LN2 - 0.5, 0.5), ("unbiased", 2 * LN2 - 1, 2 * LN2)])
def test_kls_and_their_slopes_by_hand(name, value, slope):
    step = [[Told(0.0, False, [-LN2], [-2 * LN2], [-2 * LN2], [-2 * LN2])] * 2]
    ours = by_grpo(step, config_of(kl=name, beta=0.1))
    assert_same(ours, 0.1 * value, [[[0.05 * slope], [0.05 * slope]]])  # mean of two tokens
    assert ours.sums["kl_ref"] == pytest.approx(2 * value)


@pytest.mark.parametrize(("name", "expected"), [
    ("none", [1, 1, 1, 1, 1, 1]), ("truncated", [0.4, 0.5, 1, 2, 2, 2]), ("masked", [0, 0.5, 1, 2, 0, 0])])
def test_corrections_by_hand(name, expected):
    rho = torch.tensor([0.4, 0.5, 1, 2, 2.5, float("inf")])
    torch.testing.assert_close(CORRECTIONS[name](rho, Algorithm()), torch.tensor(expected, dtype=torch.float32))


def test_a_correction_weighs_the_surrogate_and_not_the_kl_by_hand():
    # rewards 1 and 0: centred 1/2, -1/2. Both tokens: r = 1, pi_old / pi_sampler = 4, k1 = ln 2, beta 0.1
    step = [[Told(reward, False, [-1.0], [-1.0], [-1.0 - LN2], [-1.0 - 2 * LN2]) for reward in (1.0, 0.0)]]
    for correction, weight in (("none", 1), ("truncated", 2), ("masked", 0)):
        ours = by_grpo(step, config_of(advantage="centred", correction=correction, beta=0.1, kl="k1"))
        slope = weight / 4  # weight * 1/2 * 1/T
        assert_same(ours, 0.1 * LN2, [[[0.05 - slope], [0.05 + slope]]])
        assert ours.sums["correction"] == 2 * weight


def test_overlong_by_hand():
    lengths = torch.tensor([[1.0, 16, 17, 18, 20, 24]])  # L_max 20, the last 4 tokens of it are penalised
    assert overlong_penalty(lengths, 20, 0.2).tolist() == [[0, 0, 0.25, 0.5, pytest.approx(1), 1]]
    step = [[Told(1.0, n == 4, [-1.0] * n, [-1.0] * n, [-1.0] * n, [-1.0] * n) for n in (1, 2, 3, 4)]]
    step[0][0].reward = 0.0
    # kept: 0 1 1 1, m = 3/4, T = 10. masked: the same, without the fourth's gradient, T = 6.
    # penalised: 0 1 1/2 0 (L_max 4, buffer 2), m = 3/8
    for overlong, advantages, weights in (("kept", [-.75, .25, .25, .25], [.1] * 4),
                                          ("masked", [-.75, .25, .25, .25], [1 / 6] * 3 + [0]),
                                          ("penalised", [-.375, .625, .125, -.375], [.1] * 4)):
        ours = by_grpo(step, config_of(advantage="centred", overlong=overlong))
        assert ours.advantages == [pytest.approx(advantages)]
        assert [row[0] for row in ours.gradient[0]] == pytest.approx(
            [-x * w for x, w in zip(advantages, weights, strict=True)])


# ---- the triple loop


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_all_combinations_equal_the_triple_loop(advantage):
    tried = 0
    for rest in itertools.product(*(CHOICES[name] for name in CHOICES if name != "advantage"), KLS_OF):
        chosen = {"advantage": advantage, **dict(zip([*CHOICES][1:], rest, strict=False))}
        if possible(chosen):
            tried += 1
            config, step = config_of(**chosen, **rest[-1]), drawn_step(tried, groups=2)
            packed = (4, 8, 1000)[tried % 3], (0.0, -3.0, 2.5)[tried // 3 % 3], (0, 2, 5)[tried // 9 % 3]  # and what pads it
            assert_same(by_grpo(step, config, *packed), *by_loops(step, config.algorithm, 4))
    assert tried == {"maxrl": 630}.get(advantage, 945)  # (2 * 4 - 1) * 3 * 3 * 3 * 5, a third less without penalised


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 4), st.integers(2, 5), st.integers(1, 9), st.sampled_from([0.0, 0.3, 1.5]),
       st.integers(1, 40), st.fixed_dictionaries({
           **{name: st.sampled_from(values) for name, values in CHOICES.items()}, "kl": st.sampled_from([*KLS]),
           "beta": st.sampled_from([0.0, 0.04, 1.0]), "eps_low": st.floats(0.01, 0.9), "eps_high": st.floats(0.01, 4),
           "dual_clip_at": st.floats(1.1, 5), "correction_low": st.floats(0, 0.9), "correction_high": st.floats(1.1, 4),
           "overlong_buffer": st.floats(0.1, 1)}).filter(possible))
def test_drawn_settings_and_shapes_equal_the_triple_loop(seed, groups, size, longest, spread, budget, keys):
    step = drawn_step(seed, groups, size, longest, spread)
    config = config_of(**keys).model_copy(update={"rollout": TINY.rollout.model_copy(update={"max_new_tokens": longest})})
    assert_same(by_grpo(step, config, budget), *by_loops(step, config.algorithm, longest))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("seed", range(5))
def test_presets_equal_the_triple_loop(preset, seed):
    config = config_of(preset=preset)
    step = drawn_step(seed, spread=0.001 if preset == "gspo" else 0.6)  # its bounds are that narrow
    assert_same(by_grpo(step, config), *by_loops(step, config.algorithm, 4))


@pytest.mark.parametrize("keys", [{"loss": loss} for loss in LOSSES] + [{"ratio": "sequence"}] + KLS_OF[1:], ids=str)
def test_the_reference_has_the_slope_of_its_own_loss(keys):
    a, step = Algorithm(**keys), drawn_step(5, size=4)
    step[0][0].reward += 1
    _, gradient, _ = by_loops(step, a, 4)
    if a.loss == "cispo":  # whose weight is a constant to the gradient, not to the loss
        a = Algorithm(loss="reinforce")
        gradient = [[[g / min(math.exp(x - y), 1.2) for g, x, y in zip(row, c.logp, c.old, strict=True)]
                     for row, c in zip(rows, group, strict=True)] for rows, group in zip(gradient, step, strict=True)]
    for rows, group in zip(gradient, step, strict=True):
        for row, c in zip(rows, group, strict=True):
            for t, middle in enumerate(tuple(c.logp)):
                ends = []
                for c.logp[t] in (middle + 1e-6, middle - 1e-6):
                    ends.append(by_loops(step, a, 4)[0])
                c.logp[t] = middle
                assert row[t] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


# ---- invariances


def rewarded(step: Step, change) -> Step:
    return [[Told(**{**vars(c), "reward": float(change(c.reward))}) for c in group] for group in step]


@given(st.integers(0, 10**6), st.floats(-5, 5), st.sampled_from([0.25, 2.0, 8.0]))
@settings(max_examples=40, deadline=None)
def test_what_a_reward_may_be_shifted_and_scaled_by(seed, shift, scale):
    step = drawn_step(seed)
    for name in ADVANTAGES:
        config = config_of(advantage=name)
        plain, scaled = by_grpo(step, config), by_grpo(rewarded(step, lambda r: scale * r), config)
        if name != "maxrl":  # a shift changes the mean that it divides by
            assert_same(by_grpo(rewarded(step, lambda r: r + shift), config), plain.loss, plain.gradient)
        factor, rounding = (scale if name in ("centred", "rloo") else 1), (3e-3 if name in ("grpo", "batch_std") else 1e-9)
        assert flat(scaled.gradient) == pytest.approx([factor * g for g in flat(plain.gradient)], rel=rounding)  # of e


@pytest.mark.parametrize("preset", PRESETS)
def test_padding_and_micro_batches_change_nothing(preset):
    config = config_of(**{"preset": preset, "beta": 0.2, "kl": "unbiased", "correction": "truncated"})
    for seed in range(5):
        step = drawn_step(seed)
        plain = by_grpo(step, config)
        for budget, garbage, columns in ((1, 0, 0), (7, -3.0, 2), (1000, 2.5, 5)):
            other = by_grpo(step, config, budget, garbage, columns)
            assert_same(other, plain.loss, plain.gradient)
            assert other.sums == pytest.approx(plain.sums)
