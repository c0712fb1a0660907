"""One optimizer step from a step's groups: the only file that trains.

    for every group with a signal:   prompt once -> micro-batches of completions -> loss, backward -> prompt's backward
    then:                            clip the gradient norm, set the learning rate, AdamW (8-bit), zero the gradients
"""

import math
from dataclasses import dataclass

import bitsandbytes
import torch

from grpo.batch import Denominators, MicroBatch, pad, split, token_weights
from grpo.config import Config, Optim
from grpo.logprob import Prefix, Scored, score
from grpo.loss import TokenData, policy_loss
from grpo.policy import Policy
from grpo.types import Group, Metrics


@dataclass
class TokenLog:
    """Per token of one completion, for the records. Python floats, one per sampled token."""

    logp: list[float]
    entropy: list[float]


TokenLogs = dict[tuple[int, int], TokenLog]  # (group, row) -> its log; groups without a signal have none


def learning_rate(step: int, steps: int, optim: Optim) -> float:
    """lr of step 1..steps: linear warm-up over the first `warmup` of them, then constant or linear to 0."""
    warmup = math.ceil(optim.warmup * steps)
    if step <= warmup:
        return optim.lr * step / warmup
    return optim.lr if optim.decay == "constant" else optim.lr * (steps - step + 1) / (steps - warmup)


class Updater:
    """AdamW with 8-bit moments (arXiv 2110.02861) over the LoRA, and the steps that lead to it."""

    def __init__(self, policy: Policy, config: Config):
        self.policy, self.config = policy, config
        optim = config.optim
        self.optimizer = bitsandbytes.optim.AdamW8bit(
            policy.parameters.values(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)

    def step(self, step: int, groups: list[Group], advantages_PG: torch.Tensor) -> tuple[Metrics, TokenLogs]:
        """Train on a batch of groups, `algorithm.epochs` times.

        Metrics are the last epoch's; token logs the first's, when the policy is still the one that sampled. Raises
        FloatingPointError where loss or gradient is not finite, and leaves the parameters as they were before that update.
        """
        lr = learning_rate(step, self.config.run.steps, self.config.optim)
        metrics, logs = self.accumulate(groups, advantages_PG, {})
        metrics |= self._apply(lr, metrics["loss"])
        for _ in range(1, self.config.algorithm.epochs):
            metrics, _ = self.accumulate(groups, advantages_PG, {key: log.logp for key, log in logs.items()})
            metrics |= self._apply(lr, metrics["loss"])
        return metrics, logs

    def accumulate(
        self, groups: list[Group], advantages_PG: torch.Tensor, logp_old: dict[tuple[int, int], list[float]]
    ) -> tuple[Metrics, TokenLogs]:
        """Add the loss's gradient to the LoRA's. `logp_old` is empty on the first epoch: the policy is then its own old."""
        samples = [c.sample for g in groups for c in g.completions]
        denominators = Denominators(
            sum(len(s.token_ids) for s in samples), len(samples), self.config.rollout.max_new_tokens)
        sums = {"loss": 0.0, "clipped": 0.0, "kl_ref": 0.0}
        logs: TokenLogs = {}
        for p, group in enumerate(groups):
            if self._skip(advantages_PG[p]):
                continue
            self._group(p, group, advantages_PG[p], logp_old, denominators, sums, logs)
        tokens = sum(len(log.logp) for log in logs.values())
        sums["entropy"] = sum(sum(log.entropy) for log in logs.values())
        means = {name: sums[name] / tokens if tokens else None for name in ("entropy", "clipped", "kl_ref")}
        metrics = {"loss": sums["loss"], "policy/entropy": means["entropy"], "policy/clip_fraction": means["clipped"],
                   "tokens/trained": float(tokens)}
        if self.config.algorithm.beta > 0:
            metrics["policy/kl_ref"] = means["kl_ref"]
        return metrics, logs

    def _skip(self, advantages_G: torch.Tensor) -> bool:
        """Whether a group's gradient is exactly 0: equal rewards, and no KL."""
        return self.config.algorithm.beta == 0 and not advantages_G.any()

    def _group(
        self, p: int, group: Group, advantages_G: torch.Tensor, logp_old: dict[tuple[int, int], list[float]],
        denominators: Denominators, sums: Metrics, logs: TokenLogs,
    ) -> None:
        """Forward and backward of one group; adds to `sums` and `logs`."""
        policy, algorithm = self.policy, self.config.algorithm
        samples = [c.sample for c in group.completions]
        prefix = Prefix(policy.decoder, group.prompt.token_ids, policy.device)
        reference = self._reference(group) if algorithm.beta > 0 else None
        for rows in split([len(s.token_ids) for s in samples], self.config.train.micro_batch_tokens):
            batch = MicroBatch.of(samples, rows).to(policy.device)
            scored = self._score(prefix, batch)
            old_BT = scored.logp_BT.detach()
            if logp_old:
                old_BT = pad([logp_old[p, row] for row in rows], torch.float32).to(policy.device)
            data = TokenData(
                old_BT, self._score(reference, batch, base=True).logp_BT if reference else None,
                advantages_G[rows].to(policy.device)[:, None].expand_as(old_BT),
                token_weights(batch.mask_BT, algorithm.aggregation, denominators))
            loss, extra = policy_loss(scored.logp_BT, data, algorithm)
            loss.backward()
            for name, value in {"loss": loss.item(), **extra}.items():
                sums[name] += value
            lengths = batch.mask_BT.sum(1).tolist()
            for row, n, logp, entropy in zip(
                    rows, lengths, scored.logp_BT.tolist(), scored.entropy_BT.tolist(), strict=True):
                logs[p, row] = TokenLog(logp[:n], entropy[:n])
        prefix.backward()

    def _score(self, prefix: Prefix, batch: MicroBatch, base: bool = False) -> Scored:
        arguments = (self.policy.decoder, self.policy.head, prefix, batch,
                     self.config.rollout.temperature, self.config.train.head_chunk_tokens)
        if not base:
            return score(*arguments)
        with torch.no_grad(), self.policy.base_only():
            return score(*arguments)

    @torch.no_grad()
    def _reference(self, group: Group) -> Prefix:
        with self.policy.base_only():
            return Prefix(self.policy.decoder, group.prompt.token_ids, self.policy.device)

    def _apply(self, lr: float, loss: float) -> Metrics:
        parameters = [p for p in self.policy.parameters.values() if p.grad is not None]
        if not parameters:  # no group had a signal
            return {"policy/grad_norm": None, "policy/lr": lr}
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.optim.max_grad_norm))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise FloatingPointError(f"loss {loss}, gradient norm {norm}: nothing was updated")
        for settings in self.optimizer.param_groups:
            settings["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"policy/grad_norm": norm, "policy/lr": lr}
