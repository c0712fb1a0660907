"""One optimizer step from a step's groups: the only file that trains.

    for every micro-batch of the groups with a signal:   log-probs -> loss -> backward
    then:   are log-probs vLLM's, loss and gradient finite? else nothing below happens
            add up the gradients of all ranks, clip their norm, set the learning rate, AdamW (8-bit), zero the gradients
"""

import math
from dataclasses import replace

import bitsandbytes
import torch

from grpo.batch import Denominators, MicroBatch, pad, token_weights, trained_rows
from grpo.config import Config, Optim
from grpo.guards.parity import check_parity
from grpo.logprob import Scored, score
from grpo.loss import TokenData, policy_loss
from grpo.policy import Policy
from grpo.ranks.ranks import ALONE, Ranks
from grpo.speed.layers import WORTH_COMPILING, prepare_layers
from grpo.speed.micro_batches import deal, split
from grpo.types import Group, Metrics, NonFiniteError, Row, TokenLog, TokenLogs, UserError

LogpOld = dict[Row, list[float]]  # log pi_old of its tokens


def learning_rate(step: int, steps: int, optim: Optim) -> float:
    """lr of step 1..steps: linear warm-up over the first `warmup` of them, then constant or linear to 0.

    Raises UserError where there is no such step.
    """
    if step > steps:
        raise UserError(f"run.steps = {steps}: step {step} is beyond it; give {step} or more")
    warmup = math.ceil(optim.warmup * steps)
    if step <= warmup:
        return optim.lr * step / warmup
    return optim.lr if optim.decay == "constant" else optim.lr * (steps - step + 1) / (steps - warmup)


