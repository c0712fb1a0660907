"""Prompt, answer parser, reward, upstream and data set."""

import hashlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.rows import Splits, write_splits
from adapter.verdict import Agree, Answer, Override, Unparsed, boxes_in, final_answer, resolve
from adapter.verifiers.number import Number
from grpo.types import Problem
from symbols.expression import GREEK, evaluate, parse
from symbols.generate import Range
from symbols.prompt import PromptText
from symbols.simulated import SimulatedUpstream
from symbols.task import Whole
from tests.symbol_rows import build, row, symbol_task

TINY = Range((1, 99), (2, 4), 999)
LONG = ("", "9", ""), ("1/", "0", "7"), ("2/", "3", "")  # 40 more digits are a number, 41 none


def parse_answer(text: str) -> Answer:
    return final_answer(boxes_in(text), Number())


@pytest.mark.parametrize(("text", "answer"), [
    (r"6 × 5 = 30 ; \boxed{30}", Override("30")),
    (r"\boxed{-1006}", Override("-1006")),
    (r"\boxed{−7}", Override("-7")),
    (r"\boxed{ 7/2 }", Override("7/2")),
    (r"\boxed{-7/2}", Override("-7/2")),
    (r"\boxed{55/11}", Unparsed("no answer of this kind")),  # 55 β 11 with nothing divided
    (r"\boxed{14/4}", Unparsed("no answer of this kind")),
    (r"\boxed{5/1}", Unparsed("no answer of this kind")),
    (r"\boxed{0/5}", Unparsed("no answer of this kind")),
    (r"\boxed{27.0}", Override("27")),
    (r"\boxed{CORRECT}", Agree()),
    (r"\boxed{5} or rather \boxed{6}", Override("6")),  # two answers: the last counts
    (r"\boxed{5} \boxed{dunno}", Unparsed("no answer of this kind")),
    (r"\boxed{\boxed{5}}", Override("5")),
    (r"\boxed{5", Unparsed("no box")),
    (r"\boxed{}", Unparsed("no answer of this kind")),
    (r"\boxed{٣}", Unparsed("no answer of this kind")),  # unicode digits are no answer
    (r"\boxed{__import__('os')}", Unparsed("no answer of this kind")),
    (r"\boxed{1/0}", Unparsed("no answer of this kind")),
    (r"\boxed{1/007}", Override("1/7")), (r"\boxed{+5}", Override("5")),
    (r"\boxed{correct}", Unparsed("no answer of this kind")),
    *((rf"\boxed{{{start}{more * 40}{end}}}", Override(str(Fraction(f"{start}{more * 40}{end}"))))
      for start, more, end in LONG),
    (r"\boxed{0." + "3" * 39 + "}", Override("3" * 39 + "/1" + "0" * 39)),
    (r"\boxed{0." + "3" * 40 + "}", Unparsed("no answer of this kind")),  # as a fraction its denominator has 41 digits
    *((rf"\boxed{{{start}{more * 41}{end}}}", Unparsed("no answer of this kind")) for start, more, end in LONG),
    (r"\boxed{1/" + "0" * 5000 + "1}", Unparsed("no answer of this kind")),  # Python refuses to read so long a number
    (r"\boxed{1e9}", Unparsed("no answer of this kind")),
    ("", Unparsed("no box")),
])
def test_answer_by_hand(text, answer):
    assert parse_answer(text) == answer


@given(st.text(alphabet=r"\boxed{}CORET0123456789-/. ") | st.text())
def test_any_text_parses_to_something(text):
    assert isinstance(parse_answer(text), Agree | Override | Unparsed)


@given(st.integers(-10**20, 10**20), st.text(alphabet=st.characters(exclude_characters="{}\\")))
def test_a_number_in_the_last_box_is_found(number, noise):
    assert parse_answer(f"{noise}\\boxed{{{number}}}{noise}") == Override(str(number))


@given(st.text(alphabet=st.characters(exclude_characters="{}\\")), st.integers(1, 20))
def test_of_nested_boxes_the_innermost_counts(content, depth):
    nested = r"\boxed{" * depth + content + "}" * depth
    assert parse_answer(nested) == parse_answer(f"\\boxed{{{content}}}")


@given(st.lists(st.integers(-999, 999), min_size=2), st.sampled_from(["", " or ", "}", "{", "\n"]))
def test_of_several_boxes_the_last_counts(numbers, between):
    text = between.join(f"\\boxed{{{n}}}" for n in numbers)
    assert parse_answer(text) == Override(str(numbers[-1]))


@given(st.text(alphabet=st.characters(categories=["Nd"]), min_size=1))
def test_only_ascii_digits_are_digits(digits):
    answer = parse_answer(f"\\boxed{{{digits}}}")
    assert isinstance(answer, Override) == (digits.isascii() and len(digits) <= 40)


