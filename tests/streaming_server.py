"""tests/messages_server.py as an upstream of the gateway: it streams too, packs its answers, and has more ways to misbehave.

It answers with `text` of a question's text, which a test sets. Faults of messages_server.py, and: "cut stream", "error
event", "silent SECONDS" before the first byte, "tool_use", and "raw TYPE BODY".
"""

import gzip
import json
import time

from tests.messages_server import CHAT, MESSAGES, MessagesServer, _Handler, completion, error, reply

USAGE = {"input_tokens": 9, "output_tokens": 2, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 3}


class StreamingServer(MessagesServer):
    """`paths`: of every request; `raw`: the bodies as they came; `sent`: the answers' bytes as they went."""

    def __init__(self, latency_s: float = 0.0):
        super().__init__(latency_s)
        self.RequestHandlerClass = _Streams
        self.text = lambda question: "7"
        self.paths: list[str] = []
        self.raw: list[bytes] = []
        self.sent: list[bytes] = []
        self.pause_s = 0.0  # between two events


class _Streams(_Handler):
    server: StreamingServer

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["content-length"]))
        self.server.raw.append(raw)
        self.server.paths.append(self.path)
        path = self.path.partition("?")[0]
        if path not in (MESSAGES, CHAT):
            self.send(200, {"input_tokens": 14} if path.endswith("count_tokens") else {"path": path})
            return
        self.path, self.asked = path, {}
        try:
            self.asked = json.loads(raw)
        except ValueError:
            self.send(400, error("invalid_request_error", "that is no JSON"))
        else:
            self.message(self.asked)

    def do_GET(self):
        self.server.paths.append(self.path)
        self.send(200, {"object": "list", "data": [{"id": "m", "object": "model"}], "has_more": False})

    def do_DELETE(self):
        self.server.paths.append(self.path)
        self.send(200, {"deleted": True})

    def reply(self, request, **changes):
        content = request["messages"][-1]["content"]
        text = self.server.text(content if isinstance(content, str) else content[-1].get("text", "an image"))
        if self.path == CHAT:
            made = completion(request)
            made["choices"][0]["message"]["content"] = text
            return made | {"service_tier": "default", "x_new": {"a": 1}} | changes
        return reply(request, content=[{"type": "text", "text": text}], usage=USAGE) | {"x_new": {"a": 1}} | changes

    def fault(self, fault, request):
        kind, _, rest = fault.partition(" ") if isinstance(fault, str) else (fault, "", "")
        if kind == "silent":
            time.sleep(float(rest))
            self.send(200, self.reply(request))
        elif fault in ("cut stream", "error event"):
            self.stream(self.reply(request), fault)
        elif kind == "raw":
            form, _, body = rest.partition(" ")
            self.send_raw(200, body.encode(), **{"content-type": form})
        elif fault == "tool_use":
            call = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
            self.send(200, self.reply(request, content=[call], stop_reason="tool_use"))
        else:
            super().fault(fault, request)

    def send(self, status, body, **headers):
        if status == 200 and self.path in (MESSAGES, CHAT) and self.asked.get("stream") is True:
            self.stream(body)
            return
        data = json.dumps(body).encode()
        headers |= {"x-request-id": "req_1"}
        if "gzip" in self.headers.get("accept-encoding", ""):
            data, headers = gzip.compress(data), headers | {"content-encoding": "gzip"}
        self.server.sent.append(data)
        self.send_raw(status, data, **headers)

    def stream(self, body, fault=""):
        """An event stream that holds what `body` says, its text in two parts."""
        events = (_chat_events if self.path == CHAT else _message_events)(body, self.asked)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("x-request-id", "req_1")
        self.end_headers()
        if fault:
            events = events[: len(events) // 2]
        if fault == "error event":
            events.append(b"event: error\ndata: " + json.dumps(error("overloaded_error", "Overloaded")).encode() + b"\n\n")
        for event in events:
            time.sleep(self.server.pause_s)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.server.sent.append(b"".join(events))
        if fault == "cut stream":
            self.close_connection = True
            self.connection.shutdown(2)
        else:
            self.wfile.write(b"0\r\n\r\n")


def _message_events(message, _):
    (block,), usage = message["content"], message["usage"]
    text = block.get("text", "")
    told = [("message_start", {"message": message | {"content": [], "stop_reason": None,
                                                     "usage": usage | {"output_tokens": 1}}}),
            ("content_block_start", {"index": 0, "content_block": block | ({"text": ""} if "text" in block else {})}),
            ("ping", {}),
            *([("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": part}})
               for part in (text[: len(text) // 2], text[len(text) // 2 :])] if "text" in block else []),
            ("content_block_stop", {"index": 0}),
            ("message_delta", {"delta": {"stop_reason": message["stop_reason"], "stop_sequence": None},
                               "usage": {"output_tokens": usage["output_tokens"]}}),
            ("message_stop", {})]
    return [f"event: {name}\ndata: {json.dumps({'type': name} | data)}\n\n".encode() for name, data in told]


def _chat_events(body, request):
    choice = body["choices"][0]
    text, common = choice["message"]["content"], {k: body[k] for k in ("id", "created", "model", "service_tier")}
    common |= {"object": "chat.completion.chunk"}
    deltas = [({"role": "assistant", "content": ""}, None), ({"content": text[: len(text) // 2]}, None),
              ({"content": text[len(text) // 2 :]}, None), ({}, choice["finish_reason"])]
    chunks = [common | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]}
              for delta, reason in deltas]
    if request.get("stream_options", {}).get("include_usage"):
        chunks = [chunk | {"usage": None} for chunk in chunks] + [common | {"choices": [], "usage": body["usage"]}]
    return [*(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks), b"data: [DONE]\n\n"]
