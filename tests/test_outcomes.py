"""A completion judged: its class of failure, the readings it states, and what guessing would score."""

from functools import partial

import pytest

from adapter.corrector import Corrector
from adapter.measure.outcomes import Outcome
from adapter.prompt import PromptText as AnyPrompt
from adapter.questions import ApiAnswer, Row
from adapter.verifiers.base import Verified
from adapter.verifiers.number import Number
from symbols.expression import GREEK, Op, parse
from symbols.failures import FAILURES, stated, values_of_readings, why_wrong
from symbols.prompt import PromptText
from symbols.report import policies
from tests.symbol_rows import row

VAGUE = PromptText("vague", GREEK)
PLAIN = Corrector(AnyPrompt("{form}", "{question} {api_answer}", Number.form), Number())


def judge(of: Row, completion: str, truncated: bool = False, prompt: PromptText = VAGUE) -> Outcome:
    """One completion of a test expression."""
    corrector = Corrector(prompt, Number(), failures=FAILURES, why_wrong=partial(why_wrong, GREEK))
    return corrector.judged([of], [completion], [truncated])[0]


def asked(answer: object, api: str | None, kind: str = "all", question: str = "How many?") -> Row:
    """A question that is no expression."""
    return Row(question, answer, kind, "line 1", None if api is None else ApiAnswer(api, "m"))


@pytest.mark.parametrize(("text", "truncated", "api", "verdict", "final", "failure"), [
    (r"\boxed{8}", False, "It has 6.", "override", "8", None),
    (r"\boxed{CORRECT}", False, "It has 8 legs.", "correct", "8", None),
    ("It has 8", True, "6", "unparsed", None, "truncated"),
    ("It has 8", False, "6", "unparsed", None, "unparsed"),
    (r"\boxed{eight}", False, "6", "unparsed", None, "unparsed"),
    (r"\boxed{CORRECT}", False, "It has 6.", "correct", "6", "wrong agreement"),
    (r"\boxed{CORRECT}", False, "no idea", "correct", None, "wrong agreement"),
    (r"\boxed{CORRECT}", False, None, "correct", None, "wrong agreement"),
    (r"\boxed{6.0}", False, "It has 6.", "override", "6", "echo"),
    (r"\boxed{7}", False, "It has 6.", "override", "7", "wrong override"),
    (r"\boxed{7}", True, "no idea", "override", "7", "wrong override"),  # cut off after an answer
])
def test_classes_of_any_question(text, truncated, api, verdict, final, failure):
    outcome = PLAIN.judged([asked(8, api)], [text], [truncated])[0]
    assert (outcome.verdict, outcome.answer, outcome.failure) == (verdict, final, failure)
    assert (outcome.right, outcome.reward, outcome.timed_out) == (failure is None, float(failure is None), False)
    assert outcome.api_right == (api is not None and "8" in api)


class Halves(Number):
    """Pays a half for one off, and never comes to an end for 13."""

    def submit(self, of, answer, completion):
        paid = {8: 1.0, 7: 0.5}.get(int(answer), 0.0)
        return type("Begun", (), {"result": lambda _: Verified(paid, int(answer) == 13)})()


def test_what_is_right_in_part_is_not_right_and_a_hang_is_counted():
    corrector = Corrector(PLAIN.prompt, Halves())
    texts = [r"\boxed{8}", r"\boxed{7}", r"\boxed{13}"]
    found = corrector.judged([asked(8, "7")] * 3, texts, [False] * 3)
    assert [(o.right, o.reward, o.timed_out, o.api_right) for o in found] == [
        (True, 1.0, False, False), (False, 0.5, False, False), (False, 0.0, True, False)]
    assert [o.failure for o in found] == [None, "echo", "wrong override"]


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
    assert ([str(value) for value in values].count(row(expression, "none").answer), len(values)) == (right, of)
    found = policies([row(expression, "none"), row("1 + 1", "none")], GREEK)["random_mapping"].accuracy
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
    outcome = judge(SYMBOLS, text, truncated)
    assert (outcome.failure, outcome.right) == (failure, failure is None)


def test_failures_that_depend_on_the_problem():
    assert judge(row("36 γ 52", "none"), r"\boxed{CORRECT}").failure == "echo"
    assert judge(SYMBOLS, r"\boxed{CORRECT}", False, PromptText("none_no_correct", GREEK)).failure == "unparsed"
    standard = row("8 + 7", "14")  # nothing in it can be misread
    assert judge(standard, r"γ = × ; \boxed{56}").failure == "arithmetic slip"
    assert judge(standard, r"\boxed{14}").failure == "echo"
    kept = judge(row("8 + 7", "15"), r"\boxed{CORRECT}")
    assert (kept.verdict, kept.answer, kept.right) == ("correct", "15", True)


@pytest.mark.parametrize(("text", "readings"), [
    ("γ = × , α = − ; 6 × 5", {"γ": Op.MUL, "α": Op.SUB}),
    ("γ=*", {"γ": Op.MUL}), ("γ = x", {"γ": Op.MUL}), ("γ = /", {"γ": Op.DIV}),
    ("γ is multiplication, β is division", {"γ": Op.MUL, "β": Op.DIV}),
    ("γ = ×\n36 × 52", {"γ": Op.MUL}),
    ("36 γ 52 = - 16", {}), ("γ = −16", {}), ("γ = - 16", {}), ("γ is divisible", {}), ("γ = xyz", {}),
])
def test_stated_readings(text, readings):
    assert stated(text, GREEK) == readings
