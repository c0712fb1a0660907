"""Is a confidence worth its name: temperature, calibration error, risk and coverage, thresholds, by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from adapter.confidence import Calibration
from adapter.measure.answering import Cost
from adapter.measure.calibration import (
    Bin,
    choose,
    ece,
    fit_temperature,
    gate,
    gates,
    quality,
    read_share,
    reliability,
    risk_coverage,
    too_few,
)
from adapter.measure.confidence_report import measured
from adapter.measure.outcomes import Outcome
from grpo.types import UserError
from tests.test_outcomes import asked

# Five answers, the surest first. Bins of one: errors 0.1, 0.8, 0.3, 0.4, 0.5, which sum to 2.1.
SURE, RIGHT = [0.9, 0.8, 0.7, 0.6, 0.5], [True, False, True, True, False]


@pytest.mark.parametrize(("p", "right", "of", "temperature"), [
    (0.9, 3, 4, 2.0),  # odds of 9 to 1 have to become 3 to 1
    (0.9, 81, 82, 0.5), (0.1, 1, 4, 2.0), (0.5 + 1e-9, 3, 4, None)])
def test_a_temperature_by_hand(p, right, of, temperature):
    found, note = fit_temperature([math.log(p)] * of, [n < right for n in range(of)])
    if temperature is None:  # no temperature makes 3/4 of a half
        assert "one temperature does not describe these answers" in note
    else:
        assert (found, note) == (pytest.approx(temperature, rel=1e-4), "")


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_temperature_that_made_the_data_is_found(true):
    rng = np.random.default_rng(0)
    logits = rng.normal(1, 3, 20_000)
    right = rng.random(20_000) < 1 / (1 + np.exp(-logits / true))
    found, note = fit_temperature((-np.logaddexp(0, -logits)).tolist(), right.tolist())
    assert (found, note) == (pytest.approx(true, rel=0.05), "")


@pytest.mark.parametrize(("right", "words"), [
    ([True] * 3, "all 3 answers are right on validation"), ([False] * 2, "all 2 answers are wrong"),
    ([], "there is no answer on validation")])
def test_one_sided_answers_fit_nothing_and_that_is_said(right, words):
    found, note = fit_temperature([-0.1] * len(right), right)
    assert found == 1.0
    assert words in note


def test_a_temperature_at_its_bound_is_said():
    assert fit_temperature([-1e-9] * 4, [True, False, False, False]) == (pytest.approx(100, rel=1e-2), (
        "none beyond it is tried: one temperature does not describe these answers"))  # surer, and wrong more often
    apart = fit_temperature([math.log(0.8), math.log(0.3)], [True, False])  # all above a half are right
    assert apart == (pytest.approx(0.05, rel=1e-2), apart[1])
    assert apart[1]


def test_the_calibration_error_of_five_points_by_hand():
    assert ece(reliability(SURE, RIGHT)) == pytest.approx(2.1 / 5)
    two = reliability(SURE, RIGHT, 2)  # 0.5, 0.6, 0.7 and 0.8, 0.9
    assert [(b.right.hits, b.right.of) for b in two] == [(2, 3), (1, 2)]
    assert [b.confidence for b in two] == pytest.approx([0.6, 0.85])
    assert ece(two) == pytest.approx((3 * (2 / 3 - 0.6) + 2 * (0.85 - 0.5)) / 5)


def test_bins_hold_as_many_questions_each_and_equal_confidences_share_one():
    confidences = [n / 100 for n in range(90)]
    assert [b.right.of for b in reliability(confidences, [True] * 90)] == [6] * 15
    assert sorted(b.right.of for b in reliability(confidences[:20], [True] * 20)) == [1] * 10 + [2] * 5
    tied = reliability([0.0, 0.875] + [1.0] * 28, [False] + [True] * 29)
    assert [(b.confidence, b.right.of) for b in tied] == [(pytest.approx(0.4375), 2), (1.0, 28)]
    assert isinstance(tied[0], Bin)


def test_risk_and_coverage_of_five_points_by_hand():
    assert risk_coverage(SURE, RIGHT) == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4, 2 / 5])
    assert risk_coverage(SURE[::-1], RIGHT[::-1]) == risk_coverage(SURE, RIGHT)
    found = quality(SURE, RIGHT)
    assert found.aurc == pytest.approx((1 / 2 + 1 / 3 + 1 / 4 + 2 / 5) / 5)
    assert found.brier == pytest.approx((0.01 + 0.64 + 0.09 + 0.16 + 0.25) / 5)
    assert found.nll == pytest.approx(-sum(map(math.log, (0.9, 0.2, 0.7, 0.6, 0.5))) / 5)


def test_equal_confidences_have_no_order():
    """Of 1, 1, 0 the wrong one of the first two stands first as often as second: 1/2 wrong of one, 1 of two, 2 of three."""
    for right in ([True, False, False], [False, True, False]):
        assert risk_coverage([0.9, 0.9, 0.1], right) == pytest.approx([1 / 2, 1 / 2, 2 / 3])
    assert risk_coverage([0.5] * 4, [True, False, True, True]) == pytest.approx([1 / 4] * 4)


def test_no_answer_is_sure_of_being_wrong():
    found = quality([0.0, 0.0], [False, False])
    assert (found.ece, found.nll, found.brier, found.aurc) == (0, 0, 0, 1)


def outcome(confidence: float, api: bool, right: bool, verdict: str = "override") -> Outcome:
    return Outcome(asked(8, "8" if api else "6"), "", False, verdict, "8" if api else "6", api,
                   None if verdict == "unparsed" else "8", right, None, float(right), confidence=confidence)


# Fixes at 0.9 and 0.7, harms at 0.8 and 0.3, an override that is wrong as the API is, an agreement, and no answer
OUTCOMES = [outcome(0.9, False, True), outcome(0.8, True, False), outcome(0.7, False, True), outcome(0.6, False, False),
            outcome(0.3, True, False), outcome(0.5, True, True, "correct"), outcome(0.0, True, False, "unparsed"),
            outcome(0.4, True, True)]


@pytest.mark.parametrize(("threshold", "overrides", "fixes", "harms"), [
    (0.0, 6, 2, 3),  # as trained: no answer is a harm
    (1e-6, 6, 2, 2), (0.3, 6, 2, 2), (0.31, 5, 2, 1), (0.7, 3, 2, 1), (0.8, 2, 1, 1), (0.9, 1, 1, 0), (0.91, 0, 0, 0),
    (1.0, 0, 0, 0)])
def test_fixes_and_harms_at_a_threshold_by_hand(threshold, overrides, fixes, harms):
    found = gate(OUTCOMES, threshold)
    assert (found.overrides, found.made.fixes, found.made.harms) == (overrides, fixes, harms)
    assert (found.made.harm_rate.of, found.made.repair_rate.of) == (5, 3)
    assert found.made.net_lift.points == pytest.approx(100 * (fixes - harms) / 8)


def test_the_table_has_the_ends_and_what_is_between():
    found = gates(OUTCOMES)
    assert [g.threshold for g in found] == [0.0, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0]
    many = gates([outcome(n / 1000, False, True) for n in range(1, 1000)])
    assert [g.overrides for g in many] == [999, 999, 875, 750, 625, 500, 375, 250, 125, 0]
    assert [g.threshold for g in gates(OUTCOMES[5:7])] == [0.0, 1.0]  # without an override


@pytest.mark.parametrize(("most_harm", "threshold"), [
    (0.6, 0.4),  # net lift 2 - 1, at 0.4, 0.6 and 0.7 alike: the smallest
    (0.2, 0.4),  # one of five
    (0.19, 0.9),  # none: 0.9 has a fix, 1 has none
    (0.0, 0.9)])
def test_the_threshold_is_chosen_by_hand(most_harm, threshold):
    assert choose(OUTCOMES, most_harm) == threshold


def test_the_ends_are_chosen_where_they_are_best():
    assert choose([outcome(0.5, False, True), outcome(0.4, True, True)], 0.01) == 0  # nothing to keep back
    assert choose([outcome(0.999, True, False)], 0.01) == 1  # the surest is a harm
    assert choose([outcome(0.999, True, False), outcome(0.0, False, False, "unparsed")], 0.01) == 1
    assert choose([outcome(0.2, False, True), outcome(0.0, True, False, "unparsed")], 0.5) == 0.2  # above 0, below it
    assert choose([outcome(0.1234567, False, True), outcome(0.1, True, False)], 0.01) == 0.123456  # shown as it is
    assert choose([], 0.01) == 0


@pytest.mark.parametrize(("of", "most_harm", "words"), [
    (300, 0.01, ""), (30, 0.1, ""),
    (299, 0.01, "validation has 299 right answers of the API: no harm to any of them leaves a harm rate of up to 1.0 % "
                "(95 %, rule of three); it takes 300"),
    (2, 0.01, "up to 100.0 %"), (100, 0.0, "up to 3.0 % (95 %, rule of three); no number shows that there is no harm"),
    (0, 0.01, "validation has no right answer of the API")])
def test_too_few_right_answers_are_said(of, most_harm, words):
    found = too_few(of, most_harm)
    assert words in found
    assert bool(found) == bool(words)


@pytest.mark.parametrize(("text", "share"), [
    ("1%", 0.01), ("0.01", 0.01), ("0.5%", 0.005), ("0%", 0), ("0", 0), (" 2.5% ", 0.025), ("99%", 0.99)])
def test_a_share_as_typed(text, share):
    assert read_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "1", "one", "100%", "1.0", "-1%", "1 %", "1e-2", "nan", "%", "٣%", "0,01", "x" * 999])
def test_another_share_is_one_line(text):
    with pytest.raises(UserError, match="expected a share of the API's right answers, below 1, such as 1% or 0") as caught:
        read_share(text)
    assert len(str(caught.value)) < 200


def test_validation_chooses_and_test_reports():
    """On validation odds of 9 to 1 have to become 3 to 1, and its one harm is surer than its fixes; test has neither."""
    def at(p: float, api: bool, right: bool) -> Outcome:
        return replace(outcome(0.0, api, right), mean_logp=math.log(p), confidence=None)

    validation = [at(0.9, False, True), at(0.9, False, True), at(0.9, False, True), at(0.9, True, False)]
    test = [at(0.9, False, True), at(0.5, False, True)]
    found = measured(7, validation, test, Cost(60, 3.0), 0.5)
    assert found.calibration == Calibration(7, pytest.approx(2.0, rel=1e-4), 1.0)
    assert [o.confidence for o in found.test] == pytest.approx([0.75, 0.5], rel=1e-4)
    estimate = found.estimates["completion"]
    assert (estimate.before.ece, estimate.after.ece) == pytest.approx(((0.1 + 0.5) / 2, (0.25 + 0.5) / 2), rel=1e-4)
    surer = measured(7, [*validation[:3], at(0.8, True, False)], test, Cost(), 0.0).calibration  # now below the fixes
    assert surer.threshold == pytest.approx(Calibration(7, surer.temperature)(math.log(0.9)), abs=1e-6)
