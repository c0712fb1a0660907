"""One training step on two ranks, here threads: the gradient of one process."""

from types import SimpleNamespace

import pytest
import torch

from grpo.guards import dry_step
from grpo.ranks.ranks import ALONE
from grpo.rollout import advantages
from grpo.run.memory import GIB
from grpo.types import Completion, Group, Score
from grpo.update import Updater
from tests.conftest import group_of, randomize, sampled_by, tiny_config, tiny_policy
from tests.test_dry_step import prompt_of
from tests.test_ranks import together


def some_groups(policy, sizes: list[int], rows: int) -> list[Group]:
    """Groups of random tokens, every second of which is right; log-probs as the policy has them."""
    generator = torch.Generator().manual_seed(1)

    def tokens(n: int) -> list[int]:
        return torch.randint(10, 400, (n,), generator=generator).tolist()

    groups = [group_of(tokens(12 + n), [tokens(n + row % 5) for row in range(rows)]) for n in sizes]
    return [Group(g.prompt, tuple(Completion(c.sample, "", Score(float(row % 2))) for row, c in enumerate(g.completions)))
            for g in sampled_by(policy, groups)]


@pytest.fixture(scope="module")
def policies():
    """Three policies that are the same: of a process alone, and of two ranks."""
    made = [tiny_policy(tiny_config()) for _ in range(3)]
    for policy in made:
        randomize(policy, 0.05)
    return made


@pytest.mark.parametrize("overrides", [(), ("algorithm.aggregation=sequence_mean", "algorithm.beta=0.1"),
                                       ("algorithm.advantage=batch_std", "algorithm.epochs=2")])
def test_two_ranks_train_as_one(policies, overrides):
    config = tiny_config("train.micro_batch_tokens=120", "optim.warmup=0.0", *overrides)
    groups = some_groups(policies[0], [4, 9, 15], 6)
    kept = {name: p.detach().clone() for name, p in policies[0].parameters.items()}

    def train(policy, ranks):
        gradients = {}
        updater = Updater(policy, config, ranks)
        updater.optimizer.step = lambda: gradients.update(
            {name: p.grad.clone() for name, p in policy.parameters.items()})  # before clipping changes nothing here
        return updater.step(1, groups, advantages(groups, config)), gradients

    (alone_metrics, alone_logs), alone = train(policies[0], ALONE)
    both = together(lambda r: train(policies[1], r), lambda r: train(policies[2], r))
    for (metrics, logs), gradients in both:
        assert logs.keys() == alone_logs.keys()
        assert metrics["tokens/trained"] == alone_metrics["tokens/trained"] > 0
        assert metrics["policy/grad_norm"] == pytest.approx(alone_metrics["policy/grad_norm"], rel=1e-5)
        difference = torch.cat([(gradients[n] - alone[n]).flatten() for n in alone]).norm()
        norm = torch.cat([g.flatten() for g in alone.values()]).norm()
        print(float(difference / norm))
        assert difference / norm < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(both[0][1].values(), both[1][1].values(), strict=True))
    assert all(torch.equal(p, kept[name]) for name, p in policies[0].parameters.items())


def test_a_step_without_a_signal_is_no_work_for_any(policies):
    groups = [Group(g.prompt, tuple(Completion(c.sample, "", Score(1.0)) for c in g.completions))
              for g in some_groups(policies[0], [4, 9], 4)]

    def train(r):
        return Updater(policies[r.rank], tiny_config(), r).step(1, groups, torch.zeros(2, 4))

    for metrics, logs in together(train, train):
        assert metrics["policy/grad_norm"] is None
        assert metrics["tokens/trained"] == 0
        assert logs == {}


def test_ranks_of_one_machine_share_its_memory(policies, monkeypatch):
    """All look before one takes any; and each needs room to add gradients up, two more float32 a number."""
    updater, did = Updater(policies[0], tiny_config("rollout.group_size=8", "rollout.max_new_tokens=24")), []
    monkeypatch.setattr(dry_step, "available", lambda _: did.append("looks") or 10 * GIB)
    alone = dry_step._sizes(updater.config, updater, prompt_of(9), [1.0, 2.0])["gradients and optimizer"]
    updater.ranks = SimpleNamespace(size=2, sharing=lambda kind: {"cpu": 5}[kind], meet=lambda: did.append("meets"))
    assert "of 2.00 GiB free" in dry_step.dry_step(updater, [prompt_of(9)], (0, 0))[0]
    assert did == ["looks", "meets"]
    numbers = sum(p.numel() for p in policies[0].parameters.values())
    both = dry_step._sizes(updater.config, updater, prompt_of(9), [1.0, 2.0])["gradients and optimizer"]
    assert (alone, both) == (pytest.approx(6.1 * numbers), pytest.approx(14.1 * numbers))
