"""The API's key and address: taken as people have them; the key is in no file of a run, and not in what it prints."""

import json

import pytest

from adapter.api.faults import without_keys
from grpo.types import UserError
from tests.claude import KEY, expected, questions, texts
from tests.forked import run_forked


def test_a_run_behind_a_real_api_writes_its_key_nowhere(server, tmp_path):
    done = run_forked(tmp_path, "train", "configs/tiny.yaml", f"run.dir={tmp_path}/run", "run.steps=2", "task.terms=[2,2]",
                      "task.train=12", "task.validation=4", "task.test=6", "task.upstream=anthropic", "task.api_yes=true",
                      f"task.api_answers={tmp_path}/answers.jsonl", "rollout.prompts_per_step=2", "rollout.group_size=4",
                      "rollout.max_new_tokens=16", "checkpoint.every=1", "eval.every=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 22
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["api"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert names >= {"config.yaml", "metrics.jsonl", "state.json", "adapter_model.safetensors", "step-00002.jsonl.gz"}
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in done.stdout + done.stderr


@pytest.mark.parametrize("inside", ["\n", " ", "\u028b"])
def test_a_key_that_cannot_be_sent_is_one_line_without_it(server, claude, monkeypatch, inside):
    monkeypatch.setenv("ANTHROPIC_API_KEY", f"{KEY}{inside}{KEY}")
    with pytest.raises(UserError, match="holds a space, line end") as caught:
        claude.answers(questions(1))
    assert KEY not in str(caught.value)
    assert not server.asked
    assert not claude.store.exists()


@pytest.mark.parametrize("name", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"])
def test_a_key_is_cut_out_as_python_quotes_it_too(monkeypatch, name):
    monkeypatch.setenv(name, "first half\nsecond half")
    assert without_keys(f"Illegal header value {b'Bearer first half' + bytes([10]) + b'second half'}") == (
        f"Illegal header value b'Bearer [{name}]'")


def test_a_key_with_a_line_end_is_a_key(server, claude, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", f" {KEY}\n")
    assert texts(claude, questions(1)) == expected(questions(1))


def test_a_token_alone_is_taken_and_a_key_comes_first(server, claude, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", " a-token-never-shown\n")
    claude.answers(questions(1))
    monkeypatch.setenv("ANTHROPIC_API_KEY", " ")
    claude.answers(questions(2))
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    claude.answers(questions(3))
    assert [h["authorization"] for h in server.headers] == [f"Bearer {KEY}", *["Bearer a-token-never-shown"] * 2]


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v1/messages"])
def test_an_address_may_end_as_other_clients_want_it(server, claude, monkeypatch, path):
    monkeypatch.setenv("ANTHROPIC_BASE_URL", f" {server.url}{path} ")
    assert texts(claude, questions(1)) == expected(questions(1))