@pytest.mark.parametrize(("text", "answer"), [
    (r"\boxed{" * 150_000, Unparsed("no box")), (r"\boxed{1}" * 110_000, Override("1")),
    ("9" * 10**6, Unparsed("no box")), (r"\boxed{" + "9" * 10**6 + "}", Unparsed("no answer of this kind"))])
def test_a_megabyte_has_an_answer(text, answer):
    """In time linear in its length: squared, this test would not end."""
    assert parse_answer(text) == answer


def test_reward_by_hand():
    problem, task = Problem("4 + 3", "standard", (), row("4 + 3", "7")), symbol_task(train=1, test=1)
    wrong = Problem("4 + 3", "standard", (), row("4 + 3", "8"))
    assert task.score(problem, r"\boxed{CORRECT}").reward == 1.0
    assert task.score(wrong, r"\boxed{CORRECT}").reward == 0.0
    for said in ("none", "14/2", "it is 7", ""):
        assert task.score(Problem("4 + 3", "standard", (), row("4 + 3", said)), r"\boxed{CORRECT}").reward == 0.0
    assert task.score(wrong, r"\boxed{7}").reward == 1.0
    assert task.score(problem, r"\boxed{8}").reward == 0.0
    assert task.score(problem, "7").reward == 0.0


def test_the_chains_answer_by_hand():
    assert resolve(Agree(), "7") == "7"
    assert resolve(Agree(), None) is None
    assert resolve(Override("8"), "7") == "8"
    assert resolve(Unparsed("no box"), "7") is None


def test_an_apis_text_has_to_consist_of_a_number():
    told = {"1,234,567.": "1234567", " 27.0 ": "27", "−7": "-7", "7/2": "7/2", "14/2": None, "it is 7": None, "none": None}
    assert {text: Whole().extract(text) for text in told} == told


def test_the_vague_prompt_names_the_symbols_and_hides_their_meaning():
    (message,) = PromptText("vague", GREEK).messages("36 γ 52", "none", None)
    text = message["content"]
    assert "θ, α, γ, β" in text
    assert text.endswith("36 γ 52 | API answer: none ->")
    for example in (r"3 θ 4 | API answer: 7 -> \boxed{CORRECT}", r"10 α 3 | API answer: 5 -> \boxed{7}",
                    r"2 γ 6 | API answer: none -> \boxed{12}"):
        assert example in text
    assert not any(name in text for name in ("is addition", "is multiplication"))


def test_the_other_conditions_differ_as_the_table_says():
    texts = {c: PromptText(c, GREEK).preamble for c in ("explicit", "explicit_no_correct", "none_no_correct")}
    assert "γ is multiplication" in texts["explicit"]
    assert "γ is multiplication" in texts["explicit_no_correct"]
    assert not set(GREEK) & set(texts["none_no_correct"])
    assert ["CORRECT" in t for t in texts.values()] == [True, False, False]


def test_the_simulated_upstream_is_as_good_as_the_source_saw():
    train, _, test = build(0, Splits(1600, 1, 400), TINY, GREEK, 0)
    custom, standard = ([r for r in train + test if r.kind == k] for k in ("custom", "standard"))
    assert not any(r.api.text == r.answer for r in custom)
    assert 0.72 < sum(r.api.text == r.answer for r in standard) / len(standard) < 0.79
    assert {r.api.text for r in custom} <= {"none"} | {r.question.split()[0] for r in custom}
    assert all(r.api.text in ("none", r.question.split()[0]) for r in custom)
    assert "simulated" in SimulatedUpstream(0, GREEK).label


def test_splits_are_disjoint_where_the_range_holds_little_more():
    few = Range((1, 6), (2, 2), 999)  # some hundred
    splits = build(0, Splits(40, 20, 20), few, GREEK, 0)
    meant = [parse(r.question, GREEK) if r.kind == "custom" else parse(r.question) for rows in splits for r in rows]
    assert len(set(meant)) == len(meant) == 80


def test_what_the_prompts_show_as_an_example_is_no_problem():
    least = Range((1, 12), (2, 2), 999)  # some four hundred
    splits = build(0, Splits(200, 60, 60), least, GREEK, 0)
    shown = PromptText("none_no_correct", GREEK).preamble + PromptText("vague", GREEK).preamble
    assert "\n3 + 4 | API answer" in shown
    assert "\n3 θ 4 | API answer" in shown
    assert [r.question for rows in splits for r in rows if f"\n{r.question} | API answer" in shown] == []


