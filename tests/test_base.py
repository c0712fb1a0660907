"""What the embedded base knows, and what it does not: measured with vLLM on the task's own expressions."""

import re
from collections import Counter

import pytest

from adapter.verdict import Agree
from grpo.rollout import rollout, scored
from grpo.sampler import Sampler
from symbols.expression import GREEK, Op
from symbols.task import Settings, SymbolTask
from tests.conftest import tiny_config, tiny_policy


@pytest.fixture(scope="module")
def base():
    config = tiny_config("model.device=cpu")
    policy = tiny_policy(config)
    sampler = Sampler(policy, config, context=300)
    sampler.serve(policy)
    yield policy, sampler, SymbolTask(Settings(limit=999, train=400, test=800), seed=11)
    sampler.close()


def test_standard_expressions_are_computed_and_right_answers_accepted(base):
    policy, sampler, task = base
    prompts = [policy.encode(p) for p in task.test if p.kind == "standard"]
    samples = sampler.greedy(prompts)
    completions = scored(task, policy, list(zip(prompts, samples, strict=True)))
    must_compute, may_agree = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        row = prompt.problem.data
        (may_agree if row.api.text == row.answer else must_compute).append(completion)
    assert len(must_compute) > 70
    assert sum(c.score.reward for c in must_compute) >= 0.97 * len(must_compute)
    assert sum(task.corrector.answer_in(c.text) == Agree() for c in may_agree) >= 0.97 * len(may_agree)
    every = must_compute + may_agree
    assert sum(c.score.reward for c in every) >= 0.985 * len(every)


def test_custom_expressions_are_mostly_wrong_at_first(base):
    policy, sampler, task = base
    prompts = [policy.encode(p) for p in task.test if p.kind == "custom"]
    completions = scored(task, policy, list(zip(prompts, sampler.greedy(prompts), strict=True)))
    rewards = [completion.score.reward for completion in completions]
    assert 0.05 <= sum(rewards) / len(rewards) <= 0.30


def test_symbols_are_guessed_uniformly_and_nothing_leaks(base):
    policy, sampler, task = base
    prompts = [policy.encode(p) for p in task.train if p.kind == "custom"]
    groups = rollout(sampler, policy, task, prompts, step=0, seed=1, group_size=8)
    guesses = {symbol: Counter() for symbol in GREEK}
    for group in groups:
        for completion in group.completions:
            named = re.findall(r"([θαγβ]) = ([+−×÷])", completion.text.split(";")[0])
            assert {s for s, _ in named} == set(group.prompt.problem.name) & set(GREEK), completion.text
            for symbol, op in named:
                guesses[symbol][op] += 1
    table = {s: {op.value: counts[op] / counts.total() for op in Op} for s, counts in guesses.items()}
    print(table)
    assert all(0.15 <= p <= 0.35 for row in table.values() for p in row.values()), table
    rewards = [c.score.reward for g in groups for c in g.completions]
    assert 0.08 <= sum(rewards) / len(rewards) <= 0.25
