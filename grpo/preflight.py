"""What can be known before PyTorch and vLLM are imported: whether the model and the device are there."""

import shutil
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from grpo.config import Config


def missing(config: Config) -> list[str]:
    """What this machine lacks for the config, in words."""
    lacking = []
    if config.model.device == "cuda" and shutil.which("nvidia-smi") is None:
        lacking.append("an NVIDIA GPU (model.device = cuda)")
    if not _model_is_here(config.model.path):
        lacking.append(f"the model {config.model.path} (model.path: no model directory, and not in the Hugging Face cache; "
                       "`hf download` fetches one)")
    return lacking


def _model_is_here(path: str) -> bool:
    if (Path(path) / "config.json").is_file():
        return True
    try:
        return isinstance(try_to_load_from_cache(path, "config.json"), str)
    except HFValidationError:  # a path that is no name on the hub
        return False
