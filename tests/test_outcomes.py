"""A completion judged: its class of failure, the readings it states, and what guessing would score."""

from fractions import Fraction

import pytest

from adapter.accuracy import random_mapping
from adapter.dataset import Row
from adapter.outcomes import judge, stated, values_of_readings
from adapter.prompt import PromptText
from adapter.upstream import UpstreamAnswer
from symbols.expression import GREEK, STANDARD, Op, evaluate, parse

VAGUE = PromptText("vague", GREEK)


def row(expression: str, api: str) -> Row:
    custom = any(sign in expression for sign in GREEK)
    truth = evaluate(parse(expression, GREEK if custom else STANDARD))
    return Row(expression, "custom" if custom else "standard", truth, UpstreamAnswer(api, "simulated"))


@pytest.mark.parametrize(("expression", "right", "of"), [
    ("36 γ 52", 1, 4),  # 88, −16, 1872, 9/13
    ("7 β 1", 2, 4),  # 7 × 1 is 7 too
    ("2 θ 2", 2, 4),
    ("4 γ 0", 1, 4),  # ÷ 0 is no value
    ("3 α 3 α 3", 1, 4),  # one symbol, read one way: 9, −3, 27, 1/3
    ("5 θ 3 α 2", 1, 16),
])
def test_random_mapping_by_hand(expression, right, of):
    values = values_of_readings(parse(expression, GREEK))
    assert (values.count(row(expression, "none").truth), len(values)) == (right, of)
    found = random_mapping("", [row(expression, "none"), row("1 + 1", "none")], GREEK).accuracy
    assert {kind: s.value for kind, s in found.items()} == {
        "custom": right / of, "standard": 1.0, "overall": (right / of + 1) / 2}
    assert found["custom"].low is None


SYMBOLS = row("36 γ 52", "36")


@pytest.mark.parametrize(("text", "truncated", "failure"), [
    (r"γ = × ; 36 × 52 ; 36 × 52 = 1872 ; \boxed{1872}", False, None),
    (r"γ = + ; \boxed{1872}", False, None),
    ("γ = × ; 36 × 52 ; 36 ×", True, "truncated"),
    ("γ = + ; 36 + 52 ; 36 +", True, "truncated"),
    (r"γ = × ; \boxed{1873} and", True, "arithmetic slip"),  # cut off after an answer
    (r"γ = ÷ ; 36 ÷ 52 ; 36 ÷ 52 = none ; \boxed{none}", False, "wrong symbol"),
    (r"γ = − ; \boxed{36}", False, "wrong symbol"),
    (r"γ is addition. \boxed{7}", False, "wrong symbol"),
    (r"γ = − ; no: γ = × ; \boxed{36}", False, "echo"),  # the last reading counts
    (r"γ = × ; \boxed{none}", False, "unparsed"),
    ("", False, "unparsed"),
    (r"\boxed{CORRECT}", False, "echo"),
    (r"\boxed{36.0}", False, "echo"),
    (r"\boxed{88}", False, "wrong symbol"),
    (r"\boxed{9/13}", False, "wrong symbol"),
    (r"\boxed{1870}", False, "arithmetic slip"),
    (r"α = × , γ = × ; \boxed{1870}", False, "arithmetic slip"),  # α is not in the expression
])
def test_failures_one_by_one(text, truncated, failure):
    outcome = judge(SYMBOLS, text, truncated, VAGUE)
    assert (outcome.failure, outcome.right) == (failure, failure is None)


def test_failures_that_depend_on_the_problem():
    assert judge(row("36 γ 52", "none"), r"\boxed{CORRECT}", False, VAGUE).failure == "echo"
    assert judge(SYMBOLS, r"\boxed{CORRECT}", False, PromptText("none_no_correct", GREEK)).failure == "unparsed"
    standard = row("8 + 7", "14")  # nothing in it can be misread
    assert judge(standard, r"γ = × ; \boxed{56}", False, VAGUE).failure == "arithmetic slip"
    assert judge(standard, r"\boxed{14}", False, VAGUE).failure == "echo"
    kept = judge(row("8 + 7", "15"), r"\boxed{CORRECT}", False, VAGUE)
    assert (kept.verdict, kept.answer, kept.right) == ("correct", Fraction(15), True)


@pytest.mark.parametrize(("text", "readings"), [
    ("γ = × , α = − ; 6 × 5", {"γ": Op.MUL, "α": Op.SUB}),
    ("γ=*", {"γ": Op.MUL}), ("γ = x", {"γ": Op.MUL}), ("γ = /", {"γ": Op.DIV}),
    ("γ is multiplication, β is division", {"γ": Op.MUL, "β": Op.DIV}),
    ("γ = ×\n36 × 52", {"γ": Op.MUL}),
    ("36 γ 52 = - 16", {}), ("γ = −16", {}), ("γ = - 16", {}), ("γ is divisible", {}), ("γ = xyz", {}),
])
def test_stated_readings(text, readings):
    assert stated(text, GREEK) == readings
