"""The keys of a config that say which API stands in front of the adapter, and how it is asked.

Every task's Settings inherit from ApiSettings. A key that the chosen upstream would not read is refused.
"""

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from adapter.api.claude import ClaudeUpstream
from adapter.api.collect import QUESTION, CollectingUpstream
from adapter.api.openai import OpenAIUpstream, faults_of_url
from adapter.api.recorded import RecordedUpstream
from adapter.api.simulated import SimulatedUpstream
from adapter.api.upstream import Upstream
from grpo.run.schema import PathName, Section

if TYPE_CHECKING:
    from adapter.verifiers.base import Verifier

UpstreamName = Literal["simulated", "recorded", "anthropic", "vertex", "openai"]
PAID = ("anthropic", "vertex", "openai")  # asked over a network
OF_CALLERS = ("api_system", "api_prompt")  # by these a gateway knows its callers' questions, whoever answered the data's
LONGEST_PARAMETERS = 10_000  # characters of api_parameters, as JSON
TAKEN = {  # no parameters: other keys say these, or an answer would not be read whole
    "model": "set api_model", "messages": "set api_prompt", "max_tokens": "set api_max_tokens", "system": "set api_system",
    "max_completion_tokens": "set api_max_tokens", "stream": "answers are read whole", "n": "one answer is read"}


def one_line(name: str) -> str:
    """A name that can be printed. Raises ValueError for others."""
    if not name.isprintable():
        raise ValueError("expected a name on one line, all of its characters printable")
    return name


class Simulated(Section):
    """Of how many questions the simulated API is right, and how it is wrong on the others: shares that sum to 1."""

    right: float = Field(0.5, ge=0, le=1, description="the true answer")
    none: float = Field(0.125, ge=0, le=1, description="no answer")
    near_miss: float = Field(0.125, ge=0, le=1, description="a wrong answer that is close to the true one")
    echo: float = Field(0.125, ge=0, le=1, description="the question, or a part of it")
    wrong_kind: float = Field(0.125, ge=0, le=1, description="a sentence, or an answer of another kind")

    @model_validator(mode="after")
    def _sum_to_1(self) -> "Simulated":
        if not math.isclose(total := sum(self.model_dump().values()), 1, abs_tol=1e-6):
            raise ValueError(f"the shares sum to {total:g}, expected 1; set all of {', '.join(type(self).model_fields)}")
        return self


