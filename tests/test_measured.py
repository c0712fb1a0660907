"""What an evaluation prints, writes and draws, of one kind of question, of three, and of more than there are colours."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from adapter.confidence import Token
from adapter.measure import confidence_report, plots, report
from adapter.measure.accuracy import api_alone, chain, rewarded
from adapter.measure.answering import Cost
from adapter.measure.confidence_plots import draw_confidence
from adapter.measure.confidence_report import Confidence, measured, token_line
from adapter.measure.outcomes import FAILURES, Outcome
from adapter.measure.report import Evaluated
from adapter.measure.sections import Section
from adapter.measure.tables import WIDTH, accuracy_table, api_table, cut, failure_table, kind_table
from tests.test_outcomes import PLAIN, asked

LONG = "How many " + "very " * 200 + "\x1b[2J small\nlegs has a spider?"


def outcomes(kinds: list[str], completion: str = r"\boxed{8}") -> list[Outcome]:
    """Of each kind a question that the API answers right, and one that it does not."""
    rows = [asked(8, api, kind, LONG) for kind in kinds for api in ("They have 8.", "They have 6.")]
    return PLAIN.judged(rows, [completion] * len(rows), [False] * len(rows))


def boxed(outcome: Outcome, p: float) -> Outcome:
    """With such a probability of each token, and of its box, 8 and a brace."""
    box = [Token("8", math.log(p)), Token("}", 0.0)]
    mean = None if outcome.verdict == "unparsed" else math.log(p)
    return replace(outcome, mean_logp=mean, box=box, doubt=Token("so", -3.0))


def sure(found: list[Outcome], harm_below: float | None = 0.01) -> Confidence:
    """Of outcomes that are as sure as 0.9, 0.8, 0.9, ... on validation and on test."""
    found = [boxed(o, 0.9 - 0.1 * (n % 2)) for n, o in enumerate(found)]
    agreements = "agreement of 8", [o.mean_logp for o in found], [None] * len(found), Cost(640, 2.0)
    return measured(10, found, found, Cost(80, 0.5), harm_below, agreements)


def evaluated(kinds: list[str], **others: object) -> Evaluated:
    found, always = outcomes(kinds), outcomes(kinds, r"\boxed{CORRECT}")
    now = rewarded("adapter", found)
    return Evaluated(**{
        "run": Path("runs/mine"), "step": 10, "until": 20, "base": "models/base", "task": "adapter.task:CorrectorTask",
        "api": "an API", "entries": {"api": api_alone("an API alone", always), "adapter": chain("adapter, step 10", found),
                                     "always_correct": chain("always CORRECT", always)},
        "outcomes": {"adapter": found}, "classes": FAILURES, "measured": {0: rewarded("base", always), 10: now},
        "validation": {0: rewarded("base", always), 10: now}, "sections": [], "notes": ["one"], "confidence": sure(found),
        "rewards": {kind: {1: 0.25, 2: 0.5} for kind in [*kinds, "overall"]}} | others)


KINDS = [["all"], ["b", "a"], ["b", "a", "c"], [f"a kind with a name that is long, and the number {n}" for n in range(10)]]


@pytest.mark.parametrize("kinds", KINDS, ids=len)
def test_every_line_fits_and_can_be_printed(kinds):
    lines = report.text(evaluated(kinds)).splitlines()
    assert [line for line in lines if len(line) > WIDTH or not line.isprintable()] == []


def test_what_a_reader_asks_first_stands_first():
    lines = report.text(evaluated(["b", "a"])).splitlines()
    assert lines[:9] == [
        "runs/mine: the adapter of step 10, the best of 2 on validation (100.0 %); trained to step 20", "base models/base",
        "behind an API", "4 test questions: 2 b, 2 a", "",
        "accuracy: API alone 50.0 % -> with the adapter 100.0 %",
        "net lift +50.0 [0.0, 100.0] points; 2 of 2 API errors fixed, 0 of 2 right answers harmed",  # 1/16 at each end
        "note: one", ""]


def test_one_kind_has_no_column_twice():
    found = evaluated(["animals"])
    adapter = found.entries["adapter"]
    assert accuracy_table([adapter])[0].split() == ["overall"]
    assert kind_table(found.entries["api"], adapter) == []
    assert "animals" not in report.text(found)
    assert json.loads(json.dumps(report.data(found)))["kinds"] == {"animals": 2}


def test_two_kinds_stand_beside_each_other_and_more_below():
    two, three = evaluated(["b", "a"]).entries["adapter"], evaluated(["b", "a", "c"])
    table = accuracy_table([two])
    assert table[0].split() == ["b", "a", "overall"]
    assert table[1].split() == ["adapter,", "step", "10", *["100.0", "%", "[34.2,", "100.0]"] * 2, "100.0", "%", "[51.0,",
                                "100.0]"]
    adapter = three.entries["adapter"]
    assert accuracy_table([adapter])[0].split() == ["overall"]
    below = kind_table(three.entries["api"], adapter)
    assert [line.split()[0] for line in below[1:]] == ["b", "a", "c", "overall"]
    assert below[1].split() == ["b", "2", "50.0", "%", "100.0", "%", "+50.0", "[0.0,", "100.0]", "1", "0", "1"]


def test_a_ratio_without_harms_is_infinite_and_of_nothing_a_dash():
    found = evaluated(["a"])
    cells = [[word.strip() for word in line.split("  ") if word.strip()] for line in api_table(list(found.entries.values()))]
    assert cells[0] == ["adapter, step 10", "always CORRECT"]
    assert cells[3] == ["fixes / harms", "infinite (1/0)", "- (0/0)"]
    assert cells[6] == ["precision of CORRECT", "-", "50.0 % (1/2)"]
    assert cells[7] == ["recall of CORRECT", "0.0 % (0/1)", "100.0 % (1/1)"]
    text = json.dumps(report.data(found), allow_nan=False)
    made = json.loads(text)["policies"]["adapter"]["against_api"]["overall"]
    assert (made["ratio"], made["fixes"], made["harms"]) == ("infinite", 1, 0)
    assert json.loads(text)["policies"]["always_correct"]["against_api"]["overall"]["ratio"] is None


def test_failures_have_examples_that_show_the_box():
    found = outcomes(["a"], "x" * 500 + r" \boxed{7}") + outcomes(["a"], "\x1b]0;yours\x07 nothing") + outcomes(["a"])
    lines = failure_table("adapter", found, FAILURES)
    assert lines[0] == "failures of the adapter: 4 of 6"
    counted = {line[2:18].strip(): int(line[18:]) for line in lines[1:] if not line.startswith("      ")}
    assert counted == {"truncated": 0, "unparsed": 2, "wrong agreement": 0, "echo": 0, "wrong override": 2}
    assert lines[-1].endswith(r" ... " + "x" * (len(lines[-1]) - lines[-1].index(" ... ") - 15) + r" \boxed{7}")
    assert all(line.isprintable() and len(line) <= WIDTH for line in lines)
    assert "| true: 8 | API: 6 |" in lines[-1]


def test_a_line_a_question_in_completions():
    found = {"adapter": outcomes(["a"]), "base": outcomes(["a"], "?")}
    lines = [json.loads(line) for line in report.completion_lines(found).splitlines()]
    assert lines[1] == {
        "id": "line 1", "question": LONG, "kind": "a", "answer": 8, "api_answer": "They have 6.", "api_extracted": "6",
        "api_right": False, "completion": r"\boxed{8}", "verdict": "override", "final": "8", "right": True, "failure": None,
        "base": {"completion": "?", "verdict": "unparsed", "final": None, "right": False, "failure": "unparsed"}}


def test_confidence_in_a_line_a_question_and_token_by_token():
    (one, *_) = sure(outcomes(["a"])).test
    line = json.loads(report.completion_lines({"adapter": [one]}))
    assert (line["confidence"], line["box"]) == (pytest.approx(0.9), [["8", pytest.approx(0.9)], ["}", 1.0]])
    assert (line["mean_probability"], line["least_sure"]) == (pytest.approx(0.9), ["so", pytest.approx(0.0498, abs=1e-4)])
    assert token_line(one) == r"\boxed{ 8 .90 } 1.00 | least sure of: so .05"
    box = [Token("{ ", -0.1), Token("8", -3.0), Token("}.", -7.0)]
    spaced = replace(one, completion="so \\boxed{ 8}.", box=box, doubt=Token("", -0.7))
    assert token_line(spaced) == "\\boxed {\u2423 .90 8 .05 }. .00 | least sure of: (end) .50"


def test_what_is_said_of_confidence():
    lines = confidence_report.lines(sure(outcomes(["a", "b"])))
    cells = {line[:30].strip(): line[30:].split() for line in lines}
    assert lines[1].split() == ["all", "tokens", "the", "box", "agreement", "of", "8"]
    assert cells["temperature"] == ["1", "1", "1"]
    assert cells["expected calibration error"] == [*["0.1500", "->", "0.1500"] * 2, "1.0000", "->", "1.0000"]  # 0.1, 0.2; 1
    assert cells["AURC"] == ["0.0000"] * 3
    assert cells["more tokens a question"] == ["0.0", "0.0", "80.0"]
    assert "note: of the temperature of all tokens: it is not fitted: all 4 answers are right on validation" in lines
    whole = " ".join(lines)
    assert "harm below 1 %: threshold 0, which lets everything through (--threshold auto), chosen on validation: fixes 2, " \
           "harms 0 of 2 right answers (0.0 % [0.0, 65.8]), net lift +50.0 [0.0, 100.0] points on test: fixes 2," in whole
    assert "note: validation has 2 right answers of the API: no harm to any of them leaves a harm rate of up" in whole
    assert [line.split()[:4] for line in lines if line[:3] in ("0.8", "0  ", "1  ")] == [  # rounded down
        ["0", "4", "2", "0"], ["0.8", "4", "2", "0"], ["0.899999", "2", "0", "0"], ["1", "0", "0", "0"]]
    assert not any("harm below" in line for line in confidence_report.lines(sure(outcomes(["a"]), None)))
    nothing = confidence_report.lines(sure(outcomes(["a"], "no box")))
    assert "note: of the temperature of the box: it is not fitted: there is no answer on validation" in nothing


def test_a_tasks_own_part_is_in_the_report():
    drawn = Section("moons", ["phases", "x" * 200], {"full": 1}, lambda path, subtitle: path.write_text(subtitle))
    found = evaluated(["a"], sections=[drawn])
    assert report.text(found).splitlines()[-2:] == ["phases", "x" * 97 + "..."]
    assert report.data(found)["moons"] == {"full": 1}
    assert report.check_names([drawn]) == ["moons"]
    for name in ("policies", "../up", "", "reward", "notes", "confidence", "reliability", "risk_coverage"):
        with pytest.raises(ValueError, match="nothing else in the report has"):
            report.check_names([Section(name, [])])
    with pytest.raises(ValueError, match="section 'moons'"):
        report.check_names([drawn, drawn])


@pytest.mark.parametrize(("value", "most", "shown"), [
    ("a  b\n c", 9, "a b c"), ("abcdefgh", 6, "abc..."), ("a\x1bb", 9, "a\\x1bb"), ("ab" + "\x1b" * 9, 8, "ab\\x1...")])
def test_cut(value, most, shown):
    assert cut(value, most) == shown


@pytest.mark.parametrize(("counts", "drawn"), [
    ({"a": 5, "overall": 5}, ["overall"]),
    ({"b": 1, "a": 5, "overall": 6}, ["b", "a"]),
    ({str(n): 1 for n in range(8)}, [str(n) for n in range(8)]),
    ({**{str(n): n for n in range(9)}, "overall": 36}, ["overall", *"2345678"])])
def test_which_kinds_are_drawn(counts, drawn):
    assert plots.drawn_kinds(counts) == drawn
    colours = plots.colours_of(drawn)
    assert list(colours) == drawn
    assert len(set(colours.values())) == len(drawn)


@pytest.mark.parametrize("kinds", KINDS, ids=len)
def test_pictures_of_any_kinds(kinds, tmp_path):
    found = evaluated(kinds)
    colours = plots.colours_of(plots.drawn_kinds(found.kinds))
    plots.reward_plot(tmp_path / "reward.png", found.rewards, colours, "x" * 500)
    plots.accuracy_plot(tmp_path / "accuracy.png", found.measured, found.validation, 10, [("API", kinds[0], 0.5)], colours,
                        "一")  # which the font lacks
    draw_confidence(found.confidence, found.entries["api"], tmp_path, "x" * 500)
    for name in ("reward.png", "accuracy.png", "reliability.png", "risk_coverage.png"):
        png = (tmp_path / name).read_bytes()
        assert png.startswith(b"\x89PNG")
        assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == (1920, 1080)
        assert len(png) > 20_000


@pytest.mark.parametrize(("wanted", "heights", "places"), [
    ([0.1, 0.5, 0.9], [0.1] * 3, [0.1, 0.5, 0.9]),
    ([0.50, 0.52], [0.1] * 2, [0.46, 0.56]),
    ([0.30, 0.40, 0.40], [0.1] * 3, [0.8 / 3, 1.1 / 3, 1.4 / 3]),  # want 0.3, 0.3, 0.2 less their offsets
    ([0.50, 0.52], [0.1, 0.3], [0.41, 0.61]),
    ([1.0, 1.0, 1.0], [0.1] * 3, [0.8, 0.9, 1.0]),  # none above the top
    ([], [], []),
])
def test_labels_keep_apart(wanted, heights, places):
    assert plots.spread(wanted, heights, 1.0) == pytest.approx(places)
