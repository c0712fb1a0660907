"""OpenAI's chat completions, as the gateway speaks them: POST /v1/chat/completions.

Of the adapter's kind is a request with one user turn of plain text, n = 1, and nothing that asks for more than a text. A
corrected answer has finish_reason stop: nothing of it was cut off.
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

MORE = {"tools": "tools", "functions": "tools", "web_search_options": "tools", "audio": "audio", "logprobs": "log-probs",
        "prediction": "a prediction"}
PARTS = {"image_url": "images", "input_audio": "audio", "file": "documents"}
ERRORS = {503: "server_error", 502: "server_error", 504: "server_error"}  # by HTTP status; others are invalid_request_error
DONE = "[DONE]"


class OpenAI:
    """Spoken of protocol.py."""

    name = "openai"
    path = "/v1/chat/completions"

    def read(self, body: bytes, system: str | None) -> Asked:
        """See Spoken."""
        return asked(body, lambda request: _question(request, system))

    def plain(self, answer: bytes) -> Said:
        """See Spoken."""
        completion = json_object(answer, "no completion")
        choice, usage = _only_choice(completion), completion.get("usage")
        message = choice.get("message")
        if not isinstance(message, dict):
            raise Unreadable("no completion")
        _check(message, choice.get("finish_reason"))
        return Said(_content(message), {"completion": completion}, count(usage, "prompt_tokens"),
                    count(usage, "completion_tokens"))

    def streamed(self, answer: bytes) -> Said:
        """See Spoken."""
        first, usage_chunk, usage, reason, text, ended = None, None, None, None, [], False
        for data in events(answer):
            if data.strip() == DONE:
                ended = True
                break
            chunk = json_object(data, "no event stream")
            if "error" in chunk:
                raise Unreadable("error in the stream")
            usage = chunk.get("usage") or usage
            if not chunk.get("choices"):
                usage_chunk = chunk
                continue
            choice, first = _only_choice(chunk), first or chunk
            delta = choice.get("delta") or {}
            if not isinstance(delta, dict):
                raise Unreadable("no completion")
            reason = choice.get("finish_reason") or reason
            _check(delta, reason or "stop")
            text.append(_content(delta))
        if not ended or first is None or reason is None:
            raise Unreadable("cut short")
        return Said("".join(text), {"first": first, "usage_chunk": usage_chunk, "usage": usage},
                    count(usage, "prompt_tokens"), count(usage, "completion_tokens"))

    def corrected(self, said: Said, text: str) -> bytes:
        """See Spoken."""
        if "completion" in said.kept:
            completion = said.kept["completion"]
            choice = completion["choices"][0]
            message = {**choice["message"], "content": text}
            return as_json({**completion, "choices": [{**choice, "message": message, "finish_reason": "stop"}]})
        first, last, usage = said.kept["first"], said.kept["usage_chunk"], said.kept["usage"]

        def chunk(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
            return {**first, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

        ending = chunk({}, "stop")
        if last is None and usage is not None:  # some servers count in the chunk that ends
            ending["usage"] = usage
        told = [chunk({"role": "assistant", "content": ""}), chunk({"content": text}), ending, *([last] if last else [])]
        return b"".join(map(as_event, told)) + f"data: {DONE}\n\n".encode()

    def error(self, status: int, message: str) -> bytes:
        """See Spoken."""
        kind = ERRORS.get(status, "invalid_request_error")
        return as_json({"error": {"message": message, "type": kind, "param": None, "code": None}})


def _question(request: dict[str, Any], system: str | None) -> str:
    """Raises Unreadable where the request is not of the adapter's kind."""
    refuse(request, MORE)
    if request.get("n") not in (None, 1):
        raise Unreadable("several answers")
    if request.get("modalities") not in (None, ["text"]):
        raise Unreadable("audio")
    if request.get("response_format") not in (None, {"type": "text"}):
        raise Unreadable("response format")
    turns = request.get("messages")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise Unreadable("no turn")
    if len(turns) > 1 and turns[0].get("role") in ("system", "developer"):
        if one_text(turns[0].get("content"), {}) not in (system, ""):
            raise Unreadable("another system prompt")
        turns = turns[1:]
    if len(turns) > 1:
        raise Unreadable("several turns")
    if turns[0].get("role") != "user":
        raise Unreadable("no user's turn")
    return one_text(turns[0].get("content"), PARTS)


def _only_choice(completion: dict[str, Any]) -> dict[str, Any]:
    choices = completion.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Unreadable("several answers" if isinstance(choices, list) and len(choices) > 1 else "no completion")
    if choices[0].get("index", 0) != 0:
        raise Unreadable("several answers")
    return choices[0]


def _content(message: dict[str, Any]) -> str:
    """Of a message or a part of one; some servers send it in parts."""
    content = message.get("content")
    return "" if content is None or content == [] else one_text(content, {})


def _check(message: dict[str, Any], reason: object) -> None:
    """A refusal stands: it is not the adapter's to answer what the API will not."""
    if message.get("tool_calls") or message.get("function_call"):
        raise Unreadable("tool call")
    if message.get("refusal") or reason == "content_filter":
        raise Unreadable("refusal")
    if reason not in ("stop", "length"):
        raise Unreadable("tool call" if "call" in str(reason) else "unfinished")
