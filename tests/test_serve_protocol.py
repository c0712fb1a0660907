"""Which requests are of the adapter's kind, and what a corrected answer is made of: both protocols, without a server."""

import json

import pytest

from adapter.serve.anthropic import Anthropic
from adapter.serve.openai import OpenAI
from adapter.serve.protocol import Unreadable, events

TURN = {"role": "user", "content": "5 + 2"}
IMAGE = {"type": "image", "source": {"type": "url", "url": "https://a.b/c.png"}}
PARTS = [{"type": "text", "text": "5 + 2"}]


def asked(spoken, **changes):
    """What is read of a request with changes."""
    request = {"model": "m", "max_tokens": 9, "messages": [TURN]} | changes
    return spoken.read(json.dumps(request).encode(), "Be brief.")


@pytest.mark.parametrize("spoken", [Anthropic(), OpenAI()], ids=["anthropic", "openai"])
@pytest.mark.parametrize("changes", [
    {}, {"messages": [{"role": "user", "content": PARTS}]}, {"temperature": 0, "metadata": {"user_id": "u"}, "unknown": [1]},
    {"tools": []}, {"stream": True}, {"messages": [{"role": "user", "content": [PARTS[0] | {"cache_control": {"a": 1}}]}]}])
def test_one_turn_of_text_is_the_adapters(spoken, changes):
    found = asked(spoken, **changes)
    assert (found.text, found.why, found.model) == ("5 + 2", "", "m")
    assert found.stream == ("stream" in changes)


@pytest.mark.parametrize(("changes", "why"), [
    ({"tools": [{"name": "look"}]}, "tools"),
    ({"mcp_servers": [{"url": "https://a"}]}, "tools"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "response format"),
    ({"system": "Answer in French."}, "another system prompt"),
    ({"system": [PARTS[0], PARTS[0]]}, "several blocks"),
    ({"messages": [TURN, {"role": "assistant", "content": "7"}, TURN]}, "several turns"),
    ({"messages": [TURN | {"role": "assistant"}]}, "no user's turn"),
    ({"messages": []}, "no turn"),
    ({"messages": "5 + 2"}, "no turn"),
    ({"messages": [TURN | {"content": [IMAGE, *PARTS]}]}, "images"),
    ({"messages": [TURN | {"content": [{"type": "document"}]}]}, "documents"),
    ({"messages": [TURN | {"content": [{"type": "tool_result"}]}]}, "tools"),
    ({"messages": [TURN | {"content": [*PARTS, *PARTS]}]}, "several blocks"),
    ({"messages": [TURN | {"content": []}]}, "no text"),
    ({"messages": [TURN | {"content": None}]}, "no text"),
    ({"messages": [TURN | {"content": [{"type": ["text"]}]}]}, "no text")])
def test_other_requests_to_anthropic_are_not(changes, why):
    found = asked(Anthropic(), **changes)
    assert (found.text, found.why) == (None, why)


@pytest.mark.parametrize(("changes", "why"), [
    ({"tools": [{"type": "function"}]}, "tools"), ({"functions": [{"name": "f"}]}, "tools"), ({"n": 2}, "several answers"),
    ({"response_format": {"type": "json_object"}}, "response format"), ({"logprobs": True}, "log-probs"),
    ({"modalities": ["text", "audio"]}, "audio"),
    ({"messages": [{"role": "system", "content": "Answer in French."}, TURN]}, "another system prompt"),
    ({"messages": [{"role": "system", "content": "Be brief."}]}, "no user's turn"),
    ({"messages": [TURN, {"role": "assistant", "content": "7"}, TURN]}, "several turns"),
    ({"messages": [TURN | {"content": [{"type": "image_url"}, *PARTS]}]}, "images")])
def test_other_requests_to_openai_are_not(changes, why):
    found = asked(OpenAI(), **changes)
    assert (found.text, found.why) == (None, why)


