"""Does vLLM sample from the policy that is trained? Two engines, one distribution: their log-probs must agree.

Every step compares them on each trained token, before the optimizer moves, and stops the run beyond a bound. At the
start, harness/selftest.py makes the comparison hard to pass by luck.
"""

import math
from collections.abc import Iterable, Sequence

import torch

from grpo.types import Aborted, Group, Metrics, TokenLogs

# Largest mean |difference| of log-probs, in nats, over the completions of a prompt. Seen at the policy itself: in float32
# at most 5e-7 a step, on one token 6e-5; in bfloat16 2e-4 on the embedded base, 0.04 to 0.07 on 36 random layers of the 8B
# shape, where a LoRA that was not swapped showed 0.7 to 2 and a stale prefix cache 1.0 (benchmarks/guards.md).
BOUND = {torch.float32: 1e-4, torch.bfloat16: 0.15}


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


def check_parity(groups: Sequence[Group], logs: TokenLogs, dtype: torch.dtype) -> Metrics:
    """The metrics over all trained tokens. Raises SyncError where one prompt's mean |difference| is above BOUND."""
    pairs = token_pairs(groups, logs)
    for p, of_prompt in pairs.items():
        gap = mean_gap(of_prompt)
        if not gap <= BOUND[dtype]:
            raise SyncError(f"vLLM's log-probs differ from the trainer's by {gap:.3g} nats on average on the completions "
                            f"of {groups[p].prompt.problem.name!r}; rounding explains {BOUND[dtype]} at most in {dtype}")
    return parity_metrics(pair for of_prompt in pairs.values() for pair in of_prompt)
