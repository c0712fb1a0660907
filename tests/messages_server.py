"""A small server on this machine that speaks the Messages API, its batches, Vertex's form of it, and OpenAI's chat
completions, and can misbehave.

It answers every question with the number of its characters, after `latency_s`. The next requests take a fault each, while
there are any in `faults`.
"""

import itertools
import json
import socket
import threading
import time
from collections import deque
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MESSAGES, BATCHES, CHAT = "/v1/messages", "/v1/messages/batches", "/v1/chat/completions"


def reply(request: dict, **changes) -> dict:
    """A well-formed Message."""
    text = str(len(request["messages"][0]["content"]))
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": request.get("model", "in the address"),
            "stop_reason": "end_turn", "stop_sequence": None, "content": [{"type": "text", "text": text}],
            "usage": {"input_tokens": 9, "output_tokens": 2}} | changes


def completion(request: dict, **changes) -> dict:
    """A well-formed ChatCompletion."""
    message = {"role": "assistant", "content": str(len(request["messages"][-1]["content"]))}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": request["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}} | changes


class MessagesServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1. `asked`: the prompts, in the order they came; `batches`: by id."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, latency_s: float = 0.0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.latency_s = latency_s
        self.faults: deque[str | dict] = deque()
        self.asked: list[str] = []
        self.bodies: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.lock, self.at_once, self.most_at_once = threading.Lock(), 0, 0
        self.batches: dict[str, dict] = {}
        self.batch_results = lambda entry: {"type": "succeeded", "message": reply(entry["params"])}
        self.result_faults: deque[str] = deque()
        self.polls_until_ended = 2
        self.stopped = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """End hanging requests and stop listening."""
        self.stopped.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        """Clients that are killed or time out close their connection: no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: MessagesServer

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_):
        pass

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/token":  # Google's login
            self.send(200, {"access_token": "google-token", "expires_in": 3600, "token_type": "Bearer"})
        elif self.path == BATCHES:
            self.make_batch(json.loads(raw))
        else:
            assert self.path in (MESSAGES, CHAT) or self.path.endswith(":rawPredict"), self.path
            self.message(json.loads(raw))

    def do_GET(self):
        server, (path, _, _) = self.server, self.path.partition("?")
        if path == BATCHES:
            newest_first = sorted((e["batch"] for e in server.batches.values()), key=lambda b: b["created_at"], reverse=True)
            self.send(200, {"data": newest_first, "has_more": False, "first_id": None, "last_id": None})
            return
        entry = server.batches.get(path.removeprefix(BATCHES + "/").removesuffix("/results"))
        if entry is None:
            self.send(404, error("not_found_error", "no such batch"))
        elif path.endswith("/results"):
            lines = [json.dumps({"custom_id": r["custom_id"], "result": server.batch_results(r)}) for r in entry["requests"]]
            data = "".join(line + "\n" for line in reversed(lines)).encode()
            fault = server.result_faults.popleft() if server.result_faults else None
            promised = len(data) if fault == "cut short" else None
            self.send_raw(200, data[: len(data) // 2] if fault else data, promised)
            self.close_connection = fault == "cut short"
        else:
            entry["polls"] += 1
            if entry["polls"] >= server.polls_until_ended:
                entry["batch"] |= {"processing_status": "ended", "results_url": server.url + self.path + "/results"}
            self.send(200, entry["batch"])

    def make_batch(self, body: dict) -> None:
        server, number = self.server, len(self.server.batches) + 1
        server.asked += [r["params"]["messages"][0]["content"] for r in body["requests"]]
        counts = {"processing": len(body["requests"]), "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        batch = {"id": f"msgbatch_{number}", "type": "message_batch", "processing_status": "in_progress",
                 "request_counts": counts, "created_at": datetime.now(UTC).isoformat(), "results_url": None,
                 "expires_at": datetime.now(UTC).isoformat(), "ended_at": None, "archived_at": None,
                 "cancel_initiated_at": None}
        server.batches[batch["id"]] = {"batch": batch, "requests": body["requests"], "polls": 0}
        if server.faults:
            self.fault(server.faults.popleft(), {})
        else:
            self.send(200, batch)

    def message(self, request: dict) -> None:
        self.server.asked.append(request["messages"][-1]["content"])
        self.server.bodies.append(request)
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.server.faults:
            self.fault(self.server.faults.popleft(), request)
            return
        with self.server.lock:
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        time.sleep(self.server.latency_s)
        with self.server.lock:
            self.server.at_once -= 1
        self.send(200, self.reply(request))

    def reply(self, request: dict, **changes) -> dict:
        return (completion if self.path == CHAT else reply)(request, **changes)

    def fault(self, fault: str | dict, request: dict) -> None:
        if isinstance(fault, dict):  # a reply unlike the usual one
            self.send(200, self.reply(request, **fault))
        elif fault == "closed":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "cut short":  # half of what the header promises
            data = json.dumps(self.reply(request)).encode()
            self.send_raw(200, data[: len(data) // 2], promised=len(data))
            self.close_connection = True
        elif fault == "half a JSON":
            self.send_raw(200, json.dumps(self.reply(request)).encode()[:40])
        elif fault == "hangs":
            self.server.stopped.wait(30)
            self.close_connection = True
        else:
            status, header, wait = [*fault.split(" ", 2), "", ""][:3]
            kinds = {"401": "authentication_error", "400": "invalid_request_error", "429": "rate_limit_error",
                     "529": "overloaded_error"}
            key = self.headers.get("authorization", "").removeprefix("Bearer ")
            self.send(int(status), error(kinds.get(status, "api_error"), f"trouble with {key}"),
                      **({header: wait} if header else {}))

    def send(self, status: int, body: dict, **headers: str) -> None:
        self.send_raw(status, json.dumps(body).encode(), **headers)

    def send_raw(self, status: int, data: bytes, promised: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in itertools.chain({"content-type": "application/json"}.items(), headers.items()):
            self.send_header(name, value)
        self.send_header("content-length", str(promised or len(data)))
        self.end_headers()
        self.wfile.write(data)


def error(kind: str, message: str) -> dict:
    """An error as the API words it."""
    return {"type": "error", "error": {"type": kind, "message": message}}
