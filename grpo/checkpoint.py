"""Checkpoints that are whole or absent, and a resume that trusts only what it has verified.

    checkpoints/step-00100/   the LoRA in PEFT's format, optimizer.safetensors, state.json, manifest.json

A checkpoint is written to a temporary directory, flushed to disk, and renamed: a kill at any moment leaves the earlier
ones as they were. The manifest holds the SHA-256 of every file. Nothing in it is code: safetensors and JSON only.
"""

import hashlib
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from grpo.policy import WEIGHTS, Policy
from grpo.rundir import check_resumable
from grpo.types import UserError
from grpo.update import Updater

MANIFEST, STATE, OPTIMIZER = "manifest.json", "state.json", "optimizer.safetensors"


def save(folder: Path, step: int, policy: Policy, updater: Updater, keep: int) -> Path:
    """Write `folder`/step-NNNNN and delete all but the newest `keep`. Returns its path."""
    final = folder / f"step-{step:05d}"
    part = folder / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    policy.save(part)
    tensors, numbers = _optimizer_state(updater)
    save_file(tensors, part / OPTIMIZER)
    state = {"step": step, "optimizer": numbers, "config": json.loads(updater.config.model_dump_json()),
             "versions": {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}}
    (part / STATE).write_text(json.dumps(state, indent=1) + "\n")
    (part / MANIFEST).write_text(json.dumps({f.name: _sha256(f) for f in sorted(part.iterdir())}, indent=1) + "\n")
    for path in [*part.iterdir(), part]:
        _flush(path)
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    _flush(folder)
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def newest(folder: Path) -> tuple[Path, list[str]]:
    """The newest checkpoint whose files all match its manifest, and a line for each newer one that was passed over.

    Raises UserError where there is none.
    """
    skipped = []
    for checkpoint in reversed(_steps(folder)):
        if (fault := _fault(checkpoint)) is None:
            return checkpoint, skipped
        skipped.append(f"passed over {checkpoint}: {fault}")
    raise UserError("; ".join([f"--resume: no complete checkpoint in {folder}", *skipped]) + "; run without --resume")


def restore(checkpoint: Path, policy: Policy, updater: Updater) -> int:
    """Load LoRA and optimizer, in place. Returns the step that was finished last.

    Raises UserError where the run's settings are not the checkpoint's.
    """
    state = json.loads((checkpoint / STATE).read_text())
    check_resumable(updater.config, state["config"])
    policy.load(checkpoint)
    tensors = load_file(checkpoint / OPTIMIZER, device=str(policy.device))
    for index, parameter in enumerate(policy.parameters.values()):
        own = {name.split("/", 1)[1]: t for name, t in tensors.items() if name.split("/", 1)[0] == str(index)}
        if own:
            updater.optimizer.state[parameter] = own | state["optimizer"][str(index)]
    return state["step"]


def _optimizer_state(updater: Updater) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, float]]]:
    """Tensors by "index/name", and the plain numbers by index. Clones: bitsandbytes shares its quantisation maps."""
    tensors, numbers = {}, {}
    for index, parameter in enumerate(updater.policy.parameters.values()):
        state = updater.optimizer.state[parameter]
        numbers[str(index)] = {name: v for name, v in state.items() if not isinstance(v, torch.Tensor)}
        tensors |= {f"{index}/{name}": v.detach().cpu().clone() for name, v in state.items() if isinstance(v, torch.Tensor)}
    return tensors, numbers


def _steps(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or damaged"
    if not isinstance(manifest, dict) or not {WEIGHTS, OPTIMIZER, STATE} <= manifest.keys():
        return f"{MANIFEST} is incomplete"
    for name, digest in manifest.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if _sha256(checkpoint / name) != digest:
            return f"{name} is damaged"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
