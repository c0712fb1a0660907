"""The real client against a server on this machine that speaks the Messages API: asked once, kept, resumed."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from adapter.dataset import build
from adapter.task import Settings, SymbolTask
from adapter.upstream import ClaudeUpstream
from grpo.types import UserError
from symbols.expression import GREEK
from symbols.generate import Range

KEY = "sk-ant-never-shown"


@pytest.fixture
def server(monkeypatch):
    """Answers every question with the number of its characters; `fail_after` answers, then 401."""

    class Handler(BaseHTTPRequestHandler):
        asked: ClassVar[list[str]] = []
        fail_after = 10**9

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            content = request["messages"][0]["content"]
            self.asked.append(content)
            failing = len(self.asked) > Handler.fail_after
            body = ({"type": "error", "error": {"type": "authentication_error", "message": f"bad key {KEY}"}} if failing else
                    {"id": "1", "type": "message", "role": "assistant", "model": request["model"], "stop_reason": "end_turn",
                     "stop_sequence": None, "content": [{"type": "text", "text": str(len(content))}],
                     "usage": {"input_tokens": 9, "output_tokens": 2}})
            data = json.dumps(body).encode()
            self.send_response(401 if failing else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", f"http://127.0.0.1:{httpd.server_port}")
    yield Handler
    httpd.shutdown()
    httpd.server_close()


def data_set(store, count=60):
    return build(0, count, 20, Range((1, 99), (2, 4), 999), GREEK, ClaudeUpstream("claude-test", store, concurrency=8))


def test_every_question_is_asked_once_and_kept(server, tmp_path):
    store = tmp_path / "deep" / "answers.jsonl"
    train, test = data_set(store)
    assert len(server.asked) == 80
    row = train[0]
    prompt = next(p for p in server.asked if p.endswith(f"\n\n{row.expression}"))
    assert row.api_answer == str(len(prompt))
    assert (train, test) == data_set(store)
    assert len(server.asked) == 80  # nothing is paid for twice
    rows = [json.loads(line) for line in store.read_text().splitlines()]
    assert rows[0]["usage"] == {"input_tokens": 9, "output_tokens": 2}
    assert rows[0]["stop_reason"] == "end_turn"
    assert KEY not in store.read_text()


def test_a_file_cut_short_by_a_kill_costs_one_question(server, tmp_path):
    store = tmp_path / "answers.jsonl"
    whole = data_set(store)
    store.write_bytes(store.read_bytes()[:-20])
    assert data_set(store) == whole
    assert len(server.asked) == 81


def test_an_error_keeps_what_was_answered_and_hides_the_key(server, tmp_path):
    server.fail_after = 30
    store = tmp_path / "answers.jsonl"
    with pytest.raises(UserError, match=r"AuthenticationError 401 after \d+ of 80 answers") as caught:
        data_set(store)
    assert KEY not in str(caught.value)
    kept = len(store.read_text().splitlines())
    assert 1 <= kept <= 30
    server.fail_after = 10**9
    server.asked.clear()
    data_set(store)
    assert len(server.asked) == 80 - kept


def test_a_damaged_row_is_named(server, tmp_path):
    store = tmp_path / "answers.jsonl"
    data_set(store)
    lines = store.read_text().splitlines()
    store.write_text("\n".join([*lines[:4], "{broken", *lines[5:]]) + "\n")
    with pytest.raises(UserError, match="line 5 is no answer"):
        data_set(store)


def test_the_task_uses_it_and_says_when_the_key_is_missing(server, tmp_path, monkeypatch):
    settings = Settings(upstream="anthropic", api_model="claude-test", api_answers=str(tmp_path / "a.jsonl"), limit=999,
                        train=20, test=10)
    task = SymbolTask(settings, seed=0)
    assert task.references["api"].label == "claude-test alone"
    assert SymbolTask.missing(settings) == []
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert SymbolTask.missing(settings) == ["an API key (ANTHROPIC_API_KEY)"]
