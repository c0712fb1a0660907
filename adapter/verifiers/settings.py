"""What a config says of a verifier: `verifier: number`, or `verifier: {name: number, tolerance: 0.01}`."""

from typing import Any

from pydantic import Field, model_validator

from adapter.verdict import AGREE
from adapter.verifiers.base import Found, Verifier
from adapter.verifiers.choice import MOST, Choice
from adapter.verifiers.date import Date
from adapter.verifiers.json import Json
from adapter.verifiers.number import Number
from adapter.verifiers.text import LONGEST, Text, same
from grpo.run.schema import Section

KINDS = {"number": Number, "text": Text, "choice": Choice, "date": Date, "json": Json}
OPTIONS = {"number": {"tolerance", "relative"}, "text": set(), "choice": {"choices", "field"}, "date": set(), "json": set()}
OWN = {"seconds", "processes", "found"}  # the options of a user's own function
NAMES = f"one of {', '.join(KINDS)}, or a function of your own as path/to/file.py:function"


class VerifierSettings(Section):
    """A verifier and its options; an option that it does not use is refused."""

    name: str = Field(description=NAMES, examples=["number"])
    form: str | None = Field(None, min_length=1, max_length=300, description="one clause for the prompt: what goes into the "
                             "box", examples=["a chemical formula such as H2O"])
    tolerance: float = Field(0.0, ge=0, description="number: how far off an answer may be")
    relative: bool = Field(False, description="number: the tolerance is a share of the true answer")
    choices: list[str] | None = Field(None, min_length=2, max_length=MOST, examples=["[A,B,C]"],
                                      description="choice: what there is to choose from; without it, each row lists its own")
    field: str | None = Field(None, min_length=1, description="choice: the row's field that lists its choices",
                              examples=["choices"])
    seconds: float = Field(5.0, gt=0, le=3600, description="own function: the time limit of a call")
    processes: int | None = Field(None, ge=1, le=1024, description="own function: how many run at once; as many as there "
                                  "are CPU cores where it is not set", examples=[8])
    found: Found = Field("text", description="own function: what is looked for in an API's text that has no box: the whole "
                                             "text, or its last number")

    @model_validator(mode="before")
    @classmethod
    def _one_word(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _fits(self) -> "VerifierSettings":
        file, colon, function = self.name.rpartition(":")
        own = bool(colon) and file.endswith(".py") and bool(function)
        if not own and self.name not in KINDS:
            raise ValueError(f"{self.name!r} is no verifier; expected {NAMES}")
        for option in sorted(self.model_fields_set - {"name", "form"} - (OWN if own else OPTIONS[self.name])):
            raise ValueError(f"{self.name} does not use {option}; leave it out")
        if self.relative and not self.tolerance:
            raise ValueError("relative says what tolerance is a share of; set tolerance too, such as 0.01")
        if self.choices is not None:
            _check_choices(self.choices, self.field)
        return self


def make_verifier(settings: VerifierSettings, named: bool = True) -> Verifier:
    """The verifier that a config names.

    named: a program of the user's own names its file. A config, which may be a stranger's, runs no file from elsewhere than
    below the current directory. Raises UserError where a user's own function cannot be had.
    """
    form = {} if settings.form is None else {"form": settings.form}
    match settings.name:
        case "number":
            return Number(settings.tolerance, settings.relative, **form)
        case "choice" if settings.choices is not None:
            return Choice(tuple(settings.choices), form=settings.form or f"one of {', '.join(settings.choices)}")
        case "choice":
            return Choice(field=settings.field or "choices", **form)
        case "text" | "date" | "json":
            return KINDS[settings.name](**form)
    from adapter.verifiers.own import own_verifier  # no other verifier starts processes

    return own_verifier(settings.name, named, settings.seconds, settings.processes, settings.form,
                        settings.found)


def _check_choices(choices: list[str], field: str | None) -> None:
    if field is not None:
        raise ValueError("choices and field both say what there is to choose from; leave one out")
    known: dict[str, str] = {}
    for choice in choices:
        normal = same(choice)
        if normal is None or choice.strip() == AGREE:
            raise ValueError(f"{choice[:80]!r} cannot be a choice; expected 1 to {LONGEST} characters that are not {AGREE}, "
                             "which says that the API is right")
        if (other := known.setdefault(normal, choice)) is not choice:
            raise ValueError(f"choices {other[:80]!r} and {choice[:80]!r} are read alike; rename one of them")
