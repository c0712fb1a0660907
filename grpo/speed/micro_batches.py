"""A step's completions in parts, and those dealt out to ranks.

They decide memory and speed only: what the loss is divided by is counted before. A group's rows that share a micro-batch
are a part, and each part reads the prompt again. So there should be few: a part is filled with the longest row that fits,
again and again (first-fit decreasing).
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import TypeVar

from grpo.types import Group, Row

Part = tuple[int, list[Row]]  # tokens that it reads, its prompt included; rows of one group
Rows = tuple[int, list[tuple[int, Row]]]  # of a group: the prompt's tokens; each row's, ascending

T = TypeVar("T")


def split(groups: Sequence[Group], rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """The named completions of a step, in micro-batches that read at most `budget` tokens, prompts included.

    A group stays whole where it fits; a larger one is cut into parts, each of which reads the prompt again. A completion
    that does not fit has a micro-batch of its own.
    """
    return deal(groups, rows, budget, 1)[0]


def deal(groups: Sequence[Group], rows: Sequence[Row], budget: int, ranks: int) -> list[list[list[Row]]]:
    """For each rank, its micro-batches of the named completions, such that the rank with most to read has little.

    That is never more than one rank alone would read. Whoever sampled a completion, any rank can train on it; the groups
    with a signal need not lie evenly. A group is cut where that costs less than it brings: the prompt is read again.
    O(n log n) for n completions, times about ten trials of how much is enough for a rank.
    """
    work = sorted(_by_group(groups, rows), key=lambda group: -group[0])  # what is dear to cut first
    alone = _fill(work, budget, math.inf, 1)
    hands, most = alone + [[] for _ in range(1, ranks)], _tokens(alone[0])
    least = math.ceil(most / ranks)
    while most - least > least // 256:  # what is left to find is not worth a trial
        enough = (least + most) // 2
        if tried := _fill(work, budget, enough, ranks):
            hands, most = tried, max(map(_tokens, tried))
        else:
            least = enough + 1
    return [_micro_batches(hand, budget) for hand in hands]


def _by_group(groups: Sequence[Group], rows: Sequence[Row]) -> list[Rows]:
    return [(len(groups[p].prompt.token_ids), sorted((len(groups[p].completions[row].sample.token_ids), (p, row))
                                                     for p, row in of_group))
            for p, of_group in groupby(rows, key=itemgetter(0))]


def _fill(work: Sequence[Rows], budget: int, enough: float, ranks: int) -> list[list[Part]] | None:
    """One rank after the other with parts, up to `enough` tokens each. None where something is left over."""
    hands, waiting = [], [(prompt, list(rows)) for prompt, rows in work]
    for _ in range(ranks):
        hand, left = [], enough
        for prompt, rows in waiting:
            while taken := _take(rows, budget - prompt, left - prompt):
                tokens = prompt + sum(n for n, _ in taken)
                hand.append((tokens, [row for _, row in taken]))
                left -= tokens
        waiting = [group for group in waiting if group[1]]
        hands.append(hand)
    return None if waiting else hands


def _take(ascending: list[tuple[int, T]], room: int, left: float) -> list[tuple[int, T]]:
    """Take out the largest that `left` and `room` hold, again and again; or, alone, one that only `left` holds."""
    at = bisect_right(ascending, left, key=itemgetter(0))
    if at and ascending[at - 1][0] > room:
        return [ascending.pop(at - 1)]
    taken, left = [], min(room, left)
    while at := bisect_right(ascending, left, key=itemgetter(0)):
        taken.append(ascending.pop(at - 1))
        left -= taken[-1][0]
    return taken


def _tokens(hand: Sequence[Part]) -> int:
    return sum(tokens for tokens, _ in hand)


def _micro_batches(parts: Sequence[Part], budget: int) -> list[list[Row]]:
    """Parts of several groups together, in as few micro-batches as will do."""
    waiting, batches = sorted(parts), []
    while taken := _take(waiting, budget, math.inf):
        batches.append(sorted(row for _, rows in taken for row in rows))
    return sorted(batches)
