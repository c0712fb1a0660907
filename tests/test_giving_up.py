"""A run that no step teaches anything stops, and says what to change; one that is right throughout goes on."""

import json
import threading

import pytest
import torch

from grpo.advantage import ADVANTAGES
from grpo.guards.giving_up import GivingUp, NoSignalError
from grpo.run.startup import Startup
from grpo.types import Aborted, Completion, Group, Problem, Prompt, Sample, Score
from tests.conftest import train_here
from tests.forked import run_forked

PROMPT = Prompt(Problem("1 + 1", "sum", ()), (1,), "")


def group(*rewards: float, text: str = "no idea", finish: str = "stop", unparsed: bool = False) -> Group:
    sample = Sample((5,), (0.0,), finish)
    return Group(PROMPT, tuple(Completion(sample, text, Score(reward, unparsed)) for reward in rewards))


WRONG, RIGHT, MIXED = group(0.0, 0.0), group(1.0, 1.0), group(0.0, 1.0)


def advantages(groups: list[Group]) -> torch.Tensor:
    return ADVANTAGES["centred"](torch.tensor([[c.score.reward for c in group.completions] for group in groups]))


def steps_until_it_stops(steps: list[list[Group]], trained: bool = False, after: int = 3) -> int | None:
    guard = GivingUp(after, trained)
    for number, groups in enumerate(steps, 1):
        try:
            guard.check(groups, advantages(groups), 0.0)
        except NoSignalError:
            return number
    return None


def test_steps_without_a_signal_are_counted_in_a_row():
    assert steps_until_it_stops([[WRONG, WRONG]] * 5) == 3
    assert steps_until_it_stops([[WRONG]] * 2 + [[WRONG, MIXED]] + [[WRONG]] * 2) is None
    assert steps_until_it_stops([[WRONG]] * 2 + [[WRONG, MIXED]] + [[WRONG]] * 4) == 6
    assert steps_until_it_stops([[WRONG]] * 50, after=0) is None


def test_a_run_that_has_learned_is_stopped_only_where_all_is_wrong():
    assert steps_until_it_stops([[RIGHT, WRONG]] * 9) == 3  # it cannot start: what is not right is never right
    assert steps_until_it_stops([[RIGHT, WRONG]] * 9, trained=True) is None  # it has solved all but a few
    assert steps_until_it_stops([[WRONG, WRONG]] * 9, trained=True) == 3  # it has collapsed
    assert steps_until_it_stops([[MIXED, RIGHT]] + [[RIGHT, WRONG]] * 9) is None  # the same, seen by itself
    assert steps_until_it_stops([[RIGHT, RIGHT]] * 9) is None  # nothing is left to learn
    assert steps_until_it_stops([[group(0.25, 0.25)]] * 9) is None  # wrong is what gets nothing


def test_a_penalty_on_length_is_a_signal_too():
    """`overlong: penalised` takes off what the task's rewards do not show."""
    guard = GivingUp(1, started=False)
    guard.check([WRONG], torch.tensor([[0.5, -0.5]]), None)
    with pytest.raises(NoSignalError):
        guard.check([WRONG], torch.zeros(1, 2), None)


def test_a_run_that_fell_apart_is_told_so():
    with pytest.raises(NoSignalError, match="it had learned and fell apart"):
        GivingUp(1, started=True).check([WRONG], torch.zeros(1, 2), 0.5)


def test_the_message_is_one_line_that_says_what_was_seen_and_what_to_change():
    guard = GivingUp(2, started=False)
    cut = [group(0.0, 0.0, text="Let me see.\nFirst", finish="length", unparsed=True), WRONG]
    guard.check(cut, advantages(cut), 0.125)
    with pytest.raises(Aborted) as stop:
        guard.check(cut, advantages(cut), 0.125)
    assert str(stop.value) == (
        "no group had a signal for 2 steps (run.give_up_after): 0 of 8 completions were right, 50% gave no answer, 50% were "
        "cut off; the base's accuracy is 12.5%; the first read 'Let me see.\\nFirst' and 'Let me see.\\nFirst'; raise "
        "rollout.max_new_tokens, give easier problems, another base, or a larger rollout.group_size")


def test_a_run_that_cannot_start_stops_and_can_be_resumed(tmp_path):
    """The embedded base never answers a question about letters in time."""
    settings = ("configs/tiny.yaml", f"run.dir={tmp_path}/run", "run.steps=5", "rollout.max_new_tokens=1",
                "rollout.prompts_per_step=2", "rollout.group_size=4", "task.train=8", "task.validation=4", "task.test=4")
    done = run_forked(tmp_path, "train", *settings, "run.give_up_after=3")
    assert done.returncode == 1
    assert "stopped: no group had a signal for 3 steps (run.give_up_after): 0 of 24 completions were right, " in done.stderr
    assert "Traceback" not in done.stderr
    assert "100% were cut off" in done.stderr
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    resumed = train_here(*settings, "run.give_up_after=0", "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    after = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert after.startswith(before)  # it goes on from the step that it stopped at
    assert [json.loads(line)["step"] for line in after.splitlines()] == [1, 2, 3, 4, 5]


def test_a_long_phase_is_named_while_it_lasts_and_summed_up_at_the_end(monkeypatch):
    monkeypatch.setattr("grpo.run.startup.PATIENCE", 0.0)
    shown, said, startup = threading.Event(), [], Startup()
    monkeypatch.setattr("builtins.print", lambda text, **_: (said.append(text), shown.set()))
    with startup("waiting for the test"):
        assert shown.wait(30)
    monkeypatch.undo()
    assert said == ["waiting for the test ..."]
    startup._phases = {"vLLM": 12.4, "short": 0.4}
    assert str(startup).startswith("started in ")
    assert str(startup).endswith(" s: vLLM 12")
