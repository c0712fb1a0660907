"""What ends a completion, whichever file of a model directory says it. In models/tiny 0 ends a text, 2 a turn."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from grpo.chat import Chat
from grpo.types import UserError
from tests.conftest import ROOT, tiny_config

SILENT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"  # puts no token behind a turn
NO_ANSWERS = "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}{% endfor %}hi"


def directory(folder: Path, tokenizer=None, generation=None, config=None, template=SILENT) -> Path:
    """models/tiny with these for eos_token_id, and this chat template; generation: False leaves the file out."""
    shutil.copytree(ROOT / "models" / "tiny", folder)
    change(folder / "tokenizer_config.json", eos_token=tokenizer)
    change(folder / "config.json", eos_token_id=config)
    (folder / "chat_template.jinja").write_text(template)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": generation}))
    if generation is None:
        (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    if generation is False:
        (folder / "generation_config.json").unlink()
    return folder


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def chat(folder: Path) -> Chat:
    return Chat(tiny_config(f"model.path={folder}").model, torch.device("cpu"))


TURNS = (ROOT / "models" / "tiny" / "chat_template.jinja").read_text()


@pytest.mark.parametrize(("said", "ids"), [
    ({"tokenizer": "<|im_end|>"}, [2]),
    ({"generation": [1, 2]}, [1, 2]),
    ({"config": 2}, [2]),  # beside a generation config that is silent
    ({"config": 2, "generation": False}, [2]),
    ({"template": TURNS}, [2]),
    ({"template": TURNS.replace("<|im_end|>", "\n{# a line of its own #}<|im_end|>"), "generation": False}, [2]),
    ({"template": NO_ANSWERS, "config": 1}, [1]),
    ({"tokenizer": "<|endoftext|>", "generation": 1, "template": TURNS}, [0, 1, 2]),
    ({"tokenizer": "<|endoftext|>", "config": [2]}, [0, 2]),
    ({"config": -1, "generation": [0, 481]}, [0])])  # none, and one beyond the vocabulary
def test_stop_tokens_are_all_that_any_file_names(tmp_path, said, ids):
    assert chat(directory(tmp_path / "m", **said)).stop_ids == ids


def test_the_start_can_say_them(tmp_path):
    said = chat(directory(tmp_path / "m", tokenizer="<|endoftext|>", template=TURNS)).stops()
    assert said == "stop tokens: <|endoftext|> (0), <|im_end|> (2)"


def test_a_model_without_one_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no stop token in tokenizer, .*; set eos_token_id in generation_config\.json"):
        _ = chat(directory(tmp_path / "m")).stop_ids


@pytest.mark.parametrize("text", ["", "{", "[2]", "\ud83d", "[" * 100_000, '{"eos_token_id": "2"}', '{"eos_token_id": true}',
                                  '{"eos_token_id": [[2]]}', '{"eos_token_id": {"a": 2}}'])
def test_a_damaged_generation_config_is_one_line(tmp_path, text):
    folder = directory(tmp_path / "m", tokenizer="<|im_end|>")
    (folder / "generation_config.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=r"generation_config\.json|eos_token_id holds") as caught:
        _ = chat(folder).stop_ids
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", ["2", 2.5, {"a": 2}])
def test_a_config_with_a_value_of_another_type_is_one_line(tmp_path, value):
    with pytest.raises(UserError, match="'eos_token_id'"):
        _ = chat(directory(tmp_path / "m", tokenizer="<|im_end|>", config=value)).stop_ids


def test_a_stop_token_is_no_part_of_the_text(tmp_path):
    folder = directory(tmp_path / "m", generation=2)
    tokens = json.loads((folder / "tokenizer.json").read_text())
    change(folder / "tokenizer.json", added_tokens=[t | {"special": False} for t in tokens["added_tokens"]])
    plain = chat(folder)
    ids = plain.tokenizer.encode("12", add_special_tokens=False)
    assert plain.decode((*ids, 2)) == "12"
    assert plain.decode((*ids, 1)) == "12<|im_start|>"  # no stop token here
    assert plain.decode(()) == ""
