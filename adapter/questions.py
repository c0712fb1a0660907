"""What is asked, and what is known of it: a question, the answer that a verifier compares with, and what the API said."""

from dataclasses import dataclass, field

NONE = "none"  # what a prompt shows where the API gave no answer


@dataclass(frozen=True)
class ApiAnswer:
    """What an API answered, and where that comes from."""

    text: str  # the API's whole text; "" where there is none
    model: str
    date: str | None = None  # the day it was asked, YYYY-MM-DD in UTC


@dataclass(frozen=True)
class Row:
    """One line of a data set."""

    question: str
    answer: object  # a value, a list of accepted values, or any JSON; None: not known, as in `ask`
    kind: str = "all"
    id: str = ""
    api: ApiAnswer | None = None
    more: dict[str, object] = field(default_factory=dict)  # the line's other fields

    def as_dict(self) -> dict[str, object]:
        """What a user's own function is given: the line's fields, by their names in the docs."""
        api_answer = None if self.api is None else self.api.text
        return {**self.more, "question": self.question, "answer": self.answer, "kind": self.kind, "id": self.id,
                "api_answer": api_answer}