class Updater:
    """AdamW with 8-bit moments (arXiv 2110.02861) over the LoRA, and the steps that lead to it."""

    def __init__(self, policy: Policy, config: Config, ranks: Ranks = ALONE):
        self.policy, self.config, self.ranks = policy, config, ranks
        self.gradient_norms: dict[str, torch.Tensor] = {}  # of the last update, by parameter, before clipping
        self.logp_old: LogpOld = {}  # empty in a batch's first epoch, before any update on it: the policy is its own old
        self.ahead = False  # whether the optimizer has moved since the last finished step: the policy is then no step's
        self.noise = 0.0  # nats a token: how far vLLM is from the trainer when all is well, as the self-test finds
        optim = config.optim
        self.optimizer = bitsandbytes.optim.AdamW8bit(
            policy.parameters.values(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
        self.recompute(max(0, config.train.recompute_layers))

    @property
    def stepped(self) -> bool:
        """Whether the optimizer has ever moved, in this run or before it was resumed."""
        return any("step" in state for state in self.optimizer.state.values())

    def recompute(self, layers: int) -> None:
        """Let so many layers keep no activations (gradient checkpointing, arXiv 1604.06174), from now on."""
        large = sum(p.numel() for p in self.policy.decoder.parameters()) >= WORTH_COMPILING
        compiled = {"auto": self.policy.device.type == "cuda" and large, "always": True, "never": False}
        prepare_layers(self.policy.decoder, compiled[self.config.train.compile], layers)
        self.recomputed = layers

    def step(self, step: int, groups: list[Group], advantages_PG: torch.Tensor) -> tuple[Metrics, TokenLogs]:
        """Train on a batch of groups, `algorithm.epochs` times.

        Metrics are the last epoch's; parity/* and the token logs the first's, when the policy is still the one that sampled.
        """
        self.logp_old = {}
        metrics, logs = self.epoch(step, groups, advantages_PG)
        for _ in range(1, self.config.algorithm.epochs):
            self.logp_old = {row: log.logp for row, log in logs.items()}
            more, last = self.epoch(step, groups, advantages_PG)
            metrics |= more
            logs = {row: replace(log, last=last[row].logp) for row, log in logs.items()}
        self.logp_old = {}
        return metrics, logs

    def epoch(self, step: int, groups: list[Group], advantages_PG: torch.Tensor) -> tuple[Metrics, TokenLogs]:
        """One gradient and one update. Raises SyncError where the batch is not this policy's, and NonFiniteError.

        Neither lets the optimizer move.
        """
        metrics, logs = self.accumulate(groups, advantages_PG, self.ranks)
        if not self.logp_old:
            metrics |= check_parity(groups, logs, self.policy.dtype, self.noise, self.config.rollout.temperature)
        if logs and self.ranks.size > 1:
            self._add_up_gradients()
        return metrics | self._apply(step, metrics["loss"]), logs

    def accumulate(
        self, groups: list[Group], advantages_PG: torch.Tensor, ranks: Ranks = ALONE
    ) -> tuple[Metrics, TokenLogs]:
        """Add the gradient of the loss, or of this rank's share of it, to the LoRA's. What is returned is of the whole."""
        config = self.config
        denominators = Denominators.of(groups, config.algorithm, config.rollout.max_new_tokens)
        self.policy.round_lora()
        done = []
        trained = trained_rows(groups, advantages_PG, config.algorithm)
        for rows in deal(groups, trained, config.train.micro_batch_tokens, ranks.size)[ranks.rank]:
            batch = MicroBatch.of(groups, rows, self.policy.device)
            sampler_BT = pad([groups[p].completions[row].sample.logp for p, row in rows], torch.float32)
            done.append((batch, *self._micro_batch(batch, advantages_PG, sampler_BT, denominators)))
        return self._found(done, ranks)  # read at the end: until then the host runs ahead of a GPU

    def logps(self, groups: list[Group]) -> TokenLogs:
        """What a training pass finds for every token of all completions, through the same layers; no backward pass."""
        self.policy.round_lora()
        every, logs = [(p, row) for p, group in enumerate(groups) for row in range(len(group.completions))], {}
        for rows in split(groups, every, self.config.train.micro_batch_tokens):
            batch = MicroBatch.of(groups, rows, self.policy.device)
            scored = self._score(batch)
            logp, entropy = scored.logp_BT.tolist(), scored.entropy_BT.tolist()
            for b, (row, n) in enumerate(zip(batch.rows, batch.mask_BT.sum(1).tolist(), strict=True)):
                logs[row] = TokenLog(logp=logp[b][:n], entropy=entropy[b][:n])
            del scored  # and its graph, before the next one is made
        return logs

    def _micro_batch(
        self, batch: MicroBatch, advantages_PG: torch.Tensor, sampler_BT: torch.Tensor, denominators: Denominators
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Forward and backward. Returns what TokenLog has, as BT, and sums, detached."""
        device, algorithm = self.policy.device, self.config.algorithm
        scored = self._score(batch)
        old_BT = scored.logp_BT.detach()
        if self.logp_old:
            old_BT = pad([self.logp_old[row] for row in batch.rows], torch.float32).to(device)
        advantages_B = advantages_PG[tuple(zip(*batch.rows, strict=True))].to(device)
        data = TokenData(
            old_BT, self._reference(batch) if algorithm.beta > 0 else None, advantages_B[:, None].expand_as(old_BT),
            token_weights(batch.mask_BT, algorithm.aggregation, denominators), sampler_BT.to(device))
        loss, sums = policy_loss(scored.logp_BT, data, algorithm)
        loss.backward()
        found = {"logp": scored.logp_BT.detach(), "entropy": scored.entropy_BT}
        return found | ({} if data.logp_ref_BT is None else {"ref": data.logp_ref_BT}), {"loss": loss.detach(), **sums}

    def _found(
        self, done: list[tuple[MicroBatch, dict[str, torch.Tensor], dict[str, torch.Tensor]]], ranks: Ranks
    ) -> tuple[Metrics, TokenLogs]:
        """What the micro-batches of all ranks found, as numbers."""
        logs: TokenLogs = {}
        for batch, found, _ in done:
            rows = {name: values_BT.tolist() for name, values_BT in found.items()}
            for b, (row, n) in enumerate(zip(batch.rows, batch.mask_BT.sum(1).tolist(), strict=True)):
                logs[row] = TokenLog(**{name: values[b][:n] for name, values in rows.items()})
        names = ("loss", "clipped", "kl_ref", "correction")
        mine = {name: sum(sums[name].item() for *_, sums in done) for name in names}
        shares = ranks.gather((list(logs.items()), mine), tuple[list[tuple[Row, TokenLog]], dict[str, float]])
        logs = dict(sorted((item for of_rank, _ in shares for item in of_rank), key=lambda item: item[0]))
        sums = {name: sum(of_rank[name] for _, of_rank in shares) for name in names}
        tokens = sum(len(log.logp) for log in logs.values())
        sums["entropy"] = sum(sum(log.entropy) for log in logs.values())
        means = {name: total / tokens if tokens else None for name, total in sums.items()}
        metrics = {"loss": sums["loss"], "policy/entropy": means["entropy"], "policy/clip_fraction": means["clipped"],
                   "tokens/trained": float(tokens)}
        if self.config.algorithm.beta > 0:
            metrics["policy/kl_ref"] = means["kl_ref"]
        if self.config.algorithm.correction != "none":
            metrics["policy/correction"] = means["correction"]
        return metrics, logs

    def _score(self, batch: MicroBatch) -> Scored:
        return score(self.policy.decoder, self.policy.head, batch,
                     self.config.rollout.temperature / self.policy.logit_scale, self.config.train.head_chunk_tokens,
                     self.policy.logit_cap)

    @torch.no_grad()
    def _reference(self, batch: MicroBatch) -> torch.Tensor:
        """logp_BT under the base."""
        with self.policy.base_only():
            return self._score(batch).logp_BT

    def _add_up_gradients(self) -> None:
        """Every rank's gradient of its share of the loss becomes that of the loss: a sum, in one buffer."""
        parameters = self.policy.parameters.values()
        flat_X = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
        for p, part in zip(parameters, self.ranks.add_up(flat_X).split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)

    def _apply(self, step: int, loss: float) -> Metrics:
        lr = learning_rate(step, self.config.run.steps, self.config.optim)
        parameters = [p for p in self.policy.parameters.values() if p.grad is not None]
        self.gradient_norms = {name: p.grad.norm() for name, p in self.policy.parameters.items() if p.grad is not None}
        if not parameters:  # no group had a signal
            return {"policy/grad_norm": None, "policy/lr": lr}
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.optim.max_grad_norm))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise NonFiniteError(f"loss {loss}, gradient norm {norm}: the optimizer did not move")
        for settings in self.optimizer.param_groups:
            settings["lr"] = lr
        self.ahead = True
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"policy/grad_norm": norm, "policy/lr": lr}
