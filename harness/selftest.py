"""Before step 1: proof that a swapped LoRA reaches every module of vLLM, at its scale, and leaves no stale cache behind.

With a *loud* LoRA, whose updates are as large as the weights, any mistake in the swap moves the log-probs far from the
trainer's: a LoRA not swapped, half of it, another scale, transposed, or keys and values cached under the one before.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from grpo.policy import Policy
from grpo.sampler import Sampler
from grpo.types import Completion, Group, Metrics, Prompt, Score, TokenLogs
from grpo.update import Updater
from harness.parity import SyncError, check_parity, mean_gap, token_pairs

LOUDNESS = 1.0  # rms of the test LoRA's update, as a share of the rms of the weight it is added to
MARGIN = 0.1  # the engines may differ by this share of what another LoRA would make them differ


def self_test(sampler: Sampler, updater: Updater, prompts: Sequence[Prompt]) -> Metrics:
    """Swap in two loud LoRAs in turn, sample with each, and compare. Leaves policy and engine as they were.

    The second swap meets a prefix cache filled under the first. The engine's buffers are read back, each module's; its
    log-probs say whether it computes with them. Returns the largest gap, and the smallest that a LoRA left behind would
    have shown. Raises SyncError where vLLM's log-probs are not the trainer's, under a loud LoRA or under the policy itself.
    """
    policy = updater.policy
    kept = {name: t.clone() for name, t in policy.lora().items()}
    gaps, stale_gaps = [], []
    previous = kept
    try:
        for turn in range(2):
            policy.load_tensors(loud_lora(policy, seed=turn))
            current = {name: t.clone() for name, t in policy.lora().items()}
            sampler.swap_lora(policy.lora())
            check_served(policy, sampler)
            groups = _sample(sampler, prompts, seed=1000 * turn)
            gaps.append(_gap(groups, _logs(updater, groups)))
            policy.load_tensors(previous)
            stale_gaps.append(_gap(groups, _logs(updater, groups)))
            previous = current
    finally:
        policy.load_tensors(kept)
        sampler.swap_lora(policy.lora())
    if not max(gaps) < MARGIN * min(stale_gaps):
        raise SyncError(f"vLLM does not serve the policy's LoRA: its log-probs differ from the trainer's by {max(gaps):.3g} "
                        f"on average, and another LoRA's would by {min(stale_gaps):.3g}")
    groups = _sample(sampler, prompts, seed=0)
    check_parity(groups, _logs(updater, groups), policy.dtype)
    return {"gap": max(gaps), "stale_gap": min(stale_gaps)}


def check_served(policy: Policy, sampler: Sampler) -> None:
    """Raises SyncError where a tensor in the engine's buffers is not the policy's, to the last bit of the base's dtype."""
    served = sampler.served_lora()
    for name, tensor in policy.lora().items():
        wanted = (tensor if "lora_A" in name else tensor * policy.scale).to(policy.dtype)
        if name not in served or not torch.equal(served[name].to(wanted), wanted):
            raise SyncError(f"vLLM does not hold {name} as the policy has it: the swap did not reach it")


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


def _sample(sampler: Sampler, prompts: Sequence[Prompt], seed: int) -> list[Group]:
    sampled = sampler.sample(prompts, [seed + place for place in range(len(prompts))], 4)
    return [Group(prompt, tuple(Completion(replace(sample, finish_reason="stop"), "", Score(0.0)) for sample in samples))
            for prompt, samples in zip(prompts, sampled, strict=True)]  # "stop": those cut off are looked at too


def _logs(updater: Updater, groups: list[Group]) -> TokenLogs:
    """What a training pass finds for every token. Its gradient is dropped."""
    _, logs = updater.accumulate(groups, torch.ones(len(groups), len(groups[0].completions)))
    updater.optimizer.zero_grad(set_to_none=True)
    return logs


def _gap(groups: list[Group], logs: TokenLogs) -> float:
    return mean_gap([pair for of_prompt in token_pairs(groups, logs).values() for pair in of_prompt])
