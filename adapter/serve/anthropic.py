"""Anthropic's Messages API, as the gateway speaks it: POST /v1/messages.

Of the adapter's kind is a request with one user turn of plain text and nothing that asks for more than a text. A corrected
answer has one text block, and stop_reason end_turn: nothing of it was cut off.
"""

from typing import Any

from adapter.serve.protocol import (
    Asked,
    Said,
    Unreadable,
    as_event,
    as_json,
    asked,
    count,
    events,
    json_object,
    one_text,
    refuse,
)

MORE = {"tools": "tools", "mcp_servers": "tools", "container": "tools", "output_format": "response format"}
PARTS = {"image": "images", "document": "documents", "tool_result": "tools", "tool_use": "tools"}
ERRORS = {400: "invalid_request_error", 404: "not_found_error", 408: "timeout_error", 413: "request_too_large",
          503: "overloaded_error", 504: "timeout_error"}  # by HTTP status; others are api_error
THOUGHTS = ("thinking", "redacted_thinking")  # blocks beside the text, which is what is corrected


class Anthropic:
    """Spoken of protocol.py."""

    name = "anthropic"
    path = "/v1/messages"

    def read(self, body: bytes, system: str | None) -> Asked:
        """See Spoken."""
        return asked(body, lambda request: _question(request, system))

    def plain(self, answer: bytes) -> Said:
        """See Spoken."""
        message = json_object(answer, "no message")
        blocks, usage = message.get("content"), message.get("usage")
        if message.get("type") != "message" or not isinstance(blocks, list):
            raise Unreadable("no message")
        text = "".join(_text(block) for block in blocks)
        _check_stop(message.get("stop_reason"))
        return Said(text, {"message": message}, count(usage, "input_tokens"), count(usage, "output_tokens"))

    def streamed(self, answer: bytes) -> Said:
        """See Spoken."""
        start, delta, text, ended = None, None, [], False
        for data in events(answer):
            event = json_object(data, "no event stream")
            match event.get("type"):
                case "error":
                    raise Unreadable("error in the stream")
                case "message_start":
                    start = event
                case "content_block_start":
                    text.append(_text(event.get("content_block")))
                case "content_block_delta":
                    part = event.get("delta")
                    if isinstance(part, dict) and part.get("type") == "text_delta" and isinstance(part.get("text"), str):
                        text.append(part["text"])
                case "message_delta":
                    delta = event
                case "message_stop":
                    ended = True
        message, change = (start or {}).get("message"), (delta or {}).get("delta")
        if not ended or not isinstance(message, dict) or not isinstance(change, dict):
            raise Unreadable("cut short")
        _check_stop(change.get("stop_reason"))
        first, last = message.get("usage"), delta.get("usage")
        return Said("".join(text), {"start": start, "delta": delta},
                    count(last, "input_tokens") or count(first, "input_tokens"), count(last, "output_tokens"))

    def corrected(self, said: Said, text: str) -> bytes:
        """See Spoken."""
        ends = {"stop_reason": "end_turn", "stop_sequence": None}
        if "message" in said.kept:
            return as_json({**said.kept["message"], "content": [{"type": "text", "text": text}], **ends})
        start, delta = said.kept["start"], said.kept["delta"]
        return b"".join(as_event(event, event["type"]) for event in (
            start,
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
            {"type": "content_block_stop", "index": 0},
            {**delta, "delta": {**delta["delta"], **ends}},
            {"type": "message_stop"}))

    def error(self, status: int, message: str) -> bytes:
        """See Spoken."""
        return as_json({"type": "error", "error": {"type": ERRORS.get(status, "api_error"), "message": message}})


def _question(request: dict[str, Any], system: str | None) -> str:
    """Raises Unreadable where the request is not of the adapter's kind."""
    refuse(request, MORE)
    config = request.get("output_config")
    if isinstance(config, dict):
        refuse(config, {"format": "response format"})
    if request.get("system") and one_text(request["system"], {}) != system:
        raise Unreadable("another system prompt")
    turns = request.get("messages")
    if not isinstance(turns, list) or len(turns) != 1 or not isinstance(turns[0], dict):
        raise Unreadable("several turns" if isinstance(turns, list) and len(turns) > 1 else "no turn")
    if turns[0].get("role") != "user":
        raise Unreadable("no user's turn")
    return one_text(turns[0].get("content"), PARTS)


def _text(block: object) -> str:
    """Of a block of an answer. Raises Unreadable where it is neither text nor thought."""
    if not isinstance(block, dict):
        raise Unreadable("no message")
    if block.get("type") == "text" and isinstance(block.get("text"), str):
        return block["text"]
    if block.get("type") in THOUGHTS:
        return ""
    raise Unreadable("tool call" if "tool" in str(block.get("type")) else "other content")


def _check_stop(reason: object) -> None:
    """A refusal stands: it is not the adapter's to answer what the API will not."""
    if reason not in ("end_turn", "stop_sequence", "max_tokens"):
        raise Unreadable({"refusal": "refusal", "tool_use": "tool call"}.get(str(reason), "unfinished"))
