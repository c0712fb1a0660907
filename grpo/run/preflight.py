"""What can be known before PyTorch and vLLM are imported: whether the model, the device and room to write are there."""

import os
import shutil
from pathlib import Path

from grpo.run.model_files import model_folder


def missing(path: str, device: str, run_dir: str | None = None) -> list[str]:
    """What this machine lacks for `model.path`, `model.device` and `run.dir`, in words."""
    lacking = []
    if run_dir is not None:
        place = next(p for p in (Path(run_dir).absolute(), *Path(run_dir).absolute().parents) if p.exists())
        if place.is_dir() and not os.access(place, os.W_OK):
            lacking.append(f"a place to write (run.dir: {place} is read-only)")
    for name in filter(None, (path, run_dir)):
        try:
            os.fsencode(name)
        except UnicodeEncodeError:
            lacking.append(f"a locale that can name the file {name!a} (LC_ALL=C.UTF-8)")
    if device == "cuda" and shutil.which("nvidia-smi") is None:
        lacking.append("an NVIDIA GPU (model.device = cuda)")
    if model_folder(path) is None:
        lacking.append(f"the model {path} (model.path: no model directory, and not in the Hugging Face cache; "
                       "`hf download` fetches one)")
    return lacking
