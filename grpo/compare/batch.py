"""A recorded step as it was: its completions, its settings, and the policy that sampled them.

A run records the completions of steps (rollouts/), and the LoRA of some (checkpoints/). Step N was sampled from the
LoRA that checkpoint N-1 holds; step 1 from a new one, which the seed gives again.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from grpo.chat import pick_device
from grpo.config import Config
from grpo.guards.checkpoint import FILES
from grpo.guards.dry_step import dry_step
from grpo.guards.kept import load_lora, read_kept
from grpo.policy import Policy
from grpo.report.records import read_rollout, read_run
from grpo.report.tokens import recorded_groups
from grpo.run.files import fault, steps_in
from grpo.run.rollouts import rollout_files
from grpo.types import Group, UserError
from grpo.update import Updater


@dataclass(frozen=True)
class Batch:
    """A step's groups, and the policy as it was when it sampled them."""

    step: int
    run: Path
    config: Config
    groups: list[Group]
    policy: Policy
    noise: float  # nats a token by which vLLM and the trainer differed


def read_batch(path: Path, model: str | None) -> Batch:
    """From RUN/rollouts/step-00021.jsonl.gz, or from RUN/repro/step-00021.safetensors, which a run that stops itself keeps.

    model: where the base is, if not where the run had it. Raises UserError where there is no such step, or no LoRA of it.
    """
    if path.suffix == ".safetensors":
        kept = read_kept(path, [f"model.path={model}"] if model else [])
        if kept.logp_old:
            raise UserError(f"{path}: stopped in its second epoch or later, when the policy had moved from the one that "
                            "sampled; compare a step of rollouts/")
        policy = _policy(kept.config)
        load_lora(path, policy)
        return Batch(kept.step, path.parent.parent, _that_fits(kept.config, policy, kept.groups), kept.groups, policy,
                     kept.noise)
    recorded = rollout_files(path.parent)
    step, folder = next((step for step, file in recorded.items() if file == path), None), path.parent.parent
    if step is None or path.parent.name != "rollouts":
        raise UserError(f"{path}: no recorded step; name a file such as runs/tiny/rollouts/step-00001.jsonl.gz")
    config = read_run(folder).config
    if model:
        config = config.model_copy(update={"model": config.model.model_copy(update={"path": model})})
    lines = read_rollout(path, config.rollout)
    checkpoint = folder / "checkpoints" / f"step-{step - 1:05d}"
    if step > 1 and (wrong := fault(checkpoint, FILES)):
        there = [at + 1 for at, path in steps_in(checkpoint.parent).items() if fault(path, FILES) is None]
        usable = ", ".join(str(s) for s in (1, *there) if s in recorded)
        raise UserError(f"{path}: sampled from the LoRA of step {step - 1}, which {checkpoint} does not hold ({wrong}); "
                        f"steps that can be compared: {usable}; checkpoint.every, checkpoint.keep and records.rollouts "
                        "decide")
    policy = _policy(config)
    if step > 1:
        policy.load(checkpoint)
    groups = [_with_prompt_ids(group, policy) for group in recorded_groups(lines, config.rollout.group_size)]
    gaps = [abs(a - b) for line in lines for a, b in zip(line.logp_trainer or [], line.logp_sampler, strict=False)]
    return Batch(step, folder, _that_fits(config, policy, groups), groups, policy, sum(gaps) / max(1, len(gaps)))


def _with_prompt_ids(group: Group, policy: Policy) -> Group:
    """The record has the prompt's text. Were its tokens others than the run's, parity would show it."""
    ids = policy.tokenizer.encode(group.prompt.text, add_special_tokens=False)
    return replace(group, prompt=replace(group.prompt, token_ids=tuple(ids)))


def _policy(config: Config) -> Policy:
    return Policy(config.model, config.lora, pick_device(config.model), config.run.seed)


def _that_fits(config: Config, policy: Policy, groups: list[Group]) -> Config:
    """The settings with as many recomputed layers as let a pass fit here. Layers are not compiled for so few passes."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"compile": "never"})})
    updater = Updater(policy, config)
    dry_step(updater, [g.prompt for g in groups], (0, 0))
    return config.model_copy(update={"train": config.train.model_copy(update={"recompute_layers": updater.recomputed})})
