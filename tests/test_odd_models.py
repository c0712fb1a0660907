"""Models that load and cannot be trained: another model's tokenizer or chat template, a weight that is no number."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo.chat import Chat
from grpo.types import Problem, UserError
from tests.conftest import ROOT, tiny_config, tiny_policy

PROBLEM = Problem("3 + 4", "standard", ({"role": "user", "content": "3 + 4"},))


@pytest.fixture
def model(tmp_path):
    """A copy of the embedded base, to be spoiled."""
    return shutil.copytree(ROOT / "models" / "tiny", tmp_path / "model")


def chat_of(model) -> Chat:
    return Chat(tiny_config(f"model.path={model}").model, torch.device("cpu"))


@pytest.mark.parametrize(("template", "words"), [
    ("{{ messages[0].content + 3 }}", "its chat template refuses 3 . 4 .can only concatenate str"),
    ("{{ tools | length }}", "has no len"), ("{{ 1 // 0 }}", "by zero"),
    ("{{ messages[0].content.index('x') }}", "not found"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"), ("{# nothing #}", "its tokenizer makes no token")])
def test_a_template_that_fails_as_python_does_is_one_line(model, template, words):
    (model / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=words):
        chat_of(model).encode(PROBLEM)


def test_several_templates_without_a_default_are_one_line(model):
    (model / "chat_template.jinja").unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": name, "template": "x"} for name in ("rag", "tool_use")]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="multiple chat templates with no default"):
        chat_of(model).encode(PROBLEM)


def test_a_token_that_the_model_lacks_is_one_line(model):
    """The embedded base has 481: 0 to 480."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 481, "content": "<|new|>", "single_word": False, "lstrip": False,
                                      "rstrip": False, "normalized": False, "special": True})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert chat_of(model).encode(PROBLEM).token_ids
    template = model / "chat_template.jinja"
    template.write_text("<|new|>" + template.read_text())
    with pytest.raises(UserError, match=r"its tokenizer makes token 481 of 3 [+] 4, and the model reads 0 to 480"):
        chat_of(model).encode(PROBLEM)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(model, number):
    name = "model.layers.2.mlp.down_proj.weight"
    weights = load_file(model / "model.safetensors")
    weights[name][5, 7] = number
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"{name} holds a number that is not finite"):
        tiny_policy(tiny_config(f"model.path={model}"))
