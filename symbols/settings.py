"""The keys under `task` in a config of the experiment, and what is made of them."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from adapter.api.settings import ApiSettings, Simulated, one_line
from grpo.run.schema import PathName
from symbols.expression import GREEK, KEYBOARD, STANDARD, Notation, Op
from symbols.generate import Range
from symbols.prompt import Condition

INSTRUCTION = ("Evaluate the expression. Multiplication and division come before addition and subtraction. "
               "Reply with the number alone, or with none if you cannot tell.\n\n")
DRAWN = ("operands", "terms", "limit", "train", "validation", "test")  # keys by which a data set is drawn


class Settings(ApiSettings):
    """What to ask, of which API, and what the adapter is told."""

    condition: Condition = Field("vague", description="what the prompt tells, symbols/prompt.py")
    symbols: dict[str, str] = Field({sign: op.value for sign, op in GREEK.items()},
                                    description="sign -> one of + − × ÷, one for each")
    data: Annotated[PathName, AfterValidator(one_line)] | None = Field(
        None, description="a folder made by `python -m adapter.dataset`, of which the keys below must be true; without it a "
                          "data set is drawn by them", examples=["data/mine"])
    operands: list[int] = Field([1, 99], min_length=2, max_length=2, description="smallest and largest")
    terms: list[int] = Field([2, 4], min_length=2, max_length=2, description="fewest and most operands")
    limit: int = Field(10**9, ge=1, description="largest absolute value of any step of an evaluation")
    train: int = Field(1600, ge=1, le=10**6, description="expressions to train on")
    validation: int = Field(200, ge=1, le=10**6, description="expressions by which the best LoRA is chosen, none of them "
                                                             "trained on")
    test: int = Field(400, ge=1, le=10**6, description="expressions to evaluate on, none of them trained on or chosen by")
    upstream: Literal["simulated", "anthropic", "vertex", "openai"] = Field("simulated",
                                                                            description="the API in front of the adapter")
    api_prompt: str = Field(INSTRUCTION + "{question}", description="what the API is asked; {question} is the expression")

    @field_validator("simulated")
    @classmethod
    def _has_its_own_simulation(cls, shares: Simulated) -> Simulated:
        if shares != Simulated():
            raise ValueError("the experiment simulates the API that it saw (symbols/simulated.py); leave this out")
        return shares

    @model_validator(mode="after")
    def _a_data_set_brings_its_answers(self) -> "Settings":
        if self.api_batch and self.data is not None:
            raise ValueError("api_batch: the data set has its answers, and nothing is asked; leave this out")
        return self

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


def _is_a_new_sign(sign: str) -> bool:
    """One visible character that means nothing yet."""
    taken = sign.isdigit() or sign.isspace() or sign in KEYBOARD or sign in STANDARD
    return len(sign) == 1 and sign.isprintable() and not taken


def make_notation(settings: Settings) -> Notation:
    """Which sign stands for which operation."""
    return {sign: Op(value) for sign, value in settings.symbols.items()}


def make_range(settings: Settings) -> Range:
    """What expressions are drawn from."""
    return Range(tuple(settings.operands), tuple(settings.terms), settings.limit)
