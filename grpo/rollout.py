"""A step's rollouts: P problems to P groups of G scored completions."""

import hashlib
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from grpo.policy import Policy
from grpo.types import Completion, Group, NonFiniteError, Prompt, Sample, Task

if TYPE_CHECKING:
    from grpo.sampler import Sampler

LARGEST = torch.finfo(torch.float32).max


def step_prompts(prompts: Sequence[Prompt], step: int, per_step: int, seed: int) -> list[Prompt]:
    """The prompts of step 1, 2, ...: a walk through one shuffle of the data after another.

    A function of its arguments alone, so that a resumed run needs no cursor.
    """
    places = range((step - 1) * per_step, step * per_step)
    orders: dict[int, list[int]] = {}
    chosen = []
    for place in places:
        epoch, at = divmod(place, len(prompts))
        if epoch not in orders:
            orders[epoch] = random.Random(f"order/{seed}/{epoch}").sample(range(len(prompts)), len(prompts))
        chosen.append(prompts[orders[epoch][at]])
    return chosen


def sampling_seed(seed: int, step: int, place: int, prompt: Prompt) -> int:
    """62 bits from the run's seed, the step, and the prompt and its place in the step."""
    key = f"{seed}/{step}/{place}/{prompt.problem.name}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 2


def rollout(
    sampler: "Sampler", policy: Policy, task: Task, prompts: Sequence[Prompt], step: int, seed: int, group_size: int
) -> list[Group]:
    """Sample G completions a prompt and score their text."""
    seeds = [sampling_seed(seed, step, place, prompt) for place, prompt in enumerate(prompts)]
    sampled = sampler.sample(prompts, seeds, group_size)
    return [Group(prompt, tuple(scored(task, policy, prompt, sample) for sample in samples))
            for prompt, samples in zip(prompts, sampled, strict=True)]


def scored(task: Task, policy: Policy, prompt: Prompt, sample: Sample) -> Completion:
    """A sample with its text and the task's verdict on it."""
    text = policy.decode(sample.token_ids)
    return Completion(sample, text, task.score(prompt.problem, text))


def rewards(groups: Sequence[Group]) -> torch.Tensor:
    """rewards_PG. Raises NonFiniteError where one is no float, or none that float32 holds."""
    for group in groups:
        for completion in group.completions:
            check_reward(completion)
    return torch.tensor([[c.score.reward for c in g.completions] for g in groups])


def check_reward(completion: Completion) -> None:
    """Raises NonFiniteError where the reward is no float, or none that float32 holds."""
    reward = completion.score.reward
    if not isinstance(reward, float) or not abs(reward) < LARGEST:
        raise NonFiniteError(f"the task scored {completion.text[-80:]!r} with {reward!r}; "
                             f"rewards are floats below {LARGEST:.2g} in size")
