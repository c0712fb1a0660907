"""The keys under `task` in a config, and what is made of them."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from adapter.api.claude import ClaudeUpstream
from grpo.run.schema import PathName
from symbols.expression import GREEK, KEYBOARD, STANDARD, Notation, Op
from symbols.generate import Range
from symbols.prompt import Condition
from symbols.simulated import SimulatedUpstream, Upstream

UpstreamName = Literal["simulated", "anthropic", "vertex"]
DRAWN = ("operands", "terms", "limit", "train", "validation", "test")  # keys by which a data set is drawn


class Settings(BaseModel):
    """What to ask, of which API, and what the adapter is told."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    condition: Condition = Field("vague", description="what the prompt tells, symbols/prompt.py")
    symbols: dict[str, str] = Field({sign: op.value for sign, op in GREEK.items()},
                                    description="sign -> one of + − × ÷, one for each")
    data: PathName | None = Field(None, description="a folder made by `python -m symbols.dataset`, of which the keys below "
                                                    "must be true; without it a data set is drawn by them",
                                  examples=["data/mine"])
    operands: list[int] = Field([1, 99], min_length=2, max_length=2, description="smallest and largest")
    terms: list[int] = Field([2, 4], min_length=2, max_length=2, description="fewest and most operands")
    limit: int = Field(10**9, ge=1, description="largest absolute value of any step of an evaluation")
    train: int = Field(1600, ge=1, le=10**6, description="expressions to train on")
    validation: int = Field(200, ge=1, le=10**6, description="expressions by which the best LoRA is chosen, none of them "
                                                             "trained on")
    test: int = Field(400, ge=1, le=10**6, description="expressions to evaluate on, none of them trained on or chosen by")
    upstream: UpstreamName = Field("simulated", description="the API in front of the adapter")
    api_model: str = Field("claude-haiku-4-5", min_length=1, max_length=200,
                           description="the API's model, where it is a real one")
    api_max_tokens: int = Field(64, ge=1, description="the longest answer a real API may give, its thinking included")
    api_answers: PathName = Field("data/answers.jsonl", description="where a real API's answers are kept, to ask only once")
    api_concurrency: int = Field(16, ge=1, le=1000, description="how many questions a real API is asked at once")
    api_batch: bool = Field(False, description="ask through the Message Batches API: slower, half the price")
    api_yes: bool = Field(False, description="spend without asking first")

    @field_validator("symbols")
    @classmethod
    def _one_sign_an_operation(cls, symbols: dict[str, str]) -> dict[str, str]:
        if sorted(symbols.values()) != sorted(Op) or not all(map(_is_a_new_sign, symbols)):
            raise ValueError(f"expected four new single characters, one for each of {' '.join(Op)}")
        return symbols

    @field_validator("operands", "terms")
    @classmethod
    def _smallest_first(cls, bounds: list[int], info: ValidationInfo) -> list[int]:
        low, high = bounds
        smallest, largest = {"operands": (1, 10_000), "terms": (2, 50)}[info.field_name]
        if not smallest <= low <= high <= largest:
            raise ValueError(f"expected two numbers from {smallest} to {largest}, the first no larger than the second")
        return bounds

    @field_validator("data", "api_model", "api_answers")
    @classmethod
    def _one_line(cls, name: str | None) -> str | None:
        if name is not None and not name.isprintable():
            raise ValueError("expected a name on one line, all of its characters printable")
        return name

    @field_validator("api_answers")
    @classmethod
    def _a_file_of_answers(cls, name: str) -> str:
        if not name.endswith(".jsonl"):
            raise ValueError("expected a name that ends in .jsonl, such as data/answers.jsonl: answers are added to that "
                             "file, and a stranger's config must not add to just any")
        return name

    @field_validator("api_model", "api_max_tokens", "api_answers", "api_concurrency")
    @classmethod
    def _there_is_an_api(cls, value: object, info: ValidationInfo) -> object:
        if info.data.get("upstream") == "simulated" and value != cls.model_fields[info.field_name].default:
            raise ValueError("upstream=simulated asks no API; choose upstream anthropic or vertex, or leave this out")
        return value

    @field_validator("api_batch")
    @classmethod
    def _batches_are_the_apis_own(cls, batch: bool, info: ValidationInfo) -> bool:
        if batch and info.data.get("upstream") != "anthropic":
            raise ValueError("batches are asked of the API itself; it needs upstream=anthropic")
        if batch and info.data.get("data") is not None:
            raise ValueError("the data set has its answers, and nothing is asked; leave this out")
        if batch and info.data.get("api_concurrency") != cls.model_fields["api_concurrency"].default:
            raise ValueError("a batch holds all questions, and api_concurrency is for those asked one by one; leave one out")
        return batch


def _is_a_new_sign(sign: str) -> bool:
    """One visible character that means nothing yet."""
    taken = sign.isdigit() or sign.isspace() or sign in KEYBOARD or sign in STANDARD
    return len(sign) == 1 and sign.isprintable() and not taken


def make_upstream(settings: Settings, seed: int, quiet: bool = False) -> Upstream:
    """The API that the settings name. `quiet`: it shows no progress."""
    if settings.upstream == "simulated":
        return SimulatedUpstream(seed)
    return ClaudeUpstream(settings.upstream, settings.api_model, Path(settings.api_answers), settings.api_concurrency,
                          settings.api_max_tokens, settings.api_batch, settings.api_yes, quiet)


def make_notation(settings: Settings) -> Notation:
    """Which sign stands for which operation."""
    return {sign: Op(value) for sign, value in settings.symbols.items()}


def make_range(settings: Settings) -> Range:
    """What expressions are drawn from."""
    return Range(tuple(settings.operands), tuple(settings.terms), settings.limit)
