"""LiteLLM's generic guardrail API: its request format, and its own proxy where LITELLM names one.

    python -m venv /tmp/litellm && /tmp/litellm/bin/pip install 'litellm[proxy]'
    LITELLM=/tmp/litellm/bin/litellm python -m pytest tests/test_guardrail.py
"""

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.testclient import TestClient

from adapter.serve.guardrail import PATH, Posted, Questions, make_router, question_in
from tests.exchanges import Served

QUESTION, WRONG, MENDED = "What is 1 + 1?", "It is 3.", "It is 2."
PROXY = os.environ.get("LITELLM")
KEY = f"sk-{secrets.token_hex(32)}"  # LiteLLM starts without none


def routes(asked: list, token: str | None = None) -> FastAPI:
    """A gateway that mends WRONG alone."""

    async def decide(question: str, api_text: str) -> str | None:
        asked.append((question, api_text))
        return MENDED if api_text == WRONG else None

    app = FastAPI()
    app.include_router(make_router(decide, token))
    return app


@pytest.fixture
def asked() -> list:
    return []


@pytest.fixture
def client(asked) -> TestClient:
    return TestClient(routes(asked))


def posted(kind: str, texts: list[str], call: str | None = "call-1", **more: object) -> dict:
    """As LiteLLM 1.110 posts it: every field is there."""
    return {"input_type": kind, "litellm_call_id": call, "litellm_trace_id": "t", "structured_messages": None,
            "images": None, "tools": None, "texts": texts, "request_data": {"user_api_key_hash": "88dc"},
            "request_headers": {"host": "h"}, "litellm_version": "1.110.2", "model": "m",
            "additional_provider_specific_params": {}, "tool_calls": None} | more


def user(content: object) -> list[dict]:
    return [{"role": "user", "content": content}]


def test_an_answer_is_replaced_by_the_calls_own_question(client, asked):
    for call, question in (("a", QUESTION), ("b", "Another?")):
        request = posted("request", [question], call, structured_messages=user(question))
        assert client.post(PATH, json=request).json() == {"action": "NONE"}
    assert client.post(PATH, json=posted("response", [WRONG], "a")).json() == {
        "action": "GUARDRAIL_INTERVENED", "texts": [MENDED]}
    assert client.post(PATH, json=posted("response", ["Right."], "b")).json() == {"action": "NONE"}
    assert asked == [(QUESTION, WRONG), ("Another?", "Right.")]


@pytest.mark.parametrize(("request_", "response"), [
    (None, {}),  # the request was never posted: mode has no pre_call
    ({"call": None}, {"call": None}),
    ({"structured_messages": [{"role": "system", "content": "Be brief."}, *user(QUESTION)]}, {}),
    ({"structured_messages": [*user("Hi"), {"role": "assistant", "content": "Hi"}, *user(QUESTION)]}, {}),
    ({"structured_messages": user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])}, {}),
    ({"structured_messages": user([{"type": "image_url", "image_url": {"url": "x"}}])}, {}),
    ({"structured_messages": user(" ")}, {}), ({"structured_messages": [{"role": "user"}]}, {}),
    ({"structured_messages": []}, {}),
    ({"tools": [{"type": "function"}]}, {}), ({"images": ["x"]}, {}),
    ({}, {"texts": [WRONG, "more"]}), ({}, {"texts": []}), ({}, {"texts": None}), ({}, {"tool_calls": [{}]}),
    ({}, {"call": "another"}),
])
def test_what_is_not_of_the_adapters_kind_is_left_alone(client, asked, request_, response):
    if request_ is not None:
        given = {"structured_messages": user(QUESTION)} | request_
        client.post(PATH, json=posted("request", [QUESTION], **given))
    found = client.post(PATH, json=posted("response", **({"texts": [WRONG]} | response)))
    assert (found.status_code, found.json(), asked) == (200, {"action": "NONE"}, [])


def test_a_question_is_read_as_older_and_newer_versions_post_it():
    assert question_in(Posted(input_type="request", texts=[QUESTION])) == QUESTION
    assert question_in(Posted(input_type="request", texts=["a", "b"])) is None
    part = user([{"type": "text", "text": QUESTION}])
    assert question_in(Posted(input_type="request", texts=[QUESTION], structured_messages=part)) == QUESTION


def test_a_call_whose_second_request_is_of_another_kind_is_forgotten(client, asked):
    client.post(PATH, json=posted("request", [QUESTION], structured_messages=user(QUESTION)))
    client.post(PATH, json=posted("request", [QUESTION], structured_messages=user(QUESTION), tools=[{"type": "x"}]))
    assert client.post(PATH, json=posted("response", [WRONG])).json() == {"action": "NONE"}
    assert asked == []


def test_what_is_kept_is_bounded():
    questions = Questions(most_calls=3, most_characters=10)
    for call, text in (("a", "12"), ("b", "1234"), ("a", "12")):  # the second a is the same call, tried again
        questions.keep(call, text)
    assert [questions.of(call) for call in ("a", "b")] == ["12", "1234"]
    questions.keep("c", "123456")  # 12 characters: the oldest, b, goes
    assert [questions.of(call) for call in ("a", "b", "c")] == ["12", None, "123456"]
    questions.keep("d", "x" * 11)  # too long by itself
    assert [questions.of(call) for call in ("a", "c", "d", None)] == [None] * 4
    for call in "efgh":
        questions.keep(call, "1")
    assert [questions.of(call) for call in "efgh"] == [None, "1", "1", "1"]


