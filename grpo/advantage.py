"""Advantages: how much better a completion did than the others of its group.

Each function takes rewards_PG (finite floats) and returns advantages_PG; a group of equal rewards gets exactly 0, which is
what lets the update skip it. m is the group's mean. s is its standard deviation with Bessel's correction (divisor G-1), as
in torch.std, TRL and verl; numpy's default divides by G.

With G = 64 and rewards of 0 and 1, the one success of a group and a success of an even group weigh

    centred 0.98, 0.5      rloo 1, 0.51      grpo 7.9, 1.0      maxrl 63, 1
"""

from collections.abc import Callable

import torch

from grpo.types import UserError

EPSILON = 1e-4  # as in TRL; keeps 0/0 out of a group of equal rewards


def centred(rewards_PG: torch.Tensor) -> torch.Tensor:
    """R_i - m: no division by s, so that easy and hard groups weigh alike (Dr. GRPO, arXiv 2503.20783, section 3.2)."""
    differ_P1 = rewards_PG.amax(dim=1, keepdim=True) > rewards_PG.amin(dim=1, keepdim=True)
    return torch.where(differ_P1, rewards_PG - rewards_PG.mean(dim=1, keepdim=True), 0.0)  # a mean is rounded


def grpo(rewards_PG: torch.Tensor) -> torch.Tensor:
    """(R_i - m) / (s + e): the group's mean and spread taken out (GRPO, arXiv 2402.03300, section 4.1.2)."""
    return centred(rewards_PG) / (rewards_PG.std(dim=1, keepdim=True) + EPSILON)


def batch_std(rewards_PG: torch.Tensor) -> torch.Tensor:
    """(R_i - m) / (s_batch + e): the group's mean, the whole step's spread (Lite PPO, arXiv 2508.08221, section 4.1)."""
    return centred(rewards_PG) / (rewards_PG.std() + EPSILON)


def rloo(rewards_PG: torch.Tensor) -> torch.Tensor:
    """R_i - mean_{j != i} R_j: the others as baseline, which is independent of o_i (RLOO, arXiv 2402.14740, section 2.3)."""
    group_size = rewards_PG.shape[1]
    return centred(rewards_PG) * group_size / (group_size - 1)


def maxrl(rewards_PG: torch.Tensor) -> torch.Tensor:
    """(R_i - m) / m, and 0 where m = 0: for large G the gradient of log p, p the chance of success (MaxRL, 2602.02710).

    On average it is (1 - (1 - p)^(G-1)) / p times the gradient of p: the series of log p's, cut off after G - 1 terms.
    Rewards must be 0 or more: with others m is no probability, and dividing by it may turn every sign.
    """
    if (rewards_PG < 0).any():
        raise UserError(f"algorithm.advantage = maxrl: it divides by a group's mean reward, and a reward is "
                        f"{rewards_PG.min().item():g}; give rewards of 0 or more, or choose centred")
    mean_P1 = rewards_PG.mean(dim=1, keepdim=True)
    return torch.where(mean_P1 > 0, centred(rewards_PG) / mean_P1, 0.0)


ADVANTAGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "grpo": grpo, "centred": centred, "batch_std": batch_std, "rloo": rloo, "maxrl": maxrl}


def overlong_penalty(tokens_PG: torch.Tensor, max_tokens: int, buffer: float) -> torch.Tensor:
    """What is taken off the reward of a completion that is nearly cut off, 0 to 1 (DAPO, arXiv 2503.14476, equation 13).

    It rises linearly over the last `buffer` (a share) of max_tokens: (|o_i| - (1 - buffer) L_max) / (buffer L_max).
    """
    margin = buffer * max_tokens
    return ((tokens_PG - (max_tokens - margin)) / margin).clamp(0, 1)
