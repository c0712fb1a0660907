"""The SDKs that people use, pointed at the gateway: plain and streaming, synchronous and not, and their helpers."""

import asyncio
import json

import anthropic
import httpx
import openai
import pytest

from tests.gateway import Table, gateway
from tests.streaming_server import StreamingServer

ASKED = {"model": "m", "messages": [{"role": "user", "content": "5 + 2"}]}


@pytest.fixture(scope="module")
def upstream():
    server = StreamingServer()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def served(upstream):
    """"5 + 2" is overridden with 27; of "agree" the API is right, and of "hm" the adapter writes nothing."""
    with gateway(upstream.url, Table({"agree": "\\boxed{CORRECT}", "hm": "hm"})) as running:
        yield running


@pytest.fixture
def claude(served):
    with anthropic.Anthropic(base_url=served.url, api_key="sk-1", max_retries=0) as client:
        yield client


@pytest.fixture
def gpt(served):
    with openai.OpenAI(base_url=served.url + "/v1", api_key="sk-2", max_retries=0) as client:
        yield client


def test_anthropic_plain(claude, upstream):
    raw = claude.messages.with_raw_response.create(max_tokens=9, **ASKED)
    message = raw.parse()
    assert [block.text for block in message.content] == ["27"]
    assert (message.id, message.model, message.stop_reason) == ("msg_1", "m", "end_turn")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (9, 2)
    assert (message.usage.cache_read_input_tokens, message.usage.cache_creation_input_tokens) == (5, 3)
    assert message.x_new == {"a": 1}
    told = {name: raw.headers[f"x-corrector-{name}"] for name in ("action", "why", "verdict", "confidence", "step")}
    assert told == {"action": "corrected", "why": "", "verdict": "override", "confidence": "0.8607", "step": "20"}
    assert raw.headers["x-request-id"] == "req_1"  # the API's own headers stay
    assert upstream.headers[-1]["authorization"] == "Bearer sk-1"
    assert upstream.headers[-1]["anthropic-version"]


def test_anthropic_streams(claude):
    events = list(claude.messages.create(max_tokens=9, stream=True, **ASKED))
    assert [event.type for event in events] == ["message_start", "content_block_start", "content_block_delta",
                                                "content_block_stop", "message_delta", "message_stop"]
    with claude.messages.stream(max_tokens=9, **ASKED) as stream:
        assert "".join(stream.text_stream) == "27"
        message = stream.get_final_message()
    assert (message.id, message.content[0].text, message.stop_reason) == ("msg_1", "27", "end_turn")
    assert (message.usage.input_tokens, message.usage.output_tokens, message.usage.cache_read_input_tokens) == (9, 2, 5)
    with claude.messages.stream(max_tokens=9, **ASKED) as stream:
        assert stream.get_final_text() == "27"


def test_what_the_adapter_agrees_with_is_untouched(served, upstream):
    for stream in (False, True):
        for path in ("/v1/messages", "/v1/chat/completions"):
            body = ASKED | {"messages": [{"role": "user", "content": "agree"}], "stream": stream}
            answer = served.post(path, json=body, headers={"accept-encoding": "identity"})
            assert answer.content == upstream.sent[-1]
            assert answer.headers["x-corrector-action"] == "agreed"
            assert answer.headers["x-corrector-verdict"] == "correct"


def test_openai_plain_and_streaming(gpt):
    completion = gpt.chat.completions.create(**ASKED)
    assert (completion.choices[0].message.content, completion.id, completion.usage.total_tokens) == ("27", "chatcmpl-1", 11)
    chunks = list(gpt.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ASKED))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "27"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == 11
    with gpt.chat.completions.stream(**ASKED) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == "27"


def test_both_asynchronously_and_many_at_once(served):
    async def ask_all():
        claude = anthropic.AsyncAnthropic(base_url=served.url, api_key="k", max_retries=0)
        gpt = openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="k", max_retries=0)

        async def stream():
            async with claude.messages.stream(max_tokens=9, **ASKED) as stream:
                return await stream.get_final_text()

        async def chat():
            return (await gpt.chat.completions.create(**ASKED)).choices[0].message.content

        try:
            return await asyncio.gather(*(make() for _ in range(30) for make in (stream, chat)))
        finally:
            await claude.close()
            await gpt.close()

    assert asyncio.run(ask_all()) == ["27"] * 60


def test_images_tools_and_several_turns_reach_the_api_as_they_are(claude, gpt, upstream):
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    content = [image, {"type": "text", "text": "what is it?", "cache_control": {"type": "ephemeral"}}]
    raw = claude.messages.with_raw_response.create(
        model="m", max_tokens=9, messages=[{"role": "user", "content": content}], extra_body={"unknown": {"x": [1, None]}})
    assert raw.parse().content[0].text == "7"
    assert (raw.headers["x-corrector-action"], raw.headers["x-corrector-why"]) == ("passed", "images")
    sent = json.loads(upstream.raw[-1])
    assert (sent["messages"][0]["content"], sent["unknown"]) == (content, {"x": [1, None]})
    tool = {"name": "look", "input_schema": {"type": "object"}}
    raw = claude.messages.with_raw_response.create(max_tokens=9, tools=[tool], **ASKED)
    assert raw.headers["x-corrector-why"] == "tools"
    raw = gpt.chat.completions.with_raw_response.create(n=2, **ASKED)
    assert raw.headers["x-corrector-why"] == "several answers"


def test_the_rest_of_the_api_is_there(claude, gpt, upstream):
    assert claude.messages.count_tokens(model="m", messages=ASKED["messages"]).input_tokens == 14
    assert [model.id for model in gpt.models.list()] == ["m"]
    assert claude.beta.messages.create(max_tokens=9, betas=["b-1"], **ASKED).content[0].text == "27"
    assert upstream.headers[-1]["anthropic-beta"] == "b-1"


def test_the_body_goes_on_byte_for_byte(served, upstream):
    body = b'{ "model":"m",\n "messages" : [{"role":"user","content":"5 \\u002b 2"}], "max_tokens": 9, "z": 1.50 }'
    answer = served.post("/v1/messages?a=1&b=%20", content=body, headers={"content-type": "application/json", "te": "x",
                         "connection": "x-mine", "x-mine": "1", "x-yours": "2", "x-corrector-id": "forged"})
    assert answer.json()["content"][0]["text"] == "27"
    assert (upstream.raw[-1], upstream.paths[-1]) == (body, "/v1/messages?a=1&b=%20")
    got = upstream.headers[-1]
    assert got["x-yours"] == "2"
    assert not {"te", "x-mine", "x-corrector-id"} & got.keys()
    assert got["host"] == upstream.url.removeprefix("http://")


def test_a_packed_answer_is_read(served, upstream):
    for accepted in ("gzip", "br, gzip;q=0.5, zstd"):
        answer = served.post("/v1/messages", json=ASKED, headers={"accept-encoding": accepted})
        assert "gzip" in upstream.headers[-1]["accept-encoding"]
        assert "br" not in upstream.headers[-1]["accept-encoding"]
        assert answer.json()["content"][0]["text"] == "27"
        assert "content-encoding" not in answer.headers
    body = ASKED | {"messages": [{"role": "user", "content": "agree"}]}
    with httpx.stream("POST", served.url + "/v1/messages", json=body, headers={"accept-encoding": "gzip"}) as answer:
        assert b"".join(answer.iter_raw()) == upstream.sent[-1]
        assert answer.headers["content-encoding"] == "gzip"
