"""Several ranks: what they tell each other, equal gradients, equal rollouts, and what happens when one is lost.

The first tests join two threads; the last start torchrun, as a user does, with a real engine a rank.
"""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import HashStore

from grpo.rollout import advantages
from grpo.types import Completion, Group, Problem, Prompt, Sample, Score, UserError
from grpo.update import Updater
from speed import ranks as module
from speed.micro_batches import deal, split
from speed.ranks import ALONE, Joined, RankLostError, join
from tests.conftest import ROOT, group_of, randomize, sampled_by, tiny_config, tiny_policy


def together(*work):
    """What each function returns, given its rank; one thread a rank."""
    store = HashStore()
    store.set_timeout(timedelta(seconds=60))
    with ThreadPoolExecutor(len(work)) as pool:
        return [done.result() for done in [
            pool.submit(lambda rank=rank, do=do: do(Joined(store, rank, len(work), False, False)))
            for rank, do in enumerate(work)]]


# ---- what ranks tell each other


def test_every_rank_gets_every_value_in_order():
    completion = Completion(Sample((5, 2), (-0.25, -0.0), "stop"), "γ = ×", Score(1.0, answer="27"))
    sent = [[(completion,) * 3], []]
    got = together(*[lambda r: r.gather(sent[r.rank], list[tuple[Completion, ...]])] * 2)
    assert got == [sent, sent]
    assert together(*[lambda r: r.gather(float(r.rank), float)] * 3) == [[0.0, 1.0, 2.0]] * 3
    assert ALONE.gather("x", str) == ["x"]


@given(st.lists(st.integers(), max_size=9), st.integers(1, 4))
def test_shares_put_together_are_the_whole(items, size):
    class One(module.Ranks):
        pass

    one = One()
    one.size, shares = size, []
    for one.rank in range(size):
        shares.append(one.mine(items))
    assert one.whole(shares) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_sums_are_equal_to_the_bit_and_time_is_told():
    numbers = torch.randn(3, 1001, generator=torch.Generator().manual_seed(0))
    given = numbers.clone()
    sums = together(*[lambda r: (r.add_up(numbers[r.rank]), r.taken(), r.taken())] * 3)
    assert all(torch.equal(sums[0][0], total) for total, *_ in sums)
    assert torch.allclose(sums[0][0], given.sum(0), atol=1e-6)
    assert torch.equal(numbers, given)
    assert sums[0][1].keys() == {"time/wait_s", "time/allreduce_s"}
    assert sums[0][1]["time/allreduce_s"] > 0
    assert set(sums[0][2].values()) == {0.0}
    assert ALONE.taken() == {}


def test_ranks_that_differ_are_named():
    def agree(r):
        with pytest.raises(UserError, match="rank 1 has another base than rank 0") as refusal:
            r.agree("base", "sea" if r.rank else "land", "copy it")
        return str(refusal.value)

    assert together(agree, agree)[0] == "rank 1 has another base than rank 0 (sea, not land); copy it"
    together(*[lambda r: r.agree("base", "land", "")] * 2)


def test_a_lost_rank_is_noticed_by_the_others():
    def leave(r):
        r.gather(1, int)
        del r._talk

    def wait(r):
        r.gather(1, int)
        with pytest.raises(RankLostError, match="another rank has ended"):
            r.gather(2, int)

    together(wait, leave)


def test_what_all_would_say_is_said_once(monkeypatch):
    monkeypatch.setattr(module, "HEARD", timedelta(seconds=1))
    assert together(*[lambda r: r.last_word("error: a")] * 2) == ["error: a", None]
    assert together(lambda r: None, lambda r: r.last_word("error: b")) == [None, "rank 1: error: b"]


def test_the_first_goes_first():
    done = []

    def work(r):
        with r.first_first():
            time.sleep(0.0 if r.rank else 0.2)
            done.append(r.rank)

    together(work, work)
    assert done == [0, 1]
    with pytest.raises(UserError, match=r"prompts_per_step = 1: 2 ranks need as many"):
        together(*[lambda r: r.need(2) or r.need(1)] * 2)


