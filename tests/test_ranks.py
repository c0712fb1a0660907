"""Several ranks, here threads: what they tell each other. Real ones: test_torchrun.py."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import HashStore

from grpo.ranks import ranks as module
from grpo.ranks.ranks import ALONE, Joined, RankLostError
from grpo.rollout import rollout
from grpo.run.evaluations import Evaluations
from grpo.types import Completion, NonFiniteError, Problem, Prompt, Sample, Score, UserError


def together(*work):
    """What each function returns, given its rank; one thread a rank."""
    store = HashStore()
    store.set_timeout(timedelta(seconds=60))
    with ThreadPoolExecutor(len(work)) as pool:
        return [done.result() for done in [
            pool.submit(lambda rank=rank, do=do: do(Joined(store, rank, len(work))))
            for rank, do in enumerate(work)]]


# ---- what ranks tell each other


def test_every_rank_gets_every_value_in_order():
    completion = Completion(Sample((5, 2), (-0.25, -0.0), "stop"), "γ = ×", Score(1.0, answer="27"))
    sent = [[(completion,) * 3], []]
    got = together(*[lambda r: r.gather(sent[r.rank], list[tuple[Completion, ...]])] * 2)
    assert got == [sent, sent]
    assert together(*[lambda r: r.gather(float(r.rank), float)] * 3) == [[0.0, 1.0, 2.0]] * 3
    assert ALONE.gather("x", str) == ["x"]
    assert together(*[lambda r: r.gather([np.float64(0.5)], list[float])] * 2)[0] == [[0.5], [0.5]]


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

    assert together(agree, agree)[0] == "rank 1 has another base than rank 0 ('sea', not 'land'); copy it"
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
    assert together(*[lambda r: r.last_word("error: a")] * 2) == ["error: a", ""]
    assert together(lambda r: None, lambda r: r.last_word("error: b")) == [None, "rank 1: error: b"]


def test_the_first_goes_first():
    done = []

    def work(r):
        with r.first_ahead():
            time.sleep(0.0 if r.rank else 0.2)
            done.append(r.rank)

    together(work, work)
    assert done == [0, 1]
    with pytest.raises(UserError, match=r"prompts_per_step = 1: 2 ranks need as many"):
        together(*[lambda r: r.need(2) or r.need(1)] * 2)


def test_the_others_wait_longer_for_the_first_than_for_a_message(monkeypatch):
    """Rank 0 asks an API for a day; a message is waited for half an hour. Here: 4 s and 1 s."""
    monkeypatch.setattr(module, "PATIENCE", timedelta(seconds=1))
    done = []

    def work(r):
        with r.first_ahead():
            time.sleep(0 if r.rank else 4)
            done.append(r.rank)
        return r.gather(r.rank, int)  # and messages are in step

    assert together(work, work, work) == [[0, 1, 2]] * 3
    assert done[0] == 0


def test_the_others_hear_at_once_that_the_first_failed():
    def fail(r):
        with pytest.raises(UserError, match="no key"), r.first_ahead():
            raise UserError("no key")
        r._talk = None  # as its end does

    def wait(r):
        with pytest.raises(RankLostError), r.first_ahead():
            pytest.fail("the first did not do it")

    together(fail, wait)
    with ALONE.first_ahead():
        pass


def test_the_first_hears_when_it_is_done_that_another_is_lost(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", timedelta(seconds=1))
    done = []

    def work(r):
        with r.first_ahead():
            time.sleep(1)
            done.append(r.rank)

    def leave(r):
        r._talk = None

    with pytest.raises(RankLostError):
        together(work, leave)
    assert done == [0]


def test_nccl_is_shut_down_where_it_was_started():
    def work(r):
        r.close()
        closed, r._sums = [], SimpleNamespace(shutdown=lambda: closed.append(r.rank))
        r.close()
        return closed

    assert together(work, work) == [[0], [1]]
    ALONE.close()


def test_an_int_for_a_reward_is_refused_as_it_is_alone():
    """A message would make a float of it."""
    prompt = Prompt(Problem("p", "custom", ()), (1,), "")
    sampler = SimpleNamespace(as_they_end=lambda prompts, *_: ((place, 0, Sample((1,), (0.0,), "stop"))
                                                               for place in range(len(prompts))))
    policy, task = SimpleNamespace(decode=lambda ids: ""), SimpleNamespace(score=lambda *_: Score(1))

    def work(r):
        with pytest.raises((NonFiniteError, RankLostError)) as stop:
            rollout(sampler, policy, task, [prompt] * 2, 1, 0, 1, ranks=r)
        return type(stop.value)

    assert NonFiniteError in together(work, work)


def test_evaluations_of_other_ranks_are_known_and_not_written(tmp_path):
    path = tmp_path / "evaluation.json"
    others = Evaluations(path, {}, 1, writes=False)
    others.add("validation", 0, {"overall": 0.5})
    others.keep(0)
    assert others.has("validation", 0)
    assert not path.exists()
    first = Evaluations(path, {}, 1)
    first.add("validation", 0, {"overall": 0.5})
    first.keep(0)
    text = path.read_text()
    Evaluations(path, {}, 1, writes=False)  # a rank that is slower than the first
    assert path.read_text() == text
