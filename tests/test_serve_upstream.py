"""An API that misbehaves, and callers who do: each gets what it would without the gateway, or one error in its form."""

import json
import logging
import socket
from dataclasses import asdict

import anthropic
import httpx
import openai
import pytest

from adapter.serve.upstream import address_of
from grpo.types import UserError
from tests.gateway import Table, gateway
from tests.streaming_server import StreamingServer

PATHS = ("/v1/messages", "/v1/chat/completions")
KEY = "sk-ant-7f3a-SECRET-91c2"


@pytest.fixture
def upstream():
    server = StreamingServer()
    yield server
    server.stop()


@pytest.fixture
def served(upstream):
    with gateway(upstream.url, timeout_s=1.0) as running:
        yield running


def body(**changes):
    return {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "5 + 2"}]} | changes


def until_it_breaks(url):
    """What comes of a stream that does not end as it should."""
    found = bytearray()
    with httpx.stream("POST", url, json=body(stream=True)) as answer:
        try:
            for chunk in answer.iter_raw():
                found += chunk
        except httpx.RemoteProtocolError:
            return bytes(found)
    raise AssertionError("it ended well")


def without_own(headers):
    return {name: value for name, value in headers.items() if not name.startswith("x-corrector-") and name != "date"}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", ["400", "401", "429 retry-after 7", "500", "529"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_apis_own_errors_reach_the_caller(upstream, served, path, fault, stream):
    upstream.faults.extend([fault, fault])
    headers = {"authorization": f"Bearer {KEY}", "accept-encoding": "identity"}
    direct = httpx.post(upstream.url + path, json=body(stream=stream), headers=headers)
    got = served.post(path, json=body(stream=stream), headers=headers)
    assert (got.status_code, got.content) == (direct.status_code, direct.content)
    assert without_own(got.headers) == without_own(direct.headers)
    assert (got.headers["x-corrector-action"], got.headers["x-corrector-why"]) == ("passed", "API error")
    assert served.exchange().status == direct.status_code


def test_a_wrong_key_is_the_sdks_own_exception(upstream, served):
    upstream.faults.extend(["401", "401"])
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=served.url, api_key="no", max_retries=0).messages.create(**body())
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=served.url + "/v1", api_key="no", max_retries=0).chat.completions.create(
            model="m", messages=body()["messages"])


@pytest.mark.parametrize(("fault", "status"), [("closed", 502), ("hangs", 504)])
def test_an_api_that_is_not_there_is_one_error(upstream, served, fault, status):
    for path in PATHS:
        upstream.faults.append(fault)
        got = served.post(path, json=body())
        assert got.status_code == status
        assert "the API" in got.json()["error"]["message"]
        assert upstream.url not in got.text
        assert got.headers["x-corrector-why"] == "API unreachable"
    upstream.stop()
    got = served.post(PATHS[0], json=body(stream=True))
    assert (got.status_code, got.json()["type"]) == (502, "error")
    assert served.exchange(3).status == 502


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fault", ["half a JSON", "tool_use", {"stop_reason": "refusal"}, "raw application/json []",
                                   "raw text/plain 27", "raw application/json ", {"choices": []}, {"choices": [1]},
                                   {"content": None}, {"content": [1]}, 'raw application/json {"content": 7}'])
def test_an_answer_that_is_none_is_passed_byte_for_byte(upstream, served, path, fault):
    if path == PATHS[1] and fault in ("tool_use", {"stop_reason": "refusal"}, {"content": None}, {"content": [1]}):
        fault = {"choices": [{"index": 0, "finish_reason": "content_filter", "message": {"content": "x"}}]}
    elif path == PATHS[0] and isinstance(fault, dict) and "choices" in fault:
        fault |= {"type": "error"}
    upstream.faults.extend([fault, fault])
    headers = {"accept-encoding": "identity"}
    direct = httpx.post(upstream.url + path, json=body(), headers=headers)
    got = served.post(path, json=body(), headers=headers)
    assert (got.status_code, got.content) == (200, direct.content)
    assert got.headers["x-corrector-action"] == "passed"
    assert not served.engine.asked


def test_an_answer_that_breaks_off_breaks_off_for_the_caller(upstream, served):
    for path in PATHS:
        upstream.faults.append("cut short")
        with pytest.raises(httpx.RemoteProtocolError):
            served.post(path, json=body())
        upstream.faults.extend(["cut stream", "cut stream"])
        direct, through = (until_it_breaks(url + path) for url in (upstream.url, served.url))
        assert direct == through != b""
    assert {(e.action, e.why) for e in served.exchanges[:3]} == {("passed", "cut short")}
    assert not served.engine.asked


def test_an_error_within_a_stream_is_the_sdks_own_exception(upstream, served):
    upstream.faults.append("error event")
    client = anthropic.Anthropic(base_url=served.url, api_key="k", max_retries=0)
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"), client.messages.stream(**body()) as stream:
        stream.get_final_message()
    assert served.exchange().why == "error in the stream"


def test_a_slow_first_byte_is_waited_for(upstream, served):
    upstream.faults.append("silent 0.6")
    assert served.post(PATHS[0], json=body(stream=True)).headers["x-corrector-action"] == "corrected"


def test_answers_without_text_or_with_several_blocks(upstream, served):
    two = [{"type": "text", "text": "7"}, {"type": "text", "text": " or 8"}]
    for number, (content, api_text) in enumerate((([], ""), (two, "7 or 8")), 1):
        upstream.faults.append({"content": content, "stop_reason": "max_tokens"})
        message = served.post(PATHS[0], json=body()).json()
        assert (message["content"], message["stop_reason"]) == ([{"type": "text", "text": "27"}], "end_turn")
        assert served.exchange(number).api_text == api_text


