"""Model directories as people have them: each fault is one line that says which file, before vLLM starts."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Phi3Config, Phi3ForCausalLM

import train
from grpo.chat import Chat
from grpo.policy import check_base
from grpo.run.model_files import check_model, check_shapes, model_folder, weight_shapes
from grpo.types import Problem, UserError
from tests.conftest import ROOT, tiny_config, tiny_policy

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0001\nsize 7031645\n"
PAGE = "\n<!DOCTYPE html><html>Please log in</html>"
PARTS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
QUESTION = Problem("q", "custom", ({"role": "user", "content": "3 + 4"},))


@pytest.fixture
def base(tmp_path) -> Path:
    """A model directory to spoil."""
    return Path(shutil.copytree(ROOT / "models" / "tiny", tmp_path / "base"))


def change(file: Path, **keys: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def shard(base: Path) -> None:
    """Weights in two files and an index."""
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    places = {name: PARTS[i % 2] for i, name in enumerate(sorted(weights))}
    for part in PARTS:
        save_file({name: weights[name] for name, place in places.items() if place == part}, base / part)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def refusal(base: Path) -> str:
    """What is said of a directory by all that is asked before vLLM starts."""
    config = tiny_config(f"model.path={base}")

    def ask() -> None:
        chat = Chat(config.model, torch.device("cpu"))
        chat.encode(QUESTION)
        assert chat.max_tokens > 0
        check_base(chat, config.model, config.lora)

    with pytest.raises(UserError) as caught:
        ask()
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 600
    return said.removeprefix(f"model.path = {base}: ")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
                                  "generation_config.json", "chat_template.jinja"])
@pytest.mark.parametrize(("content", "words"), [
    (POINTER, "is a Git LFS pointer, not the file, which `git lfs pull` fetches"), (PAGE, "is a web page, not the file"),
    ("<HTML lang=en>", "is a web page, not the file"),
    ("", "is empty")])
def test_a_file_that_is_not_what_its_name_says(base, name, content, words):
    (base / name).write_text(content)
    assert refusal(base).startswith(f"{name} {words}; copy the model anew")


def test_it_is_said_before_the_task_is_made(base, monkeypatch, capsys):
    """A task may ask an API, which costs money."""
    (base / "model.safetensors").write_text(POINTER)
    monkeypatch.setattr("symbols.task.SymbolTask.__init__", lambda *_, **__: pytest.fail("the task is made"))
    assert train.main([str(ROOT / "configs" / "tiny.yaml"), f"model.path={base}", f"run.dir={base}/run"]) == 2
    assert capsys.readouterr().err.startswith(f"error: model.path = {base}: model.safetensors is a Git LFS pointer")


def test_weights_that_are_cut_short_or_absent(base):
    file = base / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    assert refusal(base).startswith("model.safetensors is no safetensors file, or cut short: ")
    file.unlink()
    assert refusal(base).startswith("no causal language model there (no weights in safetensors: ")


def test_shards_are_all_there(base):
    whole = weight_shapes(str(base))
    shard(base)
    assert weight_shapes(str(base)) == whole
    check_model(str(base))
    lost = min(name for name in whole if name in load_file(base / PARTS[1]))
    save_file({n: t for n, t in load_file(base / PARTS[1]).items() if n != lost}, base / PARTS[1])
    assert refusal(base).startswith(f"{PARTS[1]} lacks {lost}, which model.safetensors.index.json places there")
    (base / PARTS[1]).write_text(POINTER)
    assert refusal(base).startswith(f"{PARTS[1]} is a Git LFS pointer")
    (base / PARTS[1]).unlink()
    assert refusal(base).startswith(f"{PARTS[1]} is missing; copy the model anew")
    (base / "model.safetensors.index.json").write_text("[]")
    assert refusal(base).startswith("model.safetensors.index.json holds no JSON object")
    (base / "model.safetensors.index.json").write_text('{"weight_map": 5}')
    assert refusal(base).startswith("model.safetensors.index.json has no weight_map")


def test_a_path_that_is_no_name_of_the_hub_and_a_file_that_the_hub_lacks(monkeypatch):
    assert model_folder("/nowhere/a/b") is None
    monkeypatch.setattr("grpo.run.model_files.try_to_load_from_cache", lambda *_: object())  # known not to exist
    assert model_folder("org/name") is None


def test_names_of_one_side_alone_do_not_count(base):
    check_shapes(str(base), {})
    check_shapes(str(base), {"lm_head.weight": [1, 2]})


def test_an_index_without_end_is_not_read(base):
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").touch()
    os.truncate(base / "model.safetensors.index.json", 64 * 2**20 + 1)  # zeros, which take no room on the disk
    assert "longer than 67108864 bytes, the most that is read" in refusal(base)


def test_a_download_that_was_broken_off(base, monkeypatch):
    """The same of the Hugging Face cache, where a name of the hub stands for a folder."""
    (base / "model.safetensors").unlink()
    monkeypatch.setattr("grpo.run.model_files.try_to_load_from_cache", lambda path, name: str(base / name))
    with pytest.raises(UserError, match=r"model\.path = org/name: no causal language model there"):
        check_model("org/name")


@pytest.mark.parametrize(("keys", "method"), [
    ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "fp8"),
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
    ({"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}, "bitsandbytes"),
    ({"compression_config": {"format": "float-quantized"}}, "unnamed"),
    ({"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}, "mxfp4")])
def test_quantised_weights(base, keys, method):
    change(base / "config.json", **keys)
    assert refusal(base).startswith(f"its weights are quantised ({method})")


@pytest.mark.parametrize(("file", "keys", "words"), [
    ("tokenizer.json", {"model": {"type": "Newer"}}, "no tokenizer there that transformers"),
    ("tokenizer.json", {"pre_tokenizer": {"type": "Newer"}}, "no tokenizer there that transformers"),
    ("tokenizer_config.json", {"tokenizer_class": 5}, "no tokenizer there that transformers"),
    ("config.json", {"hidden_size": "x"}, "no tokenizer there that transformers"),  # which reads the config too
    ("config.json", {"text_config": 5}, "no size of a vocabulary there"),
    ("config.json", {"num_attention_heads": 0}, "no causal language model there"),
    ("config.json", {"hidden_act": "newer"}, "no causal language model there"),
    ("config.json", {"pad_token_id": 99999}, "no causal language model there")])
def test_what_the_installed_library_cannot_read(base, file, keys, words):
    change(base / file, **keys)
    assert refusal(base).startswith(words)


def test_an_error_of_another_kind_is_not_reworded(monkeypatch):
    from grpo.chat import read_from

    for kind in (KeyboardInterrupt, torch.OutOfMemoryError, type("Ours", (Exception,), {})):
        with pytest.raises(kind), read_from("there", "tokenizer"):
            raise kind


@pytest.mark.parametrize(("template", "words"), [
    ([{"name": n, "template": "x"} for n in ("rag", "tool_use")],
     "of its chat templates (rag, tool_use) none is named default; write the one to use to chat_template.jinja there"),
    (5, "the tokenizer has no chat template; give an instruct model"), ("", "its chat template makes nothing of q"),
    ("{{ 1 / 0 }}", "its chat template refuses q (division by zero)"),
    ("{{ messages[0] + 1 }}", "its chat template refuses q (unsupported operand")])
def test_chat_templates(base, template, words):
    (base / "chat_template.jinja").unlink()
    change(base / "tokenizer_config.json", chat_template=template)
    assert refusal(base).startswith(words)


def test_of_named_chat_templates_the_default_is_taken(base):
    expected = Chat(tiny_config(f"model.path={base}").model, torch.device("cpu")).encode(QUESTION)
    text = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").unlink()
    change(base / "tokenizer_config.json",
           chat_template=[{"name": "rag", "template": "x"}, {"name": "default", "template": text}])
    assert Chat(tiny_config(f"model.path={base}").model, torch.device("cpu")).encode(QUESTION) == expected


def test_tokens_beyond_the_embedding(base):
    """A tokenizer with tokens that were added to it alone. Those that no prompt has do no harm."""
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["added_tokens"] += [{"id": rows, "content": "3 + 4", "single_word": False, "lstrip": False, "rstrip": False,
                                   "normalized": False, "special": False}]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert refusal(base).startswith(f"'3 + 4' is token {rows}, and the embedding has {rows} rows; restore the tokenizer")
    chat = Chat(tiny_config(f"model.path={base}").model, torch.device("cpu"))
    assert max(chat.encode(Problem("q", "custom", ({"role": "user", "content": "5 + 6"},))).token_ids) < rows


def test_weights_of_another_shape_than_the_config_says(base):
    change(base / "config.json", vocab_size=500)
    assert refusal(base).startswith("model.embed_tokens.weight is [481, 192], and config.json makes it [500, 192]; copy")


def test_fused_layers(base):
    """Phi-3's gate and up are one layer, and q, k and v; their names are what can have a LoRA."""
    config = Phi3Config(vocab_size=481, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    (base / "model.safetensors").unlink()
    Phi3ForCausalLM(config).save_pretrained(base)
    assert refusal(base) == (f"lora.targets: gate_proj is no linear layer of {base} that can have a LoRA; it has down_proj, "
                             "gate_up_proj, o_proj, qkv_proj")
    whole = tiny_config(f"model.path={base}", "lora.targets=[qkv_proj,gate_up_proj]")
    check_base(Chat(whole.model, torch.device("cpu")), whole.model, whole.lora)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(base, number):
    name = "model.layers.2.mlp.down_proj.weight"
    weights = load_file(base / "model.safetensors")
    weights[name][5, 7] = number
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"{name} holds a number that is not finite"):
        tiny_policy(tiny_config(f"model.path={base}"))
