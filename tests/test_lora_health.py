"""lora.jsonl: each module's numbers against B A written out in full."""

import pytest
import torch

from grpo.guards.lora_health import LoraHealth
from grpo.report.page import _lora
from grpo.report.records import LoraLine
from tests.conftest import randomize, tiny_config, tiny_policy


def full(policy, module: str) -> torch.Tensor:
    """(alpha/r) B A of a module."""
    a, b = (policy.parameters[f"base_model.model.model.{module}.lora_{x}.weight"].detach().double() for x in "AB")
    return policy.scale * b @ a


def test_health_is_that_of_the_whole_product(fp32_policy):
    norms = {name: torch.tensor(3.0 if "lora_A" in name else 4.0) for name in fp32_policy.parameters}
    health, metrics = LoraHealth(fp32_policy).measure(1, norms)
    assert len(health) == 28
    updates, weights = 0.0, 0.0
    for module, (relative, gradient, rank) in health.items():
        update = full(fp32_policy, module)
        weight = fp32_policy.model.get_submodule(f"base_model.model.model.{module}").get_base_layer().weight
        singular = torch.linalg.svdvals(update)[:16]
        share = singular / singular.sum()
        assert gradient == 5.0  # 3-4-5
        torch.testing.assert_close(relative, (update.norm() / weight.norm()).item(), rtol=1e-3, atol=0)
        torch.testing.assert_close(rank, torch.exp(-(share * share.log()).sum()).item(), rtol=1e-3, atol=0)
        updates, weights = updates + update.square().sum().item(), weights + weight.square().sum().item()
    torch.testing.assert_close(metrics["lora/relative_norm"], (updates / weights) ** 0.5, rtol=1e-4, atol=0)
    assert 8 < min(rank for *_, rank in health.values()) <= 16  # random numbers use nearly all directions


def test_a_new_lora_has_no_norm_no_rank_and_no_gradient():
    health, metrics = LoraHealth(tiny_policy(tiny_config())).measure(1, {})
    assert set(health.values()) == {(0.0, None, 0.0)}
    assert metrics == {"lora/relative_norm": 0.0}


def test_the_rank_of_one_direction_is_one():
    policy = tiny_policy(tiny_config())
    randomize(policy, 0.05)
    with torch.no_grad():
        for name, p in policy.parameters.items():
            if "lora_B" in name:
                p[:, 1:] = 0
    health, _ = LoraHealth(policy).measure(1, {})
    assert all(abs(rank - 1) < 0.01 for *_, rank in health.values())


def test_large_ranks_are_looked_at_in_turn(monkeypatch):
    """With rank 64 each module every fourth step, and all of them as if at once; the norms at each step."""
    policy = tiny_policy(tiny_config("lora.rank=64", "lora.alpha=128"))
    randomize(policy, 0.05)
    health = LoraHealth(policy)
    steps = [health.measure(step, {})[0] for step in (5, 6, 7, 8)]
    monkeypatch.setattr(health, "_every", 1)
    wanted, metrics = health.measure(1, {})
    ranks = [[found[module][2] for found in steps if found[module][2] is not None] for module in wanted]
    assert ranks == [[rank] for *_, rank in wanted.values()]
    assert [sum(rank is not None for *_, rank in found.values()) for found in steps] == [7, 7, 7, 7]
    assert 20 < min(rank for *_, rank in wanted.values()) <= 64
    for found in steps:
        assert [n for n, *_ in found.values()] == pytest.approx([n for n, *_ in wanted.values()], rel=1e-3)
    assert metrics["lora/relative_norm"] > 0


def test_the_report_shows_the_rank_of_a_modules_last_turn():
    turns = [(0.1, None, None), (0.2, 1.0, 7.5), (0.3, None, None), (0.4, 1.0, 8.5)]
    assert _lora([LoraLine(step=step, modules={"q": turn}) for step, turn in enumerate(turns, 1)])["values"] == [
        [[0.1, 0.2, 0.3, 0.4]], [[None, 1.0, None, 1.0]], [[None, 7.5, 7.5, 8.5]]]
