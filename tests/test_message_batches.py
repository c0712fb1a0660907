"""Batches: asked once, waited for, and found again after a kill at any moment."""

import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from adapter.api.claude import ClaudeUpstream
from grpo.types import UserError
from tests.claude import INSTRUCTION, KEY, expected, questions, rows, texts
from tests.conftest import ROOT


@pytest.fixture
def batches(claude) -> ClaudeUpstream:
    return replace(claude, batch=True)


def test_a_batch_is_asked_waited_for_and_kept(server, batches, capsys):
    asked = questions(40)
    assert texts(batches, asked) == expected(asked)
    assert list(server.batches) == ["msgbatch_1"]
    assert not list(batches.store.parent.glob("*.batch.json"))
    assert texts(replace(batches, batch=False), asked) == expected(asked)
    assert len(server.asked) == 40
    characters = sum(len(INSTRUCTION + q.question) for q in asked)
    assert f"${(characters // 3 * 1.0 + 40 * 64 * 5.0) / 2e6:.2f}" in capsys.readouterr().err  # half the price


def test_what_failed_in_a_batch_is_asked_again(server, batches):
    bad = iter([{"type": "expired"}, {"type": "errored", "error": {"type": "error", "error": {
        "type": "invalid_request_error", "message": "too silly"}}}, {"type": "canceled"}])
    usual = server.batch_results
    server.batch_results = lambda entry: next(bad, None) or usual(entry)
    asked = questions(12)
    with pytest.raises(UserError, match="3 of 12 questions have no answer yet"):
        batches.answers(asked)
    assert {row["error"] for row in rows(batches)} == {None, "batch request expired", "batch request errored: too silly",
                                                       "batch request canceled"}
    assert texts(batches, asked) == expected(asked)
    assert [len(b["requests"]) for b in server.batches.values()] == [12, 3]


@pytest.mark.parametrize("fault", ["closed", "500", "hangs", "429 retry-after 0.01"])
def test_a_submission_is_never_tried_twice(server, batches, fault):
    server.faults.append(fault)  # the server has the batch, but does not say so
    asked = questions(10)
    with pytest.raises(UserError, match="run again to go on"):
        replace(batches, timeout_s=0.5).answers(asked)
    assert texts(batches, asked) == expected(asked)
    assert len(server.batches) == 1


@pytest.mark.parametrize("fault", ["cut short", "half a JSON"])  # the SDK passes over half a line without a word
def test_results_that_break_off_are_read_again(server, batches, fault):
    server.result_faults.append(fault)
    asked = questions(20)
    with pytest.raises(UserError, match="run again to go on"):
        batches.answers(asked)
    assert texts(batches, asked) == expected(asked)
    assert len(server.batches) == 1
    assert len(rows(batches)) == 20


def test_many_go_in_several_batches(server, batches, monkeypatch):
    monkeypatch.setattr("adapter.api.message_batches.MOST", 10)
    asked = questions(25)
    assert texts(batches, asked) == expected(asked)
    assert [len(b["requests"]) for b in server.batches.values()] == [10, 10, 5]


def test_what_a_batch_says_is_scrubbed(server, batches):
    server.batch_results = lambda entry: {"type": "errored", "error": {"type": "error", "error": {
        "type": "api_error", "message": f"bad key {KEY}\nand more"}}}
    with pytest.raises(UserError) as caught:
        batches.answers(questions(3))
    assert KEY not in str(caught.value) + batches.store.read_text()
    assert "\n" not in str(caught.value)
    server.batch_results = lambda entry: {"type": "errored", "error": None}
    with pytest.raises(UserError, match=r"3 of 3 questions have no answer yet \(3 x batch request errored\);"):
        batches.answers(questions(3))


def killed(batches: ClaudeUpstream, *, when: str) -> None:
    """Run the first part of a batch in a process that dies at a given place."""
    code = f"""
import os, signal
from pathlib import Path
from adapter.api import message_batches as m
from adapter.api.claude import ClaudeUpstream
from tests.claude import INSTRUCTION, questions
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
{when}
upstream = ClaudeUpstream("anthropic", {batches.model!r}, Path({str(batches.store)!r}), agreed=True, batch=True,
                          poll_s=0.02, prompt=INSTRUCTION + "{{question}}")
upstream.answers(questions(25))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(("when", "submitted_before"), [
    ("import anthropic.resources.messages.batches as b; b.AsyncBatches.create = die", 0),  # written down, not submitted
    ("write = m._write; m._write = lambda s, n: die() if n['id'] else write(s, n)", 1),  # submitted, id not written down
    ("m._keep = die", 1),  # ended, nothing kept
    ("keep, n = m._keep, iter(range(10)); m._keep = lambda *a: die() if next(n, None) is None else keep(*a)", 1)])
def test_a_batch_survives_a_kill_anywhere(server, batches, when, submitted_before):
    killed(batches, when=when)
    assert len(server.batches) == submitted_before
    asked = questions(25)
    assert texts(batches, asked) == expected(asked)
    assert len(server.batches) == 1
    assert len(rows(batches)) == 25  # one row a question
    assert not list(batches.store.parent.glob("*.batch.json"))


def test_an_unfinished_batch_is_collected_before_anything_else_is_asked(server, batches):
    killed(batches, when="m._keep = die")
    more = questions(30)
    assert texts(replace(batches, batch=False), more) == expected(more)
    assert len(server.asked) == 30


def test_the_batch_that_fits_in_size_and_time_is_taken_for_ours(server, batches):
    killed(batches, when="write = m._write; m._write = lambda s, n: die() if n['id'] else write(s, n)")
    strangers = {"too old": (25, -3600), "too new": (25, 3600), "smaller": (24, 0), "further away": (25, -300)}
    for name, (size, seconds) in strangers.items():
        created = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        server.batches[name] = {"polls": 0, "requests": [], "batch": server.batches["msgbatch_1"]["batch"] | {
            "id": name, "created_at": created, "request_counts": {"processing": 0, "succeeded": size, "errored": 0,
                                                                  "canceled": 0, "expired": 0}}}
    assert texts(batches, questions(25)) == expected(questions(25))
    assert [name for name, entry in server.batches.items() if entry["polls"]] == ["msgbatch_1"]
    assert len(server.batches) == 1 + len(strangers)


def test_where_ours_never_arrived_it_is_submitted(server, batches):
    killed(batches, when="import anthropic.resources.messages.batches as b; b.AsyncBatches.create = die")
    server.polls_until_ended = 1
    replace(batches, store=batches.store.with_name("other.jsonl")).answers(questions(24))
    assert texts(batches, questions(25)) == expected(questions(25))
    assert [len(b["requests"]) for b in server.batches.values()] == [24, 25]


def test_another_batch_is_not_waited_for(server, batches):
    killed(batches, when="m._keep = die")
    other, polls = questions(5, start=500), server.batches["msgbatch_1"]["polls"]
    assert texts(replace(batches, batch=False), other) == expected(other)
    assert server.batches["msgbatch_1"]["polls"] == polls


def test_a_batch_that_is_gone_is_one_line(server, batches):
    killed(batches, when="m._keep = die")
    server.batches.clear()
    with pytest.raises(UserError, match=r"batch msgbatch_1 or its results are no longer on the server; delete .*batch.json"):
        batches.answers(questions(25))
    sidecar = next(batches.store.parent.glob("*.batch.json"))
    for damage in ("{", '{"id": null, "submitted": "soon", "requests": {}}', '{"id": 1, "submitted": "", "requests": {}}'):
        sidecar.write_text(damage)
        with pytest.raises(UserError, match="no record of a batch"):
            batches.answers(questions(25))
