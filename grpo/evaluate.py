"""Greedy accuracy on the test problems, by kind."""

from collections import defaultdict
from collections.abc import Sequence

from grpo.policy import Policy
from grpo.rollout import check_reward, scored
from grpo.sampler import Sampler
from grpo.types import Prompt, Table, Task


def evaluate(sampler: Sampler, policy: Policy, task: Task, prompts: Sequence[Prompt]) -> Table:
    """Mean greedy reward by kind of problem, and "overall"."""
    rewards = defaultdict(list)
    for prompt, sample in zip(prompts, sampler.greedy(prompts), strict=True):
        completion = scored(task, policy, prompt, sample)
        check_reward(completion)
        reward = completion.score.reward
        rewards[prompt.problem.kind].append(reward)
        rewards["overall"].append(reward)
    return {kind: sum(values) / len(values) for kind, values in sorted(rewards.items(), key=lambda kv: kv[0] == "overall")}
