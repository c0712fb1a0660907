"""Alarms: what a policy looks like when it has found a way to be rewarded, or to stop trying, without solving anything.

An alarm is a metric, 0 or 1, and one line when it begins. It stops nothing: the reward may be worth it.
"""

from collections import Counter

from grpo.run.files import brief
from grpo.types import Completion, Group, Metrics

SAME = 0.9  # share of a step's completions that give one answer, whatever they were asked ...
SOLVED = 0.9  # ... and are rewarded on average less than this for it
SEVERAL, UNPARSED, TRUNCATED = 0.2, 0.5, 0.2  # shares of a step's completions


class Alarms:
    """Which are ringing. `check` says what began."""

    def __init__(self):
        self._ringing: set[str] = set()

    def check(self, groups: list[Group]) -> tuple[Metrics, list[str]]:
        """A step's shares and alarms, and a line for each alarm that was silent in the step before."""
        completions = [c for g in groups for c in g.completions]
        answer, share, reward = _commonest(completions)
        several = sum(c.score.answers > 1 for c in completions) / len(completions)
        unparsed = sum(c.score.unparsed for c in completions) / len(completions)
        timed_out = sum(c.score.timed_out for c in completions) / len(completions)
        truncated = sum(c.sample.finish_reason == "length" for c in completions) / len(completions)
        rules = {
            "same_answer": (share >= SAME and reward < SOLVED and len(groups) > 1,
                            f"{share:.0%} of the completions answer {brief(answer, 80)}, whatever the question; "
                            f"their mean reward is {reward:.2f}"),
            "several_answers": (several >= SEVERAL, f"{several:.0%} of the completions give several answers"),
            "unparsed": (unparsed >= UNPARSED, f"{unparsed:.0%} of the completions give no answer"),
            "timed_out": (timed_out > 0, f"the verifier came to no end in its time for {timed_out:.1%} of the completions, "
                                         "which count as wrong"),
            "truncated": (truncated >= TRUNCATED, f"{truncated:.0%} of the completions are cut off at "
                                                  "rollout.max_new_tokens"),
        }
        rings = {name for name, (ring, _) in rules.items() if ring}
        lines = [f"alarm: {text}" for name, (_, text) in rules.items() if name in rings - self._ringing]
        self._ringing = rings
        return {"completion/same_answer_fraction": share, "completion/several_answers_fraction": several,
                **{f"alarm/{name}": float(name in rings) for name in rules}}, lines


def _commonest(completions: list[Completion]) -> tuple[str | None, float, float]:
    """The answer given most often, its share of all completions, and the mean reward of those that give it."""
    counts = Counter(c.score.answer for c in completions if c.score.answer is not None)
    if not counts:
        return None, 0.0, 0.0
    answer, count = counts.most_common(1)[0]
    return answer, count / len(completions), sum(c.score.reward for c in completions if c.score.answer == answer) / count
