"""Which steps are in the file, and how: as gzip'd JSON, in base64, which the browser opens when a step is chosen.

A token costs about 6 bytes there, so that every step of a small run fits, and a sample of a large one's. Numbers are the
records', to the last digit: log-probs and entropies are integers in units of 1e-5 nats, the rest has 6 digits.
"""

import base64
import gzip
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from grpo.config import Config
from grpo.report.records import RolloutLine
from grpo.report.tokens import StepTokens, step_tokens
from grpo.types import UserError

BUDGET = 12 * 2**20  # bytes of base64, where no steps are asked for
MOST = 256 * 2**20  # and where they are: a browser holds no string much longer
UNIT = 1e5  # the records have 5 decimals


def asked(text: str, available: Sequence[int]) -> list[int]:
    """The steps that "12,40-60" names, of those that are there. Raises UserError where it names none."""
    if not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", text):
        raise UserError(f"--steps {text[:80]!r}: steps and ranges were expected; write, for example, --steps 12,40-60")
    ranges = [[int(end) for end in part.split("-")] for part in text.split(",")]
    steps = [step for step in available if any(r[0] <= step <= r[-1] for r in ranges)]
    if not steps:
        there = f"has steps {available[0]} to {available[-1]}" if available else "has none"
        raise UserError(f"--steps {text[:80]}: this run recorded no such step; rollouts/ {there}")
    return steps


def spread(available: Sequence[int], count: int) -> list[int]:
    """`count` of the steps, evenly spaced; the first and the last always."""
    if count >= len(available):
        return list(available)
    last = len(available) - 1
    return [available[round(n * last / (count - 1))] for n in range(count)] if count > 1 else [available[-1]]


def sample(sizes: dict[int, int], pack: Callable[[int], str], budget: int) -> dict[int, str]:
    """As many evenly spaced steps as fit, packed; the first and the last even where they alone do not fit.

    sizes: of the steps' files, in bytes, from which the room they take is guessed; only files that are chosen are packed.
    """
    steps, packed = sorted(sizes), {}

    def room(chosen: list[int]) -> int:
        packed.update({step: pack(step) for step in chosen if step not in packed})
        return sum(len(packed[step]) for step in chosen)

    chosen = spread(steps, 2)
    for _ in range(4):  # each guess is from the rate that the one before was packed at
        better = _fitting(steps, sizes, budget * sum(sizes[step] for step in chosen) / max(1, room(chosen)))
        if better == chosen:
            break
        chosen = better
    while room(chosen) > budget and len(chosen) > 2:
        chosen = spread(chosen, len(chosen) - 1)
    return {step: packed[step] for step in chosen}


def _fitting(steps: list[int], sizes: dict[int, int], budget: float) -> list[int]:
    for count in range(len(steps), 2, -1):
        chosen = spread(steps, count)
        if sum(sizes[step] for step in chosen) <= budget:
            return chosen
    return spread(steps, 2)


def all_packed(steps: Sequence[int], pack: Callable[[int], str]) -> dict[int, str]:
    """The steps that were asked for. Raises UserError where a browser could not hold them."""
    packed: dict[int, str] = {}
    for step in steps:
        packed[step] = pack(step)
        if sum(map(len, packed.values())) > MOST:
            raise UserError(f"--steps: the first {len(packed)} of {len(steps)} steps take more than {MOST / 2**20:.0f} MiB, "
                            "which a browser may not open; ask for fewer")
    return packed


def packed_step(lines: Sequence[RolloutLine], config: Config, ids: set[int]) -> str:
    """A step for the browser. Adds the tokens that occur to `ids`."""
    tokens = step_tokens(lines, config.algorithm, config.rollout)
    for line in lines:
        ids.update(line.token_ids)
    text = json.dumps(_step(lines, tokens, config), ensure_ascii=False, separators=(",", ":"))
    return packed_text(text)


def packed_text(text: str) -> str:
    """gzip, then base64: what the browser's DecompressionStream opens."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _step(lines: Sequence[RolloutLine], tokens: StepTokens, config: Config) -> dict[str, Any]:
    place = {row: b for b, row in enumerate(tokens.rows)}
    size, groups = config.rollout.group_size, []
    for start in range(0, len(lines), size):
        group = lines[start : start + size]
        groups.append({
            "problem": group[0].problem, "kind": group[0].kind, "prompt": group[0].prompt,
            "completions": [_completion(line, tokens, place.get(start + n), config) for n, line in enumerate(group)]})
    return {"tokens": tokens.denominators.tokens, "completions": tokens.denominators.completions,
            "max_tokens": tokens.denominators.max_tokens, "groups": groups}


def _completion(line: RolloutLine, tokens: StepTokens, b: int | None, config: Config) -> dict[str, Any]:
    """One completion's columns; one that is the same number at every token is that number."""
    sampler = _units(line.logp_sampler)
    row = {"ids": line.token_ids, "sampler": sampler, "reward": line.reward, "advantage": line.advantage,
           "finish": line.finish_reason}
    if b is None:
        return row
    n, terms = len(line.token_ids), tokens.terms
    row |= {"gap": _column([a - b for a, b in zip(_units(line.logp_trainer), sampler, strict=True)]),
            "entropy": _units(line.entropy or [0.0] * n),
            "weight": _column(_digits(tokens.weights_BT[b, :n])),
            "contribution": _column(_digits(tokens.contribution_BT[b, :n])),
            "ratio": _column(_digits(terms.ratio_BT[b, :n])),
            "clipped": terms.clipped_BT[b, :n].nonzero().flatten().tolist()}
    if config.algorithm.correction != "none":
        row["correction"] = _column(_digits(terms.correction_BT[b, :n]))
    if config.algorithm.beta > 0 and line.logp_ref:
        row |= {"ref": _units(line.logp_ref), "kl": _digits(terms.kl_BT[b, :n]),
                "from_kl": _digits(tokens.from_kl_BT[b, :n])}
    if line.logp_last:
        row["last"] = _units(line.logp_last)
    return row


def _units(values: Sequence[float]) -> list[int]:
    return [round(value * UNIT) for value in values]


def _digits(values: torch.Tensor) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


def _column(values: list[float]) -> list[float] | float:
    return values[0] if len(set(values)) == 1 else values
