"""A saved adapter stands for itself: it loads from any directory, with its tokenizer, its chat template and its own base."""

import json
import warnings

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

from grpo.policy import SETTINGS, Policy
from grpo.run.files import new_directory
from grpo.run.identity import fingerprint
from grpo.run.model_files import portable_name
from grpo.types import Problem
from tests.conftest import ROOT, randomize, tiny_config

QUESTION = Problem("q", "custom", ({"role": "user", "content": "36 γ 27"},))


def test_it_loads_from_another_directory(tmp_path, monkeypatch):
    config = tiny_config("model.path=models/tiny", "model.date=2024-07-26")
    monkeypatch.chdir(ROOT)
    policy = Policy(config.model, config.lora, torch.device("cpu"), 1)
    randomize(policy, 0.05)
    prompt = policy.encode(QUESTION)
    with new_directory(tmp_path / "adapter") as part:
        policy.export(part)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the hub is asked"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of settings that it does not know
        loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    ids = tokenizer.apply_chat_template(list(QUESTION.messages), add_generation_prompt=True, enable_thinking=False,
                                        return_dict=False)
    assert tuple(ids) == prompt.token_ids
    policy.decoder.set_attn_implementation("eager")  # transformers' own, which takes a row of tokens
    with torch.no_grad():
        expected, got = (model(torch.tensor([ids])).logits for model in (policy.model, loaded))
        with loaded.disable_adapter():
            assert (loaded(torch.tensor([ids])).logits - got).abs().max() > 0.1
    assert (expected - got).abs().max() < 1e-4
    settings = json.loads((tmp_path / "adapter" / SETTINGS).read_text())
    assert settings["base_model_name_or_path"] == str(ROOT / "models" / "tiny")
    base = [(name, p) for name, p in loaded.named_parameters() if "lora_" not in name]
    assert settings["auto_mapping"] == {
        "base_model_class": "Qwen3ForCausalLM", "parent_library": "transformers.models.qwen3.modeling_qwen3",
        "base_fingerprint": fingerprint(base), "base_dtype": "torch.float32"}


def test_a_name_of_the_hub_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("grpo.run.model_files.try_to_load_from_cache", lambda path, name: f"{tmp_path}/cache/{name}")
    assert portable_name("org/name") == "org/name"
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    assert portable_name("org/name") == f"{tmp_path}/org/name"
