"""A random model of any architecture, as a directory that `model.path` takes."""

import shutil
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tests.conftest import ROOT


def saved(folder: Path, model: PreTrainedModel, std: float = 0.0) -> str:
    """Write the model with the embedded base's tokenizer. Weights are drawn anew where a std is given. Returns the path."""
    for p in model.parameters() if std else ():
        torch.nn.init.normal_(p, 0, std)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "models" / "tiny" / name, folder)
    return str(folder)
