"""What a run recorded about itself, read line by line and checked."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapter.measure.curves import Curve
from grpo.run.files import brief, first_fault, read_lines, read_text
from grpo.types import Table, UserError

EVALUATION = "evaluation.json"
LONGEST_EVALUATION = 16 * 2**20  # bytes of evaluation.json; an evaluation has about 100
REWARD = "reward/"  # what the names of a kind's rewards in metrics.jsonl begin with
Unit = Annotated[float, Field(ge=0, le=1)]
Step = Annotated[int, Field(ge=0, lt=2**53)]  # what a plot can place


class Record(BaseModel):
    """The keys that are read here; others may be there."""

    model_config = ConfigDict(frozen=True, strict=True)


class RolloutLine(Record):
    """A sampled completion and its reward."""

    step: Step
    problem: str
    kind: str
    completion: str
    reward: Unit


class MetricsLine(Record):
    """The mean rewards of a step's completions: over all, and by kind. None: there was none of that kind."""

    step: Step
    mean: Unit | None = None
    reward: dict[str, Unit | None]

    @model_validator(mode="before")
    @classmethod
    def _reward_by_kind(cls, line: Any) -> Any:
        if not isinstance(line, dict):
            return line
        rewards = {key.removeprefix(REWARD): value for key, value in line.items() if key.startswith(REWARD)}
        mean = rewards.pop("mean", None)
        return {name: line[name] for name in line if name == "step"} | {"mean": mean, "reward": rewards}


class Accuracies(Record):
    """By kind of problem, and overall."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Unit | None]
    overall: Unit

    def table(self) -> Table:
        """The same, of the kinds there are."""
        return {kind: value for kind, value in (self.model_extra or {}).items() if value is not None} | {
            "overall": self.overall}


class Measured(Accuracies):
    """A greedy evaluation. Where the verifier pays for what is right in part, its values are mean rewards."""

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
        raise UserError(f"{run / EVALUATION}: the API's accuracies there are {brief(json.dumps(then))}, and "
                        f"{brief(json.dumps(api))} on the test problems here: these are others than the run was evaluated "
                        "on; restore the data it used")
    return found.model_copy(update={split: [measured for measured in getattr(found, split) if measured.step <= until]
                                    for split in ("steps", "validation")})


def reward_curves(metrics: Sequence[MetricsLine]) -> dict[str, Curve]:
    """The mean reward of each step's completions, by kind, and overall; a step without a kind has no value there."""
    kinds = list(dict.fromkeys(kind for line in metrics for kind in line.reward))
    curves = {kind: {line.step: value for line in metrics if (value := line.reward.get(kind)) is not None} for kind in kinds}
    return curves | {"overall": {line.step: line.mean for line in metrics if line.mean is not None}}


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
