"""What a step's groups look like: the numbers of metrics.jsonl, and the lines of rollouts/."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from grpo.types import Group, Metrics, TokenLogs

TRAINERS = {"logp_trainer": "logp", "logp_last": "last", "logp_ref": "ref", "entropy": "entropy"}  # of a line: of a TokenLog


def rollout_metrics(groups: list[Group], replaced: list[Group]) -> Metrics:
    """Rewards by kind, how groups are made up, and what completions look like; of all that was sampled, replaced or not."""
    trained, groups = len(groups), groups + replaced
    completions = [c for g in groups for c in g.completions]
    by_kind = defaultdict(list)
    for group in groups:
        by_kind[group.prompt.problem.kind] += [c.score.reward for c in group.completions]
    spread = [(min(r), max(r)) for r in ([c.score.reward for c in g.completions] for g in groups)]
    mixed = sum(low < high for low, high in spread)
    right = sum(low == high > 0 for low, high in spread)
    return {
        "reward/mean": _mean(c.score.reward for c in completions),
        **{f"reward/{kind}": _mean(rewards) for kind, rewards in sorted(by_kind.items())},
        "groups/all_right": right / len(groups),
        "groups/all_wrong": (len(groups) - mixed - right) / len(groups),
        "groups/mixed": mixed / len(groups),
        "groups/replaced": len(replaced) / trained,
        "completion/mean_tokens": _mean(len(c.sample.token_ids) for c in completions),
        "completion/truncated_fraction": _mean(c.sample.finish_reason == "length" for c in completions),
        "completion/unparsed_fraction": _mean(c.score.unparsed for c in completions),
        "completion/timed_out_fraction": _mean(c.score.timed_out for c in completions)}


def completion_lines(
    step: int, groups: list[Group], advantages_PG: torch.Tensor, logs: TokenLogs
) -> Iterator[dict[str, Any]]:
    """One object a completion, the prompt's text in the first of its group alone.

    The trainer's values are null where it had no reason to look.
    """
    advantages = np.round(advantages_PG.double().numpy(), 6).tolist()
    for p, group in enumerate(groups):
        found = [logs.get((p, row)) for row in range(len(group.completions))]
        columns = {"logp_sampler": _short([c.sample.logp for c in group.completions]),
                   **{name: _short([log and getattr(log, field) for log in found]) for name, field in TRAINERS.items()}}
        for row, completion in enumerate(group.completions):
            yield {"step": step, "problem": group.prompt.problem.name, "kind": group.prompt.problem.kind,
                   **({} if row else {"prompt": group.prompt.text}), "completion": completion.text,
                   "token_ids": completion.sample.token_ids,
                   **{name: values[row] for name, values in columns.items()}, "reward": completion.score.reward,
                   "advantage": advantages[p][row], "finish_reason": completion.sample.finish_reason}


def _short(rows: Sequence[Sequence[float] | None]) -> list[list[float] | None]:
    """Rounded to 5 decimals, all at once."""
    flat = iter(np.round(np.array([value for row in rows for value in row or ()]), 5).tolist())
    return [None if row is None else list(islice(flat, len(row))) for row in rows]


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)
