"""benchmarks/rivals.py: what fine-tuning is given, that it learns it, and whose answer wins a vote."""

import itertools
import json
import math

import pytest

from adapter.commands import task_of
from adapter.trained import TrainedAdapter
from benchmarks import rivals
from benchmarks.rivals_vote import majority
from grpo.chat import encode
from grpo.config import load
from grpo.run.tasks import load_class
from grpo.types import UserError
from tests.conftest import ROOT, padded_logps, tiny_policy
from tests.messages_server import completion

ROWS = [{"question": f"What is {n} + {n}?", "answer": 2 * n, "api_answer": str(2 * n if n % 3 else 2 * n + 1)}
        for n in range(1, 41)]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A corrector of recorded answers, on the embedded base. Of three answers of the API one is wrong."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({
        "run": {"dir": str(tmp_path / "unused"), "steps": 99, "seed": 1}, "lora": {"rank": 8, "alpha": 16},
        "model": {"path": "models/tiny", "device": "cpu"}, "rollout": {"max_new_tokens": 40},
        "task": {"target": "corrector", "data": str(tmp_path / "rows.jsonl"), "verifier": "number",
                 "upstream": "recorded"}}))
    return path


def given(path):
    """The policy, the task, and what fine-tuning is given to train on."""
    config = load(path)
    task_class, settings = task_of(config, load_class(config.task.target), path)
    task, policy = task_class(settings, config.run.seed), tiny_policy(config)
    prompts = encode(policy, task, config)[0]
    return config, policy, task, rivals.supervised(policy, task, task.rows.train, prompts, 40)


def test_targets_are_what_a_perfect_corrector_would_write(config):
    _, policy, task, (groups, counts) = given(config)
    wrong = {row["question"]: row["answer"] for row in ROWS if int(row["api_answer"]) != row["answer"]}
    for row, group in zip(task.rows.train, groups, strict=True):
        (target,) = group.completions
        assert target.text == f"\\boxed{{{wrong.get(row.question, 'CORRECT')}}}"
        assert policy.decode(target.sample.token_ids) == target.text
        assert target.sample.token_ids[-1] == 2  # ends a turn of models/tiny; 0 ends a text
    overrides = sum(row.question in wrong for row in task.rows.train)
    assert counts == {"correct": len(groups) - overrides, "override": overrides, "left_out": 0}


def test_the_loss_is_that_of_the_whole_model(config):
    """Against transformers' own attention and logits; of the target alone."""
    settings, policy, _, (groups, _) = given(config)
    logps = [padded_logps(policy, group) for group in groups[:3]]
    expected = -sum(logp.sum().item() for logp in logps) / sum(logp.numel() for logp in logps)
    assert rivals.mean_loss(policy, settings, groups[:3]) == pytest.approx(expected, rel=1e-4)
    assert rivals.mean_loss(policy, settings, []) is None


def test_a_fine_tuned_run_is_one_that_the_commands_take(config, tmp_path):
    rivals.main(["sft", str(config), "--out", str(tmp_path / "run"), "--lr", "1e-3", "--epochs", "2",
                 "task.shares=[0.6,0.2,0.2]"])
    record = json.loads((tmp_path / "run" / "sft.json").read_text())
    questions = record["correct"] + record["override"]
    assert record["steps"] == 2 * math.ceil(questions / 16)
    assert record["losses"][1]["validation"] < record["losses"][0]["validation"]
    adapter = TrainedAdapter(tmp_path / "run")
    assert (adapter.step, adapter.config.optim.lr, adapter.config.lora.rank) == (record["steps"], 1e-3, 8)
    assert any(tensor.abs().max() > 0 for name, tensor in adapter.lora().items() if "lora_B" in name)


@pytest.mark.parametrize(("wrong", "message"), [
    ("optim.lr=1", "optim.lr: here --lr says it"), ("rollout.max_new_tokens=2", "allow as many")])
def test_what_does_not_fit_is_one_line(config, tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        rivals.main(["sft", str(config), "--out", str(tmp_path / "run"), wrong])
    assert not (tmp_path / "run").exists()


def test_the_commonest_answer_wins_and_the_first_of_equals():
    assert majority(["3", "4", "4", None, None, None]) == "4"
    assert majority(["4", "3", "3", "4"]) == "4"
    assert majority([None]) is majority([]) is None


def test_a_vote_is_counted_by_hand(server, config, tmp_path, monkeypatch):
    """The greedy answer to each question is wrong; two of three at a temperature are right, but for one question."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    task = given(config)[2]
    truths, hard = {row.question: row.answer for row in task.rows.test}, task.rows.test[0].question
    turns = {question: itertools.count() for question in truths}

    def said(request: dict) -> dict:
        asked = request["messages"][0]["content"]
        right = request["temperature"] == 0.5 and asked != hard and next(turns[asked]) != 1
        content = f"It is \\boxed{{{truths[asked] + (not right)}}}"
        return completion(request, choices=[{"index": 0, "message": {"role": "assistant", "content": content},
                                             "finish_reason": "length" if asked == hard else "stop"}])

    monkeypatch.setattr("tests.messages_server.completion", said)
    rivals.main(["vote", str(config), "--url", server.url, "--model", "m", "--k", "3", "--temperature", "0.5", "--out",
                 str(tmp_path / "vote.json")])
    found, n = json.loads((tmp_path / "vote.json").read_text()), len(truths)
    assert (found["set"], found["questions"], found["k"]) == ("all", n, 3)
    assert (found["majority_right"]["hits"], found["one_right"]["hits"]) == (n - 1, 0)
    assert found["tokens"] == {"majority": {"input_tokens": 27 * n, "output_tokens": 6 * n, "cut_off": 3},
                               "one": {"input_tokens": 9 * n, "output_tokens": 2 * n, "cut_off": 1}}
