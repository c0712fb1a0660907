"""What is read out of an API's free text, as people and models write it."""

import pytest

from adapter.questions import Row
from adapter.verifiers.choice import Choice
from adapter.verifiers.json import Json
from adapter.verifiers.number import Number
from adapter.verifiers.text import same


@pytest.mark.parametrize(("text", "number"), [
    (r"\boxed{2\frac{1}{2}}", None), (r"\boxed{\frac{-1}{2}}", "-1/2"), (r"\boxed{10^{6}}", None), (r"5^{2}", None),
    (r"1.5 \times 10^{6}", None), (r"\boxed{12\,345}", "12345"), ("–5", "-5"), ("‑5", "-5"), ("－5", "-5"), ("5²", None),
    ("1½", None), ("2 1/2", None), ("1_000", None), ("0x1F", None), (r"0.\overline{3}", None), (r"\sqrt{2}", None),
    (r"5 \pm 1", None), ("It is 7!", "7"), ("3–5", None)])
def test_a_number_that_is_a_part_of_another_is_none(text, number):
    assert Number().extract(text) == number


@pytest.mark.parametrize(("text", "choice"), [
    ("Option B: A Tale of Two Cities", "B"), (r"Final answer: \(B\). A x", "B"), ("The answer is $B$. A x", "B"),
    (r"The answer is: \textbf{B}. A x", "B"), ("The correct choice would be B. A", "B"), (r"\boxed{B) foo A}", "B"),
    ("The correct answer is option (B), not A", "B"), ("A is wrong. B is right", "B"),
    ("A, B and C are wrong; D it is", "D")])
def test_a_choice_that_is_named_as_the_answer_counts(text, choice):
    assert Choice(("A", "B", "C", "D")).extract(text) == choice


def test_a_choice_that_a_text_begins_with_counts_and_none_within_a_number():
    assert [Choice(("yes", "no")).extract(text) for text in (
        "Yes, there is no doubt.", "Yes - no question", "No. Yes is wrong", "maybe no")] == ["yes", "yes", "no", "no"]
    assert [Choice(("1", "2", "3")).extract(text) for text in ("about 2,100", "I pick 2 (see 3.1)")] == [None, "2"]
    assert Choice(("New York", "Rome")).extract("It is New\nYork") == "New York"


@pytest.mark.parametrize("choices", [
    ["a", "A", "b"], ["A", "B", 3], ["A", "CORRECT"], [f"c{n}" for n in range(201)]], ids=lambda v: str(v)[:20])
def test_a_rows_own_choices_can_be_told_apart(choices):
    with pytest.raises(ValueError, match=r"its field choices (lists choices that are read alike|holds)"):
        Choice().check(Row("q", choices[0], more={"choices": choices}))


def test_plain_json_values_are_found_and_no_part_of_a_broken_one():
    assert [Json().extract(text) for text in ("The answer is 2.", 'It is "x".', "so true", "none here", '5" pipe: {"a": 1}')
            ] == ["2", '"x"', "true", None, None]


def test_curled_marks_are_plain_ones_and_raised_digits_are_no_others():
    assert same("it’s −5") == same("it's -5")
    assert same("10²") != same("102")
