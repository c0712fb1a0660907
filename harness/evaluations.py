"""evaluation.json, and the table that compares a run with the task's references."""

import json
import math
from pathlib import Path

from grpo.types import Reference, Table, UserError
from harness.files import brief, read_object, write_text


class Evaluations:
    """runs/NAME/evaluation.json: the references, and one table a measured step."""

    def __init__(self, path: Path, references: dict[str, Reference], before: int, writes: bool = True):
        """Start the file, or keep what an earlier part of the run measured before step `before`. Raises UserError."""
        self.path, self.references, self.writes = path, references, writes
        try:
            earlier = read_object(path)["steps"] if path.exists() else []
            self.steps = [row for row in earlier if row["step"] < before]
            if not all(math.isfinite(value) for row in self.steps for value in row.values()):
                raise ValueError("an accuracy is no finite number")
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(f"{path}: damaged ({brief(error)}); delete it to go on without those before") from None

    def __contains__(self, step: int) -> bool:
        return any(row["step"] == step for row in self.steps)

    def add(self, step: int, table: Table) -> None:
        """Record a step's table, on disk before this returns."""
        self.steps.append({"step": step, **table})
        named = {name: reference.accuracy for name, reference in self.references.items()}
        if self.writes:
            write_text(self.path, json.dumps({**named, "steps": self.steps}, indent=1) + "\n")

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
