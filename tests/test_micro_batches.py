"""Cutting a step into micro-batches and dealing them to ranks: against every way to do it, and by hand."""

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.guards.dry_step import read_again
from grpo.speed.micro_batches import deal, split
from grpo.types import Group
from tests.conftest import every, group_of, tiny_config
from tests.test_dry_step import prompt_of

Lengths = list[tuple[int, list[int]]]  # of each group: its prompt's, its completions'


def groups_of(lengths: Lengths) -> list[Group]:
    return [group_of([5] * prompt, [[6] * n for n in rows]) for prompt, rows in lengths]


def read(lengths: Lengths, batches: list[list[tuple[int, int]]]) -> list[int]:
    """Tokens that each micro-batch reads."""
    return [sum(lengths[p][0] for p in {p for p, _ in batch}) + sum(lengths[p][1][row] for p, row in batch)
            for batch in batches]


def slowest(lengths: Lengths, budget: int, ranks: int) -> int:
    groups = groups_of(lengths)
    return max(sum(read(lengths, hand)) for hand in deal(groups, every(groups), budget, ranks))


group = st.tuples(st.integers(1, 40), st.lists(st.integers(1, 30), min_size=1, max_size=12))


@given(st.lists(group, min_size=1, max_size=6), st.integers(1, 200), st.integers(1, 5))
def test_dealing_loses_nothing_and_never_costs_more_than_one_rank_alone(lengths, budget, ranks):
    groups = groups_of(lengths)
    hands = deal(groups, every(groups), budget, ranks)
    assert len(hands) == ranks
    assert sorted(row for hand in hands for batch in hand for row in batch) == every(groups)
    for hand in hands:
        assert all(len(batch) == 1 for batch, tokens in zip(hand, read(lengths, hand), strict=True) if tokens > budget)
        assert all(batch == sorted(batch) for batch in hand)  # a group's rows stand together
    alone = split(groups, every(groups), budget)
    assert max(sum(read(lengths, hand)) for hand in hands) <= sum(read(lengths, alone))


def partitions(rows: list[int]) -> Iterator[list[list[int]]]:
    """Every way to cut rows into parts."""
    if not rows:
        yield []
        return
    first, rest = rows[0], rows[1:]
    for size in range(len(rest) + 1):
        for beside in itertools.combinations(range(len(rest)), size):
            for parts in partitions([n for at, n in enumerate(rest) if at not in beside]):
                yield [[first, *(rest[at] for at in beside)], *parts]


def best(lengths: Lengths, budget: int, ranks: int) -> int:
    """The tokens of the slowest rank, of all ways to cut the groups and to deal the parts."""
    found = []
    ways = [[[prompt + sum(part) for part in parts] for parts in partitions(rows)
             if all(len(part) == 1 or prompt + sum(part) <= budget for part in parts)] for prompt, rows in lengths]
    for cut in itertools.product(*ways):
        loads = {(0,) * ranks}
        for part in itertools.chain(*cut):
            loads = {tuple(sorted((*load[:r], load[r] + part, *load[r + 1:]))) for load in loads for r in range(ranks)}
        found.append(min(map(max, loads)))
    return min(found)


@pytest.mark.parametrize("rows", [[[8] * 6], [[9, 7, 5, 4, 2, 1]], [[4] * 3, [4] * 3], [[9, 3, 2], [5, 5, 1]],
                                  [[30, 2, 2, 2, 2]], [[6, 3], [8], [7, 2]]])
@pytest.mark.parametrize("prompt", [1, 6, 40])
@pytest.mark.parametrize("budget", [1, 16, 50, 58, 1000])
def test_the_slowest_rank_is_near_the_best_of_all_ways(rows, prompt, budget):
    lengths = [(prompt, of_group) for of_group in rows]
    for ranks in (1, 2, 3):
        assert slowest(lengths, budget, ranks) <= 1.1 * best(lengths, budget, ranks)


@pytest.mark.parametrize(("lengths", "budget", "tokens"), [
    ([(8000, [128] * 64)], 16384, {1: 16192, 2: 12096, 8: 9024}),  # 8000 + 8192, + 4096, + 1024
    ([(8000, [256] * 64)] * 12, 32768, {8: 40576}),  # a group and a half: 2 x 8000 + 16384 + 8192
    ([(20, [5, 2]), (20, [2]), (1, [4])], 1000, {2: 27}),  # 20 + 7; 20 + 2 and 1 + 4: what is dear to cut comes first
    ([(300, [50] * 63 + [4000])], 4096, {1: 4300 + 300 + 63 * 50}),  # one that is too long costs the others nothing
    ([(300, [128] * 64)] * 16, 4608, {1: 16 * (2 * 300 + 64 * 128), 8: 2 * (2 * 300 + 64 * 128)})])
def test_the_slowest_rank_by_hand(lengths, budget, tokens):
    assert {ranks: slowest(lengths, budget, ranks) for ranks in tokens} == tokens


def test_parts_of_several_groups_share_a_micro_batch():
    lengths = [(10, [50]), (10, [50]), (10, [30]), (10, [30])]
    groups = groups_of(lengths)
    assert read(lengths, split(groups, every(groups), 100)) == [100, 100]  # 60 + 40, twice; in order it would be three


@pytest.mark.parametrize(("length", "budget", "said"), [
    (3500, 4096, "train.micro_batch_tokens = 4096: prompts of up to 3500 tokens fill it, and are read up to 32 times each: "
     "training reads up to 6.5 times as many tokens as it must; raise it, as far as memory allows, to 19884 at most"),
    (3500, 7596, "read up to 4 times each: training reads up to 1.5 times"), (3500, 9132, None),  # three times: 1.35
    (8000, 4096, "read up to 64 times each"), (300, 4096, None), (3500, 19884, None), (3500, 16384, None)])
def test_prompts_that_fill_the_budget_are_said(length, budget, said):
    config = tiny_config(f"train.micro_batch_tokens={budget}", "rollout.group_size=64", "rollout.max_new_tokens=256")
    lines = read_again(config, [prompt_of(length)] * 3)
    assert (said in lines[0]) if said else lines == []
