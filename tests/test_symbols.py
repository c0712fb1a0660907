"""Expressions: exact values worked by hand, round trips, places of errors, and balanced generation."""

import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symbols.expression import GREEK, STANDARD, Expression, ExpressionError, Op, evaluate, parse, render, steps
from symbols.generate import Range, draw, draw_many

expressions = st.integers(1, 6).flatmap(lambda n: st.builds(
    Expression, st.tuples(*[st.integers(0, 10**6)] * (n + 1)), st.tuples(*[st.sampled_from(list(Op))] * n)))


@pytest.mark.parametrize(("text", "value"), [
    ("50 α 32 γ 33", Fraction(-1006)),  # 50 - 32*33, from the experiment
    ("82 γ 46 γ 56 γ 79", Fraction(16_687_328)),
    ("3 θ 4", Fraction(7)),
    ("8 β 4 γ 2", Fraction(4)),  # left to right: (8/4)*2, not 8/(4*2)
    ("10 α 3 α 2", Fraction(5)),  # (10-3)-2, not 10-(3-2)
    ("7 β 2 γ 2", Fraction(7)),  # through 7/2, which no float or integer division would survive
    ("1 θ 12 β 4 α 2 γ 5", Fraction(-6)),
])
def test_evaluate_by_hand(text, value):
    assert evaluate(parse(text, GREEK)) == value


def test_standard_signs_and_keyboard_signs_mean_the_same():
    assert parse("6 × 5 − 4 ÷ 2 + 1") == parse("6*5-4/2+1") == parse("6 x 5 - 4 / 2 + 1")


@given(expressions, st.sampled_from([STANDARD, GREEK]))
def test_parse_inverts_render(expression, notation):
    assert parse(render(expression, notation), notation) == expression


def by_recursion(operands: tuple[int, ...], ops: tuple[Op, ...]) -> Fraction:
    """The oracle: an expression is split at its last + or −, or else at its last × or ÷."""
    if not ops:
        return Fraction(operands[0])
    at = max(range(len(ops)), key=lambda i: (ops[i] in (Op.ADD, Op.SUB), i))
    left, right = by_recursion(operands[: at + 1], ops[:at]), by_recursion(operands[at + 1 :], ops[at + 1 :])
    return {Op.ADD: left + right, Op.SUB: left - right, Op.MUL: left * right}[ops[at]] if ops[at] != Op.DIV else left / right


@given(expressions)
def test_evaluate_agrees_with_a_recursive_reading(expression):
    try:
        expected = by_recursion(expression.operands, expression.ops)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            evaluate(expression)
    else:
        assert evaluate(expression) == expected == evaluate(parse(render(expression, GREEK), GREEK))


@given(expressions, st.data())
def test_spaces_and_keyboard_signs_change_nothing(expression, data):
    text = render(expression)
    for sign, typed in (("−", "-"), ("×", "*"), ("÷", "/")):
        text = text.replace(sign, typed)
    spaced = "".join(data.draw(st.sampled_from(["", " ", "   "])) if c == " " else c for c in text)
    assert parse(spaced) == expression


@given(st.text())
def test_any_text_is_an_expression_or_a_named_error(text):
    try:
        expression = parse(text, GREEK)
    except ExpressionError:  # what it says is tested below
        return
    assert parse(render(expression, GREEK), GREEK) == expression


@given(expressions)
def test_steps_end_in_the_value_or_say_where_they_stop(expression):
    try:
        done = steps(expression, limit=10**40)
    except ZeroDivisionError:
        return
    if done[-1].value is not None:
        assert done[-1].value == evaluate(expression)
        assert len(done) == len(expression.ops)
    else:
        assert done[-1].op is Op.DIV
        assert done[-1].left % done[-1].right != 0


@pytest.mark.parametrize(("text", "words"), [
    ("", "position 1, found the end"),
    ("3 θ", "position 4, found the end"),
    ("3 % 4", "position 3, found '%'"),
    ("3 θ θ 4", "position 5, found 'θ'"),
    ("٣ θ 4", "position 1"),
    ("3 + 4", "one of θ α γ β at position 3"),
    ("3 * 4", "one of θ α γ β at position 3"),  # the keyboard's signs stand for the ordinary ones alone
    ("7" + " " * 1000, "1001 characters"),
    ("9" * 10_000, "10000 characters"),
])
def test_errors_name_the_place(text, words):
    with pytest.raises(ExpressionError, match=words.replace("(", r"\(")):
        parse(text, GREEK)


def test_the_longest_text_and_the_largest_result_by_hand():
    assert parse("7" + " " * 999) == Expression((7,), ())
    assert [steps(parse("6 × 5 − 90"), limit)[-1].value for limit in (60, 59, 30, 29)] == [-60, None, None, None]
    assert [len(steps(parse("6 × 5 − 90"), limit)) for limit in (60, 59, 30, 29)] == [2, 2, 2, 1]


def test_division_by_zero_is_an_error_not_a_value():
    with pytest.raises(ZeroDivisionError):
        evaluate(parse("4 ÷ 0"))


@pytest.mark.parametrize("within", [Range((1, 99), (2, 4), 999), Range((1, 12), (2, 3)), Range((1, 99), (4, 4))])
def test_generated_expressions_are_balanced_exact_and_within_bounds(within):
    rng = random.Random(0)
    drawn = [draw(rng, within) for _ in range(3000)]
    ops = Counter(op for e in drawn for op in e.ops)
    assert all(0.23 < ops[op] / ops.total() < 0.27 for op in Op)
    terms = Counter(len(e.operands) for e in drawn)
    assert set(terms) == set(range(within.terms[0], within.terms[1] + 1))
    for e in drawn:
        assert all(within.operands[0] <= n <= within.operands[1] for n in e.operands)
        done = steps(e, within.limit)
        assert done[-1].value is not None  # every division exact, nothing beyond the limit


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 99), st.integers(2, 3), st.integers(1, 10**6), st.integers(0, 9))
def test_any_range_gives_fitting_expressions_or_says_why_not(low, more, terms, limit, seed):
    within = Range((low, low + more), (2, terms), limit)
    try:
        drawn = [draw(random.Random(f"{seed}/{i}"), within) for i in range(3)]
    except ValueError:
        return  # its message is tested below
    assert all(abs(evaluate(e)) <= limit and evaluate(e).denominator == 1 for e in drawn)


def test_divisions_are_rarely_trivial():
    rng = random.Random(0)
    divisions = [e for e in (draw(rng, Range((1, 99), (2, 2))) for _ in range(4000)) if e.ops == (Op.DIV,)]
    assert sum(e.operands[1] not in (1, e.operands[0]) for e in divisions) > 0.99 * len(divisions)


def test_draw_many_is_seeded_unique_and_disjoint():
    within = Range((1, 99), (2, 4), 999)
    test = draw_many(random.Random(3), within, 400, frozenset())
    train = draw_many(random.Random(4), within, 1600, frozenset(test))
    assert len(set(test)) == 400
    assert not set(test) & set(train)
    assert test == draw_many(random.Random(3), within, 400, frozenset())
    with pytest.raises(ValueError, match="no operands from 10 to 99"):
        draw_many(random.Random(0), Range((10, 99), (4, 4)), 1000, frozenset())
    with pytest.raises(ValueError, match="holds too few"):
        draw_many(random.Random(0), Range((1, 2), (2, 2)), 100, frozenset())
