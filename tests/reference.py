"""An independent reference: one step's loss and its gradient in log pi, as a triple loop over plain Python floats.

Written from the papers, case by case, with derivatives by hand; no tensor, no mask, no padding, no micro-batch. Below it,
the same step through grpo/, so that the two can be compared.
"""

import math
import random
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from grpo.batch import Denominators, MicroBatch, pad, token_weights, trained_rows
from grpo.config import Algorithm, Config
from grpo.loss import TokenData, policy_loss
from grpo.rollout import advantages
from grpo.speed.micro_batches import split
from grpo.types import Completion, Group, Problem, Prompt, Sample, Score


@dataclass
class Told:
    """A completion in numbers: its reward, and what each of four policies gives its tokens."""

    reward: float
    truncated: bool
    logp: list[float]
    old: list[float]
    ref: list[float]
    sampler: list[float]


Step = list[list[Told]]
Nested = list[list[Any]]  # by group and completion


def advantages_by_loop(rewards: list[list[float]], name: str) -> Nested:
    """A_i of each completion."""
    flat = [reward for group in rewards for reward in group]
    found = []
    for group in rewards:
        mean = sum(group) / len(group)
        spread = math.sqrt(sum((r - mean) ** 2 for r in group) / (len(group) - 1))
        if name == "batch_std":
            middle = sum(flat) / len(flat)
            spread = math.sqrt(sum((r - middle) ** 2 for r in flat) / (len(flat) - 1))
        row = []
        for i, reward in enumerate(group):
            others = group[:i] + group[i + 1 :]
            if name == "rloo":
                row.append(reward - sum(others) / len(others))
            elif name == "maxrl":
                row.append((reward - mean) / mean if mean else 0.0)
            elif name == "centred":
                row.append(reward - mean)
            else:
                row.append((reward - mean) / (spread + 1e-4))
        found.append([0.0] * len(row) if len(set(group)) == 1 else row)
    return found


def surrogate(loss: str, a: Algorithm, advantage: float, ratio: float, logp: float) -> tuple[float, float, float]:
    """(value, d value / d ratio, d value / d logp) to be minimised.

    min(rA, clip(r)A) is r A with r held below 1 + eps_high where A > 0, and above 1 - eps_low where A < 0.
    """
    if loss == "reinforce":
        return -advantage * logp, 0.0, -advantage
    if loss == "cispo":
        weight = 1 + a.eps_high if ratio > 1 + a.eps_high else ratio
        return -weight * advantage * logp, 0.0, -weight * advantage
    lowest = 1 - a.eps_low if advantage < 0 else 0.0
    highest = 1 + a.eps_high if advantage > 0 else a.dual_clip_at if loss == "dual_clip" else math.inf
    if lowest < ratio < highest:
        return -ratio * advantage, -advantage, 0.0
    return -(lowest if ratio <= lowest else highest) * advantage, 0.0, 0.0


def divergence(kl: str, logp: float, ref: float, ratio: float) -> tuple[float, float]:
    """(value, d value / d logp) of a KL's estimator; ratio = pi / pi_old of this token moves with logp."""
    if kl == "k1":
        return logp - ref, 1.0
    if kl == "k2":
        return 0.5 * (logp - ref) ** 2, logp - ref
    k3 = math.exp(ref) / math.exp(logp) - math.log(math.exp(ref) / math.exp(logp)) - 1
    slope = 1 - math.exp(ref) / math.exp(logp)
    return (k3, slope) if kl == "k3" else (ratio * k3, ratio * k3 + ratio * slope)


def weight_of_mismatch(a: Algorithm, rho: float) -> float:
    """What the surrogate is multiplied by."""
    if a.correction == "truncated":
        return a.correction_high if rho > a.correction_high else rho
    if a.correction == "masked":
        return 0.0 if rho < a.correction_low or rho > a.correction_high else rho
    return 1.0


def reward_in_training(told: Told, a: Algorithm, max_tokens: int) -> float:
    """DAPO, equation 13, L_cache being a share of L_max."""
    cache, length = a.overlong_buffer * max_tokens, len(told.logp)
    if a.overlong != "penalised" or length <= max_tokens - cache:
        return told.reward
    return told.reward + (max_tokens - cache - length) / cache


