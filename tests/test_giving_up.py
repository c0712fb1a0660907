"""A run that no step teaches anything stops, and says what to change; one that is right throughout goes on."""

import pytest

from grpo.types import Aborted, Completion, Group, Problem, Prompt, Sample, Score
from harness.giving_up import GivingUp, NoSignalError
from harness.startup import Startup
from tests.conftest import run_train

PROMPT = Prompt(Problem("1 + 1", "sum", ()), (1,), "")


def group(*rewards: float, text: str = "no idea", finish: str = "stop", unparsed: bool = False) -> Group:
    sample = Sample((5,), (0.0,), finish)
    return Group(PROMPT, tuple(Completion(sample, text, Score(reward, unparsed)) for reward in rewards))


WRONG, RIGHT, MIXED = group(0.0, 0.0), group(1.0, 1.0), group(0.0, 1.0)


def steps_until_it_stops(steps: list[list[Group]], trained: bool = False, after: int = 3) -> int | None:
    guard = GivingUp(after)
    for number, groups in enumerate(steps, 1):
        try:
            guard.check(groups, trained, 0.0)
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
    assert steps_until_it_stops([[RIGHT, RIGHT]] * 9) is None  # nothing is left to learn


def test_the_message_is_one_line_that_says_what_was_seen_and_what_to_change():
    guard = GivingUp(2)
    cut = [group(0.0, 0.0, text="Let me see.\nFirst", finish="length", unparsed=True), WRONG]
    guard.check(cut, False, 0.125)
    with pytest.raises(Aborted) as stop:
        guard.check(cut, False, 0.125)
    assert str(stop.value) == (
        "no group had a signal for 2 steps (run.give_up_after): 0 of 8 completions were right, 50% gave no answer, 50% were "
        "cut off; the base's accuracy is 12.5%; the first read 'Let me see.\\\\nFirst' and 'Let me see.\\\\nFirst'; raise "
        "rollout.max_new_tokens, give easier problems, another base, or a larger rollout.group_size")


def test_a_run_that_cannot_start_stops_and_can_be_resumed(tmp_path):
    """The embedded base never answers a question about letters in time."""
    settings = ("configs/tiny.yaml", f"run.dir={tmp_path}/run", "run.steps=5", "rollout.max_new_tokens=1",
                "rollout.prompts_per_step=2", "rollout.group_size=4", "task.train=8", "task.validation=4", "task.test=4")
    done = run_train(*settings, "run.give_up_after=3")
    assert done.returncode == 1
    assert "stopped: no group had a signal for 3 steps (run.give_up_after): 0 of 24 completions were right, " in done.stderr
    assert "Traceback" not in done.stderr
    assert "100% were cut off" in done.stderr
    resumed = run_train(*settings, "run.give_up_after=0", "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "step 3" not in resumed.stdout.split("self-test")[0]


def test_a_long_phase_is_named_while_it_lasts_and_summed_up_at_the_end(monkeypatch, capsys):
    import threading

    monkeypatch.setattr("harness.startup.PATIENCE", 0.0)
    shown, startup = threading.Event(), Startup()
    monkeypatch.setattr("builtins.print", lambda text, **_: (capsys.disabled, shown.set(), said.append(text)))
    said: list[str] = []
    with startup("waiting for the test"):
        assert shown.wait(30)
    assert said == ["waiting for the test ..."]
    monkeypatch.undo()
    startup._phases = {"vLLM": 12.4, "short": 0.4}
    assert str(startup).startswith("started in ")
    assert str(startup).endswith(" s: vLLM 12")
