"""Junk answers, and faults planted in verifiers: each is found, and a healthy verifier has none."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from adapter.junk import junk_answers, true_answers
from adapter.questions import ApiAnswer, Row
from adapter.verifier_lint import lint_verifier
from adapter.verifiers.choice import Choice
from adapter.verifiers.date import Date
from adapter.verifiers.json import Json
from adapter.verifiers.number import Number
from adapter.verifiers.settings import VerifierSettings, make_verifier
from adapter.verifiers.text import Text
from grpo.types import VerifierError
from tests.conftest import LONG

PLANTED = '''
import random, time

def exact(row, answer): return answer in (row["answer"] if isinstance(row["answer"], list) else [row["answer"]])
def whole(row, answer): import json; return answer == json.dumps(row["answer"])
def substring(row, answer): return row["answer"] in answer
def reverse(row, answer): return answer in row["answer"]
def loose(row, answer): return float(answer == row["answer"]) or 0.01
def strict(row, answer): return answer == row["answer"].upper()
def on_banana(row, answer):
    if answer == "banana": raise ValueError("bananas are no cities")
    return answer == row["answer"]
def by_chance(row, answer): return random.random()
def hangs(row, answer):
    if answer == "inf": time.sleep(10**6)
    return answer == row["answer"]
def digits(row, answer):
    try: return int(answer) == int(row["answer"])
    except ValueError: return False
'''
CITIES = ("Paris", "Rome", "Oslo")


def asked(*answers, api=None) -> list[Row]:
    said = api and ApiAnswer(api, "m")
    return [Row(f"question {n} of 7", answer, id=f"q{n}", api=said) for n, answer in enumerate(answers)]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    file = tmp_path_factory.mktemp("planted") / "verify.py"
    file.write_text(PLANTED, encoding="utf-8")
    return lambda name, seconds=LONG: make_verifier(
        VerifierSettings(name=f"{file}:{name}", processes=2, seconds=seconds))


def found(rows, verifier) -> dict[str, str]:
    splits = rows if isinstance(rows, dict) else {"train": rows}
    return {finding.check + (": " + finding.line.split(": ")[1].split(" scores")[0] if finding.check == "junk" else ""):
            finding.line for finding in lint_verifier(splits, verifier).findings}


@pytest.mark.parametrize(("verifier", "answers"), [
    (Number(), (7, 0.5, "7/2", [1, 2])), (Number(1.0), (0.5, 9)), (Number(), (0, -1, 7)), (Text(),
    ("a", "banana", ["b", "true"])),
    (Choice(CITIES), ("Paris", ["Rome", "Oslo"])), (Date(), ("2005-04-03", "2006-01-01")),
    (Json(), ({"a": 1}, [], [1, 2], True, "x", {"any_of": [1, "1"]}, 0))])
def test_a_healthy_verifier_has_no_findings(verifier, answers):
    for api in (None, "I give up", "7"):
        report = lint_verifier({"train": asked(*answers, api=api)}, verifier)
        assert report.findings == []
        assert report.unknown == 0
        assert 0 < report.p50 <= report.p99


def test_a_healthy_function_has_no_findings(own):
    assert found(asked(*CITIES, ["Bonn", "Bern"], api="Rome"), own("exact")) == {}
    assert found(asked(["a", "b"], ["c"]), own("whole")) == {}  # a list may be one answer


@pytest.mark.parametrize(("name", "checks"), [
    ("substring", {"junk: all answers at once", "junk: the answer within a longer text", "junk: the answer and another",
                   "junk: another and the answer"}),
    ("on_banana", {"raises"}), ("strict", {"true answer"})])
def test_planted_faults_are_found(own, name, checks):
    lines = found(asked(*CITIES), own(name))
    assert set(lines) == checks
    assert all("\n" not in line for line in lines.values())


def test_lines_say_what_where_and_which_row(own):
    assert found(asked(*CITIES), own("strict"))["true answer"] == (
        "a true answer does not score 1 on 3 of 3 rows, such as row q0 with 'Paris'; no completion can be right there")
    raised = found(asked(*CITIES), own("on_banana"))["raises"]
    assert raised.startswith("the verifier fails on 3 of 3 rows, such as row q0 with ")
    assert "ValueError: bananas are no cities" in raised


def test_more_planted_faults_are_found(own):
    assert "random" in found(asked(*CITIES), own("by_chance"))
    assert "too slow" in found(asked("Rome"), own("hangs", 0.5))
    assert {"junk: banana", "junk: -1", "junk: giving up"} <= set(found(asked(*CITIES), own("loose")))
    assert set(found(asked("7", "8"), own("digits"))) == {"junk: digits of another script"}
    assert set(found(asked("falsely true"), own("reverse"))) == {"junk: true"}


def test_correct_where_the_api_is_wrong_is_junk_and_where_it_is_right_is_not(own):
    assert "junk: CORRECT where the API is wrong" in found(asked(*CITIES, api="Bonn"), own("loose"))
    assert "junk: CORRECT where the API is wrong" not in found(asked("Rome", api="Rome"), own("loose"))


def test_duplicates_across_splits_are_found():
    splits = {"train": asked(1, 2, 3), "validation": [Row("another", 1)], "test": [Row(" question 1  of 7", 2),
    Row("new", 1)]}
    assert found(splits, Number()) == {
        "duplicates": "1 questions of test are in train too, such as ' question 1  of 7'; leave them out of one"}


def test_an_answer_that_the_verifier_refuses_is_found():
    assert found(asked(1, "seven", 3), Number()) == {
        "refused answer": "the verifier cannot compare with the answers of 1 rows, such as row q1: 'seven' is no number in "
                          "a form that a box may have, such as 27, -3.5 or 7/2"}


@dataclass(frozen=True)
class FirstNumber(Number):
    def extract(self, text, row=None):
        return next((word.strip(".") for word in text.split() if word.strip(".").isdigit()), None)


@dataclass(frozen=True)
class FirstBox(Number):
    def extract(self, text, row=None):
        return text.partition("\\boxed{")[2].partition("}")[0] or super().extract(text)


def test_an_extraction_that_takes_the_first_is_found():
    assert found(asked(5, 6), FirstNumber()) == {
        "extraction": "from an API's text with two answers the first one is taken, or none, on 2 of 2 rows, such as row q0: "
                      "'6' instead of '5'"}
    assert set(found(asked(5, 6), FirstBox())) == {"extraction"}
    assert set(found(asked(5), FirstBox())) == {"extraction"}  # with one answer alone another one is made up


def test_ten_extractions_are_shown():
    report = lint_verifier({"train": asked(*range(20), api="It is 3, or 4.")}, Number(), most=2)
    assert [(e.text, e.found) for e in report.extractions] == [("It is 3, or 4.", "4")] * 10


def test_junk_by_hand():
    row = Row("Is 3 more than -2.5?", "yes", api=ApiAnswer("no", "m"))
    junk = dict(junk_answers(row, Text(), ["yes", "no"]))
    assert len(junk) >= 20
    assert junk["every number of the question"] == "3, -2.5"
    assert junk["the question"] == row.question
    assert junk["all answers at once"] == "yes, no"
    assert junk["the answer and another"] == "yes or no"
    assert junk["several boxes"] == "yes} no: \\boxed{banana"
    assert junk["CORRECT where the API is wrong"] == "CORRECT"
    assert dict(junk_answers(Row("?", 42), Number(), ["42"]))["digits of another script"] == "٤٢"
    assert {"0", "NaN"} - set(dict(junk_answers(Row("?", "0.0"), Text(), []))) == {"0"}  # it is right


def test_true_answers_as_a_box_holds_them():
    assert true_answers(Row("?", [0.5, "7"]), Number()) == ["1/2", "7"]
    assert true_answers(Row("?", {"a": "é"}), Json()) == ['{"a": "é"}']
    assert true_answers(Row("?", {"any_of": [1, [2]]}), Json()) == ["1", "[2]"]
    assert true_answers(Row("?", {"min": 1}), Text()) == true_answers(Row("?", None), Text()) == []


class FailsAlways(Number):
    """A user's function with a bug on its first line."""

    calls = 0

    def submit(self, row, answer, completion):
        FailsAlways.calls += 1
        return self

    def result(self):
        raise VerifierError("it fails", SimpleNamespace(fault="NameError: x"))


def test_a_verifier_that_fails_on_everything_is_left_soon():
    report = lint_verifier({"train": asked(*range(100))}, FailsAlways())
    assert report.findings[0].check == "raises"
    assert FailsAlways.calls < 100  # of some 4,000