def test_the_token(asked):
    client = TestClient(routes(asked, "a-token-of-16-chars"))
    for headers, status in (({}, 401), ({"x-api-key": "another"}, 401), ({"x-api-key": "ä".encode()}, 401),
                            ({"x-api-key": "a-token-of-16-chars"}, 200)):
        assert client.post(PATH, json=posted("request", [QUESTION]), headers=headers).status_code == status
    assert client.post(PATH, json={"input_type": "other"}, headers={"x-api-key": "a-token-of-16-chars"}).status_code == 422


# ---- LiteLLM's own proxy


def model_routes() -> FastAPI:
    """An API of both protocols that is wrong."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body, head = await request.json(), {"id": "c1", "created": 1, "model": "m"}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": WRONG}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
            return JSONResponse(head | {"object": "chat.completion", "choices": [choice], "usage": usage})
        deltas = [{"role": "assistant", "content": ""}, {"content": "It is"}, {"content": " 3."}]
        chunks = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        chunks.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        return _stream([("", head | {"object": "chat.completion.chunk", "choices": [chunk]}) for chunk in chunks], "[DONE]")

    @app.post("/v1/messages")
    async def messages(request: Request) -> Response:
        body, usage = await request.json(), {"input_tokens": 5, "output_tokens": 4}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [
            {"type": "text", "text": WRONG}], "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}
        if not body.get("stream"):
            return JSONResponse(message)
        delta = {"type": "content_block_delta", "index": 0}
        events = [{"type": "message_start", "message": message | {"content": [], "stop_reason": None}},
                  {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
                  *(delta | {"delta": {"type": "text_delta", "text": text}} for text in ("It is", " 3.")),
                  {"type": "content_block_stop", "index": 0},
                  {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
                  {"type": "message_stop"}]
        return _stream([(event["type"], event) for event in events])

    return app


def _stream(events: list[tuple[str, dict]], end: str | None = None) -> StreamingResponse:
    lines = [(f"event: {name}\n" if name else "") + f"data: {json.dumps(event)}\n\n" for name, event in events]
    return StreamingResponse(iter(lines + ([f"data: {end}\n\n"] if end else [])), media_type="text/event-stream")


CONFIG = """
model_list:
  - {{model_name: chat, litellm_params: {{model: openai/m, api_base: "{model}/v1", api_key: sk-x}}}}
  - {{model_name: claude, litellm_params: {{model: anthropic/m, api_base: "{model}", api_key: sk-x}}}}
guardrails:
  - guardrail_name: corrector
    litellm_params:
      guardrail: generic_guardrail_api
      mode: [pre_call, post_call]
      api_base: {gateway}
      api_key: a-token-of-16-chars
      default_on: true
      fail_on_error: false
      streaming_end_of_stream_only: true
      streaming_transform_mode: incremental_diff
"""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory) -> Iterator[tuple[str, list]]:
    """LiteLLM's proxy between a model that is wrong and the guardrail; its address, and what the guardrail was asked."""
    if PROXY is None:
        pytest.skip("LITELLM names no litellm")
    folder, asked = tmp_path_factory.mktemp("litellm"), []
    with Served(model_routes()) as model, Served(routes(asked, "a-token-of-16-chars")) as gateway, socket.socket() as free:
        (folder / "config.yaml").write_text(CONFIG.format(model=model.url.rstrip("/"), gateway=gateway.url))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY}
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([PROXY, "--config", str(folder / "config.yaml"), "--port", str(port), "--host",
                                        "127.0.0.1"], stdout=log, stderr=log, env=environment, cwd=folder)
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            try:
                httpx.get(f"{url}/health/liveliness", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield url, asked
        process.terminate()
        process.wait(30)


def test_litellms_proxy_chat_completions(proxy):
    url, asked = proxy
    client, say = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0), user(QUESTION)
    assert client.chat.completions.create(model="chat", messages=say).choices[0].message.content == MENDED
    assert asked[-1] == (QUESTION, WRONG)
    chunks = client.chat.completions.create(model="chat", messages=say, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == MENDED
    assert asked[-1] == (QUESTION, WRONG)


def test_litellms_proxy_messages(proxy):
    url, asked = proxy
    client, say = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0), user(QUESTION)
    assert client.messages.create(model="claude", max_tokens=50, messages=say).content[0].text == MENDED
    assert asked[-1] == (QUESTION, WRONG)
    with client.messages.stream(model="claude", max_tokens=50, messages=say) as stream:
        assert stream.get_final_text() == WRONG  # LiteLLM 1.110 drops what replaces it here; docs/serving.md says so


def test_litellms_proxy_leaves_other_requests_alone(proxy):
    url, asked = proxy
    client, before = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0), len(asked)
    say = [{"role": "system", "content": "Be brief."}, *user(QUESTION)]
    assert client.chat.completions.create(model="chat", messages=say).choices[0].message.content == WRONG
    assert len(asked) == before
