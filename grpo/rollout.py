"""A step's rollouts: P problems to P groups of G scored completions, and their advantages."""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

import torch

from grpo.advantage import ADVANTAGES, overlong_penalty
from grpo.config import Config
from grpo.policy import Policy
from grpo.ranks.ranks import ALONE, Ranks
from grpo.run.files import brief
from grpo.types import Completion, Group, NonFiniteError, Prompt, Sample, Score, Task, UserError

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


def fresh_prompts(prompts: Sequence[Prompt], used: Sequence[Prompt], step: int, seed: int) -> Iterator[Prompt]:
    """The prompts that a step does not use yet, in an order of its own."""
    order = random.Random(f"refill/{seed}/{step}").sample(range(len(prompts)), len(prompts))
    names = {prompt.problem.name for prompt in used}
    return (prompts[at] for at in order if prompts[at].problem.name not in names)


def rollout(
    sampler: "Sampler", policy: Policy, task: Task, prompts: Sequence[Prompt], step: int, seed: int, group_size: int,
    first: int = 0, ranks: Ranks = ALONE
) -> list[Group]:
    """Sample G completions a prompt and score their text. The prompts have places `first`, `first` + 1, ... in the step.

    A completion that ends is scored while the others are still being sampled. Each rank samples its share, and gets all of
    them.
    """
    seeds = [sampling_seed(seed, step, first + place, prompt) for place, prompt in enumerate(prompts)]
    mine, places = ranks.mine(prompts), []

    def ended() -> Iterator[tuple[Prompt, Sample]]:
        for place, index, sample in sampler.as_they_end(mine, ranks.mine(seeds), group_size) if mine else ():
            places.append((place, index))
            yield mine[place], sample

    found = dict(zip(places, scored(task, policy, ended()), strict=True))
    completions = [tuple(found[place, index] for index in range(group_size)) for place in range(len(mine))]
    if ranks.size > 1:  # a message would make a float of an int
        for completion in (c for c in chain(*completions) if not isinstance(c.score.reward, float)):
            check_reward(completion)
    every = ranks.whole(ranks.gather(completions, list[tuple[Completion, ...]]))
    return [Group(prompt, of_prompt) for prompt, of_prompt in zip(prompts, every, strict=True)]


def step_groups(
    sampler: "Sampler", policy: Policy, task: Task, prompts: Sequence[Prompt], step: int, config: Config,
    ranks: Ranks = ALONE
) -> tuple[list[Group], list[Group]]:
    """A step's P groups, and those that were sampled and replaced; prompts are all that there are to train on.

    Groups of equal rewards (the task's, before what `overlong: penalised` takes off) make room for fresh prompts' in at most
    `algorithm.refills` rounds (dynamic sampling, DAPO, arXiv 2503.14476, equation 11); those of the last round stay.
    """
    seed, size = config.run.seed, config.rollout.group_size
    chosen = step_prompts(prompts, step, config.rollout.prompts_per_step, seed)
    groups, replaced = rollout(sampler, policy, task, chosen, step, seed, size, 0, ranks), []
    fresh = fresh_prompts(prompts, chosen, step, seed)
    for _ in range(config.algorithm.refills):
        empty = [p for p, rewards_G in enumerate(rewards(groups)) if (rewards_G == rewards_G[0]).all()]
        drawn = list(islice(fresh, len(empty)))
        if not drawn:
            break
        first = len(groups) + len(replaced)
        more = rollout(sampler, policy, task, drawn, step, seed, size, first, ranks)
        for p, group in zip(empty, more, strict=False):
            replaced.append(groups[p])
            groups[p] = group
    return groups, replaced


def scored(task: Task, policy: Policy, sampled: Iterable[tuple[Prompt, Sample]]) -> list[Completion]:
    """Samples with their texts and the task's verdicts on them: all are begun, as they come, before one is waited for.

    Raises UserError where one is no Score.
    """
    begun = []
    for prompt, sample in sampled:
        text = policy.decode(sample.token_ids)
        begun.append((prompt, sample, text, task.score(prompt.problem, text)))
    completions = []
    for prompt, sample, text, score in begun:
        score = score if isinstance(score, Score) or not hasattr(score, "result") else score.result()
        if not isinstance(score, Score):
            raise UserError(f"{type(task).__name__}.score of {prompt.problem.name} returned {brief(repr(score))}; "
                            "expected a grpo.types.Score, such as Score(1.0)")
        completions.append(Completion(sample, text, score))
    return completions


def rewards(groups: Sequence[Group]) -> torch.Tensor:
    """rewards_PG. Raises NonFiniteError where one is no float, or none that float32 holds."""
    for group in groups:
        for completion in group.completions:
            check_reward(completion)
    return torch.tensor([[c.score.reward for c in g.completions] for g in groups])


def advantages(groups: Sequence[Group], config: Config) -> torch.Tensor:
    """advantages_PG by the chosen equation, after what `overlong: penalised` takes off."""
    rewards_PG = rewards(groups)
    if config.algorithm.overlong == "penalised":
        tokens_PG = torch.tensor([[float(len(c.sample.token_ids)) for c in g.completions] for g in groups])
        rewards_PG = rewards_PG - overlong_penalty(
            tokens_PG, config.rollout.max_new_tokens, config.algorithm.overlong_buffer)
    return ADVANTAGES[config.algorithm.advantage](rewards_PG)


def check_reward(completion: Completion) -> None:
    """Raises NonFiniteError where the reward is no float, or none that float32 holds."""
    reward = completion.score.reward
    if not isinstance(reward, float) or not abs(reward) < LARGEST:
        raise NonFiniteError(f"the task scored {completion.text[-80:]!r} with {reward!r}; "
                             f"rewards are floats below {LARGEST:.2g} in size")
