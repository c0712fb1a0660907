"""Greedy accuracy on the test problems, by kind, and the table that compares it with the task's references."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from grpo.policy import Policy
from grpo.rollout import scored
from grpo.sampler import Sampler
from grpo.types import Prompt, Reference, Table, Task


def evaluate(sampler: Sampler, policy: Policy, task: Task, prompts: Sequence[Prompt]) -> Table:
    """Mean greedy reward by kind of problem, and "overall"."""
    rewards = defaultdict(list)
    for prompt, sample in zip(prompts, sampler.greedy(prompts), strict=True):
        reward = scored(task, policy, prompt, sample).score.reward
        rewards[prompt.problem.kind].append(reward)
        rewards["overall"].append(reward)
    return {kind: sum(values) / len(values) for kind, values in sorted(rewards.items(), key=lambda kv: kv[0] == "overall")}


class Evaluations:
    """runs/NAME/evaluation.json: the references, and one table a measured step."""

    def __init__(self, path: Path, references: dict[str, Reference], before: int):
        """Start the file, or keep what an earlier part of the run measured before step `before`."""
        self.path, self.references = path, references
        earlier = json.loads(path.read_text())["steps"] if path.exists() else []
        self.steps = [row for row in earlier if row["step"] < before]

    def add(self, step: int, table: Table) -> None:
        """Record a step's table, on disk before this returns."""
        self.steps.append({"step": step, **table})
        named = {name: reference.accuracy for name, reference in self.references.items()}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({**named, "steps": self.steps}, indent=1) + "\n")
        part.replace(self.path)

    def __str__(self) -> str:
        """The table: the references, then the first and the last measured step, in percent."""
        rows = [(reference.label, reference.accuracy) for reference in self.references.values()]
        rows += [("base, before GRPO" if row["step"] == 0 else f"adapter, step {row['step']}", row)
                 for row in [self.steps[0], *self.steps[1:][-1:]]]
        kinds = [kind for kind in self.steps[0] if kind != "step"]
        width = max(len(label) for label, _ in rows)
        lines = [" " * width + "".join(f"{kind:>12}" for kind in kinds)]
        for label, table in rows:
            cells = (f"{100 * table[kind]:.1f} %" if kind in table else "-" for kind in kinds)
            lines.append(f"{label:<{width}}" + "".join(f"{cell:>12}" for cell in cells))
        return "\n".join(lines)
