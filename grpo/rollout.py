"""A step's rollouts: P problems to P groups of G scored completions."""

import hashlib
import math
import random
from collections.abc import Sequence

from grpo.policy import Policy
from grpo.sampler import Sampler
from grpo.types import Completion, Group, Prompt, Sample, Task


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
    sampler: Sampler, policy: Policy, task: Task, prompts: Sequence[Prompt], step: int, seed: int, group_size: int
) -> list[Group]:
    """Sample G completions a prompt and score their text. Raises ValueError where a reward is not a finite number."""
    seeds = [sampling_seed(seed, step, place, prompt) for place, prompt in enumerate(prompts)]
    sampled = sampler.sample(prompts, seeds, group_size)
    return [Group(prompt, tuple(scored(task, policy, prompt, sample) for sample in samples))
            for prompt, samples in zip(prompts, sampled, strict=True)]


def scored(task: Task, policy: Policy, prompt: Prompt, sample: Sample) -> Completion:
    """A sample with its text and the task's verdict on it."""
    text = policy.decode(sample.token_ids)
    score = task.score(prompt.problem, text)
    if not isinstance(score.reward, float) or not math.isfinite(score.reward):
        raise ValueError(f"{type(task).__name__}.score returned the reward {score.reward!r} for {text!r}; "
                         "rewards are finite floats")
    return Completion(sample, text, score)
