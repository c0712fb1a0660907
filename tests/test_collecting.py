"""Collecting a data set from a real API: by command, killed and run again, through Vertex, and with the key kept secret."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from adapter.api.claude import ClaudeUpstream
from grpo.types import UserError
from symbols.settings import Settings
from symbols.task import SymbolTask
from tests.claude import KEY, expected, questions, texts
from tests.conftest import ROOT


@pytest.fixture
def vertex(server, claude, tmp_path, monkeypatch) -> ClaudeUpstream:
    """Google's real login, with a key made here and a token from the server."""
    pytest.importorskip("google.auth", reason="pip install -r requirements/vertex.txt")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    account = {"type": "service_account", "project_id": "p", "private_key_id": "1", "private_key": key,
               "client_email": "a@p.example", "client_id": "1", "token_uri": f"{server.url}/token"}
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-project")
    monkeypatch.setenv("GOOGLE_CLOUD_REGION", "europe-west1")
    monkeypatch.setenv("ANTHROPIC_VERTEX_BASE_URL", server.url)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    return replace(claude, provider="vertex", model="claude-haiku-4-5@20251001")


def test_vertex_answers_like_the_api(server, vertex, monkeypatch):
    asked = questions(20)
    assert texts(vertex, asked) == expected(asked)
    assert {h["authorization"] for h in server.headers} == {"Bearer google-token"}
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere")
    with pytest.raises(UserError, match="no Google login"):
        vertex.answers(questions(30))
    monkeypatch.delenv("GOOGLE_CLOUD_REGION")
    with pytest.raises(UserError, match=r"its region \(GOOGLE_CLOUD_REGION\)"):
        vertex.answers(questions(30))


def test_a_login_that_google_refuses_is_one_line(server, vertex, tmp_path, monkeypatch):
    account = json.loads((tmp_path / "account.json").read_text())
    (tmp_path / "account.json").write_text(json.dumps(account | {"token_uri": f"{server.url}/v1/messages/batches/none"}))
    with pytest.raises(UserError, match="questions have no answer yet"):
        vertex.answers(questions(3))


def command(out: Path, answers: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "adapter.dataset", "configs/tiny.yaml", "--out", str(out), "task.train=250",
            "task.validation=50", "task.test=100", "task.limit=999", "task.upstream=anthropic", "task.api_concurrency=16",
            f"task.api_answers={answers}", "--yes", *more]


def test_collection_killed_and_run_again_gives_the_same_bytes(server, tmp_path):
    server.latency_s = 0.02
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    assert subprocess.run(command(tmp_path / "whole", tmp_path / "whole.jsonl"), check=False, **quiet).returncode == 0
    server.asked.clear()
    answers, process = tmp_path / "answers.jsonl", None
    for wanted in (50, 150, 300):
        process = subprocess.Popen(command(tmp_path / "part", answers), **quiet)
        while not answers.exists() or answers.read_bytes().count(b"\n") < wanted:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        process.kill()
        process.wait()
        assert not (tmp_path / "part").exists()
    assert subprocess.run(command(tmp_path / "part", answers), check=False, **quiet).returncode == 0
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(server.asked) <= 400 + 3 * 16  # what was in the air at a kill, and nothing else, is asked again


def test_the_key_is_in_no_output_not_even_the_sdks_debug_log(server, tmp_path):
    server.faults += ["500", "400"]
    done = subprocess.run(command(tmp_path / "out", tmp_path / "answers.jsonl"), cwd=ROOT, check=False, capture_output=True,
                          text=True, env={**os.environ, "ANTHROPIC_LOG": "debug"})
    assert done.returncode == 2
    assert "1 of 400 questions" in done.stderr
    written = "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    assert KEY not in done.stdout + done.stderr + written
    assert "[ANTHROPIC_API_KEY]" in written


def test_the_task_uses_it_and_says_when_the_key_is_missing(server, tmp_path, monkeypatch):
    settings = Settings(upstream="anthropic", api_model="claude-test", api_answers=str(tmp_path / "a.jsonl"), limit=999,
                        train=20, validation=6, test=10, api_yes=True)
    task = SymbolTask(settings, seed=0)
    assert task.references["api"].label == "claude-test alone"
    assert SymbolTask.missing(settings) == []
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert SymbolTask.missing(settings) == ["an API key (ANTHROPIC_API_KEY), or a token (ANTHROPIC_AUTH_TOKEN)"]
