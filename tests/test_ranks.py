"""Several ranks, here threads: what they tell each other, and what they cost on paper. Real ones: test_torchrun.py."""

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import HashStore

import train
from benchmarks.scale import table
from grpo.rollout import rollout
from grpo.types import Completion, NonFiniteError, Problem, Prompt, Sample, Score, UserError
from harness.evaluations import Evaluations
from speed import ranks as module
from speed import torchrun
from speed.ranks import ALONE, Joined, RankLostError
from tests.conftest import ROOT


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


def test_torchruns_variables_are_taken_out(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torchrun, "_gpus", lambda: ["4", "5"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    monkeypatch.setenv("VLLM_CACHE_ROOT", "elsewhere")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    alone = torchrun.join()
    assert (alone.size, alone.rank, alone.restarts) == (1, 0, True)
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_USE_AGENT_STORE"} & os.environ.keys()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    assert os.environ["VLLM_CACHE_ROOT"] == "elsewhere/rank1"
    assert torchrun.join() is ALONE


@pytest.mark.parametrize("program", ["train", "benchmarks.our_step"])
def test_gpus_are_chosen_before_anything_starts_cuda(program):
    """bitsandbytes and vLLM do when they are imported; two ranks would then be on the first GPU."""
    code = ("import runpy, sys, speed.torchrun\n"
            "def join(): print(sorted({'bitsandbytes', 'vllm'} & sys.modules.keys())); raise SystemExit\n"
            f"speed.torchrun.join, sys.argv = join, ['{program}', 'configs/tiny.yaml']\n"
            f"runpy.run_module('{program}', run_name='__main__')")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


def test_a_gpu_that_can_no_longer_be_chosen_is_a_mistake(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match=r"join\(\) must come before what starts CUDA"):
        torchrun.join()


def test_gradients_go_over_nccl_only_where_all_ranks_can():
    store = HashStore()
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda rank: Joined(store, rank, 2, ("own", "shared")[rank]), (0, 1)))
    assert {r.about("cuda") for r in both} == {"2 ranks, gradients over gloo, through the hosts' memory"}


def test_nccl_is_shut_down_where_it_was_started():
    def work(r):
        r.close()
        closed, r._sums = [], SimpleNamespace(shutdown=lambda: closed.append(r.rank))
        r.close()
        return closed

    assert together(work, work) == [[0], [1]]
    ALONE.close()


def test_ranks_that_share_a_gpu_take_turns():
    log, all_at_once = [], Barrier(3)

    def work(r):
        with r.in_turn():
            all_at_once.wait(timeout=30)
        r.share_gpus = True
        with r.in_turn():
            log.append(r.rank)
            time.sleep(0.1)
            log.append(r.rank)

    together(work, work, work)
    assert log == [0, 0, 1, 1, 2, 2]


def test_restarts_without_resume_are_refused(capsys, monkeypatch):
    monkeypatch.setattr(train, "join", lambda: SimpleNamespace(
        restarts=True, first=True, need=lambda prompts: None, last_word=lambda message: message))
    assert train.main(["configs/tiny.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: torchrun --max-restarts: each attempt would begin a new run; add --")


def test_an_int_for_a_reward_is_refused_as_it_is_alone():
    """A message would make a float of it."""
    prompt = Prompt(Problem("p", "custom", ()), (1,), "")
    sampler = SimpleNamespace(sample=lambda prompts, *_: [[Sample((1,), (0.0,), "stop")] for _ in prompts])
    policy, task = SimpleNamespace(decode=lambda ids: ""), SimpleNamespace(score=lambda *_: Score(1))

    def work(r):
        with pytest.raises((NonFiniteError, RankLostError)) as stop:
            rollout(sampler, policy, task, [prompt] * 2, 1, 0, 1, ranks=r)
        return type(stop.value)

    assert NonFiniteError in together(work, work)


def test_evaluations_of_other_ranks_are_known_and_not_written(tmp_path):
    path = tmp_path / "evaluation.json"
    others = Evaluations(path, {}, 1, writes=False)
    others.add(0, {"overall": 0.5})
    assert 0 in others
    assert not path.exists()
    Evaluations(path, {}, 1).add(0, {"overall": 0.5})
    assert path.exists()


# ---- docs/scale.md


def test_what_was_measured_is_quoted():
    record = json.loads((ROOT / "benchmarks" / "results" / "scale.json").read_text())
    assert table(record) in (ROOT / "docs" / "scale.md").read_text()
    one, two = (min(step["step_s"] for step in record[ranks]["steps"]) for ranks in ("1", "2"))
    assert round(one / two, 2) == 1.91


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
