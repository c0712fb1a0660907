"""What the adapter is shown: an expression and the API's answer, under one of four conditions.

The conditions differ in what the prompt gives away and in whether the adapter may simply agree:

    condition             the symbols are     the adapter may answer CORRECT
    explicit_no_correct   defined             no
    none_no_correct       not mentioned       no
    explicit              defined             yes
    vague                 said to be four     yes       <- the one that GRPO learns from
                          of four, no more
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from adapter.questions import NONE
from symbols.expression import STANDARD, Expression, Notation, Op, evaluate, render

Condition = Literal["vague", "explicit", "explicit_no_correct", "none_no_correct"]
Message = dict[str, str]

EXAMPLES = {  # with the API's answers; a prompt gives them away, so that they are no problems
    Expression((3, 4), (Op.ADD,)): "7",
    Expression((10, 3), (Op.SUB,)): "5",
    Expression((2, 6), (Op.MUL,)): "none",
}
_NAMES = {Op.ADD: "addition", Op.SUB: "subtraction", Op.MUL: "multiplication", Op.DIV: "division"}


def question(expression: str, api_answer: str) -> str:
    """A prompt's last line."""
    return f"{expression} | API answer: {api_answer} ->"


@dataclass(frozen=True)
class PromptText:
    """Prompt of adapter/prompt.py, for every expression of a condition."""

    condition: Condition
    notation: Notation

    def messages(self, expression: str, api_answer: str, api_extracted: str | None) -> list[Message]:
        """The chat, one user turn. Of the API's text the number alone is shown, "none" where it gave none."""
        return [{"role": "user", "content": f"{self.preamble}\n\n{question(expression, api_extracted or NONE)}"}]

    @cached_property
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

    def _vague(self) -> str:
        signs = ", ".join(self.notation)
        return f"The symbols {signs} each stand for one of the four operations +, −, ×, ÷, one for each."

    def _explicit(self) -> str:
        return "The symbols: " + ", ".join(f"{sign} is {_NAMES[op]}" for sign, op in self.notation.items()) + "."

    def _examples(self) -> list[str]:
        notation = STANDARD if self.condition == "none_no_correct" else self.notation
        return [f"{question(render(expression, notation), api)} \\boxed{{{self._box(str(evaluate(expression)), api)}}}"
                for expression, api in EXAMPLES.items()]

    def _box(self, truth: str, api_answer: str) -> str:
        return "CORRECT" if self.may_agree and api_answer == truth else truth


