"""Shared pieces: the tiny policy, small configs, and the plain padded pass that the shared-prefix pass must equal."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from grpo.batch import pad
from grpo.config import Config, load
from grpo.policy import Policy
from grpo.types import Completion, Group, Problem, Prompt, Sample, Score

ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs" / "tiny.yaml"


def tiny_config(*overrides: str) -> Config:
    """configs/tiny.yaml with overrides."""
    return load(TINY, list(overrides))


def tiny_policy(config: Config) -> Policy:
    """The embedded base with a fresh LoRA."""
    return Policy(config.model.model_copy(update={"path": str(ROOT / config.model.path)}), config.lora,
                  torch.device("cpu"), config.run.seed)


def randomize(policy: Policy, std: float, seed: int = 0) -> None:
    """Give the LoRA random numbers, so that it matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters.values():
            p.copy_(std * torch.randn(p.shape, generator=generator))


def group_of(prompt_ids: list[int], completions: list[list[int]]) -> Group:
    """A group of given tokens, without scores."""
    prompt = Prompt(Problem("given", "custom", ()), tuple(prompt_ids), "")
    return Group(prompt, tuple(
        Completion(Sample(tuple(ids), (0.0,) * len(ids), "stop"), "", Score(0.0)) for ids in completions))


def padded_logps(policy: Policy, group: Group, temperature: float = 1.0) -> torch.Tensor:
    """The oracle: prompt and completion in one padded batch, through the whole model, logits and all. logp_BT."""
    prompt = group.prompt.token_ids
    rows = [prompt + c.sample.token_ids for c in group.completions]
    ids_BT, longest = pad(rows, torch.int64), max(len(row) for row in rows)
    attention = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
    logits = policy.model(input_ids=ids_BT, attention_mask=attention.long()).logits.float() / temperature
    logp = logits[:, :-1].log_softmax(-1).gather(2, ids_BT[:, 1:, None])[..., 0]
    return torch.where(attention[:, 1:], logp, 0.0)[:, len(prompt) - 1 :]


def run_train(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess:
    """`python train.py ...` as a user would run it."""
    return subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True,
                          timeout=timeout, check=False)


@pytest.fixture(scope="module")
def fp32_policy() -> Policy:
    policy = tiny_policy(tiny_config())
    randomize(policy, 0.05)
    return policy
