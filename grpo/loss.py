"""From log-probabilities to the loss: ratio, surrogate, KL. Everything is minimised.

The pure functions at the top are one equation each, over tensors of any common shape; `policy_loss` puts them
together for a micro-batch. Sums and weights come from grpo/batch.py, so that nothing here knows about micro-batches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from grpo.config import Algorithm


def ratio(logp: torch.Tensor, logp_old: torch.Tensor) -> torch.Tensor:
    """r = pi(o_t) / pi_old(o_t). It is exactly 1 on the first step on a batch, but its gradient is not 0."""
    return torch.exp(logp - logp_old)


def clip(
    logp: torch.Tensor, logp_old: torch.Tensor, advantage: torch.Tensor, eps_low: float, eps_high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(-S, clipped): S = min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) (PPO, arXiv 1707.06347, equation 7).

    `clipped` marks the tokens where the clipped branch is the smaller, which get no gradient.
    """
    r = ratio(logp, logp_old)
    unclipped = r * advantage
    limited = r.clamp(1 - eps_low, 1 + eps_high) * advantage
    return -torch.minimum(unclipped, limited), limited < unclipped


def reinforce(
    logp: torch.Tensor, logp_old: torch.Tensor, advantage: torch.Tensor, eps_low: float, eps_high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(-A log pi, nothing clipped): the plain policy gradient; at r = 1 it has `clip`'s gradient."""
    return -advantage * logp, torch.zeros_like(logp, dtype=torch.bool)


def k1(logp: torch.Tensor, logp_ref: torch.Tensor) -> torch.Tensor:
    """log(pi / ref): unbiased as a value, but its gradient in a loss has mean zero (joschu.net/blog/kl-approx)."""
    return logp - logp_ref


def k2(logp: torch.Tensor, logp_ref: torch.Tensor) -> torch.Tensor:
    """k1^2 / 2: on policy its gradient is the KL's."""
    return (logp - logp_ref).square() / 2


def k3(logp: torch.Tensor, logp_ref: torch.Tensor) -> torch.Tensor:
    """ref/pi - log(ref/pi) - 1: unbiased, never negative (GRPO, arXiv 2402.03300, equation 4)."""
    return torch.exp(logp_ref - logp) - (logp_ref - logp) - 1


Surrogate = Callable[..., tuple[torch.Tensor, torch.Tensor]]
LOSSES: dict[str, Surrogate] = {"clip": clip, "reinforce": reinforce}
KLS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


@dataclass(frozen=True)
class TokenData:
    """What the loss needs besides log pi. All BT, constants; values under the mask's zeros do not matter."""

    logp_old_BT: torch.Tensor
    logp_ref_BT: torch.Tensor | None  # None where beta is 0
    advantage_BT: torch.Tensor
    weights_BT: torch.Tensor  # grpo.batch.token_weights: 0 outside the mask


def policy_loss(
    logp_BT: torch.Tensor, data: TokenData, algorithm: Algorithm
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """sum_t w_t (surrogate_t + beta KL_t) of a micro-batch, and sums (not means) for the metrics.

    Returns the loss (scalar, differentiable in logp_BT) and {"clipped": tokens, "kl_ref": sum of KL}, scalars.
    """
    surrogate = LOSSES[algorithm.loss]
    counted_BT = data.weights_BT > 0
    logp_BT = torch.where(counted_BT, logp_BT, data.logp_old_BT)
    loss_BT, clipped_BT = surrogate(
        logp_BT, data.logp_old_BT, data.advantage_BT, algorithm.eps_low, algorithm.eps_high)
    kl_BT = torch.zeros_like(loss_BT)
    if data.logp_ref_BT is not None:
        kl_BT = KLS[algorithm.kl](logp_BT, data.logp_ref_BT)
        loss_BT = loss_BT + algorithm.beta * kl_BT
    sums = {"clipped": (clipped_BT & counted_BT).sum(), "kl_ref": kl_BT.detach()[counted_BT].sum()}
    return (loss_BT * data.weights_BT).sum(), sums
