"""The verifier. Nothing else is learned from: no labels, only whether the final answer is right."""

from fractions import Fraction

from adapter.parse import Agree, Answer, Override, parse_number


def resolve(answer: Answer, api_answer: str) -> Fraction | None:
    """The chain's final answer: the API's where the adapter agrees, the adapter's own where it overrides."""
    match answer:
        case Agree():
            return parse_number(api_answer)
        case Override(value):
            return value
        case _:
            return None


def reward(answer: Answer, api_answer: str, truth: Fraction) -> float:
    """1.0 if the final answer equals the ground truth, else 0.0."""
    return float(resolve(answer, api_answer) == truth)