def test_the_data_set_is_seeded_halved_disjoint_and_true():
    train, validation, test = splits = build(5, Splits(300, 60, 100), TINY, GREEK, 5)
    assert splits == build(5, Splits(300, 60, 100), TINY, GREEK, 5)
    assert train != build(6, Splits(300, 60, 100), TINY, GREEK, 5).train
    assert build(5, Splits(300, 2, 100), TINY, GREEK, 5) == (train, validation[:2], test)
    assert [sum(r.kind == "custom" for r in rows) for rows in splits] == [150, 30, 50]
    meant = [{parse(r.question, GREEK) if r.kind == "custom" else parse(r.question) for r in rows} for rows in splits]
    assert len(set.union(*meant)) == 460
    drawn = repr([(r.question, r.answer, r.api.text) for r in train + test])
    assert hashlib.sha256(drawn.encode()).hexdigest().startswith("463bfa184c621ec0443c")  # earlier figures hold
    row = next(r for r in train if r.kind == "custom")
    assert row.answer == str(evaluate(parse(row.question, GREEK)))


def test_another_symbol_table_is_a_setting():
    symbols = {"♠": "÷", "♥": "×", "♦": "−", "♣": "+"}
    task = symbol_task(symbols=symbols, operands=[1, 9], terms=[3, 3], train=20, test=10)
    custom = next(p for p in task.train if p.kind == "custom")
    assert set(custom.name) & set("♠♥♦♣")
    assert "3 ♣ 4" in custom.messages[0]["content"]
    assert task.score(custom, f"\\boxed{{{custom.data.answer}}}").reward == 1.0


def test_correct_is_no_answer_where_the_prompt_does_not_offer_it():
    for condition, reward_of_agreeing in (("vague", 1.0), ("explicit_no_correct", 0.0), ("none_no_correct", 0.0)):
        task = symbol_task(condition=condition, limit=999, train=10, test=40)
        right = next(p for p in task.test if p.data.api.text == p.data.answer)
        score = task.score(right, r"\boxed{CORRECT}")
        assert (score.reward, score.unparsed) == (reward_of_agreeing, not reward_of_agreeing)


@pytest.mark.parametrize(("text", "answer", "answers"), [
    (r"\boxed{CORRECT}", "CORRECT", 1),
    (r"\boxed{27.0}", "27", 1), (r"\boxed{7/2}", "7/2", 1), (r"\boxed{−7}", "-7", 1),  # one number, one text
    (r"\boxed{5} or \boxed{6}", "6", 2),
    (r"\boxed{CORRECT} \boxed{3} \boxed{CORRECT}", "CORRECT", 3),
    (r"\boxed{5} \boxed{dunno}", None, 2),
    (r"\boxed{\boxed{5}}", "5", 1),  # the outer one has a brace inside
    (r"\boxed{5} \boxed{6", "5", 1),
    ("5", None, 0), ("", None, 0),
])
def test_what_was_answered_and_how_often(text, answer, answers):
    problem = Problem("2 γ 3", "custom", (), row("2 γ 3", "none"))
    score = symbol_task(train=1, test=1).score(problem, text)
    assert (score.answer, score.answers, score.unparsed) == (answer, answers, answer is None)


def test_correct_is_not_shown_as_an_answer_where_it_is_none():
    score = symbol_task(condition="explicit_no_correct", train=1, test=1).score(
        Problem("1 + 1", "standard", (), row("1 + 1", "2")), r"\boxed{CORRECT}")
    assert (score.reward, score.unparsed, score.answer, score.answers) == (0.0, True, None, 1)


def test_trivial_policies_by_hand(tmp_path):
    train = ["9 − 2", "10 α 3", "2 θ 3", "1 + 4", "4 γ 2"]  # 7, 7, 5, 5, 8: of 5 and 7, as common, the smaller
    test = [("4 θ 1", "none"),  # 5; read at random 5, 3, 4, 4
            ("2 θ 2", "4"),  # 4; read at random 4, 0, 4, 1
            ("3 + 2", "5"), ("8 ÷ 2", "4"), ("1 + 1", "none")]
    write_splits(tmp_path, Splits([row(text, "none") for text in train], [row("6 + 6", "12")],
                                   [row(*both) for both in test]))
    found = {reference.label: reference.accuracy for reference in symbol_task(data=str(tmp_path)).trivial}
    assert found == {
        "always CORRECT": {"custom": 1 / 2, "standard": 2 / 3, "overall": 3 / 5},
        "always 5": {"custom": 1 / 2, "standard": 1 / 3, "overall": 2 / 5},
        "random mapping, expected": {"custom": 3 / 8, "standard": 1.0, "overall": 3.75 / 5}}
    assert symbol_task(data=str(tmp_path)).references["api"].accuracy == found.pop("always CORRECT")
    for condition in ("explicit_no_correct", "none_no_correct"):  # CORRECT is no answer there
        assert {r.label for r in symbol_task(condition=condition, data=str(tmp_path)).trivial} == set(found)