@pytest.mark.parametrize("chunked", [False, True])
def test_a_long_body_is_one_error_of_the_protocol(upstream, served, chunked):
    long = json.dumps(body(messages=[{"role": "user", "content": "x" * (10 * 2**20)}])).encode()
    content = (long[at : at + 2**16] for at in range(0, len(long), 2**16)) if chunked else long
    got = served.post(PATHS[0], content=content)
    assert (got.status_code, got.json()["error"]["type"]) == (413, "request_too_large")
    assert "10,485,760 bytes" in got.json()["error"]["message"]
    assert got.headers["x-corrector-id"] == served.exchange().id
    assert served.post(PATHS[1], content=long).json()["error"]["type"] == "invalid_request_error"
    assert not upstream.asked
    fits = body(messages=[{"role": "user", "content": "x" * (10 * 2**20 - 200)}])
    assert served.post(PATHS[0], json=fits).status_code == 200
    with pytest.raises(anthropic.RequestTooLargeError):
        anthropic.Anthropic(base_url=served.url, api_key="k", max_retries=0).messages.create(**json.loads(long))


def test_a_long_head_is_refused(served):
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as sock:
        sock.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: a\r\nx: " + b"x" * 200_000 + b"\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 4")


def test_no_path_leads_out_of_the_api(upstream, served):
    host, port = "127.0.0.1", int(served.url.rpartition(":")[2])
    for path in ("/v1/../admin", "/v1/%2e%2e/admin", "/v1//evil.example/x", "/v1/..%2fadmin", "//evil.example/v1/messages",
                 "http://evil.example/v1/models", "/admin", "/v1/\\\\evil.example"):
        with socket.create_connection((host, port)) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n".encode())
            status = sock.recv(4000).split(b" ")[1]
        assert status == b"404" or upstream.paths[-1] == "/v1/models", path
    assert set(upstream.paths) <= {"/v1/models"}


def test_no_key_is_written_anywhere(upstream, served, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    upstream.faults.extend(["500", "closed", "half a JSON", "cut short"])
    for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
        for _ in range(4):
            try:
                got = served.post(PATHS[0], json=body(), headers=headers)
            except httpx.RemoteProtocolError:
                continue
            ours = [value for name, value in got.headers.items() if name.startswith("x-corrector")]
            assert KEY not in " ".join(ours)
            assert got.headers["x-corrector-why"] == "API error" or KEY not in got.text
    served.engine.otherwise = RuntimeError("the adapter fails")
    served.post(PATHS[0], json=body(), headers={"x-api-key": KEY})
    served.exchange(9)
    written = caplog.text + "".join(capfd.readouterr()) + httpx.get(served.url + "/metrics").text
    written += json.dumps([asdict(exchange) for exchange in served.exchanges])
    assert "the adapter failed: RuntimeError" in written
    assert KEY not in written


def test_a_long_answer_is_passed_on(upstream, served):
    upstream.text = lambda question: "7" * (9 * 2**20)
    got = served.post(PATHS[0], json=body(), headers={"accept-encoding": "identity"})
    assert got.content == upstream.sent[-1]
    assert (got.headers["x-corrector-why"], served.exchange().api_text) == ("long answer", None)


def test_many_faults_mix_up_no_answers(upstream):
    """Every question has its own answer; one in five requests takes a fault."""
    upstream.text = lambda question: question.split()[0]
    answers = {f"{n} + 1": f"\\boxed{{{1000 + n}}}" if n % 2 else "\\boxed{CORRECT}" for n in range(200)}
    faults = ["500", "closed", "half a JSON", "error event"]
    with gateway(upstream.url, Table(answers)) as served, httpx.Client(timeout=20) as client:
        for number in range(200):
            if number % 5 == 0:
                upstream.faults.append(faults[number // 5 % 4])
            question = {"messages": [{"role": "user", "content": f"{number} + 1"}], "stream": number % 3 == 0}
            got = client.post(served.url + PATHS[0], json=body(**question))
            if number % 5:
                assert f'"text": "{1000 + number}"' in got.text.replace('":"', '": "') or number % 2 == 0
                assert got.headers["x-corrector-action"] == ("corrected" if number % 2 else "agreed")
        served.exchange(200)
    seen = {e.id: e for e in served.exchanges}
    assert len(seen) == 200
    assert [(e.question, e.final) for e in served.exchanges if e.action == "corrected"] == [
        (f"{n} + 1", str(1000 + n)) for n in range(200) if n % 2 and n % 5]


def test_addresses():
    assert address_of("anthropic") == "https://api.anthropic.com"
    for url in ("http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/messages", "http://a:1/v1/chat/completions/"):
        assert address_of(url) == "http://a:1"
    assert address_of("https://a/proxy/v1") == "https://a/proxy"
    for wrong in ("claude", "ftp://a", "http://me:secret@a", "http://a/?key=secret", "http://"):
        with pytest.raises(UserError, match="--upstream") as error:
            address_of(wrong)
        assert "secret" not in str(error.value)


def test_a_proxy_of_the_environment_is_used_and_no_netrc_is(upstream, monkeypatch, tmp_path):
    """What ~/.netrc has for the API's host is the operator's, and no caller's."""
    (tmp_path / "netrc").write_text("machine api.invalid login operator password secret\n"
                                    "machine 127.0.0.1 login operator password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", upstream.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for api, path in (("http://api.invalid", "http://api.invalid/v1/messages"), (upstream.url, "/v1/messages")):
        with gateway(api) as served:
            assert served.post("/v1/messages", json=body(), headers={"x-api-key": "mine"}).status_code == 200
        assert upstream.paths[-1] == path
    (seen,) = upstream.headers  # of the second: the first had another path
    assert (seen["x-api-key"], "authorization" in seen) == ("mine", False)