def test_the_runs_own_system_prompt_is_allowed():
    assert asked(Anthropic(), system="Be brief.").text == "5 + 2"
    for role in ("system", "developer"):
        assert asked(OpenAI(), messages=[{"role": role, "content": "Be brief."}, TURN]).text == "5 + 2"
    body = json.dumps({"messages": [TURN], "system": [{"type": "text", "text": "Be brief.", "cache_control": {}}]})
    assert Anthropic().read(body.encode(), "Be brief.").text == "5 + 2"
    assert Anthropic().read(body.encode(), None).why == "another system prompt"


@pytest.mark.parametrize("spoken", [Anthropic(), OpenAI()], ids=["anthropic", "openai"])
@pytest.mark.parametrize("body", [b"", b"null", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"messages": 1, "messages": 2}',
                                  b'{"model": NaN}'])
def test_a_body_that_may_be_read_in_two_ways_is_passed(spoken, body):
    assert spoken.read(body, None).why == "no JSON object"


def test_a_stream_that_is_not_whole_is_not_corrected():
    whole = [{"type": "message_start", "message": {"usage": {"input_tokens": 3}}},
             {"type": "content_block_start", "content_block": {"type": "text", "text": ""}},
             {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "7\u2028"}},
             {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
             {"type": "message_stop"}]
    lines = [f"event: x\r\ndata: {json.dumps(event, ensure_ascii=False)}\r\n\r\n".encode() for event in whole]
    said = Anthropic().streamed(b"".join(lines))
    assert (said.text, said.input_tokens, said.output_tokens) == ("7\u2028", 3, 1)
    for missing in (0, 3, 4):
        with pytest.raises(Unreadable, match="cut short"):
            Anthropic().streamed(b"".join(lines[:missing] + lines[missing + 1 :]))
    with pytest.raises(Unreadable, match="error in the stream"):
        Anthropic().streamed(b"".join([*lines[:3], b'event: error\ndata: {"type": "error"}\n\n', *lines[3:]]))
    with pytest.raises(Unreadable, match="tool call"):
        Anthropic().streamed(b"".join(lines).replace(b'"type": "text", "text"', b'"type": "tool_use", "id"'))
    with pytest.raises(Unreadable, match="cut short"):
        OpenAI().streamed(b'data: {"choices": [{"index": 0, "delta": {"content": "7"}, "finish_reason": "stop"}]}\n\n')


@pytest.mark.parametrize(("stop", "why"), [("refusal", "refusal"), ("tool_use", "tool call"), ("pause_turn", "unfinished"),
                                           (None, "unfinished")])
def test_an_answer_that_is_no_answer_is_passed(stop, why):
    message = {"type": "message", "content": PARTS, "stop_reason": stop}
    with pytest.raises(Unreadable, match=why):
        Anthropic().plain(json.dumps(message).encode())


def test_what_is_kept_of_a_corrected_answer():
    message = {"type": "message", "id": "msg_9", "stop_reason": "max_tokens", "usage": {"input_tokens": 3},
               "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "7 or"},
                           {"type": "text", "text": " 8"}], "new": 1}
    said = Anthropic().plain(json.dumps(message).encode())
    assert said.text == "7 or 8"
    assert json.loads(Anthropic().corrected(said, "9 é")) == message | {
        "content": [{"type": "text", "text": "9 é"}], "stop_reason": "end_turn", "stop_sequence": None}
    completion = {"id": "c", "choices": [{"index": 0, "finish_reason": "length", "message": {"role": "assistant",
                  "content": None}}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, "new": 1}
    said = OpenAI().plain(json.dumps(completion).encode())
    assert (said.text, said.input_tokens, said.output_tokens) == ("", 3, 4)
    assert json.loads(OpenAI().corrected(said, "9")) == completion | {"choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "9"}}]}


def test_events_are_read_line_by_line():
    raw = b": ping\n\nevent: a\ndata: 1\ndata: 2\n\ndata:3\r\n\r\ndata: left over"
    assert list(events(raw)) == ["1\n2", "3"]
    with pytest.raises(Unreadable):
        list(events(b"data: \xff\n\n"))
