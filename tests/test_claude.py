"""The real client against a server on this machine: asked once, kept, and never talked into silliness."""

import asyncio
import io
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from adapter.api.answers import AnswerStore
from grpo.types import UserError
from tests.claude import INSTRUCTION, KEY, expected, questions, rows, texts
from tests.conftest import ROOT


class Terminal(io.StringIO):
    """A person at the keyboard."""

    def isatty(self) -> bool:
        return True


def test_every_question_is_asked_once_and_kept(server, claude):
    asked = questions(60)
    assert texts(claude, asked) == expected(asked)
    assert texts(claude, asked + asked) == 2 * expected(asked)
    assert len(server.asked) == 60  # nothing is paid for twice
    row = rows(claude)[0]
    assert set(row) == {"key", "request", "text", "stop_reason", "usage", "error", "date"}
    assert (row["usage"], row["stop_reason"], row["error"]) == ({"input_tokens": 9, "output_tokens": 2}, "end_turn", None)
    assert {h["authorization"] for h in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in claude.store.read_text()
    assert claude.answers(asked)[0].date == datetime.now(UTC).date().isoformat()


def test_no_more_are_asked_at_once_than_agreed_and_no_fewer(server, claude):
    server.latency_s = 0.05
    claude.answers(questions(60))
    assert server.most_at_once == claude.concurrency == 8


def test_answers_that_are_cut_off_are_pointed_out(server, claude, capsys):
    server.faults += [{"content": [], "stop_reason": "max_tokens"}] * 3
    assert texts(claude, questions(10)).count("") == 3
    assert "3 of 10 answers were cut off at 64 tokens; --max-tokens" in capsys.readouterr().err


def test_it_works_where_a_loop_runs_already(server, claude):
    async def notebook():
        return texts(claude, questions(5))

    assert asyncio.run(notebook()) == expected(questions(5))


def test_reading_goes_on_where_it_ended(server, claude):
    claude.answers(questions(40))
    store = AnswerStore(claude.store)
    assert len(store.read()) == 40
    with claude.store.open("r+b") as file:
        file.write(b"x")  # line 1 is damaged, but was read
    claude.answers(questions(45))
    assert len(store.read()) == 45
    claude.store.write_text("")
    assert store.read() == {}


@pytest.mark.parametrize(("name", "value", "words"), [
    ("ANTHROPIC_BASE_URL", "http://127.0.0.1:abc", "Invalid port"),
    ("ANTHROPIC_BASE_URL", "127.0.0.1", "missing here: an address with a protocol"),
    ("ANTHROPIC_BASE_URL", " ", "protocol"),
    ("HTTPS_PROXY", "ftp://127.0.0.1:9", "no connection .*scheme.* HTTPS_PROXY"),
    ("ALL_PROXY", "http://127.0.0.1:abc", "no connection .*Invalid port.* ALL_PROXY"),
    ("SSL_CERT_FILE", "/nowhere", "no connection .*No such file.* SSL_CERT_FILE"),
    ("SSL_CERT_FILE", __file__, "no connection .*SSLError.* SSL_CERT_FILE"),
    ("ANTHROPIC_API_KEY", "  ", r"missing here: an API key .*, or a token \(ANTHROPIC_AUTH_TOKEN\)")])
def test_an_address_or_key_that_is_none_is_one_line(server, claude, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("anthropic._base_client.INITIAL_RETRY_DELAY", 0.01)
    with pytest.raises(UserError, match=words):
        claude.answers(questions(1))


def test_a_place_that_is_no_file_is_one_line(server, claude, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        replace(claude, store=tmp_path).answers(questions(1))


def test_model_and_parameters_are_part_of_the_question(server, claude):
    asked = questions(5)
    for upstream in (claude, replace(claude, model="claude-opus-5"), replace(claude, max_tokens=65), claude):
        upstream.answers(asked)
    assert len(server.asked) == 15


def test_a_request_is_known_by_the_name_it_always_had(server, claude):
    """The SHA-256 of {"max_tokens": 64, "messages": [{"content": "...", "role": "user"}], "model": "claude-haiku-4-5"}."""
    claude.answers(questions(1, start=36))
    assert rows(claude)[0]["key"] == "c42f1f7b4e9c270da4bd1e346ae34506eda764ea329cf005ec261ed65b7cd4b4"


def test_system_prompt_and_parameters_are_sent_as_they_are(server, claude):
    more = {"temperature": 0, "stop_sequences": ["\n\n"], "not_of_the_sdk": {"a": [1, None]}}
    for upstream in (claude, replace(claude, system="Be brief."), replace(claude, system="Be brief.", parameters=more)):
        upstream.answers(questions(1))
    plain = {"model": "claude-haiku-4-5", "max_tokens": 64, "messages": [{"role": "user", "content": INSTRUCTION + "0 + 0"}]}
    assert server.bodies == [plain, plain | {"system": "Be brief."}, plain | {"system": "Be brief."} | more]
    assert [row["request"] for row in rows(claude)] == server.bodies


@pytest.mark.parametrize("fault", ["429 retry-after 0.01", "529", "500", "closed", "cut short", "hangs"])
def test_passing_trouble_is_retried_by_the_sdk(server, claude, fault):
    server.faults += [fault] * 2
    asked = questions(4)
    assert texts(replace(claude, timeout_s=0.5), asked) == expected(asked)
    assert len(server.asked) == 6
    assert all(row["error"] is None for row in rows(claude))


def test_a_server_cannot_make_a_retry_wait_for_hours(server, claude, monkeypatch):
    monkeypatch.setattr("adapter.api.connection.LONGEST_WAIT_S", 0.2)
    server.faults += ["429 retry-after 86400", "429 retry-after Fri, 31 Dec 2100 23:59:59 GMT", "429 retry-after-ms 1e9"]
    asked = questions(3)
    assert texts(claude, asked) == expected(asked)  # and not tomorrow
    assert len(server.asked) == 6


@pytest.mark.parametrize(("fault", "stop_reason", "text"), [
    ({"stop_reason": "refusal", "content": []}, "refusal", ""),
    ({"content": []}, "end_turn", ""),
    ({"content": [{"type": "text", "text": ""}]}, "end_turn", ""),
    ({"usage": None, "content": [{"type": "text", "text": "\ud800"}]}, "end_turn", "?"),
    ({"content": [{"type": "text", "text": "It depends on"}], "stop_reason": "max_tokens"}, "max_tokens", "It depends on"),
    ({"content": [{"type": "thinking", "thinking": "7", "signature": "s"}, {"type": "text", "text": "Five, "},
                  {"type": "text", "text": "or 5."}]}, "end_turn", "Five, or 5."),
    ({"content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}], "stop_reason": "tool_use"}, "tool_use", "")])
def test_a_refusal_or_an_empty_answer_is_an_answer(server, claude, fault, stop_reason, text):
    server.faults.append(fault)
    assert texts(claude, questions(1)) == texts(claude, questions(1)) == [text]
    assert [row["stop_reason"] for row in rows(claude)] == [stop_reason]
    assert len(server.asked) == 1


@pytest.mark.parametrize(("fault", "words"), [
    ("half a JSON", "JSONDecodeError"), ("400", "BadRequestError 400: trouble"),
    ({"content": None}, "a reply that is no message"), ({"content": [1]}, "a reply that is no message"),
    ({"content": [{"type": "text", "text": None}]}, "a reply that is no message")])
def test_one_bad_reply_is_kept_as_an_error_and_asked_again(server, claude, fault, words):
    server.faults.append(fault)
    asked = questions(20)
    with pytest.raises(UserError, match=f"1 of 20 questions have no answer yet .1 x {words}"):
        claude.answers(asked)
    assert [row["error"][: len(words)] for row in rows(claude) if row["error"]] == [words]
    assert texts(claude, asked) == expected(asked)
    assert len(server.asked) == 21


def test_a_wrong_key_stops_at_once_keeps_the_rest_and_stays_secret(server, claude):
    asked = questions(200)
    claude.answers(asked[:30])
    server.faults += ["401"] * 200
    with pytest.raises(UserError, match=r"170 of 200 .* AuthenticationError 401: trouble with \[ANTHROPIC_API_KEY\]"):
        claude.answers(asked)
    assert len(server.asked) <= 30 + claude.concurrency
    assert KEY not in claude.store.read_text()
    server.faults.clear()
    assert texts(claude, asked) == expected(asked)


def test_a_server_that_is_down_is_given_up_on(server, claude):
    server.faults += ["400"] * 500
    with pytest.raises(UserError, match="500 of 500 questions have no answer yet"):
        claude.answers(questions(500))
    assert len(server.asked) <= 3 * claude.concurrency


def test_a_file_cut_short_by_a_kill_costs_one_question(server, claude):
    asked = questions(30)
    claude.answers(asked)
    whole = claude.store.read_bytes()
    claude.store.write_bytes(whole[:-20])
    assert texts(claude, asked) == expected(asked)
    assert len(server.asked) == 31
    assert sorted(claude.store.read_bytes().splitlines())[0][:40] in whole


@pytest.mark.parametrize("damage", [
    b"{broken\n", b"[]\n", b'{"key": 1}\n', b"\xff\xfe\n", b'{"key": "k", "text": 3, "error": null}\n'])
def test_a_damaged_row_is_named(server, claude, damage):
    claude.answers(questions(9))
    lines = claude.store.read_bytes().splitlines(keepends=True)
    claude.store.write_bytes(b"".join([*lines[:4], damage, *lines[5:]]))
    claude = replace(claude)  # one that has read nothing yet
    for _ in range(2):  # the second time too
        with pytest.raises(UserError, match=r"answers.jsonl: line 5 is no answer"):
            claude.answers(questions(9))


def test_two_processes_do_not_pay_twice(server, claude):
    with AnswerStore(claude.store).appending(), pytest.raises(UserError, match="another process is collecting"):
        claude.answers(questions(3))
    assert server.asked == []


def test_what_it_costs_is_said_before_it_is_spent(server, claude, capsys, monkeypatch):
    claude.answers(questions(10))
    with pytest.raises(UserError, match=r"nothing was asked.*--yes"):
        replace(claude, agreed=False).answers(questions(1000))
    said = capsys.readouterr().err.splitlines()[-1]
    characters = sum(len(INSTRUCTION + q.question) for q in questions(1000)[10:])
    dollars = (characters // 3 * 1.0 + 990 * 64 * 5.0) / 1e6
    for word in ("1,000 questions", "10 already answered", "990 to ask", f"{characters // 3:,} tokens in", "63,360 out",
                 f"${dollars:.2f}"):
        assert word in said, said
    with pytest.raises(UserError, match="nothing was asked"):
        replace(claude, agreed=False, model="claude-haiku-4-5-20251001").answers(questions(1000))
    assert "at most about $0.37" in capsys.readouterr().err  # the price of the model without its date
    for no in ("n\n", "\n", ""):
        monkeypatch.setattr("sys.stdin", Terminal(no))
        with pytest.raises(UserError, match="nothing was asked"):
            replace(claude, agreed=False).answers(questions(1000))
    assert len(server.asked) == 10
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    replace(claude, agreed=False).answers(questions(20))
    assert len(server.asked) == 20


def test_a_full_disk_is_one_line_and_loses_nothing(server, claude):
    asked = questions(300)
    claude.answers(asked[:20])
    room = claude.store.stat().st_size + 2000
    code = f"""
import resource, signal
from pathlib import Path
from adapter.api.claude import ClaudeUpstream
from tests.claude import INSTRUCTION, questions
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
ClaudeUpstream("anthropic", {claude.model!r}, Path({str(claude.store)!r}), agreed=True,
               prompt=INSTRUCTION + "{{question}}").answers(questions(300))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "UserError" in done.stderr.splitlines()[-1]
    assert "answers.jsonl" in done.stderr.splitlines()[-1]
    assert texts(claude, asked) == expected(asked)
