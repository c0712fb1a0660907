"""The alarms of drift, and the truths that tell fixes from harms: numbers worked by hand."""

import logging
import random

import pytest

from adapter.corrector import Corrector
from adapter.prompt import INSTRUCTIONS, TEMPLATE, PromptText
from adapter.serve.background import Background
from adapter.serve.drift import VALIDATION, Drift, Reference, p_value, reference
from adapter.serve.recent import Recent
from adapter.serve.truths import Truths
from adapter.serve.watch import Watch
from adapter.verifiers.choice import Choice
from adapter.verifiers.number import Number
from adapter.verifiers.own import own_verifier
from grpo.types import UserError
from tests.conftest import write_lines
from tests.exchanges import exchange


def corrector(verifier) -> Corrector:
    return Corrector(PromptText(INSTRUCTIONS, TEMPLATE, verifier.form), verifier)


def test_p_values_by_hand():
    assert p_value("share", [1] * 10, [0] * 10) == pytest.approx(2 / 184756)  # the two most uneven of C(20, 10) tables
    assert p_value("share", [1] * 5 + [0] * 5, [1] * 5 + [0] * 5) == 1
    assert p_value("rank", [7.0] * 10, [7.0] * 20) == 1
    # All 20 above all 20: U = 400, mean 200, sd sqrt(20 * 20 * 41 / 12) = 36.97; z = 199.5 / 36.97 = 5.396, no ties
    assert p_value("rank", list(range(20, 40)), list(range(20))) == pytest.approx(6.8e-8, rel=0.01)


def test_an_alarm_rings_once_until_it_clears(caplog):
    """Window 100, looked at every 10; half of 200 said CORRECT in the reference."""
    drift, changes = Drift(Reference(correct=[1.0, 0.0] * 100), window=100), []

    def feed(verdicts) -> None:
        for verdict in verdicts:
            changes.extend((change.name, change.rings) for change in drift(exchange(verdict=verdict)))

    with caplog.at_level(logging.INFO):
        feed(["correct", "override"] * 250)
        assert (changes, drift.rings, drift.values()) == ([], {"correct": False}, {"correct": (0.5, 0.5)})
        feed(["correct"] * 20)  # 60 of 100 against 100 of 200: p = 0.11
        assert changes == []
        feed(["correct"] * 480)
        assert changes == [("correct", True)]
        feed((["correct"] * 13 + ["override"] * 7) * 20)  # 65 of 100: p = 0.02, between ringing and clearing
        assert (changes, 0.001 < drift._watched["correct"].p < 0.05) == ([("correct", True)], True)
        feed(["correct", "override"] * 250)
        assert changes == [("correct", True), ("correct", False)]
    rang, cleared = (record for record in caplog.records)
    assert (rang.levelname, cleared.levelname) == ("WARNING", "INFO")
    assert rang.getMessage().startswith("drift: share of CORRECT has left the reference: 7")  # 70 or 75 of 100
    assert "50.0% of the reference's 200 (p = " in rang.getMessage()
    assert "share of CORRECT is back" in cleared.getMessage()


def test_nothing_is_said_before_the_window_is_full():
    drift = Drift(Reference(no_answer=[0.0] * 300), window=50)
    assert [drift(exchange(api_extracted=None)) for _ in range(49)] == [[]] * 49
    assert [change.name for change in drift(exchange(api_extracted=None))] == ["no_answer"]


def test_another_reference_begins_anew_and_the_same_one_does_not():
    drift = Drift(Reference(no_answer=[0.0] * 300), window=50)
    feed = lambda: [drift(exchange(api_extracted=None)) for _ in range(50)]  # noqa: E731
    feed()
    drift.compare_with(Reference(no_answer=[0.0] * 300))
    assert drift.rings == {"no_answer": True}
    drift.compare_with(Reference(no_answer=[1.0] * 300, correct=[0.0] * 300))
    assert (drift.rings, drift.values()) == ({"correct": False, "no_answer": False}, {})
    assert not any(feed())


def test_each_quantity_is_counted_where_it_is_known():
    known = Reference(correct=[1.0] * 60, api_right=[1.0] * 60, no_answer=[0.0] * 60, length=[9.0] * 60)
    drift = Drift(known, window=2)
    drift(exchange(question=None))  # of another kind
    drift(exchange(api_text=None))
    assert drift.values() == {}
    drift(exchange(verdict=None), "fix")  # not asked: passed by the canary
    drift(exchange(api_extracted=None, api_text="Who knows?"), "harm")
    assert drift.values() == {"api_right": (0.5, 1.0), "no_answer": (0.5, 0.0), "length": (10.0, 9.0)}
    drift(exchange(verdict="correct"))
    assert drift.values()["correct"] == (0.5, 1.0)


def test_lengths_that_move_ring_and_those_that_do_not_are_silent():
    rng = random.Random(1)
    drift = Drift(Reference(length=[float(rng.randint(20, 60)) for _ in range(300)]), window=200)
    same = [drift(exchange(api_text="x" * rng.randint(20, 60))) for _ in range(400)]
    assert same == [[]] * 400
    assert drift.rings == {"length": False}
    rang = [change for _ in range(200) for change in drift(exchange(api_text="x" * rng.randint(40, 90)))]
    assert [change.name for change in rang] == ["length"]
    assert "median length of API texts has left the reference" in rang[0].line


