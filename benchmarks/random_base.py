"""Weights for what is measured at a size that cannot be had trained: `python -m benchmarks.random_base SHAPE OUT`.

SHAPE is a model directory without weights (config.json, tokenizer, chat template); OUT gets all of it, and random weights
in bfloat16 as transformers initialises them, drawn on the GPU if there is one.
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def main(shape: Path, out: Path) -> None:
    """Write OUT."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shape), dtype=torch.bfloat16)
    model.save_pretrained(out)
    for path in shape.iterdir():
        if not (out / path.name).exists():
            shutil.copy(path, out)
    print(f"{out}: {sum(p.numel() for p in model.parameters()):,} random parameters")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
