"""Does vLLM sample from the policy that is trained? Two engines, one distribution: their log-probs must agree.

Every step compares them on each trained token, before the optimizer moves, and stops the run beyond a bound. At the
start, grpo/guards/selftest.py makes the comparison hard to pass by luck.
"""

import math
from collections.abc import Iterable, Sequence

import torch

from grpo.types import Aborted, Group, Metrics, TokenLogs

# Between healthy engines, nats, at temperature 1. TIMES the noise that selftest.py measures at the start, but FLOOR at
# least: a policy becomes noisier where it hesitates, 7.3 times on one prompt of a real run. And a few single tokens, which
# may be off by far more: a prompt's completions may be a few tokens in all (benchmarks/guards.md has what was seen).
TIMES = 8
FLOOR = {torch.float32: 1e-4, torch.bfloat16: 0.15}
ONE_TOKEN = {torch.float32: 0.05, torch.bfloat16: 3.0}


class SyncError(Aborted):
    """The engine does not serve the policy it was given. Training on its rollouts would be silently wrong."""


def parity_metrics(pairs: Iterable[tuple[float, float]]) -> Metrics:
    """From (trainer, sampler) log-probs of the same tokens: largest and mean |difference|, and the KL in nats a token.

    The KL is k3 of pi_sampler from pi_trainer, on the sampler's tokens: mean of d - 1 - log d, d = pi_trainer/pi_sampler.
    """
    gaps = [trainer - sampler for trainer, sampler in pairs]
    if not gaps:
        return dict.fromkeys(("parity/logp_max_abs_diff", "parity/logp_mean_abs_diff", "parity/kl"))
    return {"parity/logp_max_abs_diff": max(map(abs, gaps)),
            "parity/logp_mean_abs_diff": sum(map(abs, gaps)) / len(gaps),
            "parity/kl": sum(math.expm1(gap) - gap for gap in gaps) / len(gaps)}


def mean_gap(pairs: Sequence[tuple[float, float]]) -> float:
    """Mean |difference| of (trainer, sampler) log-probs, nats."""
    return sum(abs(trainer - sampler) for trainer, sampler in pairs) / len(pairs)


def token_pairs(groups: Sequence[Group], logs: TokenLogs) -> dict[int, list[tuple[float, float]]]:
    """By prompt, (trainer, sampler) log-probs of its trained tokens."""
    pairs: dict[int, list[tuple[float, float]]] = {}
    for (p, row), log in logs.items():
        pairs.setdefault(p, []).extend(zip(log.logp, groups[p].completions[row].sample.logp, strict=True))
    return pairs


def bound(noise: float, tokens: int, dtype: torch.dtype, temperature: float) -> float:
    """The largest mean |difference| over so many tokens that rounding explains, nats.

    noise: as it was measured at this temperature. Logits are divided by it, and their rounding with them.
    """
    return max(TIMES * noise, FLOOR[dtype] / temperature) + ONE_TOKEN[dtype] / temperature / tokens


def check_parity(
    groups: Sequence[Group], logs: TokenLogs, dtype: torch.dtype, noise: float, temperature: float
) -> Metrics:
    """The metrics over all trained tokens. Raises SyncError where one prompt's mean |difference| is above its bound.

    noise: mean |difference| without a LoRA, as the self-test finds it. temperature: that all was sampled at.
    """
    pairs = token_pairs(groups, logs)
    for p, of_prompt in pairs.items():
        gap, most = mean_gap(of_prompt), bound(noise, len(of_prompt), dtype, temperature)
        if not gap <= most:
            raise SyncError(f"vLLM's log-probs differ from the trainer's by {gap:.3g} nats on average on the completions "
                            f"of {groups[p].prompt.problem.name!r}; rounding explains {most:.3g} at most in {dtype}, "
                            f"and {noise:.2g} at the start")
    return parity_metrics(pair for of_prompt in pairs.values() for pair in of_prompt)
