"""What the adapter is shown: instructions, the question, the API's answer. A config may change every word of it.

The question stands last by default: after the API's answer, a small model copies that rather than work it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from adapter.questions import NONE

Message = dict[str, str]

INSTRUCTIONS = ("An API has answered a question. Work the answer out yourself, then end with \\boxed{CORRECT} if the API's "
                "is right, else with yours in \\boxed{}: {form}.")
ALONE = "Answer the question. End with the answer in \\boxed{}: {form}."  # where the API's answer is not shown
TEMPLATE = "API answer: {api_answer}\n\nQuestion: {question}"
FIELDS = ("question", "api_answer", "api_extracted")


class Prompt(Protocol):
    """What a corrector asks with."""

    may_agree: bool  # whether \\boxed{CORRECT} stands for the API's answer

    def messages(self, question: str, api_answer: str, api_extracted: str | None) -> list[Message]:
        """The chat. api_answer: the API's whole text; api_extracted: the answer in it, None where there is none."""


@dataclass(frozen=True)
class Shot:
    """An example, shown as two turns of the chat."""

    question: str
    api_answer: str
    api_extracted: str | None
    completion: str


@dataclass(frozen=True)
class PromptText:
    """Instructions and a template. The instructions stand at the head of the first user turn: some models know no system."""

    instructions: str
    template: str  # with {question}, and {api_answer}, the whole text, or {api_extracted}
    form: str  # what goes into the box: the verifier's, for {form} in the instructions
    shots: Sequence[Shot] = ()

    @property
    def may_agree(self) -> bool:
        """Only what is shown can be agreed with."""
        return shows_the_api(self.template)

    def messages(self, question: str, api_answer: str, api_extracted: str | None) -> list[Message]:
        """See Prompt."""
        turns = []
        for shot in self.shots:
            turns += [{"role": "user", "content": self._turn(shot.question, shot.api_answer, shot.api_extracted)},
                      {"role": "assistant", "content": shot.completion}]
        turns.append({"role": "user", "content": self._turn(question, api_answer, api_extracted)})
        head = filled(self.instructions, {"form": self.form})
        return [{**turns[0], "content": f"{head}\n\n{turns[0]['content']}"}, *turns[1:]]

    def _turn(self, question: str, api_answer: str, api_extracted: str | None) -> str:
        return filled(self.template, {"question": question.strip(), "api_answer": api_answer.strip() or NONE,
                                      "api_extracted": api_extracted or NONE})


def filled(template: str, values: dict[str, str]) -> str:
    """A template with {name} replaced, all at once; other braces, and those of the values, stay as they are."""
    parts, rest = [], template
    while rest:
        found = [(rest.find(f"{{{name}}}"), name) for name in values]
        at, name = min(((at, name) for at, name in found if at >= 0), default=(-1, ""))
        if at < 0:
            break
        parts += [rest[:at], values[name]]
        rest = rest[at + len(name) + 2:]
    return "".join(parts) + rest


def shows_the_api(template: str) -> bool:
    """Whether a template shows the API's answer."""
    return "{api_answer}" in template or "{api_extracted}" in template
