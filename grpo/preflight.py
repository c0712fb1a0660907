"""What can be known before PyTorch and vLLM are imported: whether the model and the device are there."""

import os
import shutil
from pathlib import Path

from grpo.config import Config


def missing(config: Config) -> list[str]:
    """What this machine lacks for the config, in words."""
    missing = []
    if config.model.device == "cuda" and shutil.which("nvidia-smi") is None:
        missing.append("an NVIDIA GPU (model.device = cuda)")
    if not _model_is_here(config.model.path):
        missing.append(f"the model {config.model.path} (model.path: neither a directory nor in the Hugging Face cache)")
    return missing


def _model_is_here(path: str) -> bool:
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    return (Path(path) / "config.json").is_file() or (cache / f"models--{path.replace('/', '--')}").is_dir()
