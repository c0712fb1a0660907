"""A rank's place among those that torchrun started, and its GPU: one each, or one for several."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import HashStore, PrefixStore

import train
from grpo import start, trainer
from grpo.guards import dry_step
from grpo.ranks import torchrun
from grpo.ranks.ranks import ALONE, Joined, Ranks
from grpo.run.memory import GIB
from grpo.types import Problem, Prompt
from grpo.update import Updater
from tests.conftest import LONG, ROOT, tiny_config, tiny_policy


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
    code = ("import runpy, sys, grpo.ranks.torchrun\n"
            "def join(): print(sorted({'bitsandbytes', 'vllm'} & sys.modules.keys())); raise SystemExit\n"
            f"grpo.ranks.torchrun.join, sys.argv = join, ['{program}', 'configs/tiny.yaml']\n"
            f"runpy.run_module('{program}', run_name='__main__')")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


def test_a_gpu_that_can_no_longer_be_chosen_is_a_mistake(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match=r"join\(\) must come before what starts CUDA"):
        torchrun.join()


@pytest.mark.parametrize(("places", "way", "turns", "sharing"), [  # local rank, ranks there, GPUs there
    ([(0, 2, 2), (1, 2, 2), (0, 1, 2)], "NCCL", [0, 0, 0], [1, 1, 1]),  # two machines, a GPU each
    ([(0, 3, 2), (1, 3, 2), (2, 3, 2)], "gloo", [0, 0, 1], [2, 2, 2]),
    ([(0, 1, 1), (0, 2, 1), (1, 2, 1)], "gloo", [0, 0, 1], [1, 2, 2]),  # two machines, one of which shares
    ([(0, 2, 2), (1, 2, 2), (0, 1, 0)], "gloo", [0, 0, 0], [1, 1, 1]),  # the other has none
    ([(0, 3, 0), (1, 3, 0), (2, 3, 0)], "gloo", [0, 0, 0], [3, 3, 3])])
def test_how_ranks_use_gpus(places, way, turns, sharing):
    store = HashStore()
    with ThreadPoolExecutor(3) as pool:
        ranks = list(pool.map(lambda rank: Joined(store, rank, 3, *places[rank]), range(3)))
    assert all(way in r.about("cuda") for r in ranks)
    assert [r.turn for r in ranks] == turns
    assert {r.turns for r in ranks} == {2 if any(turns) else 0}
    assert [r.sharing("cuda" if gpus else "cpu") for r, (*_, gpus) in zip(ranks, places, strict=True)] == sharing


def test_a_rank_is_told_its_place_and_its_gpu(monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    monkeypatch.setattr("torch.distributed.rendezvous", lambda *_, **__: iter([("store", 3, 4)]))
    monkeypatch.setattr(torchrun, "Joined", lambda *place: place)
    assert torchrun.join() == ("store", 3, 4, 3, 4, 2, False)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"


def test_ranks_that_share_a_gpu_take_turns():
    """Four ranks on two GPUs: two at once, then the other two, and nobody goes on before all have been."""
    log, store, at_once, two = [], HashStore(), Barrier(4), Barrier(2)

    def work(rank):
        own, shared = (Joined(PrefixStore(str(gpus), store), rank, 4, rank, 4, gpus) for gpus in (4, 2))
        with own.in_turn():
            at_once.wait(timeout=LONG)
        with shared.in_turn():
            two.wait(timeout=LONG)
            log.append(rank // 2)
        log.append("after")
        return own, shared

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert log == [0, 0, 1, 1, *["after"] * 4]


def test_engines_start_in_turn_and_a_good_run_ends_nccl(monkeypatch):
    class Watched(Ranks):
        @contextmanager
        def in_turn(self):
            log.append("in turn")
            yield
            log.append("on")

        def close(self):
            log.append("closed")

    class Stop(Exception):
        pass

    def stop():
        raise Stop

    log, config = [], tiny_config()
    problem = Problem("p", "custom", ({"role": "user", "content": "1 + 2"},))
    monkeypatch.setattr(start, "Sampler", lambda *_: log.append("engine") or SimpleNamespace(weights=stop))
    with pytest.raises(Stop):
        trainer.Trainer(config, SimpleNamespace(
            train=[problem], validation=[problem], test=[problem], references={}, score=len), False,
                        (), Watched())
    assert log == ["in turn", "engine", "on"]
    monkeypatch.setattr(train, "join", Watched)
    monkeypatch.setattr(train, "train_as_told", lambda argv, ranks: log.append("trained"))
    assert train.main([]) == 0
    assert log[3:] == ["trained", "closed"]


def test_restarts_without_resume_are_refused(capsys, monkeypatch):
    monkeypatch.setattr(train, "join", lambda: SimpleNamespace(
        restarts=True, first=True, need=lambda prompts: None, last_word=lambda message: message))
    assert train.main(["configs/tiny.yaml"]) == 2
    assert capsys.readouterr().err.startswith("error: torchrun --max-restarts: each attempt would begin a new run; add --")


def test_ranks_on_one_gpu_share_what_is_free(monkeypatch):
    config, ranks = tiny_config("rollout.group_size=8", "rollout.max_new_tokens=24", "train.micro_batch_tokens=64"), Ranks()
    policy = tiny_policy(config)
    updater, prompts = Updater(policy, config, ranks), [Prompt(Problem("p", "custom", ()), (1, 2, 3), "")]
    monkeypatch.setattr(dry_step, "available", lambda device: 12 * GIB)
    assert dry_step.dry_step(updater, prompts, (GIB, GIB))[0].endswith("of 12.00 GiB free")
    steps = []
    monkeypatch.setattr(ranks, "sharing", lambda device: {"cpu": 3}[device])
    monkeypatch.setattr(ranks, "meet", lambda: steps.append("all have looked"))
    monkeypatch.setattr(updater, "accumulate", lambda *given, run=updater.accumulate: steps.append("pass") or run(*given))
    assert dry_step.dry_step(updater, prompts, (GIB, GIB))[0].endswith("of 4.00 GiB free")
    assert steps[:2] == ["all have looked", "pass"]
