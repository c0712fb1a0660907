"""What the adapter is shown: an expression and the API's answer, under one of four conditions.

The conditions differ in what the prompt gives away and in whether the adapter may simply agree:

    condition             the symbols are     the adapter may answer CORRECT
    explicit_no_correct   defined             no
    none_no_correct       not mentioned       no
    explicit              defined             yes
    vague                 said to be four     yes       <- the one that GRPO learns from
                          of four, no more
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from adapter.parse import Agree, Answer, Unparsed, boxes_in, final_answer
from symbols.expression import Notation, Op

Condition = Literal["vague", "explicit", "explicit_no_correct", "none_no_correct"]
Message = dict[str, str]

_NAMES = {Op.ADD: "addition", Op.SUB: "subtraction", Op.MUL: "multiplication", Op.DIV: "division"}


def question(expression: str, api_answer: str) -> str:
    """A prompt's last line."""
    return f"{expression} | API answer: {api_answer} ->"


@dataclass(frozen=True)
class PromptText:
    """The parts of a prompt that are the same for every expression of a condition."""

    condition: Condition
    notation: Notation

    def messages(self, expression: str, api_answer: str) -> list[Message]:
        """The chat, one user turn. `api_answer` is "none" where the API gave none."""
        return [{"role": "user", "content": f"{self.preamble()}\n\n{question(expression, api_answer)}"}]

    def preamble(self) -> str:
        """Task, symbols, answer format and examples."""
        symbols = {"vague": self._vague, "explicit": self._explicit}.get(self.condition.split("_")[0])
        return "\n".join([
            "You check the answers of an API that evaluates arithmetic expressions.",
            *([symbols()] if symbols else []),
            "Multiplication and division come before addition and subtraction; each level goes from left to right.",
            "State your reading of each symbol, work out the steps, and end with the final answer in \\boxed{}.",
            *(["If the API's answer is right, end with \\boxed{CORRECT} instead."] if self.may_agree else []),
            "Examples:",
            *self._examples(),
        ])

    @property
    def may_agree(self) -> bool:
        """Whether \\boxed{CORRECT} stands for the API's answer."""
        return not self.condition.endswith("no_correct")

    def answer_in(self, completion: str) -> Answer:
        """The answer a completion gives."""
        return self.final_answer(boxes_in(completion))

    def final_answer(self, boxes: Sequence[str]) -> Answer:
        """The answer in the last of a completion's boxes. CORRECT is none where the prompt does not offer it."""
        answer = final_answer(boxes)
        return Unparsed("no number") if isinstance(answer, Agree) and not self.may_agree else answer

    def _vague(self) -> str:
        signs = ", ".join(self.notation)
        return f"The symbols {signs} each stand for one of the four operations +, −, ×, ÷, one for each."

    def _explicit(self) -> str:
        return "The symbols: " + ", ".join(f"{sign} is {_NAMES[op]}" for sign, op in self.notation.items()) + "."

    def _examples(self) -> list[str]:
        sign = {op: s for s, op in self.notation.items()}
        if self.condition == "none_no_correct":
            sign = {op: op.value for op in Op}
        agree = "CORRECT" if self.may_agree else "7"
        return [f"3 {sign[Op.ADD]} 4 | API answer: 7 -> \\boxed{{{agree}}}",
                f"10 {sign[Op.SUB]} 3 | API answer: 5 -> \\boxed{{7}}",
                f"2 {sign[Op.MUL]} 6 | API answer: none -> \\boxed{{12}}"]


