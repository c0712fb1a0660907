"""`python train.py` from the outside: it learns, leaves the contract's files, and takes other models."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from symbols.base.tokenizer import build_tokenizer
from tests.conftest import ROOT, lines, train_here

KEYS = {"step", "reward/mean", "reward/custom", "reward/standard", "groups/all_right", "groups/all_wrong", "groups/mixed",
        "groups/replaced", "lora/relative_norm", "time/record_s",
        "policy/entropy", "policy/clip_fraction", "policy/grad_norm", "policy/lr", "loss", "parity/logp_max_abs_diff",
        "parity/logp_mean_abs_diff", "parity/kl", "completion/mean_tokens", "completion/truncated_fraction",
        "completion/unparsed_fraction", "completion/timed_out_fraction",
        "time/rollout_s", "time/sync_s", "time/train_s", "time/step_s", "tokens/trained",
        "memory/peak_gib", "memory/host_rss_gib", "completion/same_answer_fraction", "completion/several_answers_fraction",
        "alarm/same_answer", "alarm/several_answers", "alarm/unparsed", "alarm/timed_out",
        "alarm/truncated"}
LINE_KEYS = {"step", "problem", "kind", "prompt", "completion", "token_ids", "logp_sampler", "logp_trainer", "logp_last",
             "logp_ref", "entropy", "reward", "advantage", "finish_reason"}


def test_a_toy_run_learns(toy):
    custom = [m["reward/custom"] for m in lines(toy[0] / "metrics.jsonl") if "reward/custom" in m]
    assert sum(custom[:4]) / 4 < 0.4
    assert sum(custom[-4:]) / 4 > 0.8, custom


def test_it_leaves_what_the_contract_names(toy):
    folder, printed = toy
    metrics = lines(folder / "metrics.jsonl")
    assert [m["step"] for m in metrics] == list(range(1, 21))
    assert all(set(m) >= KEYS - {"reward/custom", "reward/standard"} for m in metrics)
    assert set(metrics[0]) == KEYS
    rollout = lines(folder / "rollouts" / "step-00003.jsonl.gz")
    assert len(rollout) == 6 * 32
    assert all(set(line) == LINE_KEYS if at % 32 == 0 else set(line) == LINE_KEYS - {"prompt"}
               for at, line in enumerate(rollout))
    assert "rollouts/: the completions of all steps, 2.2 MiB at most" in printed
    trained = [line for line in rollout if line["logp_trainer"]]
    assert trained
    assert all(len(line["token_ids"]) == len(line["logp_sampler"]) == len(line["entropy"]) for line in trained)
    pairs = [pair for line in trained for pair in zip(line["logp_sampler"], line["logp_trainer"], strict=True)]
    assert max(abs(a - b) for a, b in pairs) < 1e-3
    modules = lines(folder / "lora.jsonl")
    assert [line["step"] for line in modules] == list(range(1, 21))
    assert all(len(line["modules"]) == 28 for line in modules)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert set(evaluation["api"]) == {"custom", "standard", "overall"}
    kept = evaluation["kept"]
    assert [row["step"] for row in evaluation["validation"]] == [0, 10, 20]
    assert [row["step"] for row in evaluation["steps"]] == [0, kept]
    assert kept == max(evaluation["validation"], key=lambda row: (row["overall"], row["step"]))["step"]
    assert all(set(row) == {"step", "custom", "standard", "overall"}
               for split in ("steps", "validation") for row in evaluation[split])
    lora, alone = {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}, {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {p.name for p in (folder / "best" / f"step-{kept:05d}").iterdir()} == lora
    assert {p.name for p in (folder / "adapter").iterdir()} == lora | alone
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"step-00016", "step-00020"}
    assert max(m["memory/peak_gib"] for m in metrics) < 6
    assert "trivial policy: always CORRECT: custom 0.0 %" in printed
    assert "memory: base and LoRA" in printed
    assert "self-test: vLLM serves the LoRA it is given" in printed
    assert "simulated API alone" in printed
    assert "base, before GRPO" in printed
    assert f"adapter, step {kept} (kept)" in printed
    assert f"step {kept} was best on validation (" in printed
    assert "% overall), of 3 measured" in printed


def test_tensorboard_holds_the_same_scalars(toy):
    events = EventAccumulator(str(toy[0] / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= KEYS - {"step"} | {
        f"{split}/{kind}" for split in ("validation", "test") for kind in ("custom", "standard", "overall")}
    written = {m["step"]: m["reward/mean"] for m in lines(toy[0] / "metrics.jsonl")}
    assert {e.step: pytest.approx(e.value, abs=1e-6) for e in events.Scalars("reward/mean")} == written


def test_the_adapter_loads_in_peft_and_is_the_trained_one(toy):
    model = AutoModelForCausalLM.from_pretrained(ROOT / "models" / "tiny", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny")
    line = next(line for line in lines(toy[0] / "rollouts" / "step-00020.jsonl.gz")[::32] if line["problem"].count(" ") == 2)
    ids = torch.tensor([tokenizer.encode(line["prompt"], add_special_tokens=False)])
    base = model(ids).logits
    adapted = PeftModel.from_pretrained(model, toy[0] / "adapter")
    assert (adapted(ids).logits - base).abs().max() > 0.1
    step = json.loads((toy[0] / "evaluation.json").read_text())["kept"]
    template, own = (folder / "chat_template.jinja" for folder in (toy[0] / "adapter", ROOT / "models" / "tiny"))
    assert template.read_bytes() == own.read_bytes()
    saved, kept = (load_file(toy[0] / d / "adapter_model.safetensors") for d in ("adapter", f"best/step-{step:05d}"))
    assert saved.keys() == kept.keys()
    assert all(torch.equal(saved[name], kept[name]) for name in saved)


LLAMA_TEMPLATE = ("{% for m in messages %}<|start|>{{ m.role }}: {{ m.content }}<|stop|>{% endfor %}"
                  "{% if add_generation_prompt %}<|start|>assistant: {% endif %}")


def random_model(kind: str, folder: Path) -> None:
    """A 2-layer random model with a tokenizer of its own and another chat template."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["the quick brown fox jumps over the lazy dog " * 5])
    tokenizer.chat_template = LLAMA_TEMPLATE
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256,
             "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "initializer_range": 0.2}
    model = {"llama": lambda: LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False)),
             "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**sizes, tie_word_embeddings=True)),
             "granite": lambda: GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=8.0)),
             "smollm3": lambda: SmolLM3ForCausalLM(SmolLM3Config(**sizes, pad_token_id=0))}[kind]()  # vLLM has no own code
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(("kind", "extra"), [
    ("llama", ["model.dtype=bfloat16", "algorithm.beta=0.1"]),
    ("qwen3", ["rollout.temperature=0.7", "lora.targets=[q_proj,v_proj,down_proj]"]), ("granite", []), ("smollm3", [])])
