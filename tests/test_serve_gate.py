"""When a caller gets the API's answer and when the adapter's: mode, threshold, time limit, failures; what is recorded."""

import contextlib
import json
import threading

import httpx
import pytest

from adapter.confidence import Calibration
from adapter.serve.gate import Gate, Rules, TooLong
from adapter.serve.relay import PATIENCE_S
from tests.gateway import CORRECTOR, Table, gateway
from tests.streaming_server import StreamingServer

PATHS = ("/v1/messages", "/v1/chat/completions")


@pytest.fixture(scope="module")
def upstream():
    server = StreamingServer()
    yield server
    server.stop()


def body(question="5 + 2", **changes):
    return {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": question}]} | changes


def told(answer):
    return [answer.headers.get(f"x-corrector-{name}") for name in ("action", "why", "verdict")]


def text_of(answer):
    found = answer.json()
    return found["content"][0]["text"] if "content" in found else found["choices"][0]["message"]["content"]


@pytest.mark.parametrize(("answer", "expected"), [
    ("\\boxed{27}", ["corrected", "", "override"]), ("\\boxed{CORRECT}", ["agreed", "", "correct"]),
    ("\\boxed{7.0}", ["agreed", "", "override"]), ("nothing", ["kept", "unparsed", "unparsed"]),
    ("\\boxed{a lot}", ["kept", "unparsed", "unparsed"]), (TooLong("9 tokens"), ["kept", "too long", None]),
    (RuntimeError("a bug"), ["kept", "error", None]), (0.6, ["kept", "timeout", None])])
def test_what_the_adapter_says_and_what_the_caller_gets(upstream, answer, expected):
    with gateway(upstream.url, Table(otherwise=answer), Rules(timeout_s=0.3)) as served:
        for path in PATHS:
            got = served.post(path, json=body())
            assert told(got) == expected
            assert text_of(got) == ("27" if expected[0] == "corrected" else "7")
        seen = served.exchange(2)
    assert [seen.action, seen.why, seen.verdict] == expected
    assert (seen.question, seen.api_text, seen.api_extracted, seen.final) == (
        "5 + 2", "7", "7", "27" if expected[0] == "corrected" else "7")
    assert (seen.status, seen.protocol, seen.model, seen.stream, seen.mode) == (200, "openai", "m", False, "on")
    assert seen.completion == (answer if isinstance(answer, str) else None)
    assert seen.step == (20 if isinstance(answer, str) else None)
    assert 0 <= seen.api_seconds <= seen.seconds
    assert 0 <= seen.adapter_seconds <= seen.seconds
    assert (seen.input_tokens, seen.output_tokens) == (9, 2)
    assert seen.id == got.headers["x-corrector-id"]


def test_below_the_threshold_the_apis_answer_stands(upstream):
    """The two tokens have a log-probability of -0.15 on average, e^-0.15 = 0.8607."""
    for threshold, action in ((0.86, "corrected"), (0.87, "kept")):
        with gateway(upstream.url, Table(calibration=Calibration(20, 1.0, threshold))) as served:
            got = served.post(PATHS[0], json=body())
            assert (told(got)[0], got.headers["x-corrector-confidence"]) == (action, "0.8607")
            assert told(got)[1] == ("" if action == "corrected" else "below the threshold")
            assert served.exchange().confidence == pytest.approx(0.860708, abs=1e-6)
            told_of_itself = served.get("/healthz").json()
            assert (told_of_itself["temperature"], told_of_itself["threshold"]) == (1.0, threshold)
            assert f"corrector_threshold {threshold}" in served.get("/metrics").text
    with gateway(upstream.url, Table(calibration=None)) as served:
        assert "x-corrector-confidence" not in served.post(PATHS[0], json=body()).headers
        assert served.get("/healthz").json()["threshold"] is None
        assert "corrector_temperature NaN" in served.get("/metrics").text


@pytest.mark.parametrize("answer", [0.6, RuntimeError("a bug"), TooLong("9 tokens"), "down"])
def test_fail_closed_gives_an_error_of_the_protocol(upstream, answer):
    engine = Table(otherwise=answer, up=answer != "down")
    with gateway(upstream.url, engine, Rules(timeout_s=0.3, fail_open=False)) as served:
        got = served.post(PATHS[0], json=body())
        assert (got.status_code, got.json()["error"]["type"]) == (503, "overloaded_error")
        assert served.post(PATHS[1], json=body()).json()["error"]["type"] == "server_error"
        assert served.exchange(2).final is None
        engine.otherwise, engine.up = "no box: that is no failure", True
        assert told(served.post(PATHS[0], json=body())) == ["kept", "unparsed", "unparsed"]


def test_shadow_passes_every_byte_and_asks_afterwards(upstream):
    with gateway(upstream.url, rules=Rules(mode="shadow")) as served:
        for number, (path, stream) in enumerate(((p, s) for p in PATHS for s in (False, True)), 1):
            with httpx.stream("POST", served.url + path, json=body(stream=stream)) as got:
                assert b"".join(got.iter_raw()) == upstream.sent[-1]
            assert told(got) == ["kept", "shadow", None]
            seen = served.exchange(number)
            assert (seen.action, seen.why, seen.verdict, seen.final) == ("kept", "shadow", "override", "7")
            assert (seen.completion, seen.stream) == ("\\boxed{27}", stream)


def test_shadow_does_not_wait_for_the_adapter(upstream):
    """Nor does it need it: the answers come while the engine is down, and say that it was asked."""
    with gateway(upstream.url, Table(up=False), Rules(mode="shadow")) as served:
        assert text_of(served.post(PATHS[0], json=body())) == "7"
        assert (served.exchange().action, served.exchange().why) == ("kept", "engine down")
        assert httpx.get(served.url + "/healthz").status_code == 200


def test_a_canary_is_the_same_questions_always(upstream):
    engine = Table()
    with gateway(upstream.url, engine, Rules(mode="canary", share=0.3)) as served, httpx.Client() as client:
        def ask(number):
            got = client.post(served.url + PATHS[0], json=body(f"{number} + 2"))
            assert told(got) in (["corrected", "", "override"], ["passed", "canary", None])
            return told(got)[0]

        first = [ask(number) for number in range(60)]
        assert [ask(number) for number in range(60)] == first
        seen = served.exchange(120)
    assert 8 <= first.count("corrected") <= 28  # 0.3 x 60 = 18, give or take 2.8 standard deviations of 3.5
    assert len(engine.asked) == 2 * first.count("corrected")
    assert {(e.why, e.api_text, e.final) for e in served.exchanges if e.action == "passed"} == {("canary", "7", "7")}
    assert seen.question == "59 + 2"


def test_a_full_adapter_costs_its_callers_nothing(upstream):
    with gateway(upstream.url, Table(otherwise=0.5), Rules(most_at_once=2)) as served:
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(served.post(PATHS[0], json=body()))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(told(answer)[1] for answer in answers) == ["", ""] + 4 * ["full"]
        assert sorted(map(text_of, answers)) == 2 * ["27"] + 4 * ["7"]


def test_an_engine_that_is_down_is_said_and_costs_nobody_an_answer(upstream):
    engine = Table(up=False)
    with gateway(upstream.url, engine) as served:
        assert told(served.post(PATHS[0], json=body())) == ["kept", "engine down", None]
        health = httpx.get(served.url + "/healthz")
        assert (health.status_code, health.json()["status"], health.json()["engine"]) == (200, "degraded", "down")
        assert "corrector_engine_up 0.0" in httpx.get(served.url + "/metrics").text
        engine.up = True
        assert httpx.get(served.url + "/healthz").json()["status"] == "ok"
    with gateway(upstream.url, Table(up=False), Rules(fail_open=False)) as served:
        assert httpx.get(served.url + "/healthz").status_code == 503


def test_an_observer_that_fails_or_is_slow_to_be_told_harms_no_answer(upstream):
    def broken(exchange):
        raise ValueError("a bug of the observer's")

    with gateway(upstream.url, observers=(broken,)) as served:
        for number in range(1, 4):
            assert text_of(served.post(PATHS[0], json=body())) == "27"
            served.exchange(number)
        assert "corrector_observer_errors_total 3.0" in httpx.get(served.url + "/metrics").text


def test_the_close_hook_runs_when_every_observer_is_told(upstream):
    closed = []

    async def close():
        closed.append(len(served.exchanges))

    with gateway(upstream.url, Table(otherwise=0.4), Rules(mode="shadow"), on_close=[close]) as served:
        served.post(PATHS[0], json=body())
    assert closed == [1]


def test_metrics_count_what_was_done(upstream):
    with gateway(upstream.url) as served:
        for _ in range(3):
            served.post(PATHS[0], json=body())
        served.post(PATHS[1], json=body(tools=[{"type": "function"}]))
        served.exchange(4)
        page = httpx.get(served.url + "/metrics").text
    assert 'corrector_requests_total{action="corrected",mode="on",protocol="anthropic",why=""} 3.0' in page
    assert 'corrector_requests_total{action="passed",mode="on",protocol="openai",why="tools"} 1.0' in page
    assert 'corrector_seconds_count{part="adapter"} 3.0' in page
    assert 'corrector_api_tokens_total{kind="input"} 27.0' in page
    assert "corrector_requests_in_flight 0.0" in page
    assert "corrector_lora_step 20.0" in page


def test_a_question_is_what_stands_in_the_runs_own_prompt():
    gate = Gate(CORRECTOR, "Evaluate: {question}\nReply with the number.", Table())
    row, why = gate.row("Evaluate: 5 + 2\nReply with the number.")
    assert (row.question, why) == ("5 + 2", "")
    for other in ("5 + 2", "Evaluate: 5 + 2", "Evaluate: \nReply", "", "Evaluate: x\nReply with the number. Please."):
        assert gate.row(other) == (None, "another prompt")
    assert gate.row("Evaluate:  \nReply with the number.") == (None, "no question of the task")
    assert Gate(CORRECTOR, "aa{question}aa", Table()).row("aaa") == (None, "another prompt")


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_whose_answer_takes_long_begins_before_it(upstream, monkeypatch, path):
    """Its headers cannot say what became of it; a comment does, and comments keep the connection alive."""
    assert PATIENCE_S >= 10
    monkeypatch.setattr("adapter.serve.relay.PATIENCE_S", 0.05)
    with gateway(upstream.url, Table(otherwise=0.3)) as served:
        got = served.post(path, json=body(stream=True))
        assert got.headers["x-corrector-action"] == "pending"
        lines = got.text.split("\n\n")
        assert lines.count(": ping") >= 3
        said = next(line for line in lines if line.startswith(": x-corrector"))
        assert "x-corrector-action: corrected; x-corrector-why: ; x-corrector-verdict: override;" in said
        assert '"27"' in got.text
        assert served.exchange().action == "corrected"
        upstream.faults.append("529")
        upstream.latency_s = 0
        monkeypatch.setattr("adapter.serve.relay.PATIENCE_S", 0.0)
        got = served.post(path, json=body(stream=True))
        data = [line for line in got.text.splitlines() if line.startswith("data: ")]
        assert got.status_code == (200 if got.headers["x-corrector-action"] == "pending" else 529)
        assert json.loads(data[-1][6:] if data else got.content)["error"]["type"] == "overloaded_error"


def test_a_caller_who_leaves_is_recorded_and_the_api_is_left_too(upstream):
    upstream.pause_s = 0.1
    try:
        with gateway(upstream.url, rules=Rules(mode="shadow")) as served, contextlib.ExitStack() as stack:
            got = stack.enter_context(httpx.stream("POST", served.url + PATHS[0], json=body(stream=True)))
            next(got.iter_raw())
            stack.close()
            seen = served.exchange()
            assert (seen.action, seen.why, seen.api_text) == ("passed", "cut short", None)
    finally:
        upstream.pause_s = 0.0