def test_torchruns_variables_are_taken_out(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "_gpus", lambda: ["4", "5"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert join() is ALONE
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_USE_AGENT_STORE"} & os.environ.keys()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"
    assert join() is ALONE


def test_a_restart_goes_on_with_its_own_run_alone(tmp_path):
    config = tmp_path / "config.yaml"
    store = HashStore()
    fresh, restarted = (Joined(store, 0, 1, False, again) for again in (False, True))
    assert not restarted.goes_on(config)
    config.write_text("run: {}")
    assert restarted.goes_on(config)
    assert not fresh.goes_on(config)
    os.utime(config, (1, 1))  # of a run long ago
    assert not restarted.goes_on(config)


# ---- one step


def some_groups(policy, sizes: list[int], rows: int) -> list[Group]:
    """Groups of random tokens, every second of which is right; log-probs as the policy has them."""
    generator = torch.Generator().manual_seed(1)

    def tokens(n: int) -> list[int]:
        return torch.randint(10, 400, (n,), generator=generator).tolist()

    groups = [group_of(tokens(12 + n), [tokens(n + row % 5) for row in range(rows)]) for n in sizes]
    return [Group(g.prompt, tuple(Completion(c.sample, "", Score(float(row % 2))) for row, c in enumerate(g.completions)))
            for g in sampled_by(policy, groups)]


@pytest.fixture(scope="module")
def policies():
    """Three policies that are the same: of a process alone, and of two ranks."""
    made = [tiny_policy(tiny_config()) for _ in range(3)]
    for policy in made:
        randomize(policy, 0.05)
    return made


@pytest.mark.parametrize("overrides", [(), ("algorithm.aggregation=sequence_mean", "algorithm.beta=0.1"),
                                       ("algorithm.advantage=batch_std", "algorithm.epochs=2")])
def test_two_ranks_train_as_one(policies, overrides):
    config = tiny_config("train.micro_batch_tokens=120", "optim.warmup=0.0", *overrides)
    groups = some_groups(policies[0], [4, 9, 15], 6)
    kept = {name: p.detach().clone() for name, p in policies[0].parameters.items()}

    def train(policy, ranks):
        gradients = {}
        updater = Updater(policy, config, ranks)
        updater.optimizer.step = lambda: gradients.update(
            {name: p.grad.clone() for name, p in policy.parameters.items()})  # before clipping changes nothing here
        return updater.step(1, groups, advantages(groups, config)), gradients

    (alone_metrics, alone_logs), alone = train(policies[0], ALONE)
    both = together(lambda r: train(policies[1], r), lambda r: train(policies[2], r))
    for (metrics, logs), gradients in both:
        assert logs.keys() == alone_logs.keys()
        assert metrics["tokens/trained"] == alone_metrics["tokens/trained"] > 0
        assert metrics["policy/grad_norm"] == pytest.approx(alone_metrics["policy/grad_norm"], rel=1e-5)
        difference = torch.cat([(gradients[n] - alone[n]).flatten() for n in alone]).norm()
        norm = torch.cat([g.flatten() for g in alone.values()]).norm()
        print(float(difference / norm))
        assert difference / norm < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(both[0][1].values(), both[1][1].values(), strict=True))
    assert all(torch.equal(p, kept[name]) for name, p in policies[0].parameters.items())


def test_a_step_without_a_signal_is_no_work_for_any(policies):
    groups = [Group(g.prompt, tuple(Completion(c.sample, "", Score(1.0)) for c in g.completions))
              for g in some_groups(policies[0], [4, 9], 4)]

    def train(r):
        return Updater(policies[r.rank], tiny_config(), r).step(1, groups, torch.zeros(2, 4))

    for metrics, logs in together(train, train):
        assert metrics["policy/grad_norm"] is None
        assert metrics["tokens/trained"] == 0
        assert logs == {}


@given(st.lists(st.lists(st.integers(1, 30), min_size=2, max_size=12), min_size=1, max_size=6), st.integers(20, 200),
       st.integers(1, 5))
def test_dealing_loses_nothing_and_is_even(lengths, budget, ranks):
    groups = [Group(Prompt(Problem("p", "custom", ()), (1,) * 7, ""), tuple(
        Completion(Sample((1,) * n, (0.0,) * n, "stop"), "", Score(0.0)) for n in of_group)) for of_group in lengths]
    rows = [(p, row) for p, of_group in enumerate(lengths) for row in range(len(of_group))]
    hands = deal(groups, rows, budget, ranks)
    assert sorted(row for hand in hands for batch in hand for row in batch) == rows
    if ranks == 1:
        assert hands == [split(groups, rows, budget)]
    read = [[7 * len({p for p, _ in batch}) + sum(lengths[p][row] for p, row in batch) for batch in hand] for hand in hands]
    largest = max(tokens for hand in read for tokens in hand)
    assert max(map(sum, read)) - min(map(sum, read)) <= largest
    assert largest <= max(budget, 37)


# ---- docs/scale.md


def test_the_cost_model_gives_the_table_it_stands_beside():
    """Its formulas and constants, written down once more."""
    text = (ROOT / "docs" / "scale.md").read_text()
    rows = [[cell.strip().replace(",", "") for cell in line.strip("|").split("|")]
            for line in text.splitlines() if re.match(r"\| \d+ \| \d+ \|", line)]
    assert [row[0] for row in rows] == ["1", "2", "8", "64", "512"]
    alone = None
    for ranks, prompts, *said in ([float(cell) for cell in row] for row in rows):
        completions = 64 * prompts
        rollout = 0.54e-3 * completions / ranks + 128 * (4.5e-3 + 39.4e-6 * completions / ranks)
        train = 9.76e-3 * completions / ranks
        allreduce = 2 * (ranks - 1) / ranks * 349e6 / (300e9 if ranks <= 8 else 40e9)
        host = (0.38e-3 if ranks == 1 else 0.42e-3) * completions
        step = rollout + train + allreduce + host
        alone = alone or completions / step
        wanted = [rollout, train, allreduce, host, step, 1 / step, completions / step, completions / step / alone]
        assert said == pytest.approx(wanted, rel=0.05, abs=0.05), (ranks, wanted)
