"""From log-probabilities to the loss: ratio, surrogate, KL, mismatch. Everything is minimised.

Each small function is one equation, over tensors; the dictionaries hold the choices by the names they have in a config;
`token_terms` puts the chosen ones together, `policy_loss` adds up. Sums and weights come from grpo/batch.py, so that
nothing here knows about micro-batches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from grpo.config import Algorithm

# ---- the ratio r


def token_ratio(logp_BT: torch.Tensor, logp_old_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """r_it = pi(o_it) / pi_old(o_it). It is exactly 1 on the first step on a batch, but its gradient is not 0."""
    return torch.exp(logp_BT - logp_old_BT)


def sequence_ratio(logp_BT: torch.Tensor, logp_old_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """s_i = (pi(o_i) / pi_old(o_i))^(1/|o_i|), one a completion, at each of its tokens (GSPO, arXiv 2507.18071, eq. 7)."""
    gap_BT = torch.where(mask_BT, logp_BT - logp_old_BT, 0.0)
    return torch.exp(gap_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)).expand_as(logp_BT)


RATIOS = {"token": token_ratio, "sequence": sequence_ratio}

# ---- surrogates: (loss, clipped) from log pi, the ratio r and the advantage A, of any common shape

Surrogate = tuple[torch.Tensor, torch.Tensor]


def clip(logp: torch.Tensor, r: torch.Tensor, advantage: torch.Tensor, settings: Algorithm) -> Surrogate:
    """(-S, clipped): S = min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) (PPO, arXiv 1707.06347, equation 7).

    `clipped` marks the tokens where the clipped branch is the smaller, which get no gradient.
    """
    unclipped = r * advantage
    limited = r.clamp(1 - settings.eps_low, 1 + settings.eps_high) * advantage
    return -torch.minimum(unclipped, limited), limited < unclipped


def dual_clip(logp: torch.Tensor, r: torch.Tensor, advantage: torch.Tensor, settings: Algorithm) -> Surrogate:
    """`clip`, and where A < 0 no worse than c A: max(S, c A), so that a ratio that has run away does not dominate.

    c is dual_clip_at (arXiv 1912.09729, equation 5). What meets that bound counts as clipped: it has no gradient either.
    """
    loss, clipped = clip(logp, r, advantage, settings)
    worst = -settings.dual_clip_at * advantage
    bounded = (advantage < 0) & (loss > worst)
    return torch.where(bounded, worst, loss), clipped | bounded


def cispo(logp: torch.Tensor, r: torch.Tensor, advantage: torch.Tensor, settings: Algorithm) -> Surrogate:
    """-sg(min(r, 1 + eps_high)) A log pi: the weight is clipped, and every token keeps a gradient (CISPO, arXiv 2506.13585).

    `clipped` marks the tokens with a limited weight. TRL's epsilon_high is 1 + eps_high here.
    """
    limit = 1 + settings.eps_high
    return -r.detach().clamp(max=limit) * advantage * logp, r > limit


def reinforce(logp: torch.Tensor, r: torch.Tensor, advantage: torch.Tensor, settings: Algorithm) -> Surrogate:
    """(-A log pi, nothing clipped): the plain policy gradient (Williams 1992); at r = 1 it has `clip`'s gradient.

    Nothing makes up for r != 1, so that `epochs` above 1, whose later steps are off policy, are refused.
    """
    return -advantage * logp, torch.zeros_like(logp, dtype=torch.bool)


LOSSES = {"clip": clip, "dual_clip": dual_clip, "cispo": cispo, "reinforce": reinforce}

# ---- KL to the base, of the next token given those before: estimators from log pi, log ref and r = pi / pi_old. The token
# is a sample of pi_old


def k1(logp: torch.Tensor, logp_ref: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """log(pi / ref): unbiased as a value, but its gradient in a loss has mean zero (joschu.net/blog/kl-approx)."""
    return logp - logp_ref


def k2(logp: torch.Tensor, logp_ref: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """k1^2 / 2: biased as a value; on policy its gradient is the KL's."""
    return (logp - logp_ref).square() / 2


