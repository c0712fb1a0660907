"""TRL's own trainers on the same tensors: advantages, loss and d loss / d logp, for each variant that it has.

The trainers are real, made from their configs; only what they would generate and the log-probs of their models are given.
Not in the project's own environment, where these tests are skipped: `pip install --no-deps -r requirements/bench.txt`.
"""

import pytest
import torch

from grpo.batch import pad
from grpo.config import Algorithm
from tests.conftest import ROOT, tiny_config
from tests.reference import Ours, Step, by_grpo, drawn_step, flat

LIMIT, SIZE = 4, 3  # of tokens, of completions in a group
GRPO = {"beta": 0.04, "loss_type": "grpo"}  # what `algorithm: grpo` is, in TRL's words
DAPO = {"loss_type": "dapo", "epsilon_high": 0.28}
GSPO = {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.1, "epsilon_high": 0.3}
WIDE = {"preset": "gspo", "eps_low": 0.1, "eps_high": 0.3}
KEPT = {"preset": "dapo", "overlong": "kept"}  # TRL has no penalty of its own
SAMPLED = {"use_vllm": True, "vllm_importance_sampling_clip_max": 1.5}
CASES = {  # our keys, TRL's arguments
    "grpo": ({"preset": "grpo"}, {**GRPO, "use_bias_correction_kl": False}),
    "grpo, unbiased kl": ({"preset": "grpo", "kl": "unbiased"}, {**GRPO, "use_bias_correction_kl": True}),
    "grpo, batch std": ({"preset": "grpo", "advantage": "batch_std", "beta": 0.0},
                        {"loss_type": "grpo", "scale_rewards": "batch"}),
    "dapo": (KEPT, DAPO),
    "dapo, centred": ({**KEPT, "advantage": "centred"}, {**DAPO, "scale_rewards": "none"}),
    "dr_grpo": ({"preset": "dr_grpo"}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "cispo": ({"preset": "cispo", "eps_high": 0.3}, {"loss_type": "cispo", "epsilon_high": 1.3}),  # 1 + eps_high
    "gspo": (WIDE, GSPO),
    "gspo, token mean": ({**WIDE, "aggregation": "token_mean"}, {**GSPO, "loss_type": "dapo"}),
    "gspo, k3": ({**WIDE, "beta": 0.1}, {**GSPO, "beta": 0.1, "use_bias_correction_kl": False}),
    "cispo, sequence": ({"preset": "cispo", "eps_high": 0.1, "ratio": "sequence"},
                        {"loss_type": "cispo", "epsilon_high": 1.1, "importance_sampling_level": "sequence"}),
    "dual clip": ({**KEPT, "loss": "dual_clip", "dual_clip_at": 1.5}, {**DAPO, "delta": 1.5}),
    "truncated": ({"preset": "grpo", "correction": "truncated", "correction_high": 1.5},
                  {**GRPO, **SAMPLED, "use_bias_correction_kl": False, "vllm_importance_sampling_mode": "token_truncate"}),
    "masked": ({**KEPT, "correction": "masked", "correction_low": 0.7, "correction_high": 1.5},
               {**DAPO, **SAMPLED, "vllm_importance_sampling_mode": "token_mask", "vllm_importance_sampling_clip_min": 0.7}),
    **{f"overlong, {aggregation}": (
        {"overlong": "masked", "advantage": "centred", "beta": 0.1, "aggregation": aggregation},
        {"mask_truncated_completions": True, "scale_rewards": "none", "beta": 0.1, "use_bias_correction_kl": False,
         "loss_type": loss_type})
       for aggregation, loss_type in (("sequence_mean", "grpo"), ("token_mean", "dapo"), ("constant", "dr_grpo"))},
}


@pytest.fixture(scope="module")
def trl():
    """The rival, the embedded base, its tokenizer and a data set of as many prompts as a step needs."""
    reason = "TRL is no part of the project: pip install --no-deps -r requirements/bench.txt, in an environment of its own"
    module = pytest.importorskip("trl", reason=reason)
    datasets = pytest.importorskip("datasets", reason=reason)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = str(ROOT / "models" / "tiny")
    assert module.__version__ == "1.16.0"  # whose private methods are called here
    return (module, AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path),
            datasets.Dataset.from_list([{"prompt": "x"}] * 12))


