"""The LoRA that is best on validation is kept, while a run goes on and when it is resumed."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from grpo.chat import Chat, encode
from grpo.guards.best import Best, Last
from grpo.policy import Policy
from grpo.types import Problem, UserError
from symbols.task import SymbolTask
from tests.conftest import ROOT, tiny_config, tiny_policy
from tests.kept_run import WEIGHTS, Run, damage


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(tiny_config())


@pytest.fixture
def run(policy, tmp_path) -> Run:
    return Run(tmp_path, policy)


def offered(run: Run, accuracies: dict[int, float], *checkpoints: int) -> Best:
    """A run in which those accuracies were measured, with those checkpoints."""
    best = Best(run.folder)
    assert best.restore(0, [], run.at(0)) == []
    for step in range(max(accuracies) + 1):
        if step in accuracies:
            best.offer(step, accuracies[step], run.at(step))
        if step in checkpoints:
            run.checkpoint(step)
            best.prune()
    return best


def rows(accuracies: dict[int, float], until: int = 99) -> list[dict[str, float]]:
    return [{"step": step, "overall": value} for step, value in accuracies.items() if step <= until]


# ---- what is kept while it runs


def test_the_highest_is_kept_and_of_equals_the_later_one(run):
    best = offered(run, {0: 0.5, 2: 0.25, 4: 0.75, 6: 0.75, 8: 0.5})
    assert (best.at, best.chosen(8), run.best()) == ((6, 0.75), 6, [6])
    assert run.holds("best/step-00006", 6)
    assert {p.name for p in (run.folder / "best/step-00006").iterdir()} == {WEIGHTS, "adapter_config.json", "manifest.json"}


def test_what_is_kept_is_loaded_as_it_was(run):
    best = offered(run, {0: 0.5, 4: 0.75, 8: 0.5})
    then = {name: tensor.clone() for name, tensor in run.at(4).lora().items()}
    best.load(run.at(8))
    assert all(torch.equal(then[name], tensor) for name, tensor in run.policy.lora().items())
    (run.folder / "best/step-00004" / WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match=rf"step-00004: {WEIGHTS} is damaged; with --resume the best LoRA is chosen anew"):
        best.load(run.policy)


def test_nothing_better_than_step_0_may_be_found(run):
    assert offered(run, {0: 0.5, 5: 0.25, 10: 0.49}).chosen(10) == 0
    assert run.best() == [0]


def test_a_checkpoint_keeps_the_best_that_it_knows(run):
    accuracies = {0: 0.1, 2: 0.2, 4: 0.3, 6: 0.4, 8: 0.5}
    offered(run, accuracies, 3, 5)
    assert run.best() == [2, 4, 8]  # of checkpoints 3 and 5, and the best of all
    shutil.rmtree(run.folder / "checkpoints" / "step-00003")
    best = Best(run.folder)
    assert best.restore(8, rows(accuracies), run.at(8)) == []
    best.prune()
    assert run.best() == [4, 8]


def test_with_keep_last_nothing_is_written(run):
    last = Last(run.folder)
    assert last.restore(4, rows({0: 0.5, 4: 0.25}), run.at(4)) == []
    last.offer(6, 0.9, run.at(6))
    last.prune()
    assert (last.at, last.chosen(6), run.best()) == (None, 6, [])


def test_another_rank_writes_nothing_and_knows_the_same(run):
    other = Best(run.folder, writes=False)
    for step, accuracy in {0: 0.5, 4: 0.75, 8: 0.5}.items():
        other.offer(step, accuracy, run.at(step))
    assert (other.at, run.best()) == ((4, 0.75), [])


# ---- what a resume knows

MEASURED = {0: 0.1, 2: 0.2, 4: 0.6, 6: 0.5, 8: 0.7, 10: 0.3}


@pytest.mark.parametrize(("done", "at", "left"), [
    (10, (8, 0.7), [4, 8]), (8, (8, 0.7), [4, 8]), (7, (4, 0.6), [4]), (5, (4, 0.6), [4])])
def test_a_resume_goes_on_with_the_best_so_far(run, done, at, left):
    offered(run, MEASURED, 5, 7)
    assert run.best() == [4, 8]
    best = Best(run.folder)
    assert best.restore(done, rows(MEASURED, done), run.at(done)) == []
    assert (best.at, run.best()) == (at, left)
    assert run.holds(f"best/step-{at[0]:05d}", at[0])


def test_a_kill_between_its_accuracy_and_its_lora_costs_nothing(run):
    """evaluation.json had step 8 already, best/ not yet: the checkpoint of step 8 holds the same LoRA."""
    offered(run, {step: value for step, value in MEASURED.items() if step < 8}, 5)
    best = Best(run.folder)
    assert best.restore(8, rows(MEASURED, 8), run.at(8)) == []
    assert (best.at, run.best()) == ((8, 0.7), [4, 8])
    assert run.holds("best/step-00008", 8)


@pytest.mark.parametrize(("harm", "says"), [
    (damage, f"step-00008: {WEIGHTS} is damaged; it is now in damaged-step-00008.1"),
    (lambda folder: (folder / "manifest.json").unlink(),
     "step-00008: manifest.json is missing or damaged; it is now in damaged-step-00008.1"),
    (lambda folder: (folder / "adapter_config.json").unlink(),
     "step-00008: adapter_config.json is missing; it is now in damaged-step-00008.1"),
    (shutil.rmtree, "step-00008 is missing"), (lambda folder: shutil.rmtree(folder.parent), "holds no LoRA")])
@pytest.mark.parametrize("done", [10, 9])
def test_a_best_one_that_is_lost_is_said_and_others_are_chosen_from(run, harm, says, done):
    offered(run, MEASURED, 5)
    harm(run.folder / "best" / "step-00008")
    best = Best(run.folder)
    (said,) = best.restore(done, rows(MEASURED, done), run.at(done))
    assert said == f"{run.folder}/best: {says}; the best LoRA is chosen among steps from {done} on"
    assert best.at == ((10, 0.3) if done == 10 else None)  # step 10 was measured, and its LoRA is there
    assert best.chosen(done) == done
    best.offer(12, 0.35, run.at(12))
    assert best.at == (12, 0.35)
    again = Best(run.folder)  # what was chosen since is not lost again
    assert again.restore(13, rows(MEASURED | {12: 0.35}), run.at(13)) == []
    assert again.at == (12, 0.35)
    assert (run.folder / "best" / "damaged-step-00008.1").is_dir() == ("it is now in" in says)


def test_an_accuracy_that_is_lost_is_no_zero(run):
    """Somebody deleted evaluation.json, as a message told them."""
    offered(run, MEASURED)
    best = Best(run.folder)
    (said,) = best.restore(10, [], run.at(10))
    assert "step-00008: how good it is on validation is not in evaluation.json; the best LoRA is chosen among steps" in said
    assert best.at is None


def test_a_run_that_begins_says_nothing(run):
    best = Best(run.folder)
    assert (best.restore(0, [], run.at(0)), best.at) == ([], None)
    best.offer(0, 0.5, run.at(0))
    again = Best(run.folder)  # killed before its first checkpoint
    assert (again.restore(0, rows({0: 0.5}), run.at(0)), again.at) == ([], (0, 0.5))


# ---- the task


def test_a_task_without_validation_problems_is_refused_before_anything_starts():
    config = tiny_config(f"model.path={ROOT}/models/tiny")
    chat = Chat(config.model, torch.device("cpu"))
    short, long = (Problem("q", "word", ({"role": "user", "content": "1 + 1 " * n},)) for n in (1, 40))
    for lacking in ({}, {"validation": []}):
        with pytest.raises(UserError) as caught:
            encode(chat, SimpleNamespace(train=[short], test=[short], score=len, **lacking), config)
        assert str(caught.value) == ("task.target = symbols: its task has no validation problems; give it "
                                     "`validation`, a list of one or more grpo.types.Problem that are in no other split")
    contexts = {}
    for split in ("train", "validation", "test"):
        splits = {"train": [short], "validation": [short], "test": [short]} | {split: [long]}
        task = SimpleNamespace(**splits, references={}, score=len)
        *prompts, contexts[split] = encode(chat, task, config)
        assert [len(p) for p in prompts] == [1, 1, 1]
    assert len(set(contexts.values())) == 1  # vLLM has room for the longest of any split
    assert SymbolTask.Settings().validation == 200
