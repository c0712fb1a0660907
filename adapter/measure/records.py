"""What a run recorded about itself, read line by line and checked."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from grpo.run.files import first_fault, read_lines, read_text
from grpo.types import Table, UserError
from symbols.dataset import Kind

EVALUATION = "evaluation.json"
LONGEST_EVALUATION = 16 * 2**20  # bytes of evaluation.json; an evaluation has about 100
Unit = Annotated[float, Field(ge=0, le=1)]
Step = Annotated[int, Field(ge=0, lt=2**53)]  # what a plot can place


class Record(BaseModel):
    """The keys that are read here; others may be there."""

    model_config = ConfigDict(frozen=True, strict=True)


class RolloutLine(Record):
    """A sampled completion and its reward."""

    step: Step
    problem: str
    kind: Kind
    completion: str
    reward: Unit


class MetricsLine(Record):
    """The rewards of a step, by kind. None: that kind was not drawn."""

    step: Step
    custom: Unit | None = Field(None, alias="reward/custom")
    standard: Unit | None = Field(None, alias="reward/standard")


class Accuracies(Record):
    """By kind of problem."""

    custom: Unit | None = None
    standard: Unit | None = None
    overall: Unit

    def table(self) -> Table:
        """The same, of the kinds there are."""
        return self.model_dump(exclude={"step"}, exclude_none=True)


class Measured(Accuracies):
    """A greedy evaluation."""

    step: Step


class Evaluation(Record):
    """evaluation.json. steps: on the test problems. An older run has no validation, and none while unfinished has `kept`."""

    api: Accuracies
    steps: list[Measured]
    validation: list[Measured] = []
    kept: Step | None = None  # the step of adapter/


def read_metrics(run: Path, until: int) -> list[MetricsLine]:
    """metrics.jsonl up to a step. Raises UserError, naming the line, where one of those is damaged."""
    path, steps = run / "metrics.jsonl", []
    if path.is_file():
        for _, line in read_lines(path, MetricsLine, "delete that line, and the plots leave its step out"):
            steps.append(line)
            if line.step >= until:
                break
    return steps


def read_evaluation(run: Path, until: int, api: Table) -> Evaluation | None:
    """The run's own evaluations up to a step; None where there is no evaluation.json.

    api: the API's accuracies on the test problems. Raises UserError where the file is damaged, or has others.
    """
    if (found := _evaluation(run)) is None:
        return None
    if (then := found.api.table()) != api:
        raise UserError(f"{run / EVALUATION}: the API's accuracies there are {json.dumps(then)}, and {json.dumps(api)} on "
                        "the test problems here: these are others than the run was evaluated on; restore the data it used")
    return found.model_copy(update={split: [measured for measured in getattr(found, split) if measured.step <= until]
                                    for split in ("steps", "validation")})


def read_kept(run: Path) -> int | None:
    """The step whose LoRA is in adapter/, as a finished run says; None where none is said. Raises UserError as above."""
    found = _evaluation(run)
    return None if found is None else found.kept


def _evaluation(run: Path) -> Evaluation | None:
    path = run / EVALUATION
    if not path.is_file():
        return None
    cure = "delete the file to go on without it"
    try:
        return Evaluation.model_validate_json(read_text(path, LONGEST_EVALUATION))
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}; {cure}") from None
    except ValueError as error:  # too long, or not UTF-8
        raise UserError(f"{path}: {error}; {cure}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
