"""From a step's recorded completions to the numbers of each token, by the algorithm's own functions.

The records hold log-probs; grpo/loss.py makes terms of them, grpo/batch.py weights, and autograd the contribution

    c_it = -dL / d log pi(o_it)

which is how much a small step of gradient descent pushes that token's log-prob up, through itself alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from grpo.batch import Denominators, in_loss, pad, token_weights
from grpo.config import Algorithm, Rollout
from grpo.loss import TokenData, TokenTerms, token_terms
from grpo.report.records import RolloutLine
from grpo.types import Completion, Group, Problem, Prompt, Sample, Score


@dataclass(frozen=True)
class StepTokens:
    """The trained completions of a step, B of them. Outside a completion's tokens the numbers mean nothing."""

    rows: list[int]  # the places of these completions among the step's lines
    denominators: Denominators
    weights_BT: torch.Tensor
    terms: TokenTerms
    contribution_BT: torch.Tensor
    from_kl_BT: torch.Tensor  # the part of it that is the KL's
    loss: float  # L, of the whole step

    @property
    def mask_BT(self) -> torch.Tensor:
        """Which entries are tokens."""
        return self.weights_BT > 0

    @property
    def clip_fraction(self) -> float | None:
        """Share of the trained tokens that are clipped; None where nothing is trained."""
        return self.terms.clipped_BT[self.mask_BT].float().mean().item() if self.rows else None


def step_tokens(
    lines: Sequence[RolloutLine], algorithm: Algorithm, rollout: Rollout, advantages_B: Sequence[float] | None = None
) -> StepTokens:
    """The numbers of a step's tokens, at its last epoch.

    lines: a step's completions, group by group. advantages_B: one for each line, instead of those recorded. The KL is left
    out where the base's log-probs (logp_ref) are not recorded, and the ratio is 1 where the last epoch's are not.
    """
    groups = recorded_groups(lines, rollout.group_size)
    completions = [c for group in groups for c in group.completions]
    denominators = Denominators.of(groups, algorithm, rollout.max_new_tokens)
    rows = [b for b, line in enumerate(lines) if line.logp_trainer is not None and in_loss(completions[b], algorithm)]
    trained = [lines[b] for b in rows]
    if not rows:
        none_BT = torch.zeros(0, 0)
        terms = TokenTerms(**{field.name: none_BT for field in fields(TokenTerms)})
        return StepTokens(rows, denominators, none_BT, terms, none_BT, none_BT, 0.0)
    old_BT = _table(line.logp_trainer for line in trained)
    mask_BT = _table([1.0] * len(line.token_ids) for line in trained) > 0
    advantages = [line.advantage for line in trained] if advantages_B is None else [advantages_B[b] for b in rows]
    has_ref = algorithm.beta > 0 and all(line.logp_ref for line in trained)
    data = TokenData(
        logp_old_BT=old_BT, logp_ref_BT=_table(line.logp_ref for line in trained) if has_ref else None,
        advantage_BT=torch.tensor(advantages, dtype=old_BT.dtype)[:, None].expand_as(old_BT),
        weights_BT=token_weights(mask_BT, algorithm.aggregation, denominators),
        logp_sampler_BT=_table(line.logp_sampler for line in trained))
    logp_BT = _table(line.logp_last or line.logp_trainer for line in trained).requires_grad_()
    terms = token_terms(logp_BT, data, algorithm)
    loss = (terms.loss_BT * data.weights_BT).sum()
    from_kl_BT = torch.zeros_like(old_BT)
    if has_ref:
        kl = (algorithm.beta * terms.kl_BT * data.weights_BT).sum()
        from_kl_BT = -torch.autograd.grad(kl, logp_BT, retain_graph=True)[0]
    contribution_BT = -torch.autograd.grad(loss, logp_BT)[0]
    terms = TokenTerms(**{name: value.detach() for name, value in vars(terms).items()})
    return StepTokens(rows, denominators, data.weights_BT, terms, contribution_BT, from_kl_BT, loss.item())


def recorded_groups(lines: Sequence[RolloutLine], group_size: int) -> list[Group]:
    """A step's groups, without what the records do not hold: the prompts' tokens, and the answers that were read."""
    return [_group(group) for group in _batched(lines, group_size)]


def _table(rows) -> torch.Tensor:
    return pad(list(rows), torch.float64)


def _group(lines: Sequence[RolloutLine]) -> Group:
    first = lines[0]
    return Group(Prompt(Problem(first.problem, first.kind, ()), (), first.prompt or ""), tuple(
        Completion(Sample(tuple(x.token_ids), tuple(x.logp_sampler), x.finish_reason), "", Score(x.reward)) for x in lines))


def _batched(lines: Sequence[RolloutLine], size: int) -> list[Sequence[RolloutLine]]:
    return [lines[at : at + size] for at in range(0, len(lines), size)]