class ApiSettings(Section):
    """Which API, and how it is asked."""

    upstream: UpstreamName = Field("simulated", description="the API in front of the adapter")
    api_model: str = Field("claude-haiku-4-5", min_length=1, max_length=200, description="the API's model, where it is a "
                           "real one; openai has no default")
    api_url: str | None = Field(None, max_length=1000, description="openai: the server's address, with or without /v1; "
                                "without it OPENAI_BASE_URL, else OpenAI's own", examples=["http://127.0.0.1:8000"])
    api_system: str | None = Field(None, min_length=1, description="a system prompt for a real API",
                                   examples=["'Reply with the number alone.'"])
    api_prompt: str = Field(QUESTION, description="what a real API is asked; {question} stands for the question")
    api_max_tokens: int = Field(64, ge=1, description="the longest answer a real API may give, its thinking included")
    api_parameters: dict[str, Any] = Field({}, description="more of a real API's parameters, passed on as they are",
                                           examples=["{temperature: 0}"])
    api_answers: PathName = Field("data/answers.jsonl", description="where a real API's answers are kept, to ask only once")
    api_concurrency: int = Field(16, ge=1, le=1000, description="how many questions a real API is asked at once")
    api_batch: bool = Field(False, description="ask through the Message Batches API: slower, half the price")
    api_yes: bool = Field(False, description="spend without asking first")
    simulated: Simulated = Field(Simulated(), description="how often the simulated API is right, and how it is wrong")

    @model_validator(mode="before")
    @classmethod
    def _openai_has_no_default_model(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("upstream") == "openai":
            return {"api_model": None} | given
        return given

    @model_validator(mode="before")
    @classmethod
    def _no_error_shows_a_key(cls, given: Any) -> Any:
        """One in an address, which is refused below with what is left."""
        if isinstance(given, dict) and isinstance(url := given.get("api_url"), str):
            return given | {"api_url": re.sub(r"[?#].*", "?...", re.sub(r"//.*@", "//...@", url))}
        return given

    @field_validator("api_model", mode="before")
    @classmethod
    def _names_a_model(cls, name: object) -> object:
        if name is None:
            raise ValueError("upstream=openai may be any server, and has no default; name a model that it serves")
        return name

    @field_validator("api_model", "api_answers")
    @classmethod
    def _one_line(cls, name: str) -> str:
        return one_line(name)

    @field_validator("api_answers")
    @classmethod
    def _a_file_of_answers(cls, name: str) -> str:
        if not name.endswith(".jsonl"):
            raise ValueError("expected a name that ends in .jsonl, such as data/answers.jsonl: answers are added to that "
                             "file, and a stranger's config must not add to just any")
        return name

    @field_validator("api_url")
    @classmethod
    def _an_address(cls, url: str | None) -> str | None:
        if url is not None and (fault := faults_of_url(url)):
            raise ValueError(fault)
        return url

    @field_validator("api_prompt")
    @classmethod
    def _asks_the_question(cls, prompt: str) -> str:
        if QUESTION not in prompt:
            raise ValueError(f"asks the same of every row; put {QUESTION} where the question belongs")
        return prompt

    @field_validator("api_parameters")
    @classmethod
    def _are_json(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        for name, value in parameters.items():
            if name in TAKEN:
                raise ValueError(f"{name} is none of them: {TAKEN[name]}; leave it out here")
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError, RecursionError):
                raise ValueError(f"{name} is no JSON value; expected a number, a text, true, false, or a list of "
                                 "such") from None
        if len(json.dumps(parameters)) > LONGEST_PARAMETERS:
            raise ValueError(f"longer than {LONGEST_PARAMETERS:,} characters, and sent with every question; shorten it")
        return parameters

    @field_validator("api_model", "api_url", "api_system", "api_prompt", "api_max_tokens", "api_parameters", "api_answers",
                     "api_concurrency", "api_batch", "simulated")
    @classmethod
    def _is_read(cls, value: object, info: ValidationInfo) -> object:
        key, upstream = info.field_name, info.data.get("upstream")
        if upstream is None or value == cls.model_fields[key].default:  # an upstream that there is not is a fault by itself
            return value
        readers = {"simulated": ("simulated",), "api_url": ("openai",), "api_batch": ("anthropic",),
                   **dict.fromkeys(OF_CALLERS, (*PAID, "recorded"))}.get(key, PAID)
        if upstream not in readers:
            one_of = " or ".join([", ".join(readers[:-1]), readers[-1]] if len(readers) > 1 else readers)
            raise ValueError(f"upstream={upstream} does not read it; choose upstream {one_of}, or leave {key} out")
        return value

    @field_validator("api_batch")
    @classmethod
    def _a_batch_has_no_concurrency(cls, batch: bool, info: ValidationInfo) -> bool:
        if batch and info.data.get("api_concurrency") != cls.model_fields["api_concurrency"].default:
            raise ValueError("a batch holds all questions, and api_concurrency is for those asked one by one; leave one out")
        return batch


def make_upstream(settings: ApiSettings, seed: int, verifier: "Verifier", quiet: bool = False) -> Upstream:
    """The API that the settings name. `quiet`: it shows no progress. The simulation alone uses seed and verifier."""
    if settings.upstream == "simulated":
        return SimulatedUpstream(seed, verifier, settings.simulated.model_dump())
    return RecordedUpstream() if settings.upstream == "recorded" else _collecting(settings, quiet)


def missing(settings: ApiSettings) -> list[str]:
    """What this machine lacks to ask, in words."""
    return _collecting(settings).missing() if settings.upstream in PAID else []


def _collecting(s: ApiSettings, quiet: bool = False) -> CollectingUpstream:
    common = {
        "provider": s.upstream, "model": s.api_model, "store": Path(s.api_answers), "concurrency": s.api_concurrency,
        "max_tokens": s.api_max_tokens, "system": s.api_system, "prompt": s.api_prompt, "parameters": s.api_parameters,
        "agreed": s.api_yes, "quiet": quiet, "timeout_s": max(60.0, s.api_max_tokens / 10)}  # a slow server: 10 tokens/s
    if s.upstream == "openai":
        return OpenAIUpstream(**common, url=s.api_url)
    return ClaudeUpstream(**common, batch=s.api_batch)
