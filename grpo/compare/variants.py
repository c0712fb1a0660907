"""What variants make of one batch: which tokens they weigh how much, and in which direction they would move the LoRA."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from grpo.batch import Denominators, pad, token_weights
from grpo.compare.batch import Batch
from grpo.config import Algorithm, Config
from grpo.guards.parity import check_parity
from grpo.loss import TokenData, policy_loss
from grpo.presets import idle
from grpo.rollout import advantages
from grpo.run.schema import from_command_line, validated
from grpo.types import Group, TokenLogs, UserError
from grpo.update import LogpOld, Updater

PAPERS = {"grpo": "2402.03300", "dr_grpo": "2503.20783", "dapo": "2503.14476", "gspo": "2507.18071", "cispo": "2506.13585",
          "rloo": "2402.14740", "maxrl": "2602.02710"}


@dataclass(frozen=True)
class Measured:
    """A variant on the batch, as a line of compare/step-NNNNN.json, and the gradient of its loss."""

    line: dict[str, Any]
    gradient: torch.Tensor  # of the whole LoRA, flat, float32, on the CPU


def variant(config: Config, text: str) -> Config:
    """The run's settings under another algorithm: "dapo", "advantage=maxrl", or "dapo,eps_high=0.4".

    Keys without a name go on top of the run's own algorithm, but for what is idle beside them. Raises UserError.
    """
    first, *others = text.split(",")
    pairs = [first if "=" in first else f"preset={first}", *others]
    if bad := [pair for pair in pairs if "=" not in pair]:
        raise UserError(f"{bad[0]}: expected a preset, then key=value after commas, such as dapo,eps_high=0.4")
    keys = from_command_line(pairs)
    if "preset" not in keys:
        own = config.algorithm.model_dump(exclude={"preset"})
        keys = {key: value for key, value in own.items() if key not in idle({**own, **keys})} | keys
    return validated(Config, {**config.model_dump(), "algorithm": keys})


def sampled_logps(batch: Batch) -> LogpOld:
    """log pi_old of every token, those of groups without a signal too. Raises SyncError where the record has others."""
    config = batch.config.model_copy(update={"algorithm": Algorithm()})
    updater = Updater(batch.policy, config)
    logs = updater.logps(batch.groups)
    check_parity(batch.groups, logs, batch.policy.dtype, batch.noise, config.rollout.temperature)
    return {row: log.logp for row, log in logs.items()}


def move(batch: Batch, logp_old: LogpOld, updates: int) -> None:
    """Train the policy on the batch by the run's own algorithm and learning rate, the optimizer being new."""
    updater = Updater(batch.policy, batch.config)
    for _ in range(updates):
        updater.logp_old = logp_old
        updater.epoch(batch.step, batch.groups, advantages(batch.groups, batch.config))


def measure(batch: Batch, config: Config, name: str, logp_old: LogpOld) -> Measured:
    """A variant's gradient at the policy as it is now, whose ratios are against logp_old."""
    updater = Updater(batch.policy, config)
    updater.logp_old = logp_old
    advantages_PG = advantages(batch.groups, config)
    metrics, logs = updater.accumulate(batch.groups, advantages_PG)
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().cpu()
                          for p in batch.policy.parameters.values()])
    updater.optimizer.zero_grad(set_to_none=True)
    contributions = contributed(batch.groups, config, advantages_PG, logs, logp_old)
    algorithm = config.algorithm
    return Measured({
        "name": name, "paper": f"arXiv {PAPERS[algorithm.preset]}" if algorithm.preset in PAPERS else "",
        "settings": algorithm.model_dump(), "clipped": metrics["policy/clip_fraction"], "grad_norm": gradient.norm().item(),
        "tokens": metrics["tokens/trained"],
        "groups": [_group(group, {row: c for (q, row), c in contributions.items() if q == p})
                   for p, group in enumerate(batch.groups)]}, gradient)


def contributed(
    groups: Sequence[Group], config: Config, advantages_PG: torch.Tensor, logs: TokenLogs, logp_old: LogpOld
) -> dict[tuple[int, int], list[float]]:
    """T times -dL / d log pi(o_it) of each trained token: 1 is what an advantage of 1 counts in a mean over all tokens."""
    if not logs:
        return {}
    rows, algorithm = list(logs), config.algorithm
    denominators = Denominators.of(groups, algorithm, config.rollout.max_new_tokens)
    old_BT = _table([logp_old[row] for row in rows])
    mask_BT = _table([[1.0] * len(logs[row].logp) for row in rows]) > 0
    data = TokenData(
        logp_old_BT=old_BT, logp_ref_BT=_table([logs[row].ref for row in rows]) if algorithm.beta > 0 else None,
        advantage_BT=advantages_PG[tuple(zip(*rows, strict=True))].double()[:, None].expand_as(old_BT),
        weights_BT=token_weights(mask_BT, algorithm.aggregation, denominators),
        logp_sampler_BT=_table([groups[p].completions[row].sample.logp for p, row in rows]))
    logp_BT = _table([logs[row].logp for row in rows]).requires_grad_()
    (slope_BT,) = torch.autograd.grad(policy_loss(logp_BT, data, algorithm)[0], logp_BT)
    tokens = sum(len(c.sample.token_ids) for g in groups for c in g.completions)
    return {row: (-tokens * slope_T[: len(logs[row].logp)]).tolist() for row, slope_T in zip(rows, slope_BT, strict=True)}


def cosines(measured: Sequence[Measured]) -> list[list[float | None]]:
    """Between the gradients, each with each. None where one has no direction."""
    def cosine(a: torch.Tensor, b: torch.Tensor) -> float | None:
        length = (a.norm() * b.norm()).item()
        return (a @ b).item() / length if length else None

    return [[cosine(a.gradient.double(), b.gradient.double()) for b in measured] for a in measured]


def _group(group: Group, contributions: dict[int, list[float]]) -> dict[str, Any]:
    """The mean contribution of a token in its right (reward above 0), and in its wrong completions."""
    right = [row for row, c in enumerate(group.completions) if c.score.reward > 0]
    means = {}
    for name, of_kind in (("success", True), ("failure", False)):
        tokens = [c for row, of_row in contributions.items() if (row in right) == of_kind for c in of_row]
        means[name] = sum(tokens) / len(tokens) if tokens else None
    return {"problem": group.prompt.problem.name, "right": len(right), "of": len(group.completions), **means}


def _table(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    return pad(rows, torch.float64)
