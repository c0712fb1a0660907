"""A step's completions in parts. They decide memory and speed only: what the loss is divided by is counted before."""

import math
from collections.abc import Sequence

from grpo.types import Group, Row


def split(groups: Sequence[Group], places: Sequence[int], budget: int) -> list[list[Row]]:
    """The completions of the groups at `places`, in micro-batches that read at most `budget` tokens, prompts included.

    A group stays whole where it fits; a larger one is cut into parts, each of which reads the prompt again. A completion
    that does not fit has a micro-batch of its own.
    """
    batches: list[list[Row]] = []
    room = 0
    for p in places:
        prompt = len(groups[p].prompt.token_ids)
        lengths = [len(c.sample.token_ids) for c in groups[p].completions]
        for part in _parts(lengths, budget - prompt):
            tokens = prompt + sum(lengths[row] for row in part)
            if tokens > room:
                batches.append([])
                room = budget
            batches[-1] += [(p, row) for row in part]
            room -= tokens
    return batches


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
