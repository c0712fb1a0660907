"""Advantages: how much better a completion did than the others of its group.

Each function takes rewards_PG (any finite floats) and returns advantages_PG; a group of equal rewards gets exactly 0,
which is what lets the update skip it. `s` is the group's standard deviation
with Bessel's correction (divisor G-1), as torch.std has it by default; numpy's default has divisor G.
"""

from collections.abc import Callable

import torch

EPSILON = 1e-4  # as in TRL; keeps 0/0 out of a group of equal rewards


def grpo(rewards_PG: torch.Tensor) -> torch.Tensor:
    """(R_i - m) / (s + e): the group's mean and spread taken out (GRPO, arXiv 2402.03300, section 4.1.2).

    A rare success weighs more than a common one: with G = 64 and binary rewards, the one success of a group has an
    advantage of about 8, a success in an even group 1.
    """
    return centred(rewards_PG) / (rewards_PG.std(dim=1, keepdim=True) + EPSILON)


def centred(rewards_PG: torch.Tensor) -> torch.Tensor:
    """R_i - m: no division by s, so that easy and hard groups weigh alike (Dr. GRPO, arXiv 2503.20783, section 3.2)."""
    differ_P1 = rewards_PG.amax(dim=1, keepdim=True) > rewards_PG.amin(dim=1, keepdim=True)
    return torch.where(differ_P1, rewards_PG - rewards_PG.mean(dim=1, keepdim=True), 0.0)  # a mean is rounded


ADVANTAGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"grpo": grpo, "centred": centred}
