"""A step's completions in parts, and those dealt out to ranks.

They decide memory and speed only: what the loss is divided by is counted before.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import groupby

from grpo.types import Group, Row


def split(groups: Sequence[Group], rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """The named completions of a step, in micro-batches that read at most `budget` tokens, prompts included.

    A group stays whole where it fits; a larger one is cut into parts, each of which reads the prompt again. A completion
    that does not fit has a micro-batch of its own.
    """
    batches: list[list[Row]] = []
    room = 0
    for p, of_group in groupby(rows, key=lambda row: row[0]):
        prompt, chosen = len(groups[p].prompt.token_ids), [row for _, row in of_group]
        lengths = [len(groups[p].completions[row].sample.token_ids) for row in chosen]
        for part in _parts(lengths, budget - prompt):
            tokens = prompt + sum(lengths[at] for at in part)
            if tokens > room:
                batches.append([])
                room = budget
            batches[-1] += [(p, chosen[at]) for at in part]
            room -= tokens
    return batches


def deal(groups: Sequence[Group], rows: Sequence[Row], budget: int, ranks: int) -> list[list[list[Row]]]:
    """For each rank, its micro-batches of the named completions: about as many tokens to read for each.

    Whoever sampled a completion, any rank can train on it; the groups with a signal need not lie evenly.
    """
    batches = split(groups, rows, budget)
    if ranks == 1:
        return [batches]
    small = math.ceil(sum(map(partial(_tokens, groups), batches)) / ranks)  # so that there is something to deal
    hands, sums = [[] for _ in range(ranks)], [0] * ranks
    for batch in sorted(split(groups, rows, min(budget, small)), key=lambda batch: -_tokens(groups, batch)):
        least = sums.index(min(sums))
        hands[least].append(batch)
        sums[least] += _tokens(groups, batch)
    return [sorted(hand) for hand in hands]


def _tokens(groups: Sequence[Group], rows: Sequence[Row]) -> int:
    """What a micro-batch reads."""
    return (sum(len(groups[p].prompt.token_ids) for p in {p for p, _ in rows})
            + sum(len(groups[p].completions[row].sample.token_ids) for p, row in rows))


def _parts(lengths: Sequence[int], room: int) -> list[list[int]]:
    """The fewest parts of about equal sums, none above `room` but single rows: longest first, each to the emptiest part."""
    rows = range(len(lengths))
    for count in range(max(1, math.ceil(sum(lengths) / max(1, room))), len(lengths)):
        parts, sums = [[] for _ in range(count)], [0] * count
        for row in sorted(rows, key=lambda row: -lengths[row]):
            emptiest = sums.index(min(sums))
            parts[emptiest].append(row)
            sums[emptiest] += lengths[row]
        if max(sums) <= room:
            return parts
    return [[row] for row in rows]
