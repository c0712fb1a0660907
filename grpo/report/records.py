"""What a run recorded, read line by line and checked; a damaged line is named."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from grpo.config import Config, Rollout, load
from grpo.run.files import first_fault, read_lines, read_text
from grpo.run.rollouts import rollout_files
from grpo.types import Table, UserError

MOST = 16 * 2**20  # bytes of evaluation.json, or of a comparison
Step = Annotated[int, Field(ge=0, lt=2**53)]  # what a plot can place
Unit = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """The keys that are read here; others may be there."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class MetricsLine(BaseModel):
    """A step's scalars, by their names. None: there was nothing to average."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, float | None]
    step: Step


class RolloutLine(Record):
    """A completion: its tokens, and a number for each. The trainer's are None where it was not trained on."""

    problem: str
    kind: str = ""
    prompt: str | None = None  # of the first of its group
    token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(min_length=1)
    logp_sampler: list[float]
    logp_trainer: list[float] | None
    entropy: list[float] | None
    logp_ref: list[float] | None = None
    logp_last: list[float] | None = None
    reward: float
    advantage: float
    finish_reason: Literal["stop", "length"]

    @model_validator(mode="after")
    def _a_number_for_each_token(self) -> "RolloutLine":
        for name in ("logp_sampler", "logp_trainer", "entropy", "logp_ref", "logp_last"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.token_ids):
                raise ValueError(f"{name} has {len(values)} numbers for {len(self.token_ids)} tokens")
        return self


class LoraLine(Record):
    """Of each module: norm of its update over that of its weight, norm of its gradient, effective rank."""

    step: Step
    modules: dict[str, tuple[float | None, float | None, float | None]]


class Evaluation(BaseModel):
    """evaluation.json: greedy evaluations on the test and on the validation problems, and references by name."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, dict[str, float | None]]
    steps: list[dict[str, float | None]]
    validation: list[dict[str, float | None]] = []  # an older run has none
    kept: Step | None = None  # the step whose LoRA is in adapter/, once the run is finished

    def references(self) -> dict[str, Table]:
        """What the run compares itself with."""
        return {name: {kind: v for kind, v in table.items() if v is not None}
                for name, table in (self.model_extra or {}).items()}


class VariantGroup(Record):
    """What a token of a right, and of a wrong, completion of this group counts."""

    problem: str
    right: int
    of: int = Field(ge=1)
    success: float | None
    failure: float | None


class Variant(Record):
    """An algorithm, and what it makes of the same batch."""

    name: str
    paper: str = ""
    settings: dict[str, Any] = {}
    clipped: float | None
    grad_norm: float | None
    tokens: float | None
    groups: list[VariantGroup]


class Comparison(Record):
    """compare/step-00021.json: variants on one step's batch, and how far their gradients point the same way."""

    step: Step
    updates: int = 1
    variants: list[Variant]
    cosine: list[list[float | None]]


@dataclass(frozen=True)
class Run:
    """A run directory. rollouts: step -> file. What an older run did not record is None or empty."""

    folder: Path
    config: Config
    metrics: list[dict[str, float | None]]
    evaluation: Evaluation | None
    lora: list[LoraLine]
    comparisons: list[Comparison]
    rollouts: dict[int, Path]


Whole = TypeVar("Whole", bound=BaseModel)


def read_run(folder: Path) -> Run:
    """All but the completions. Raises UserError where the folder holds no run, or one of its files is damaged."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: no run there (it has no config.yaml); name a folder that train.py wrote")
    path = folder / "metrics.jsonl"
    metrics = [line.model_dump() for _, line in read_lines(path, MetricsLine, "delete that line to leave its step out")]
    if not metrics:
        raise UserError(f"{path}: no step is recorded there yet; wait for the run's first step")
    evaluation, lora = folder / "evaluation.json", folder / "lora.jsonl"
    return Run(
        folder, load(folder / "config.yaml"), metrics,
        _whole(evaluation, Evaluation) if evaluation.is_file() else None,
        [line for _, line in read_lines(lora, LoraLine, "delete that line to leave its step out")] if lora.is_file() else [],
        [_whole(p, Comparison) for p in sorted((folder / "compare").glob("step-*.json"))],
        rollout_files(folder / "rollouts"))


def read_rollout(path: Path, rollout: Rollout) -> list[RolloutLine]:
    """A step's completions, group by group. Raises UserError where a line is damaged, or some are missing."""
    cure, size = "delete the file to leave its step out", rollout.group_size
    count = rollout.prompts_per_step * size
    lines = [line for _, line in islice(read_lines(path, RolloutLine, cure), count + 1)]  # a small file may hold many
    if len(lines) != count:
        there = f"more than {count}" if len(lines) > count else len(lines)
        raise UserError(f"{path}: {there} lines, expected {count}: rollout.prompts_per_step groups of rollout.group_size; "
                        f"{cure}")
    if bare := [number for number, line in enumerate(lines[::size]) if line.prompt is None]:
        raise UserError(f"{path}: line {bare[0] * size + 1}: prompt: missing, and it is a group's first; {cure}")
    return lines


def _whole(path: Path, kind: type[Whole]) -> Whole:
    try:
        return kind.model_validate_json(read_text(path, MOST))
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}; delete the file to go on without it") from None
    except (OSError, ValueError) as error:  # unreadable, too long, or no UTF-8
        raise UserError(f"{path}: cannot be read ({error}); delete the file to go on without it") from None
