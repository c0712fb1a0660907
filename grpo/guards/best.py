"""best/: the LoRA of the step that was best on the validation problems, so that a run may end worse than it was.

    best/step-00040/   the LoRA in PEFT's format, manifest.json

A new best one is written whole before the one before it is deleted. That stays for as long as a checkpoint does that is
older than the new one: for a checkpoint of step c, the newest LoRA of a step <= c is the best one that a resume knows.
"""

from collections.abc import Sequence
from pathlib import Path

from grpo.policy import SETTINGS, WEIGHTS, Policy
from grpo.run.evaluations import Row, best_of
from grpo.run.files import fault, new_directory, remove, set_aside, steps_in
from grpo.types import UserError

FOLDER, FILES = "best", {SETTINGS, WEIGHTS}


class Best:
    """eval.keep = best. `at`: the step of the best LoRA so far, and its overall accuracy on validation; None before one."""

    def __init__(self, run: Path, writes: bool = True):
        """Of a run directory. writes: whether this process does; it alone may `restore`, and tells the others `at`."""
        self.folder, self.checkpoints, self.writes = run / FOLDER, run / "checkpoints", writes
        self.at: tuple[int, float] | None = None

    def restore(self, done: int, validation: Sequence[Row], policy: Policy) -> list[str]:
        """Go on after step `done`, whose LoRA the policy has. validation: what was measured up to there.

        LoRAs of later steps are deleted. Returns a line where the best one is not there, or not as it was written.
        """
        for step, path in steps_in(self.folder).items():
            if step > done:
                remove(path)
        overall = {row["step"]: row["overall"] for row in validation}
        if (wrong := self._find(overall)) is None:
            return []
        if done in overall:
            self.offer(done, overall[done], policy)
        best = best_of(list(validation))["step"] if validation else 0
        return [] if best == done else [f"{self.folder}: {wrong}; the best LoRA is chosen among steps from {done} on"]

    def _find(self, overall: dict[int, float]) -> str | None:
        """Take up the newest LoRA there, or say why not."""
        found = steps_in(self.folder)
        if not found:
            return "holds no LoRA"
        step, path = found.popitem()
        if wrong := fault(path, FILES):
            return f"{path.name}: {wrong}; it is now in {set_aside(path).name}"
        if step not in overall:
            return f"{path.name}: how good it is on validation is not in evaluation.json"
        if better := [later for later, value in overall.items() if later > step and value >= overall[step]]:
            return f"step-{max(better):05d} is missing"
        self.at = step, overall[step]
        return None

    def offer(self, step: int, accuracy: float, policy: Policy) -> None:
        """Keep the policy's LoRA as the best one, unless an earlier one was better. Of equals the later one is kept."""
        if self.at is not None and accuracy < self.at[1]:
            return
        self.at = step, accuracy
        if self.writes:
            with new_directory(self.folder / f"step-{step:05d}") as part:
                policy.save(part)
            self.prune()

    def prune(self) -> None:
        """Delete the LoRAs that neither this run nor a resume from one of its checkpoints would take up."""
        found = steps_in(self.folder)
        needed = {max((step for step in found if step <= done), default=None) for done in steps_in(self.checkpoints)}
        for step, path in found.items():
            if step not in needed and (self.at is None or step != self.at[0]):
                remove(path)

    def chosen(self, done: int) -> int:
        """The step whose LoRA is kept, after step `done`."""
        return done if self.at is None else self.at[0]

    def load(self, policy: Policy) -> None:
        """Put the best LoRA into the policy. Raises UserError where it is not as it was written."""
        path = self.folder / f"step-{self.at[0]:05d}"
        if wrong := fault(path, FILES):
            raise UserError(f"{path}: {wrong}; with --resume the best LoRA is chosen anew (run.dir must be on a disk that "
                            "all machines share)")
        policy.load(path)


class Last(Best):
    """eval.keep = last. Nothing is written; what best/ holds from before eval.keep was changed stays as it is."""

    def restore(self, done: int, validation: Sequence[Row], policy: Policy) -> list[str]:
        """See Best."""
        return []

    def offer(self, step: int, accuracy: float, policy: Policy) -> None:
        """See Best."""

    def prune(self) -> None:
        """See Best."""


KEEP = {"best": Best, "last": Last}  # by eval.keep
