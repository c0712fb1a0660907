"""Greedy accuracy on the validation or the test problems, by kind."""

from collections import defaultdict
from collections.abc import Sequence

from grpo.policy import Policy
from grpo.ranks.ranks import ALONE, Ranks
from grpo.rollout import check_reward, scored
from grpo.sampler import Sampler
from grpo.types import Prompt, Table, Task


def evaluate(sampler: Sampler, policy: Policy, task: Task, prompts: Sequence[Prompt], ranks: Ranks = ALONE) -> Table:
    """Mean greedy reward by kind of problem, and "overall"; each rank asks its share of the prompts."""
    mine, rewards = ranks.mine(prompts), defaultdict(list)
    completions = scored(task, policy, list(zip(mine, sampler.greedy(mine) if mine else [], strict=True)))
    for completion in completions:
        check_reward(completion)
    found = ranks.whole(ranks.gather([c.score.reward for c in completions], list[float]))
    for prompt, reward in zip(prompts, found, strict=True):
        rewards[prompt.problem.kind].append(reward)
        rewards["overall"].append(reward)
    return {kind: sum(values) / len(values) for kind, values in sorted(rewards.items(), key=lambda kv: kv[0] == "overall")}