def k3(logp: torch.Tensor, logp_ref: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """ref/pi - log(ref/pi) - 1: unbiased, never negative (GRPO, 2402.03300, equation 4); its gradient is KL(ref || pi)'s."""
    return torch.exp(logp_ref - logp) - (logp_ref - logp) - 1


def unbiased(logp: torch.Tensor, logp_ref: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """r k3, r differentiable: value and gradient are the KL's, off policy too (DeepSeek-V3.2, arXiv 2512.02556, eq. 7)."""
    return r * k3(logp, logp_ref, r)


KLS = {"k1": k1, "k2": k2, "k3": k3, "unbiased": unbiased}

# ---- sampler and trainer disagree by rounding: weights rho = pi_old / pi_sampler on the surrogate, constants


def uncorrected(rho: torch.Tensor, settings: Algorithm) -> torch.Tensor:
    """1: vLLM's numbers are taken for the trainer's."""
    return torch.ones_like(rho)


def truncated(rho: torch.Tensor, settings: Algorithm) -> torch.Tensor:
    """min(rho, C): truncated importance sampling, C = correction_high (fengyao.notion.site/off-policy-rl)."""
    return rho.clamp(max=settings.correction_high)


def masked(rho: torch.Tensor, settings: Algorithm) -> torch.Tensor:
    """rho where correction_low <= rho <= correction_high, else 0: such tokens are not trained on (IcePop, 2510.18855)."""
    inside = (rho >= settings.correction_low) & (rho <= settings.correction_high)
    return torch.where(inside, rho, 0.0)  # not a product: rho may be infinite


CORRECTIONS: dict[str, Callable[[torch.Tensor, Algorithm], torch.Tensor]] = {
    "none": uncorrected, "truncated": truncated, "masked": masked}

# ---- together


@dataclass(frozen=True)
class TokenData:
    """What the loss needs besides log pi. All BT, constants; finite values where the weight is 0 do not matter."""

    logp_old_BT: torch.Tensor
    logp_ref_BT: torch.Tensor | None  # None where beta is 0
    advantage_BT: torch.Tensor
    weights_BT: torch.Tensor  # grpo.batch.token_weights: 0 outside the mask
    logp_sampler_BT: torch.Tensor  # what vLLM sampled with


@dataclass(frozen=True)
class TokenTerms:
    """Per token, before weights: what its loss is made of. All BT; outside the mask they mean nothing."""

    ratio_BT: torch.Tensor
    correction_BT: torch.Tensor  # what the surrogate was multiplied by
    clipped_BT: torch.Tensor  # bool
    kl_BT: torch.Tensor  # 0 where beta is 0
    loss_BT: torch.Tensor  # correction * surrogate + beta KL


def token_terms(logp_BT: torch.Tensor, data: TokenData, algorithm: Algorithm) -> TokenTerms:
    """The loss of each token by the chosen equations; differentiable in logp_BT."""
    mask_BT = data.weights_BT > 0
    logp_BT = torch.where(mask_BT, logp_BT, data.logp_old_BT)  # what is padded cannot poison a sum
    ratio_BT = RATIOS[algorithm.ratio](logp_BT, data.logp_old_BT, mask_BT)
    loss_BT, clipped_BT = LOSSES[algorithm.loss](logp_BT, ratio_BT, data.advantage_BT, algorithm)
    rho_BT = torch.exp(data.logp_old_BT - data.logp_sampler_BT)
    correction_BT = CORRECTIONS[algorithm.correction](rho_BT, algorithm)
    loss_BT = correction_BT * loss_BT
    kl_BT = torch.zeros_like(loss_BT)
    if data.logp_ref_BT is not None:
        kl_BT = KLS[algorithm.kl](logp_BT, data.logp_ref_BT, token_ratio(logp_BT, data.logp_old_BT, mask_BT))
        loss_BT = loss_BT + algorithm.beta * kl_BT
    return TokenTerms(ratio_BT, correction_BT, clipped_BT, kl_BT, loss_BT)


def policy_loss(
    logp_BT: torch.Tensor, data: TokenData, algorithm: Algorithm
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """sum_t w_t loss_t of a micro-batch, and sums (not means) for the metrics.

    Returns the loss (scalar, differentiable in logp_BT) and {"clipped": tokens, "kl_ref": sum of KL, "correction": sum of
    corrections}, scalars.
    """
    terms, mask_BT = token_terms(logp_BT, data, algorithm), data.weights_BT > 0
    sums = {"clipped": (terms.clipped_BT & mask_BT).sum(), "kl_ref": terms.kl_BT.detach()[mask_BT].sum(),
            "correction": terms.correction_BT[mask_BT].sum()}
    return (terms.loss_BT * data.weights_BT).sum(), sums
