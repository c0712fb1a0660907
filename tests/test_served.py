"""vLLM's own server: behind our client it is an API like any other; with the saved LoRA it serves the adapter."""

import json
from dataclasses import replace

import pytest

from adapter.api.collect import CollectingUpstream
from adapter.api.openai import OpenAIUpstream
from adapter.api.replies import CUT_OFF
from adapter.rows import Splits
from examples.served_client import ServedAdapter
from grpo.types import UserError
from symbols.expression import GREEK
from symbols.generate import Range
from tests.claude import questions, rows
from tests.forked import run_forked
from tests.symbol_rows import build


@pytest.fixture(params=["anthropic", "openai"])
def local(request, vllm_server, claude, monkeypatch) -> CollectingUpstream:
    """Our client of either protocol, asking the embedded base without a key."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", vllm_server)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "none")
    common = {"model": "models/tiny", "timeout_s": 60, "concurrency": 32}
    if request.param == "anthropic":
        return replace(claude, **common)
    return OpenAIUpstream("openai", store=claude.store, prompt=claude.prompt, agreed=True, url=vllm_server, **common)


def test_answers_are_collected_from_a_real_server(local):
    asked = questions(100)
    found = local.answers(asked)
    stored = rows(local)
    assert len(stored) == len({row["key"] for row in stored}) == 100
    assert all(row["usage"]["input_tokens"] > 20 and row["usage"]["output_tokens"] > 0 for row in stored)
    assert {row["stop_reason"] for row in stored} <= {"end_turn", "max_tokens", "stop", "length"}
    assert any(answer.text.strip() for answer in found)
    assert {answer.model for answer in found} == {"models/tiny"}
    before = local.store.read_bytes()
    assert local.answers(asked) == found
    assert local.store.read_bytes() == before


def test_parameters_and_the_longest_answer_are_obeyed(local):
    brief = replace(local, max_tokens=2)
    brief.answers(questions(8))
    assert {row["usage"]["output_tokens"] for row in rows(brief)} == {2}
    assert {row["stop_reason"] for row in rows(brief)} <= set(CUT_OFF)
    hot = replace(local, parameters={"temperature": 2.0, "top_k": 50}, system="Reply with a number.")
    assert [answer.text for answer in hot.answers(questions(8))] != [answer.text for answer in local.answers(questions(8))]
    with pytest.raises(UserError, match="BadRequestError 400"):
        replace(local, parameters={"temperature": "warm"}).answers(questions(1))


def test_a_model_it_does_not_serve_is_one_line(local):
    with pytest.raises(UserError, match="NotFoundError 404"):
        replace(local, model="claude-haiku-4-5").answers(questions(25))


def test_the_served_adapter_answers_as_the_chain_does(vllm_server, toy, tmp_path):
    *_, test = build(7, Splits(2, 2, 24), Range((1, 99), (2, 2), 999), GREEK, 7)
    file = tmp_path / "expressions.txt"
    file.write_text("".join(row.question + "\n" for row in test))
    done = run_forked(tmp_path, "adapter.ask", "--file", str(file), "--run", str(toy[0]), "--json")
    assert done.returncode in (0, 1), done.stderr
    chain = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["question"] for answer in chain] == [row.question for row in test]
    served = ServedAdapter(vllm_server)
    assert [served.correct(a["question"], a["api_answer"]) for a in chain] == [a["answer"] for a in chain]
    assert sum(a["answer"] == row.answer for a, row in zip(chain, test, strict=True)) > 18
    assert {a["verdict"] for a in chain} >= {"correct", "override"}
