"""The shared-prefix pass against the plain padded one: log-probs, gradients, and the knobs that must change nothing."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from grpo.advantage import grpo
from grpo.batch import MicroBatch
from grpo.logprob import score
from grpo.loss import k3, policy_loss
from grpo.rollout import rewards
from grpo.run.memory import counting_saved
from grpo.speed.micro_batches import deal
from grpo.types import NonFiniteError, Score, UserError
from grpo.update import Updater, learning_rate
from tests.conftest import every, group_of, padded_logps, randomize, sampled_by, tiny_config, tiny_policy

GROUPS = [  # prompts of different lengths, completions of different lengths, one of a single token
    group_of([5, 9, 33, 70, 12, 250, 7], [[40, 41, 42, 2], [43, 2], [2], [44, 45, 46, 47, 48, 2], [49, 50, 2], [51, 2],
                                          [52, 53, 2], [54, 2]]),
    group_of([8, 300, 21], [[60, 61, 2], [62, 63, 64, 65, 2], [66, 2], [67, 2], [68, 69, 2], [70, 2], [71, 2], [72, 2]]),
]
ADVANTAGES = grpo(torch.tensor([[1.0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 1.0, 0, 0, 0, 0, 0]]))


def gradients(policy) -> torch.Tensor:
    flat = torch.cat([p.grad.flatten() for p in policy.parameters.values()])
    for p in policy.parameters.values():
        p.grad = None
    return flat


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def shared_gradients(policy, groups=GROUPS, advantages=ADVANTAGES, *overrides: str):
    metrics, logs = Updater(policy, tiny_config(*overrides)).accumulate(groups, advantages)
    return gradients(policy), metrics, logs


def padded_gradients(policy, aggregation="token_mean", beta=0.0) -> torch.Tensor:
    """The same loss, written out from the padded log-probs."""
    tokens = sum(len(c.sample.token_ids) for g in GROUPS for c in g.completions)
    rows = sum(len(g.completions) for g in GROUPS)
    for group, advantages_G in zip(GROUPS, ADVANTAGES, strict=True):
        logp_BT = padded_logps(policy, group)
        with torch.no_grad(), policy.base_only():
            reference_BT = padded_logps(policy, group)
        for b, completion in enumerate(group.completions):
            n = len(completion.sample.token_ids)
            logp_T = logp_BT[b, :n]
            surrogate_T = torch.exp(logp_T - logp_T.detach()) * advantages_G[b]
            loss_T = -surrogate_T + beta * k3(logp_T, reference_BT[b, :n], torch.ones(n))
            (loss_T.sum() / {"token_mean": tokens, "sequence_mean": rows * n, "constant": rows * 96}[aggregation]).backward(
                retain_graph=True)
    return gradients(policy)


def test_logps_equal_the_padded_pass(fp32_policy):
    for group in GROUPS:
        batch = MicroBatch.of([group], [(0, row) for row in range(8)], fp32_policy.device)
        scored = score(fp32_policy.decoder, fp32_policy.head, batch, 0.7, 3)
        torch.testing.assert_close(scored.logp_BT, padded_logps(fp32_policy, group, 0.7), atol=1e-5, rtol=1e-5)
        anything = group_of([*group.prompt.token_ids], [[token] for token in range(fp32_policy.head.out_features)])
        logp_V = padded_logps(fp32_policy, anything, 0.7)[:, 0]
        torch.testing.assert_close(scored.entropy_BT[:, 0], -(logp_V.exp() * logp_V).sum().expand(8), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("aggregation", "beta"), [("token_mean", 0.0), ("sequence_mean", 0.0), ("constant", 0.0),
                                                   ("token_mean", 0.3)])
def test_gradients_equal_the_padded_pass(fp32_policy, aggregation, beta):
    overrides = (f"algorithm.aggregation={aggregation}", f"algorithm.beta={beta}")
    ours, *_ = shared_gradients(fp32_policy, GROUPS, ADVANTAGES, *overrides)
    theirs = padded_gradients(fp32_policy, aggregation, beta)
    assert theirs.norm() > 1e-3
    assert relative(ours, theirs) < 1e-5


@pytest.mark.parametrize(("budget", "parts"), [(1, 16), (14, 6), (40, 2), (1000, 1)])
def test_micro_batches_change_memory_and_nothing_else(fp32_policy, monkeypatch, budget, parts):
    oracle = padded_gradients(fp32_policy)
    _, metrics, logs = shared_gradients(fp32_policy)
    sizes = []
    monkeypatch.setattr("grpo.update.deal", lambda *a: [[sizes.append(len(rows)) or rows for rows in hand]
                                                        for hand in deal(*a)])
    part, part_metrics, part_logs = shared_gradients(
        fp32_policy, GROUPS, ADVANTAGES, "train.head_chunk_tokens=3", f"train.micro_batch_tokens={budget}")
    assert (len(sizes), sum(sizes)) == (parts, 16)
    assert relative(part, oracle) < 1e-5
    assert part_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    assert part_logs.keys() == logs.keys()


def test_groups_without_a_signal_cost_no_forward(fp32_policy, monkeypatch):
    advantages = ADVANTAGES.clone()
    advantages[0] = 0
    read = []
    monkeypatch.setattr("grpo.update.score", lambda *a: read.append(len(a[2].tokens_N)) or score(*a))
    skipped, metrics, logs = shared_gradients(fp32_policy, GROUPS, advantages)
    assert read == [3 + 13]  # the second group's prompt, and its completions but for their last tokens
    assert {p for p, _ in logs} == {1}
    assert metrics["tokens/trained"] == 21
    monkeypatch.setattr("grpo.update.trained_rows", lambda *a: every(GROUPS))
    kept, *_ = shared_gradients(fp32_policy, GROUPS, advantages)
    assert relative(skipped, kept) < 1e-5  # and they change nothing, their tokens in the denominator included


@pytest.mark.parametrize("layers", [1, 4])
def test_recomputed_layers_give_the_same_gradient_and_keep_less(fp32_policy, layers):
    kept, gradient = {}, {}
    for count in (0, layers):
        with counting_saved(fp32_policy.model.parameters()) as saved:
            gradient[count], *_ = shared_gradients(fp32_policy, GROUPS, ADVANTAGES, f"train.recompute_layers={count}")
        kept[count] = saved.most
    assert torch.equal(gradient[0], gradient[layers])
    assert kept[layers] < kept[0] * (1 - 0.2 * layers)  # of four layers


def test_layers_are_compiled_once_for_all_shapes(fp32_policy, monkeypatch):
    """Once with a gradient and once without, whatever the numbers of tokens, prompts and completions."""
    compiled = []

    def backend(module, inputs):
        compiled.append(module)
        return module

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **options: compiler(run, **options, backend=backend, fullgraph=True))
    torch._dynamo.reset()
    eager, *_ = shared_gradients(fp32_policy, GROUPS, ADVANTAGES, "algorithm.beta=0.3")
    for budget in (1, 14, 20, 40, 1000):
        same, *_ = shared_gradients(fp32_policy, GROUPS, ADVANTAGES, "algorithm.beta=0.3", "train.compile=always",
                                    f"train.micro_batch_tokens={budget}")
        assert relative(same, eager) < 1e-5
    assert len(compiled) == 2


def test_gradients_of_a_bfloat16_policy_add_up_in_float32():
    policy = tiny_policy(tiny_config("model.dtype=bfloat16"))
    randomize(policy, 0.05)
    once, *_ = shared_gradients(policy)
    updater = Updater(policy, tiny_config("train.micro_batch_tokens=14"))
    for _ in range(2):
        updater.accumulate(GROUPS, ADVANTAGES)
    assert {p.grad.dtype for p in policy.parameters.values()} == {torch.float32}
    assert all(p.grad is None for p in policy.model.parameters())  # the rounded ones passed theirs on
    assert relative(gradients(policy), 2 * once) < 0.03  # 0.8 % of rounding
    exact = tiny_policy(tiny_config())
    exact.load_tensors({name: p.bfloat16().float() for name, p in policy.lora().items()})
    assert relative(once, shared_gradients(exact)[0]) < 0.05


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_logits_never_exist_for_more_than_a_chunk(fp32_policy, monkeypatch, chunk):
    sizes = []
    linear = F.linear

    def spy(x, weight, bias=None):
        if weight.shape[0] == len(fp32_policy.tokenizer):
            sizes.append(x.shape[0])
        return linear(x, weight, bias)

    monkeypatch.setattr("grpo.speed.head.nn.functional.linear", spy)
    shared_gradients(fp32_policy, GROUPS, ADVANTAGES, f"train.head_chunk_tokens={chunk}")
    tokens = sum(len(c.sample.token_ids) for g in GROUPS for c in g.completions)
    assert sum(sizes) == tokens  # every token once: no second forward for old log-probs either
    assert max(sizes) <= chunk


def test_the_learning_rate_by_hand():
    optim = tiny_config("optim.lr=1.0", "optim.warmup=0.1", "optim.decay=constant").optim
    assert [learning_rate(s, 40, optim) for s in (1, 2, 4, 5, 40)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert learning_rate(1, 25, optim) == pytest.approx(1 / 3)  # a tenth of 25 steps is 3: no step more than 1 / 3
    linear = tiny_config("optim.lr=1.0", "optim.warmup=0.1", "optim.decay=linear").optim
    assert [learning_rate(s, 40, linear) for s in (4, 5, 23, 40)] == pytest.approx([1.0, 1.0, 0.5, 1 / 36])
    for steps, warmup in ((2, 0.1), (2, 1.0), (3, 0.0)):  # no division by zero, no negative one
        with pytest.raises(UserError, match=f"run.steps = {steps}: step 4 is beyond it; give 4 or more"):
            learning_rate(4, steps, linear.model_copy(update={"warmup": warmup}))


def test_the_schedule_reaches_the_optimizer():
    policy = tiny_policy(tiny_config())
    randomize(policy, 0.02)
    before = {name: p.detach().clone() for name, p in policy.parameters.items()}
    Updater(policy, tiny_config("optim.lr=0.06", "optim.warmup=0.1")).step(1, sampled_by(policy, GROUPS), ADVANTAGES)
    assert all(p.grad is None for p in policy.parameters.values())  # the next step's adds nothing to it
    moved = max((p - before[name]).abs().max().item() for name, p in policy.parameters.items())
    assert moved == pytest.approx(0.01, rel=0.05)  # Adam's first step is the learning rate: 0.06 after 1 of 6 warm-up steps


def test_steps_move_the_policy_towards_what_was_rewarded():
    policy = tiny_policy(tiny_config())
    randomize(policy, 0.02)
    updater = Updater(policy, tiny_config("optim.warmup=0.0"))
    before = [padded_logps(policy, g).sum(1) for g in GROUPS]
    for step in (1, 2, 3):
        metrics, _ = updater.step(step, sampled_by(policy, GROUPS), ADVANTAGES)
    gained = torch.stack([padded_logps(policy, g).sum(1) - b for g, b in zip(GROUPS, before, strict=True)])
    assert (ADVANTAGES * gained).sum() > 1.0
    assert metrics["policy/grad_norm"] > 0
    assert metrics["policy/lr"] == pytest.approx(2e-3 * 58 / 60)


def test_epochs_after_the_first_see_a_ratio():
    policy = tiny_policy(tiny_config())
    randomize(policy, 0.02)
    updater = Updater(policy, tiny_config("optim.warmup=0.0", "algorithm.epochs=4", "optim.lr=0.02"))
    before = [padded_logps(policy, g).detach() for g in GROUPS]
    metrics, logs = updater.step(1, sampled_by(policy, GROUPS), ADVANTAGES)
    assert metrics["policy/clip_fraction"] > 0
    for (p, row), log in logs.items():  # what is compared with the sampler is the policy that sampled
        assert log.logp == pytest.approx(before[p][row, : len(log.logp)].tolist(), abs=1e-3)


def test_a_step_without_a_signal_has_no_averages_and_changes_nothing():
    policy = tiny_policy(tiny_config())
    metrics, logs = Updater(policy, tiny_config()).step(1, GROUPS, torch.zeros(2, 8))
    assert not logs
    assert metrics["tokens/trained"] == 0
    assert [metrics[key] for key in ("policy/entropy", "policy/clip_fraction", "policy/grad_norm")] == [None] * 3


@pytest.mark.parametrize("poison", ["advantage", "gradient", "loss"])
def test_nothing_is_updated_when_the_loss_or_the_gradient_is_not_finite(poison, monkeypatch):
    policy = tiny_policy(tiny_config())
    updater = Updater(policy, tiny_config())
    before = {name: p.detach().clone() for name, p in policy.parameters.items()}
    if poison == "gradient":  # of one parameter, while the loss is a number
        next(iter(policy.parameters.values())).register_hook(lambda grad: grad * float("nan"))
    if poison == "loss":  # while the gradient is all numbers
        monkeypatch.setattr("grpo.update.policy_loss", lambda *a: (policy_loss(*a)[0] + float("inf"), policy_loss(*a)[1]))
    with pytest.raises(NonFiniteError, match="the optimizer did not move"):
        updater.step(1, sampled_by(policy, GROUPS), ADVANTAGES * (float("inf") if poison == "advantage" else 1))
    assert all(torch.equal(p, before[name]) for name, p in policy.parameters.items())
    assert not updater.optimizer.state


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), -float("inf"), 1e300, 1, True, None, "1.0"])
def test_a_reward_is_a_float_that_float32_holds(reward):
    group = replace(GROUPS[0], completions=tuple(replace(c, score=Score(reward)) for c in GROUPS[0].completions))
    with pytest.raises(NonFiniteError, match="rewards are floats"):
        rewards([GROUPS[0], group])
    assert rewards(GROUPS).tolist() == [[0.0] * 8] * 2
