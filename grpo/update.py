"""One optimizer step from a step's groups: the only file that trains.

    for every group with a signal:   prompt once -> micro-batches of completions -> loss, backward -> prompt's backward
    then:                            are log-probs vLLM's, loss and gradient finite? else nothing below happens
                                     clip the gradient norm, set the learning rate, AdamW (8-bit), zero the gradients
"""

import math

import bitsandbytes
import torch

from grpo.batch import Denominators, MicroBatch, pad, split, token_weights
from grpo.config import Config, Optim
from grpo.logprob import Prefix, Scored, score
from grpo.loss import TokenData, policy_loss
from grpo.parity import check_parity
from grpo.policy import Policy
from grpo.types import Group, Metrics, NonFiniteError, TokenLog, TokenLogs

LogpOld = dict[tuple[int, int], list[float]]  # (group, row) -> log pi_old of its tokens


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
        self.logp_old: LogpOld = {}  # empty on a batch's first epoch: the policy is then its own old
        optim = config.optim
        self.optimizer = bitsandbytes.optim.AdamW8bit(
            policy.parameters.values(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)

    def step(self, step: int, groups: list[Group], advantages_PG: torch.Tensor) -> tuple[Metrics, TokenLogs]:
        """Train on a batch of groups, `algorithm.epochs` times.

        Metrics are the last epoch's; parity/* and the token logs the first's, when the policy is still the one that sampled.
        """
        self.logp_old = {}
        metrics, logs = self.epoch(step, groups, advantages_PG)
        for _ in range(1, self.config.algorithm.epochs):
            self.logp_old = {key: log.logp for key, log in logs.items()}
            metrics |= self.epoch(step, groups, advantages_PG)[0]
        self.logp_old = {}
        return metrics, logs

    def epoch(self, step: int, groups: list[Group], advantages_PG: torch.Tensor) -> tuple[Metrics, TokenLogs]:
        """One gradient and one update. Raises SyncError where the batch is not this policy's, and NonFiniteError.

        Neither lets the optimizer move.
        """
        metrics, logs = self.accumulate(groups, advantages_PG)
        if not self.logp_old:
            metrics |= check_parity(groups, logs, self.policy.dtype)
        return metrics | self._apply(step, metrics["loss"]), logs

    def accumulate(self, groups: list[Group], advantages_PG: torch.Tensor) -> tuple[Metrics, TokenLogs]:
        """Add the loss's gradient to the LoRA's."""
        samples = [c.sample for g in groups for c in g.completions]
        denominators = Denominators(
            sum(len(s.token_ids) for s in samples), len(samples), self.config.rollout.max_new_tokens)
        sums = {"loss": 0.0, "clipped": 0.0, "kl_ref": 0.0}
        logs: TokenLogs = {}
        for p, group in enumerate(groups):
            if self._skip(advantages_PG[p]):
                continue
            self._group(p, group, advantages_PG[p], denominators, sums, logs)
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
        self, p: int, group: Group, advantages_G: torch.Tensor, denominators: Denominators, sums: Metrics, logs: TokenLogs
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
            if self.logp_old:
                old_BT = pad([self.logp_old[p, row] for row in rows], torch.float32).to(policy.device)
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

    def _apply(self, step: int, loss: float) -> Metrics:
        lr = learning_rate(step, self.config.run.steps, self.config.optim)
        parameters = [p for p in self.policy.parameters.values() if p.grad is not None]
        if not parameters:  # no group had a signal
            return {"policy/grad_norm": None, "policy/lr": lr}
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.optim.max_grad_norm))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise NonFiniteError(f"loss {loss}, gradient norm {norm}: the optimizer did not move")
        for settings in self.optimizer.param_groups:
            settings["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"policy/grad_norm": norm, "policy/lr": lr}
