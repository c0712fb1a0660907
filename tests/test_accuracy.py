"""Accuracies, fixes and harms, net lift and its interval: by hand, for any kinds."""

import math

import pytest

from adapter.measure.accuracy import (
    Lift,
    against_api,
    api_alone,
    chain,
    expected,
    mcnemar_p,
    net_lift,
    recorded,
    rewarded,
    share,
)
from adapter.measure.outcomes import Outcome
from tests.test_outcomes import asked


def outcome(kind: str, api: bool, chain_is: bool, verdict: str = "override", reward: float | None = None) -> Outcome:
    return Outcome(asked(8, "8" if api else "6", kind), "", False, verdict, "8" if api else "6", api, "8", chain_is,
                   None if chain_is else "wrong override", float(chain_is) if reward is None else reward)


@pytest.mark.parametrize(("hits", "of", "low", "high"), [
    (8, 10, 0.490162, 0.943318),  # (0.8 + 0.192073 ± 1.959964 √(0.016 + 0.0096036)) / 1.384146
    (0, 200, 0.0, 0.018845),  # 0 and 0.0192073 / 1.0192073
    (200, 200, 0.981155, 1.0),
])
def test_wilson_intervals_by_hand(hits, of, low, high):
    found = share(hits, of)
    assert (found.value, found.hits, found.of) == (hits / of, hits, of)
    assert (found.low, found.high) == (pytest.approx(low, abs=2e-6), pytest.approx(high, abs=2e-6))


@pytest.mark.parametrize(("fixes", "harms", "p"), [
    (5, 1, 14 / 64),  # 2 (C(6,0) + C(6,1)) / 2^6
    (1, 5, 14 / 64), (8, 0, 2 / 256), (0, 8, 2 / 256), (0, 0, 1.0), (3, 3, 1.0)])
def test_mcnemar_by_hand(fixes, harms, p):
    assert mcnemar_p(fixes, harms) == pytest.approx(p)


@pytest.mark.parametrize(("fixes", "harms", "of", "points", "low", "high"), [
    (5, 0, 10, 50, 20, 80),  # binomial(10, 1/2): P(0 or 1) = 11/1024 < 2.5 % < P(0 to 2) = 56/1024, and the other end alike
    (0, 5, 10, -50, -80, -20),
    (1, 1, 2, 0, -100, 100),  # 2, 0, -2 of 2 with 1/4, 1/2, 1/4
    (2, 0, 2, 100, 100, 100), (0, 0, 400, 0, 0, 0),  # every question counts alike: no width
    (1, 0, 3, 100 / 3, 0, 100),  # binomial(3, 1/3): P(0) = 8/27, P(3) = 1/27 > 2.5 %
])
def test_net_lift_and_its_bootstrap_interval_by_hand(fixes, harms, of, points, low, high):
    assert net_lift(fixes, harms, of) == Lift(pytest.approx(points), pytest.approx(low), pytest.approx(high))


def test_the_interval_is_that_of_a_large_sample_and_of_pairs():
    """400 questions, 60 fixes, 20 harms: 10 points, variance of a question 0.2 - 0.01; 1.96 √(0.19 / 400) = 4.27 points."""
    found = net_lift(60, 20, 400)
    assert found.points == 10
    assert (found.low, found.high) == (pytest.approx(10 - 4.27, abs=0.4), pytest.approx(10 + 4.27, abs=0.4))
    assert found == net_lift(60, 20, 400)  # seeded
    # drawn apart, an API right on 50 % and a chain right on 60 % would give 1.96 √((0.25 + 0.24) / 400) = 6.9 points


def test_without_questions_there_is_no_lift():
    assert net_lift(0, 0, 0) == Lift(None)
    assert against_api([]).net_lift.points is None


def test_fixes_and_harms_by_kind_by_hand():
    outcomes = [
        outcome("b", False, True), outcome("b", False, True), outcome("a", False, True),
        outcome("b", False, False, "correct"), outcome("a", True, True, "correct"), outcome("a", True, False),
        outcome("a", True, True)]
    entry, alone = chain("adapter", outcomes), api_alone("API", outcomes)
    assert list(entry.accuracy) == list(alone.accuracy) == list(entry.against_api) == ["b", "a", "overall"]  # as in the data
    assert {kind: (s.hits, s.of) for kind, s in entry.accuracy.items()} == {"b": (2, 3), "a": (3, 4), "overall": (5, 7)}
    assert {kind: (s.hits, s.of) for kind, s in alone.accuracy.items()} == {"b": (0, 3), "a": (3, 4), "overall": (3, 7)}
    assert {kind: (m.fixes, m.harms) for kind, m in entry.against_api.items()} == {
        "b": (2, 0), "a": (1, 1), "overall": (3, 1)}
    assert {kind: m.ratio for kind, m in entry.against_api.items()} == {"b": math.inf, "a": 1.0, "overall": 3.0}
    assert [m.net_lift.points for m in entry.against_api.values()] == pytest.approx([200 / 3, 0, 200 / 7])
    made = entry.against_api["overall"]
    assert [(s.hits, s.of) for s in (made.repair_rate, made.harm_rate, made.correct_precision, made.correct_recall)] == [
        (3, 4), (1, 3), (1, 2), (1, 3)]
    assert made.mcnemar_p == pytest.approx(10 / 16)  # 3 against 1: 2 (1 + 4) / 2^4
    assert chain("", outcomes[3:5]).against_api["overall"].ratio is None  # neither


def test_expectations_have_no_interval():
    rows = [asked(8, "8", kind) for kind in "aab"]
    found = expected("guess", rows, [0.25, 0.75, 1]).accuracy
    assert {kind: (s.value, s.of, s.low) for kind, s in found.items()} == {
        "a": (0.5, 2, None), "b": (1.0, 1, None), "overall": (2 / 3, 3, None)}


def test_what_is_paid_in_part_is_recorded_as_a_mean_without_counts():
    outcomes = [outcome("a", True, True), outcome("a", True, False, reward=0.5), outcome("b", True, False)]
    assert chain("", outcomes).accuracy["a"].hits == 1  # right is fully right
    rows, table = [o.row for o in outcomes], {"a": 0.75, "b": 0.0, "overall": 0.5}
    found = rewarded("", outcomes).accuracy
    assert found == recorded("", table, rows, in_part=True).accuracy
    assert {kind: (s.value, s.of, s.hits, s.low) for kind, s in found.items() if kind != "b"} == {
        "a": (0.75, 2, None, None), "overall": (0.5, 3, None, None)}
    assert (found["b"].hits, found["b"].low) == (0, 0.0)
    with pytest.raises(ValueError, match=r"a: 0\.75 is no share of 2 problems"):
        recorded("", table, rows, in_part=False)


@pytest.mark.parametrize(("table", "words"), [
    ({"a": 1.0, "overall": 1.0}, "b: nothing is no share of 1 problems"),
    ({"a": 1.0, "b": 1.0, "c": 1.0, "overall": 1.0}, "c: none of the problems is of that kind")])
def test_accuracies_of_other_kinds_are_refused(table, words):
    rows = [asked(8, "8", kind) for kind in "aab"]
    for in_part in (False, True):
        with pytest.raises(ValueError, match=words):
            recorded("", table, rows, in_part)