def by_trl(trl, step: Step, folder, name: str = "GRPO", use_vllm: bool = False, **arguments) -> Ours:
    """The loss of a step as TRL computes it, and its gradient. name: of the trainer and its config."""
    module, model, tokenizer, data = trl
    rows = [c for group in step for c in group]
    trainer = getattr(module, f"{name}Trainer")(
        model=model, processing_class=tokenizer, train_dataset=data, reward_funcs=lambda **_: [c.reward for c in rows],
        args=getattr(module, f"{name}Config")(
            output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=len(rows),
            gradient_accumulation_steps=1, num_iterations=2,  # of two iterations, so that it asks for old log-probs
            num_generations=SIZE, max_completion_length=LIMIT, **arguments))
    trainer.use_vllm, trainer.current_gradient_accumulation_steps = use_vllm, 1
    trainer.model.train()
    logp_BT, old_BT, ref_BT = (pad([getattr(c, key) for c in rows], torch.float64) for key in ("logp", "old", "ref"))
    logp_BT.requires_grad_()

    def logps(model, *_, **__) -> tuple[torch.Tensor, torch.Tensor, None]:
        old_or_ref = ref_BT if model is trainer.ref_model else old_BT
        return logp_BT if torch.is_grad_enabled() else old_or_ref, torch.ones_like(logp_BT), None

    def generate(prompts) -> tuple:
        ids = [[9] * (len(c.logp) - 1) + [9 if c.truncated else tokenizer.eos_token_id] for c in rows]
        texts = ["y"] * len(rows)
        if name == "RLOO":
            return [[7]] * len(rows), ids, texts
        return [[7]] * len(rows), ids, None, texts, [c.sampler for c in rows] if use_vllm else None, {}, None, None

    trainer._generate, trainer._get_per_token_logps_and_entropies = generate, logps
    inputs = trainer._generate_and_score_completions([{"prompt": "x"}] * len(rows))
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    numbers = iter(zip(inputs["advantages"].tolist(), logp_BT.grad.tolist(), strict=True))
    found = Ours(loss.item())
    for group in step:
        mine = [next(numbers) for _ in group]
        found.advantages.append([advantage for advantage, _ in mine])
        found.gradient.append([row[: len(c.logp)] for (_, row), c in zip(mine, group, strict=True)])
    return found


def by_us(step: Step, **keys) -> Ours:
    config = tiny_config(f"rollout.max_new_tokens={LIMIT}")
    return by_grpo(step, config.model_copy(update={"algorithm": Algorithm(**keys)}))


@pytest.mark.parametrize("case", CASES)
def test_trl_has_the_same_advantages_loss_and_gradient(trl, tmp_path, case):
    (keys, arguments), slopes = CASES[case], []
    for seed in range(4):
        step = drawn_step(seed, groups=4, size=SIZE, longest=LIMIT)
        ours, theirs = by_us(step, **keys), by_trl(trl, step, tmp_path, **arguments)
        assert flat(ours.advantages) == pytest.approx(flat(theirs.advantages), abs=1e-6)
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-6)
        assert flat(ours.gradient) == pytest.approx(flat(theirs.gradient), abs=1e-6)
        slopes += map(abs, flat(theirs.gradient))
    assert max(slopes) > 0.02  # there was something to agree on


def test_trls_rloo_has_the_same_advantages_and_on_policy_the_same_gradient(trl, tmp_path):
    """It sums over a completion's tokens; `constant` divides that by L_max besides. Off policy it clips, and we do not."""
    step = drawn_step(1, groups=4, size=SIZE, longest=LIMIT)
    for group in step:
        for c in group:
            c.old = list(c.logp)
    ours, theirs = by_us(step, preset="rloo"), by_trl(trl, step, tmp_path, "RLOO", beta=0.0)
    assert flat(ours.advantages) == pytest.approx(flat(theirs.advantages), abs=1e-6)
    assert [LIMIT * slope for slope in flat(ours.gradient)] == pytest.approx(flat(theirs.gradient), abs=1e-6)


@pytest.mark.parametrize(("keys", "arguments"), [
    # TRL's delta bounds r before the minimum is taken. Where it is above 1 + eps_high that is dual clip; below, ours alone
    # bounds A < 0 at it, and TRL's alone bounds A > 0
    ({**KEPT, "loss": "dual_clip", "dual_clip_at": 1.1}, {**DAPO, "delta": 1.1}),
    # A sequence's ratio weighs TRL's KL too; here a token's KL has its token's ratio, as in its derivation
    ({**WIDE, "beta": 0.1, "kl": "unbiased"}, {**GSPO, "beta": 0.1, "use_bias_correction_kl": True}),
], ids=["delta below 1 + eps_high", "unbiased kl of a sequence"])
def test_where_trl_has_another_formula(trl, tmp_path, keys, arguments):
    step = drawn_step(2, groups=4, size=SIZE, longest=LIMIT)
    ours, theirs = by_us(step, **keys), by_trl(trl, step, tmp_path, **arguments)
    assert flat(ours.advantages) == pytest.approx(flat(theirs.advantages), abs=1e-6)
    assert max(abs(a - b) for a, b in zip(flat(ours.gradient), flat(theirs.gradient), strict=True)) > 1e-3
