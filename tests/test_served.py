"""vLLM's own server: behind our client it is an API like any other; with the saved LoRA it serves the adapter."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from adapter.rows import Splits
from adapter.task import asked
from examples.served_client import ServedAdapter
from grpo.types import UserError
from symbols.expression import GREEK
from symbols.generate import Range
from symbols.rows import draw
from tests.claude import rows
from tests.conftest import ROOT
from tests.symbol_rows import build


@pytest.fixture
def local(vllm_server, claude, monkeypatch):
    """Our client, asking the embedded base."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", vllm_server)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    return replace(claude, model="models/tiny", timeout_s=60, concurrency=32)


def test_a_data_set_is_collected_from_a_real_server(local):
    splits = asked(draw(0, Splits(100, 50, 50), Range((1, 99), (2, 4), 999), GREEK), local)
    stored = rows(local)
    assert len(stored) == len({row["key"] for row in stored}) == 200
    assert all(row["usage"]["input_tokens"] > 20 and row["usage"]["output_tokens"] > 0 for row in stored)
    assert {row["stop_reason"] for row in stored} <= {"end_turn", "max_tokens"}
    assert any(row["text"].strip() for row in stored)
    assert {row.api.model for part in splits for row in part} == {"models/tiny"}
    before = local.store.read_bytes()
    assert splits == asked(draw(0, Splits(100, 50, 50), Range((1, 99), (2, 4), 999), GREEK), local)
    assert local.store.read_bytes() == before


def test_a_model_it_does_not_serve_is_one_line(local):
    with pytest.raises(UserError, match="NotFoundError 404"):
        asked(draw(0, Splits(10, 5, 10), Range((1, 99), (2, 2), 999), GREEK), replace(local, model="claude-haiku-4-5"))


def test_the_served_adapter_answers_as_the_chain_does(vllm_server, toy, tmp_path):
    *_, test = build(7, Splits(2, 2, 40), Range((1, 99), (2, 2), 999), GREEK, 7)
    file = tmp_path / "expressions.txt"
    file.write_text("".join(row.question + "\n" for row in test))
    command = [sys.executable, "-m", "adapter.ask", "--file", str(file), "--run", str(toy[0]), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    chain = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["question"] for answer in chain] == [row.question for row in test]
    served = ServedAdapter(vllm_server)
    assert [served.correct(a["question"], a["api_answer"]) for a in chain] == [a["answer"] for a in chain]
    assert sum(a["answer"] == row.answer for a, row in zip(chain, test, strict=True)) > 30
    assert {a["verdict"] for a in chain} >= {"correct", "override"}
