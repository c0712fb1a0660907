"""A model directory as people have it: fetched in part, cut short, quantised. Said before PyTorch and vLLM are imported."""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from grpo.run.files import brief, read_object
from grpo.types import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OBJECTS = ("config.json", "generation_config.json", "tokenizer_config.json")  # each a JSON object
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
             "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json")
LONGEST = 64 * 2**20  # bytes of a file that is read whole; the index of a model of 1,000 experts has under 10 MB


def model_folder(path: str) -> Path | None:
    """Where the files of `model.path` are: that directory, or the Hugging Face cache's of that name. None without either."""
    if (Path(path) / "config.json").is_file():
        return Path(path)
    try:
        cached = try_to_load_from_cache(path, "config.json")
    except HFValidationError:  # a path that is no name on the hub
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def portable_name(path: str) -> str:
    """`model.path` as it is understood anywhere: absolute where it is a directory here, else the hub's name, as given."""
    return str(Path(path).resolve()) if model_folder(path) == Path(path) else path


def copy_tokenizer(path: str, folder: Path) -> None:
    """Copy the model's tokenizer and chat template into a folder, byte by byte."""
    source = model_folder(path)
    for file in (source / name for name in TOKENIZER):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def check_model(path: str) -> None:
    """Raises UserError where a file of the model is not what its name says, or its weights are not there or quantised.

    Of weights the headers alone are read. A model that is not here at all is `preflight.missing`.
    """
    if (folder := model_folder(path)) is None:
        return
    try:
        for file in (folder / name for name in (*OBJECTS, *TOKENIZER, INDEX)):
            if file.exists():
                _check_content(file)
        config, *_ = [_object(folder / name) for name in OBJECTS if (folder / name).exists()]
    except (OSError, ValueError) as error:
        raise _bad(path, brief(error)) from None
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and (how := part.get("quantization_config") or part.get("compression_config")):
            method = how.get("quant_method", "unnamed") if isinstance(how, dict) else how
            raise UserError(f"model.path = {path}: its weights are quantised ({brief(method)}), and the training pass needs "
                            "them as they were before; give the model in bfloat16")
    weight_shapes(path)


def weight_shapes(path: str) -> dict[str, list[int]]:
    """The shapes of a model's weights by their names, of its safetensors files. Raises UserError where one is damaged."""
    folder = model_folder(path)
    try:
        if (folder / WEIGHTS).exists():
            return _shapes(folder / WEIGHTS)
        if not (folder / INDEX).exists():
            raise UserError(f"model.path = {path}: no causal language model there (no weights in safetensors: neither "
                            f"{WEIGHTS} nor {INDEX}); give a Hugging Face model directory, such as models/tiny")
        places = _object(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise ValueError(f"{INDEX} has no weight_map")
        found = {file: _shapes(folder / file) for file in sorted(set(places.values()))}
        if lost := [name for name, file in places.items() if name not in found[file]]:
            raise ValueError(f"{places[lost[0]]} lacks {lost[0]}, which {INDEX} places there")
        return {name: found[file][name] for name, file in places.items()}
    except (OSError, ValueError) as error:
        raise _bad(path, brief(error)) from None


def check_shapes(path: str, expected: dict[str, list[int]]) -> None:
    """Raises UserError where a weight has another shape than config.json gives it. Names of one side alone do not count."""
    for name, shape in weight_shapes(path).items():
        if shape != expected.get(name, shape):
            raise _bad(path, f"{name} is {shape}, and config.json makes it {expected[name]}")


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises OSError, and ValueError, naming the file, where it holds anything else."""
    try:
        return read_object(file, LONGEST)
    except ValueError as error:
        raise ValueError(str(error) if file.name in str(error) else f"{file.name} is no JSON: {error}") from None


def _check_content(file: Path) -> None:
    """Raises ValueError where a file is plainly not what was to be fetched."""
    with file.open("rb") as opened:
        start = opened.read(64).lstrip().lower()
    if not start:
        raise ValueError(f"{file.name} is empty")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{file.name} is a Git LFS pointer, not the file, which `git lfs pull` fetches")
    if start.startswith((b"<!doctype html", b"<html")):
        raise ValueError(f"{file.name} is a web page, not the file")


def _shapes(file: Path) -> dict[str, list[int]]:
    """Of one safetensors file. Raises ValueError where it is none, or is not all there."""
    if not file.is_file():
        raise ValueError(f"{file.name} is missing")
    _check_content(file)
    try:
        with safe_open(file, "np") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise ValueError(f"{file.name} is no safetensors file, or cut short: {error}") from None


def _bad(path: str, what: str) -> UserError:
    return UserError(f"model.path = {path}: {what}; copy the model anew (`hf download`, if it is the hub's)")
