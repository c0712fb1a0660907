"""Does vLLM sample from the policy that is trained? Two engines, one distribution: their log-probs must agree.

Every step compares them on each trained token, and stops the run beyond a bound. At the start, `self_test` makes the
comparison hard to pass by luck: with a loud LoRA, any mistake in the swap moves the log-probs far from the trainer's.
"""

import math
from collections.abc import Iterable, Sequence

import torch

from grpo.batch import MicroBatch, split
from grpo.config import Config
from grpo.logprob import Prefix, score
from grpo.policy import Policy
from grpo.sampler import Sampler, SyncError
from grpo.types import Metrics, Prompt, Sample

LOUDNESS = 1.0  # rms of the test LoRA's update, as a share of the rms of the weight it is added to
MARGIN = 0.1  # the engines may differ by this share of what another LoRA would make them differ
# Largest mean |difference| of log-probs, in nats, at the policy itself. Seen: 1e-6 in float32; in bfloat16 2e-4 on the
# embedded base, 0.07 on 36 random layers of the 8B shape.
BOUND = {torch.float32: 1e-3, torch.bfloat16: 0.15}


def parity_metrics(pairs: Iterable[tuple[float, float]]) -> Metrics:
    """From (trainer, sampler) log-probs of the same tokens: largest and mean |difference|, and the KL in nats a token.

    The KL is k3 of pi_sampler from pi_trainer, on the sampler's tokens: mean of d - 1 - log d, d = pi_trainer/pi_sampler.
    """
    gaps = [trainer - sampler for trainer, sampler in pairs]
    if not gaps:
        return dict.fromkeys(("parity/logp_max_abs_diff", "parity/logp_mean_abs_diff", "parity/kl"))
    return {"parity/logp_max_abs_diff": max(map(abs, gaps)),
            "parity/logp_mean_abs_diff": sum(map(abs, gaps)) / len(gaps),
            "parity/kl": sum(math.expm1(gap) - gap for gap in gaps) / len(gaps)}


def check_parity(mean_gap: float | None, dtype: torch.dtype) -> None:
    """Raises SyncError where the engines' log-probs differ by more than BOUND on average."""
    if mean_gap is not None and not mean_gap <= BOUND[dtype]:
        raise SyncError(f"vLLM's log-probs differ from the trainer's by {mean_gap:.3g} on average; "
                        f"{BOUND[dtype]} is the most that rounding explains in {dtype}")


@torch.no_grad()
def trainer_logps(policy: Policy, config: Config, prompt: Prompt, samples: Sequence[Sample]) -> list[list[float]]:
    """The trainer's log-prob of every sampled token, in order."""
    prefix, logps = Prefix(policy.decoder, prompt.token_ids, policy.device), {}
    for rows in split([len(s.token_ids) for s in samples], config.train.micro_batch_tokens):
        batch = MicroBatch.of(samples, rows).to(policy.device)
        scored = score(policy.decoder, policy.head, prefix, batch,
                       config.rollout.temperature, config.train.head_chunk_tokens)
        for row, n, logp in zip(rows, batch.mask_BT.sum(1).tolist(), scored.logp_BT.tolist(), strict=True):
            logps[row] = logp[:n]
    return [logps[row] for row in range(len(samples))]


def self_test(policy: Policy, sampler: Sampler, config: Config, prompts: Sequence[Prompt]) -> Metrics:
    """Swap in two loud LoRAs in turn, sample with each, and compare. Leaves policy and engine as they were.

    The second swap meets a prefix cache filled under the first. Returns the largest gap and the smallest gap that a
    LoRA left behind would have shown. Raises SyncError where vLLM's log-probs are not the trainer's, under a loud LoRA
    or under the policy itself.
    """
    kept = {name: t.clone() for name, t in policy.lora().items()}
    gaps, stale_gaps = [], []
    previous = kept
    try:
        for turn in range(2):
            policy.load_tensors(loud_lora(policy, seed=turn))
            current = {name: t.clone() for name, t in policy.lora().items()}
            sampler.swap_lora(policy.lora())
            sampled = sampler.sample(prompts, [1000 * turn + place for place in range(len(prompts))], 4)
            gaps.append(_mean_gap(policy, config, prompts, sampled))
            policy.load_tensors(previous)
            stale_gaps.append(_mean_gap(policy, config, prompts, sampled))
            previous = current
    finally:
        policy.load_tensors(kept)
        sampler.swap_lora(policy.lora())
    if not max(gaps) < MARGIN * min(stale_gaps):
        raise SyncError(f"vLLM does not serve the policy's LoRA: its log-probs differ from the trainer's by {max(gaps):.3g} "
                        f"on average, and another LoRA's would by {min(stale_gaps):.3g}")
    sampled = sampler.sample(prompts, list(range(len(prompts))), 4)
    check_parity(_mean_gap(policy, config, prompts, sampled), policy.dtype)
    return {"gap": max(gaps), "stale_gap": min(stale_gaps)}


@torch.no_grad()
def loud_lora(policy: Policy, seed: int) -> dict[str, torch.Tensor]:
    """A random LoRA whose updates are as large as the weights they are added to."""
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for name, module in policy.model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        a, b = (torch.randn(policy.parameters[f"{name}.lora_{x}.weight"].shape, generator=generator) for x in "AB")
        weight_rms = module.get_base_layer().weight.float().square().mean().sqrt().item()
        b *= LOUDNESS * weight_rms / (policy.scale * a.shape[0] ** 0.5)  # entries of B A have variance r
        lora[f"{name}.lora_A.weight"], lora[f"{name}.lora_B.weight"] = a, b
    return lora


def _mean_gap(policy: Policy, config: Config, prompts: Sequence[Prompt], sampled: list[list[Sample]]) -> float:
    pairs = [pair for prompt, samples in zip(prompts, sampled, strict=True)
             for logps, sample in zip(trainer_logps(policy, config, prompt, samples), samples, strict=True)
             for pair in zip(logps, sample.logp, strict=True)]
    return parity_metrics(pairs)["parity/logp_mean_abs_diff"]