def by_loops(step: Step, a: Algorithm, max_tokens: int) -> tuple[float, Nested, Nested]:
    """(loss, d loss / d logp of every token, advantages)."""
    advantages = advantages_by_loop([[reward_in_training(c, a, max_tokens) for c in group] for group in step], a.advantage)
    completions = [c for group in step for c in group]
    tokens = sum(len(c.logp) for c in completions if not (a.overlong == "masked" and c.truncated))
    loss, gradient = 0.0, [[[0.0] * len(c.logp) for c in group] for group in step]
    for p, group in enumerate(step):
        for i, c in enumerate(group):
            if a.overlong == "masked" and c.truncated:
                continue
            length = len(c.logp)
            whole = math.exp(sum(c.logp[t] - c.old[t] for t in range(length)) / length)
            for t in range(length):
                own = math.exp(c.logp[t] - c.old[t])
                share = {"token_mean": 1 / max(1, tokens), "sequence_mean": 1 / (len(completions) * length),
                         "constant": 1 / (len(completions) * max_tokens)}[a.aggregation]
                value, per_ratio, per_logp = surrogate(
                    a.loss, a, advantages[p][i], own if a.ratio == "token" else whole, c.logp[t])
                weight = share * weight_of_mismatch(a, math.exp(c.old[t] - c.sampler[t]))
                loss += weight * value
                gradient[p][i][t] += weight * per_logp
                if a.ratio == "token":
                    gradient[p][i][t] += weight * per_ratio * own
                else:
                    for u in range(length):  # every token moves the completion's ratio
                        gradient[p][i][u] += weight * per_ratio * whole / length
                if a.beta > 0:
                    value, slope = divergence(a.kl, c.logp[t], c.ref[t], own)
                    loss += share * a.beta * value
                    gradient[p][i][t] += share * a.beta * slope
    return loss, gradient, advantages


# ---- steps to try it on


def drawn_step(seed: int, groups: int = 3, size: int = 3, longest: int = 4, spread: float = 0.6) -> Step:
    """Random completions of 1 to `longest` tokens; the longest are truncated. One group in four has equal rewards.

    spread: of log (pi / pi_old), in nats; the sampler and the base are as far.
    """
    rng = random.Random(seed)

    def told() -> Told:
        n = rng.randint(1, longest)
        logp = [-rng.uniform(0.05, 3) for _ in range(n)]
        old, ref, sampler = ([x + rng.gauss(0, spread) for x in logp] for _ in range(3))
        return Told(rng.choice([0.0, 0.0, 0.5, 1.0]), n == longest, logp, old, ref, sampler)

    step = [[told() for _ in range(size)] for _ in range(groups)]
    for group in step:
        if rng.random() < 0.25:
            for c in group:
                c.reward = group[0].reward
    return step


def groups_of(step: Step) -> list[Group]:
    """The step as grpo/ has it. The prompts have 1, 2, ... tokens."""
    return [Group(Prompt(Problem(f"problem {p}", "custom", ()), (7,) * (p + 1), ""), tuple(
        Completion(Sample((9,) * len(c.logp), tuple(c.sampler), "length" if c.truncated else "stop"), "", Score(c.reward))
        for c in group)) for p, group in enumerate(step)]


# ---- the same through grpo/


@dataclass
class Ours:
    """What grpo/ makes of a step, in float64."""

    loss: float = 0.0
    gradient: Nested = field(default_factory=list)
    advantages: Nested = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)


@contextmanager
def float64():
    """torch.tensor of Python floats has 64 bits, so that rounding does not hide a difference."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def by_grpo(step: Step, config: Config, budget: int = 10**6, garbage: float = 0.0, columns: int = 0) -> Ours:
    """advantages -> trained_rows -> split -> policy_loss -> backward, as grpo/update.py puts them together.

    garbage, columns: what the padding holds, in log pi NaN, and how much more of it there is than a micro-batch needs.
    """
    fill = {"logp": math.nan if garbage else 0.0, "old": garbage, "ref": -garbage, "sampler": garbage / 2}
    groups, a, found = groups_of(step), config.algorithm, Ours()
    with float64():
        advantages_PG = advantages(groups, config)
    denominators = Denominators.of(groups, a, config.rollout.max_new_tokens)
    found.advantages = advantages_PG.tolist()
    found.gradient = [[[0.0] * len(c.logp) for c in group] for group in step]
    for rows in split(groups, trained_rows(groups, advantages_PG, a), budget):
        batch = MicroBatch.of(groups, rows, torch.device("cpu"))
        mask_BT = torch.nn.functional.pad(batch.mask_BT, (0, columns))

        def padded(name: str, rows=rows, mask_BT=mask_BT) -> torch.Tensor:
            values_BT = torch.nn.functional.pad(
                pad([getattr(step[p][i], name) for p, i in rows], torch.float64), (0, columns))
            return torch.where(mask_BT, values_BT, fill[name])

        logp_BT = padded("logp").requires_grad_()
        advantages_B = advantages_PG[tuple(zip(*rows, strict=True))]
        data = TokenData(padded("old"), padded("ref") if a.beta > 0 else None, advantages_B[:, None].expand_as(logp_BT),
                         token_weights(mask_BT, a.aggregation, denominators), padded("sampler"))
        loss, sums = policy_loss(logp_BT, data, a)
        loss.backward()
        found.loss += loss.item()
        found.sums = {name: found.sums.get(name, 0.0) + x.item() for name, x in sums.items()}
        for (p, i), row in zip(rows, logp_BT.grad, strict=True):
            found.gradient[p][i] = row[: len(step[p][i].logp)].tolist()
            assert not row[len(step[p][i].logp) :].any()  # padding has no gradient
    return found


def flat(nested: Any) -> list[float]:
    """All numbers of nested lists."""
    return [x for part in nested for x in flat(part)] if isinstance(nested, list) else [nested]
