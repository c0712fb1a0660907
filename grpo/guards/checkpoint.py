"""Checkpoints that are whole or absent, and a resume that trusts only what it has verified.

    checkpoints/step-00100/   the LoRA in PEFT's format, optimizer.safetensors, state.json, manifest.json

state.json holds the step, how far the data is consumed, the seed, the schedule, the config, hashes of the data set and of
the frozen base, and versions. Nothing in a checkpoint is code: safetensors and JSON only.
"""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes

from grpo.config import Config
from grpo.policy import SETTINGS, WEIGHTS, Policy
from grpo.run.files import brief, fault, new_directory, read_object, remove, set_aside, steps_in
from grpo.run.identity import Identity, versions
from grpo.run.rundir import check_unchanged
from grpo.types import UserError
from grpo.update import Updater, learning_rate

STATE, OPTIMIZER = "state.json", "optimizer.safetensors"
FILES = {WEIGHTS, SETTINGS, OPTIMIZER, STATE}
LONGEST_STATE = 2**20  # bytes; an 8B model's has 30,000


def save(folder: Path, step: int, policy: Policy, updater: Updater, identity: Identity) -> list[str]:
    """Write `folder`/step-NNNNN, and delete all but the newest `checkpoint.keep` that are whole.

    Those that a resume passed over, and others that are damaged, are set aside. Returns a line for each.
    """
    config = updater.config
    aside = {path: set_aside(path) for other, path in steps_in(folder).items()
             if other > step or (other == step and fault(path, FILES))}  # whole, where a signal came while it was saved
    with new_directory(folder / f"step-{step:05d}") as part:
        policy.save(part)
        tensors, numbers = _optimizer_state(updater)
        (part / OPTIMIZER).write_bytes(as_bytes(tensors))
        (part / STATE).write_text(json.dumps({
            "step": step, "seed": config.run.seed, "prompts_consumed": step * config.rollout.prompts_per_step,
            "schedule": {"lr": learning_rate(step, config.run.steps, config.optim)}, "optimizer": numbers,
            "config": config.model_dump(mode="json"), "data": identity.data, "base": identity.base,
            "versions": versions()}, indent=1) + "\n", encoding="utf-8")
    whole = 1  # the one just written
    for path in list(reversed(steps_in(folder).values()))[1:]:
        if whole == config.checkpoint.keep:
            remove(path)
        elif fault(path, FILES):
            aside[path] = set_aside(path)
        else:
            whole += 1
    return [f"{path} is damaged, and now in {there}" for path, there in aside.items()]


def newest(folder: Path) -> tuple[Path, list[str]]:
    """The newest checkpoint whose files all match its manifest, and a line for each newer one that was passed over.

    Raises UserError where there is none.
    """
    skipped = []
    for checkpoint in reversed(steps_in(folder).values()):
        if (wrong := fault(checkpoint, FILES)) is None:
            return checkpoint, skipped
        skipped.append(f"passed over {checkpoint}: {wrong}")
    raise UserError("; ".join([f"--resume: no complete checkpoint in {folder}", *skipped]) + "; run without --resume")


def dated(config: Config, checkpoint: Path | None, today: date) -> Config:
    """The config with a `model.date`: its own, else the checkpoint's, else `today`.

    A checkpoint from before there was one leaves it None. Raises UserError where the checkpoint's is no date.
    """
    day = config.model.date or today
    if config.model.date is None and checkpoint is not None:
        with _of_this_trainer(checkpoint):
            then = read_object(checkpoint / STATE, LONGEST_STATE)["config"]["model"].get("date")
            day = then and date.fromisoformat(then)
    return config.model_copy(update={"model": config.model.model_copy(update={"date": day})})


