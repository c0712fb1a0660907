"""The keys under `task` in the config of a corrector, and what is made of them."""

import difflib
import re
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from adapter.api.settings import ApiSettings, one_line
from adapter.corrector import Corrector
from adapter.prompt import ALONE, FIELDS, INSTRUCTIONS, TEMPLATE, PromptText, Shot, shows_the_api
from adapter.rows import KNOWN
from adapter.verdict import AGREE, Agree, Unparsed, boxes_in, final_answer
from adapter.verifiers.base import Verifier
from adapter.verifiers.settings import VerifierSettings, make_verifier
from grpo.run.files import brief
from grpo.run.schema import PathName, Section
from grpo.types import UserError

LONGEST_TEXT = 3000  # characters of a template; a config holds no longer value


class ShotSettings(Section):
    """An example for the prompt."""

    question: str = Field(min_length=1, max_length=LONGEST_TEXT, description="what is asked")
    api_answer: str = Field("", max_length=LONGEST_TEXT, description="what the API says")
    completion: str = Field(min_length=1, max_length=LONGEST_TEXT, description="what the adapter should write, with its box")

    @field_validator("completion")
    @classmethod
    def _has_a_box(cls, completion: str) -> str:
        if not boxes_in(completion):
            raise ValueError("expected a \\boxed{} in it: an example shows the form of an answer")
        return completion


def _asks(template: str) -> str:
    if "{question}" not in template:
        raise ValueError("expected {question} in it, which stands for the row's question")
    for name in set(re.findall(r"\{(\w+)\}", template)) - set(FIELDS):
        if close := difflib.get_close_matches(name, FIELDS, 1):
            raise ValueError(f"{{{name}}} stands for nothing; did you mean {{{close[0]}}}?")
    return template


class PromptSettings(Section):
    """What the adapter is told."""

    instructions: str | None = Field(None, min_length=1, max_length=LONGEST_TEXT,
                                     description="what to do; {form} stands for what goes into the box")
    template: Annotated[str, AfterValidator(_asks)] = Field(
        TEMPLATE, max_length=LONGEST_TEXT, description="a question's turn, with {question}, and {api_answer} (the API's "
                                                       "whole text) or {api_extracted} (the answer in it), or neither")
    examples: list[ShotSettings] = Field([], max_length=20, description="questions and answers to show, as turns of a chat")


class Settings(ApiSettings):
    """A question behind an API, and how an answer is verified."""

    data: Annotated[PathName, AfterValidator(one_line)] = Field(
        description="a .jsonl file of questions and answers, or a folder with train.jsonl, validation.jsonl and test.jsonl",
        examples=["data/mine.jsonl"])
    shares: list[float] = Field([0.8, 0.1, 0.1], min_length=3, max_length=3,
                                description="of a single file: the shares of train, validation and test")
    fields: dict[str, str] = Field({}, description="what a field is called in the data, where it has another name",
                                   examples=["{question: prompt}"])
    verifier: VerifierSettings = Field(description="what compares an answer with the row's", examples=["number"])
    prompt: PromptSettings = Field(PromptSettings(), description="what the adapter is told")

    @field_validator("shares")
    @classmethod
    def _a_whole(cls, shares: list[float]) -> list[float]:
        if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError("expected three shares above 0 that sum to 1, such as [0.8,0.1,0.1]")
        return shares

    @field_validator("fields")
    @classmethod
    def _known(cls, fields: dict[str, str]) -> dict[str, str]:
        if unknown := sorted(fields.keys() - set(KNOWN)):
            raise ValueError(f"{unknown[0]} is no field; known here: {', '.join(KNOWN)}")
        return fields


def make_prompt(told: PromptSettings, verifier: Verifier) -> PromptText:
    """What the adapter is shown. Raises UserError where an example's box holds nothing that the verifier takes."""
    instructions = told.instructions or (INSTRUCTIONS if shows_the_api(told.template) else ALONE)
    prompt = PromptText(instructions, told.template, verifier.form, [
        Shot(shot.question, shot.api_answer, verifier.extract(shot.api_answer), shot.completion) for shot in told.examples])
    for at, shot in enumerate(told.examples):
        answer = final_answer(boxes_in(shot.completion), verifier)
        if isinstance(answer, Unparsed) or (isinstance(answer, Agree) and not prompt.may_agree):
            raise UserError(f"task.prompt.examples, number {at + 1}: {brief(repr(shot.completion), 80)} ends in no answer "
                            f"that would count; expected a \\boxed{{}} with {brief(verifier.form, 80)}"
                            + (f", or {AGREE}" if prompt.may_agree else f" ({AGREE} needs {{api_answer}} in the template)"))
    return prompt


def make_corrector(settings: Settings) -> Corrector:
    """How the settings ask and judge. Raises UserError where a verifier of the user's own cannot be had."""
    verifier = make_verifier(settings.verifier, named=False)
    return Corrector(make_prompt(settings.prompt, verifier), verifier)
