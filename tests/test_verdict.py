"""Boxes and what they say, worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.verdict import Agree, Override, Unparsed, boxes_in, final_answer, in_short, resolve
from adapter.verifiers.json import Json
from adapter.verifiers.number import Number
from adapter.verifiers.text import Text


def answer_in(text: str, verifier=None):
    return final_answer(boxes_in(text), verifier or Number())


NO_BOX, NO_NUMBER = Unparsed("no box"), Unparsed("no answer of this kind")


@pytest.mark.parametrize(("text", "boxes"), [
    ("", []), ("5", []), (r"\boxed{5", []), (r"\boxed{}", [""]), (r"a \boxed{ 5 } b", [" 5 "]),
    (r"\boxed{5} or \boxed{6}", ["5", "6"]), (r"\boxed{5} \boxed{6", ["5"]),
    (r'\boxed{{"a": {"b": 1}}}', ['{"a": {"b": 1}}']), (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
    (r"\boxed{\boxed{5}}", ["5"]), (r"\boxed{a{\boxed{5}}b}", ["5"]),
    (r"\boxed{\boxed{5} \boxed{6}} \boxed{7}", ["5", "6", "7"]),
    (r"\boxed{\boxed{5}", ["5"]), (r"}} \boxed{5} {", ["5"]), (r"{\boxed{5}", ["5"]), (r"\boxed{{5} \boxed{6}", ["6"]),
    (r"\boxed{5}}", ["5"]), (r"\boxed {5} \Boxed{5} boxed{5}", [])])
def test_boxes_by_hand(text, boxes):
    assert boxes_in(text) == boxes


@pytest.mark.parametrize(("text", "answer"), [
    (r"6 × 5 = 30 ; \boxed{30}", Override("30")), (r"\boxed{-1006}", Override("-1006")), (r"\boxed{−7}", Override("-7")),
    (r"\boxed{ 7/2 }", Override("7/2")), (r"\boxed{27.0}", Override("27")), (r"\boxed{CORRECT}", Agree()),
    (r"\boxed{ CORRECT }", Agree()), (r"\boxed{correct}", NO_NUMBER), (r"\boxed{CORRECT}\boxed{5}", Override("5")),
    (r"\boxed{5} or rather \boxed{6}", Override("6")), (r"\boxed{5} \boxed{I give up}", NO_NUMBER),
    (r"\boxed{5} \boxed{{6}}", NO_NUMBER), (r"\boxed{\boxed{5}}", Override("5")), (r"\boxed{5", NO_BOX), ("", NO_BOX)])
def test_the_last_box_counts(text, answer):
    assert answer_in(text) == answer


def test_a_box_may_hold_json():
    assert answer_in(r'so \boxed{{"b": {"x": [1.0]}, "a": 2}}', Json()) == Override('{"a": 2, "b": {"x": [1]}}')


def test_an_answer_in_short_and_the_chains_final_answer():
    assert [in_short(a) for a in (Agree(), Override("7/2"), NO_BOX)] == ["CORRECT", "7/2", None]
    assert [resolve(a, "3") for a in (Agree(), Override("7/2"), NO_BOX)] == ["3", "7/2", None]
    assert resolve(Agree(), None) is None


@given(st.text(alphabet=r"\boxed{}CORET0123456789-/. ") | st.text())
def test_any_text_parses_to_something(text):
    assert isinstance(answer_in(text, Text()), Agree | Override | Unparsed)


@given(st.text(alphabet=st.characters(exclude_characters="{}\\")), st.integers(1, 20))
def test_of_nested_boxes_the_innermost_counts(content, depth):
    assert boxes_in(r"\boxed{" * depth + content + "}" * depth) == [content]


@given(st.lists(st.integers(-999, 999), min_size=2), st.sampled_from(["", " or ", "}", "{", "\n"]))
def test_of_several_boxes_the_last_one_counts(numbers, between):
    assert answer_in(between.join(f"\\boxed{{{n}}}" for n in numbers)) == Override(str(numbers[-1]))


@pytest.mark.parametrize(("text", "answer"), [
    (r"\boxed{" * 150_000, NO_BOX), (r"\boxed{1}" * 110_000, Override("1")), ("{" * 10**6, NO_BOX), ("}" * 10**6, NO_BOX),
    (r"\boxed{" * 70_000 + "1" + "}" * 70_000, Override("1")), (r"\boxed{" + "{}" * 500_000 + "}", NO_NUMBER),
    ("9" * 10**6, NO_BOX), (r"\boxed{" + "9" * 10**6 + "}", NO_NUMBER)])
def test_a_megabyte_has_an_answer(text, answer):
    """In time linear in its length: squared, this test would not end."""
    assert answer_in(text) == answer