def test_the_reference_is_the_runs_own(tmp_path):
    assert reference(tmp_path) == Reference()  # never evaluated: nothing is watched
    (tmp_path / "evaluate").mkdir()
    write_lines(tmp_path / VALIDATION, [
        {"verdict": said, "final": None, "api_answer": text, "api_extracted": found, "api_right": right}
        for said, text, found, right in (("correct", "1", "1", True), ("override", "It is 1.", "1", False),
                                         ("unparsed", "", None, False))])
    assert reference(tmp_path) == Reference([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 8.0, 0.0])
    (tmp_path / VALIDATION).write_text('{"verdict": "maybe"}\n')
    with pytest.raises(UserError, match=r"validation.jsonl: line 1: verdict: .*adapter.evaluate .* writes it anew"):
        reference(tmp_path)


# ---- all that watches


def test_a_watch_judges_compares_and_counts(truths):
    watch = Watch(Recent(), truths, Drift(Reference(api_right=[1.0] * 200), window=20))
    for _ in range(20):
        watch(exchange(1))
    watch.close()
    assert watch.recent.totals.judged == watch.recent.totals.proposed == {"fix": 20}
    (note,) = watch.notes
    assert note.startswith("the API's accuracy has left the reference: 0.0% of the last 20, 100.0% of")


def test_what_breaks_in_the_background_ends_nothing(caplog):
    done = []
    work = Background(lambda exchange: done.append(1 / (exchange.status - 200)), "work")
    for status in (200, 201, 200, 201):
        work(exchange(1, status=status))
    work.close()
    assert (done, work.broken, work.lost) == ([1.0, 1.0], 2, 0)
    assert "work: ZeroDivisionError" in caplog.text


# ---- truths


@pytest.fixture
def truths(tmp_path):
    write_lines(tmp_path / "truths.jsonl", [{"question": "What is 1 + 1?", "answer": 2},
                                            {"question": "And 2?", "answer": [3, 4]}])
    return Truths(tmp_path / "truths.jsonl", corrector(Number()))


@pytest.mark.parametrize(("changes", "judged", "proposed"), [
    ({}, "fix", "fix"),  # the API 1, the adapter 2
    ({"api_text": "It is 2.", "final": "5", "completion": r"\boxed{5}"}, "harm", "harm"),
    ({"action": "kept", "why": "shadow", "final": "1"}, "both wrong", "fix"),
    ({"action": "kept", "api_text": "2", "completion": r"\boxed{9}", "final": "2"}, "both right", "harm"),
    ({"action": "agreed", "completion": r"\boxed{CORRECT}", "final": "1"}, "both wrong", "both wrong"),
    ({"action": "agreed", "api_text": "2", "completion": r"\boxed{CORRECT}", "final": "2"}, "both right", "both right"),
    ({"action": "kept", "api_text": "2", "completion": "no box", "final": "2"}, "both right", "both right"),
    ({"action": "passed", "completion": None, "api_text": "2"}, "both right", None),
    ({"api_text": "no number", "action": "kept", "final": None}, "both wrong", "fix"),
    ({"question": "What  is 1 + 1? "}, "fix", "fix"),
    ({"question": "And 2?", "api_text": "4", "final": "3", "completion": r"\boxed{3}"}, "both right", "both right"),
    ({"question": "Another?"}, None, None), ({"question": None}, None, None), ({"api_text": None}, None, None),
])
def test_fixes_and_harms(truths, changes, judged, proposed):
    one = exchange(1, **changes)
    assert (truths.judged(one), truths.proposed(one)) == (judged, proposed)


def test_a_rows_own_choices_are_read(tmp_path):
    """The gateway knows no choices of a question; its truth does."""
    write_lines(tmp_path / "truths.jsonl", [{"question": "Which?", "answer": "red", "choices": ["red", "blue"]}])
    truths = Truths(tmp_path / "truths.jsonl", corrector(Choice(field="choices")))
    one = exchange(1, question="Which?", api_text="I say red.", api_extracted=None, action="agreed", final=None,
                   completion=r"\boxed{CORRECT}")
    assert (len(truths), truths.judged(one)) == (1, "both right")


def test_a_verifier_that_fails_judges_nothing_and_is_said(tmp_path, caplog):
    (tmp_path / "mine.py").write_text("def verify(row, answer):\n    return 1 / 0\n")
    write_lines(tmp_path / "truths.jsonl", [{"question": "What is 1 + 1?", "answer": 2}])
    own = own_verifier(f"{tmp_path}/mine.py:verify", True, 5.0, 1, None)
    truths = Truths(tmp_path / "truths.jsonl", corrector(own))
    assert truths.judged(exchange(1)) is None
    assert truths.failed == 1
    assert "the verifier failed, and 1 answers are not judged" in caplog.text


def test_a_truth_that_cannot_be_read_is_named_by_its_line(tmp_path):
    write_lines(tmp_path / "truths.jsonl", [{"question": "What is 1 + 1?", "answer": "two"}])
    with pytest.raises(UserError, match=r"truths.jsonl: line 1: 'two' is no"):
        Truths(tmp_path / "truths.jsonl", corrector(Number()))