def check(checkpoint: Path, config: Config, identity: Identity, allowed: Collection[str]) -> dict[str, Any]:
    """What state.json holds. Raises UserError where config, data or base (if it is known yet) are not the checkpoint's.

    Or where the run has fewer steps by now: the LoRA of a later one would be called its last. allowed: keys that may differ.
    """
    with _of_this_trainer(checkpoint):
        state = read_object(checkpoint / STATE, LONGEST_STATE)
        known = {"data": identity.data} | ({} if identity.base is None else {"base": identity.base})
        check_unchanged({**config.model_dump(mode="json"), **known},
                        {**state["config"], **{name: state[name] for name in known}}, allowed)
        if (step := _count(state["step"])) > config.run.steps:
            raise UserError(f"--resume: run.steps = {config.run.steps}, and {checkpoint} is of step {step}; give {step} or "
                            "more, or start another run in another run.dir")
        return state


def restore(
    checkpoint: Path, policy: Policy, updater: Updater, identity: Identity, allowed: Collection[str]
) -> tuple[int, list[str]]:
    """Load LoRA and optimizer, in place. Returns the step that was finished last, and lines to say.

    Raises UserError where `check` does, or where its tensors do not fit: bitsandbytes' kernels would write beyond them.
    """
    state = check(checkpoint, updater.config, identity, allowed)
    with _of_this_trainer(checkpoint):
        step, then = _count(state["step"]), dict(state["versions"])
        steps, was = state["config"]["run"]["steps"], state["schedule"]["lr"]
        _load_optimizer(checkpoint / OPTIMIZER, state["optimizer"], updater)
        policy.load(checkpoint)
    said = [f"{name} is {brief(here)} here and was {brief(then.get(name))}: equal to the bit only with the same versions"
            for name, here in versions().items() if here != then.get(name)]
    lr = learning_rate(step, updater.config.run.steps, updater.config.optim)
    if updater.config.run.steps != steps and lr != was:
        said.append(f"run.steps was {brief(steps)}: the learning rate of step {step} is {lr} now, and was {brief(was)}")
    return step, said


@contextmanager
def _of_this_trainer(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise UserError(f"{checkpoint}: no checkpoint of this trainer ({type(error).__name__}: {brief(error)}); "
                        "delete it, and an older one is taken") from None


def _optimizer_state(updater: Updater) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, float]]]:
    """Tensors by "index/name", and the plain numbers by index. Clones: bitsandbytes shares its quantisation maps."""
    tensors, numbers = {}, {}
    for index, parameter in enumerate(updater.policy.parameters.values()):
        state = updater.optimizer.state[parameter]
        numbers[str(index)] = {name: v for name, v in state.items() if not isinstance(v, torch.Tensor)}
        tensors |= {f"{index}/{name}": v.detach().cpu().clone() for name, v in state.items() if isinstance(v, torch.Tensor)}
    return tensors, numbers


def _load_optimizer(path: Path, numbers: dict[str, dict[str, Any]], updater: Updater) -> None:
    """Each parameter's tensors, if any, are those that a new optimizer has for it; a file holds no others."""
    optimizer, read = updater.optimizer, 0
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        for index, (name, parameter) in enumerate(updater.policy.parameters.items()):
            if not numbers[str(index)]:  # never stepped
                continue
            optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
            state = optimizer.state[parameter]
            for key, fresh in [(key, t) for key, t in state.items() if isinstance(t, torch.Tensor)]:
                there = f"{index}/{key}"
                if there not in names or file.get_slice(there).get_shape() != list(fresh.shape):
                    raise ValueError(f"the optimizer's tensors do not fit {name}")  # known before one is read
                state[key] = file.get_tensor(there).to(fresh.device)
                if state[key].dtype != fresh.dtype:
                    raise ValueError(f"the optimizer's tensors do not fit {name}")
                read += 1
            state["step"] = _count(numbers[str(index)]["step"])
    if read != len(names):
        raise ValueError("the optimizer has tensors of no parameter")


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{brief(repr(value))} is no number of steps")
    return value


def any_in(folder: Path) -> bool:
    """Whether a checkpoint is there, complete or not."""
    return bool(steps_in(folder))
