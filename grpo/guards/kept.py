"""The step that stopped its run, in one file: what `python -m grpo.replay` and `python -m grpo.compare` read."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from grpo.config import Config
from grpo.run.files import write_text
from grpo.run.schema import from_command_line, validated
from grpo.types import Completion, Group, Problem, Prompt, Row, Sample, Score, UserError, VerifierError

if TYPE_CHECKING:
    from grpo.policy import Policy
    from grpo.update import Updater

SAMPLE = "verifier_error.json"
KEY = "step"  # a tensor of bytes: everything but the LoRA, as JSON; a file's metadata may have 100 MB, and this has more


def keep(folder: Path, step: int, updater: "Updater", groups: list[Group], reason: str) -> Path:
    """Write the step's batch and the LoRA it met to folder/step-NNNNN.safetensors. Returns its path."""
    config = updater.config.model_dump(mode="json")
    config["train"]["recompute_layers"] = updater.recomputed  # what the run found that fits
    about = {"step": step, "reason": reason, "config": config, "noise": updater.noise,
             "logp_old": [[*key, logp] for key, logp in updater.logp_old.items()],
             "groups": [{"problem": g.prompt.problem.name, "kind": g.prompt.problem.kind, "prompt": g.prompt.text,
                         "prompt_ids": g.prompt.token_ids,
                         "completions": [{"text": c.text, "reward": c.score.reward, **asdict(c.sample)}
                                         for c in g.completions]} for g in groups]}
    path = folder / f"step-{step:05d}.safetensors"
    folder.mkdir(exist_ok=True)
    lora = {name: t.cpu().contiguous() for name, t in updater.policy.lora().items()}
    text = bytearray(json.dumps(about, default=repr).encode())
    path.write_bytes(save({**lora, KEY: torch.frombuffer(text, dtype=torch.uint8)}))
    return path


def keep_or_say_why(folder: Path, step: int, updater: "Updater", groups: list[Group], reason: str, writes: bool) -> str:
    """`keep`, if this process writes. Returns what to do with the file, in words; or why there is none."""
    path = folder / f"step-{step:05d}.safetensors"
    try:
        if writes:
            keep(folder, step, updater, groups, reason)
    except OSError as fault:  # a full disk must not hide why the run stops
        return f"its batch could not be kept ({fault.strerror})"
    return f"python -m grpo.replay {path} runs it again"


def with_sample(folder: Path, error: VerifierError) -> VerifierError:
    """The error, its sample written to folder/verifier_error.json."""
    path = folder / SAMPLE
    try:
        text = json.dumps(asdict(error.sample), ensure_ascii=False, indent=1, default=repr)
        write_text(path, text + "\n")
    except OSError as fault:
        return VerifierError(f"{error}; the completion could not be kept ({fault.strerror})", error.sample)
    return VerifierError(f"{error}; the whole completion is in {path}", error.sample)


@dataclass(frozen=True)
class Kept:
    """What `keep` wrote."""

    step: int
    reason: str
    config: Config
    groups: list[Group]
    logp_old: dict[Row, list[float]]
    noise: float  # nats; see Updater


def read_kept(path: Path, overrides: Sequence[str] = ()) -> Kept:
    """A kept step. Raises UserError where the file is none of `keep`'s."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.get_tensor(KEY).numpy().tobytes())
        groups = [_group(g) for g in about["groups"]]
        logp_old = {(p, row): logp for p, row, logp in about["logp_old"]}
        noise = float(about.get("noise", 0.0))
        step, reason, tree = int(about["step"]), about["reason"], OmegaConf.create(about["config"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no step that a run kept ({error}); name a file of runs/NAME/repro/") from None
    tree = OmegaConf.merge(tree, from_command_line(overrides))
    return Kept(step, reason, validated(Config, OmegaConf.to_container(tree)), groups, logp_old, noise)


def load_lora(path: Path, policy: "Policy") -> None:
    """Give the policy the LoRA of a kept step. Raises UserError where it is another policy's."""
    with safe_open(path, "pt") as file:
        policy.load_open(file, path, KEY)


def _group(g: dict) -> Group:
    prompt = Prompt(Problem(g["problem"], g["kind"], ()), tuple(g["prompt_ids"]), g["prompt"])
    return Group(prompt, tuple(
        Completion(Sample(tuple(c["token_ids"]), tuple(c["logp"]), c["finish_reason"]), c["text"], Score(c["reward"]))
        for c in g["completions"]))