def test_any_causal_lm_and_any_task_train(kind, extra, tmp_path):
    random_model(kind, tmp_path / "model")
    config = tmp_path / "config.yaml"
    config.write_text("run: {dir: unset, steps: 2}\nmodel: {path: unset, dtype: float32}\nlora: {rank: 8, alpha: 16}\n"
                      "rollout: {prompts_per_step: 3, group_size: 4, max_new_tokens: 8, max_sequences: 16}\n"
                      f"optim: {{lr: 1e-3}}\ntask: {ROOT}/tests/tasks/letters_task.py:LettersTask\n")
    done = train_here(str(config), f"model.path={tmp_path}/model", f"run.dir={tmp_path}/run", *extra)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = lines(tmp_path / "run" / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [1, 2]
    assert all(m["tokens/trained"] > 0 and m["policy/grad_norm"] > 0 and "reward/word" in m for m in metrics)
    assert ("policy/kl_ref" in metrics[1]) == (kind == "llama")
    assert "the empty answer" in done.stdout
    assert "stop tokens: <|im_end|> (2)" in done.stdout
    moved = load_file(tmp_path / "run" / "checkpoints" / "step-00002" / "adapter_model.safetensors")
    assert all(t.abs().max() > 0 for name, t in moved.items() if "lora_B" in name)
    line = lines(tmp_path / "run" / "rollouts" / "step-00001.jsonl.gz")[0]
    assert line["prompt"] == f"<|start|>user: {line['problem']}<|stop|><|start|>assistant: "
