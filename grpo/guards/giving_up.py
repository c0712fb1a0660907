"""A run without a signal is stopped: a reward that is the same for all completions of a prompt teaches nothing."""

from collections.abc import Sequence

import torch

from grpo.run.files import brief
from grpo.types import Aborted, Group

SHOWN = 2  # completions in the message


class NoSignalError(Aborted):
    """No group has had a signal for many steps, and completions are wrong."""


class GivingUp:
    """Counts the steps in a row that teach nothing.

    A step counts where no advantage differs from 0, and where some group is all wrong while no step has had a signal yet, or
    all groups are all wrong. A completion is wrong whose reward is not above 0. A policy that is right throughout has
    nothing to learn either, and goes on.
    """

    def __init__(self, after: int, started: bool):
        """after: how many such steps are too many; 0: no number is. started: whether an earlier step had a signal."""
        self._after, self._started, self._row, self._first = after, started, [], []

    def check(self, groups: Sequence[Group], advantages_PG: torch.Tensor, base: float | None) -> None:
        """Count a step. Raises NoSignalError where that is one too many. base: accuracy before GRPO, in [0, 1]."""
        wrong = [all(c.score.reward <= 0 for c in group.completions) for group in groups]
        signal = bool(advantages_PG.any())
        self._started |= signal
        if signal or not any(wrong) or (self._started and not all(wrong)):
            self._row, self._first = [], []
            return
        completions = [c for group in groups for c in group.completions]
        self._first = self._first or [c.text for c in completions[:SHOWN]]
        self._row.append((len(completions), sum(c.score.reward > 0 for c in completions),
                          sum(c.score.unparsed for c in completions),
                          sum(c.sample.finish_reason == "length" for c in completions)))
        if len(self._row) == self._after:
            raise NoSignalError(self._message(base))

    def _message(self, base: float | None) -> str:
        of, right, unparsed, truncated = map(sum, zip(*self._row, strict=True))
        shown = " and ".join(f"'{brief(text.strip(), 80)}'" for text in self._first)
        cures = [*(["raise rollout.max_new_tokens"] if truncated > of / 10 else []),
                 *(["show the answer's form in the prompt, by examples"] if unparsed > of / 2 else []),
                 "give easier problems", "another base", "or a larger rollout.group_size"]
        if self._started:
            cures = ["it had learned and fell apart: lower optim.lr, or set algorithm.beta; best/ has the best LoRA before"]
        known = "" if base is None else f"; the base's accuracy is {base:.1%}"
        return (f"no group had a signal for {len(self._row)} steps (run.give_up_after): {right:,} of {of:,} completions "
                f"were right, {unparsed / of:.0%} gave no answer, {truncated / of:.0%} were cut off{known}; the first read "
                f"{shown}; {', '.join(cures)}")
