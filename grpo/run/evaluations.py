"""evaluation.json, and the table that compares a run with the task's references.

    {"api": {"custom": 0.0, ...},                     a reference, on the test problems
     "steps": [{"step": 0, "custom": 0.2, ...}, ...]  accuracies on the test problems
     "validation": [...]                              and on the validation problems
     "kept": 40}                                      the step whose LoRA is in adapter/; absent until it is there
"""

import json
import math
from pathlib import Path
from typing import Any

from grpo.run.files import brief, printable, read_object, write_text
from grpo.types import Reference, Table, UserError

IN_FILE = {"test": "steps", "validation": "validation"}
Row = dict[str, int | float]  # "step", and the accuracy of each kind


class Evaluations:
    """runs/NAME/evaluation.json. `rows`: of each split, by step; `kept`: the step whose LoRA is in adapter/, or None."""

    def __init__(self, path: Path, references: dict[str, Reference], before: int, writes: bool = True):
        """Start the file, or keep what an earlier part of the run measured before step `before`. Raises UserError."""
        self.path, self.references, self.writes = path, references, writes
        self.kept: int | None = None
        try:
            earlier = read_object(path) if path.exists() else {"steps": []}
            found = {"test": earlier["steps"], "validation": earlier.get("validation", [])}  # older files have none
            self.rows: dict[str, list[Row]] = {
                split: [row for row in map(_checked, rows) if row["step"] < before] for split, rows in found.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(f"{path}: damaged ({brief(error)}); delete it to go on without those before") from None
        if "kept" in earlier:  # this run may end with another one
            self._write()

    def has(self, split: str, step: int) -> bool:
        """Whether a step was measured on "test" or "validation"."""
        return any(row["step"] == step for row in self.rows[split])

    def add(self, split: str, step: int, table: Table) -> None:
        """Record a step's table, on disk before this returns."""
        self.rows[split] = sorted([*self.rows[split], {"step": step, **table}], key=lambda row: row["step"])
        self._write()

    def base(self) -> float | None:
        """Overall accuracy on the test problems before GRPO, in [0, 1]; None where it was not measured."""
        return next((row["overall"] for row in self.rows["test"] if row["step"] == 0), None)

    def keep(self, step: int) -> None:
        """Record that adapter/ holds this step's LoRA. It does already: a reader trusts this."""
        self.kept = step
        self._write()

    def _write(self) -> None:
        named = {name: reference.accuracy for name, reference in self.references.items()}
        rows = {key: self.rows[split] for split, key in IN_FILE.items()}
        kept = {} if self.kept is None else {"kept": self.kept}
        if self.writes:
            write_text(self.path, json.dumps({**named, **rows, **kept}, indent=1) + "\n")

    def __str__(self) -> str:
        """Of a finished run: references, base and adapter on the test problems, in percent; and why that step was kept."""
        at_step = {row["step"]: row for row in self.rows["test"]}
        rows = [(reference.label, reference.accuracy) for reference in self.references.values()]
        rows += [("base, before GRPO", at_step[0])] if 0 in at_step else []
        rows += [(f"adapter, step {self.kept} (kept)", at_step[self.kept])]
        kinds = [kind for kind in at_step[self.kept] if kind != "step"]
        width = max(len(label) for label, _ in rows)
        lines = [" " * width + "".join(f"{kind:>12}" for kind in kinds)]
        for label, table in rows:
            cells = (f"{100 * table[kind]:.1f} %" if kind in table else "-" for kind in kinds)
            lines.append(f"{label:<{width}}" + "".join(f"{cell:>12}" for cell in cells))
        return printable("\n".join([*lines, self._why()]), keep="\n")

    def _why(self) -> str:
        best = best_of(self.rows["validation"])
        text = (f"step {best['step']} was best on validation ({100 * best['overall']:.1f} % overall), of "
                f"{len(self.rows['validation'])} measured")
        if best["step"] != self.kept:
            return f"{text}; step {self.kept} is kept"
        return text if self.kept else f"{text}: nothing better was learned, and adapter/ holds step 0's LoRA, B = 0"


def best_of(rows: list[Row]) -> Row:
    """The row with the highest overall accuracy; of equals, the later one."""
    return max(rows, key=lambda row: (row["overall"], row["step"]))


def _checked(row: Any) -> Row:
    """A row of a file. Raises ValueError, AttributeError or KeyError where it is none."""
    if type(row["step"]) is not int or row["step"] < 0:
        raise ValueError(f"{row['step']!r} is no step")
    if not all(type(value) in (int, float) and math.isfinite(value) for value in (*row.values(), row["overall"])):
        raise ValueError("an accuracy is no finite number")
    return row
