"""Before step 1: proof that vLLM serves the LoRA it is given: every module, at its scale, with no stale cache behind.

Three comparisons, each where rounding cannot hide a fault or look like one (benchmarks/guards.md has both error rates):

    buffers     each tensor in vLLM is the policy's, to the last bit
    modules     each layer of vLLM, fed noise, computes what the trainer's computes. One layer amplifies no rounding, so
                that the LoRA can be as loud as the weights, and a layer without it is wrong by as much as it adds
    log-probs   of whole completions, which alone see the prefix cache. A pretrained network is chaotic under a LoRA
                as loud as its weights: rounding alone moves its log-probs by nats. So the noise is measured first, what
                the engines differ by without a LoRA, and then a LoRA is chosen just so loud that leaving it out would
                move the log-probs by ten times the noise, and not by more than a hundred times
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from grpo.guards.parity import SyncError, check_parity, mean_gap, token_pairs
from grpo.policy import Policy
from grpo.sampler import Sampler
from grpo.types import Completion, Group, Prompt, Score, TokenLogs
from grpo.update import Updater

CONTRAST = 10  # times the noise: how far another LoRA must move the log-probs
QUIETEST = 0.1  # nats: that far at least, where the engines hardly differ
FIRST = 0.06  # the loudness that is tried first; then twice as loud, until it is heard
CHAOTIC = 10  # times louder than it need be: rounding is amplified too, and a quieter one is tried
TRIES = 8  # at most
MARGIN = 1 / 3  # of what another LoRA would show: what the engines may differ by
NOISIEST = {torch.float32: 0.005, torch.bfloat16: 0.15}  # nats, at most, at temperature 1; seen on an H100: 0.002, 0.06
TEMPERED = 0.01  # nats; above, half and twice the temperature are tried
MODULE_MARGIN = 0.2  # of what a module's LoRA adds to its output; rounding in bfloat16 explains 0.01
ROWS, COMPLETIONS, TOKENS = 16, 4, 16  # that a module is fed; that a prompt gets, and how long they are


@dataclass(frozen=True)
class SelfTest:
    """What was found. Means of |log-prob of the trainer - vLLM's|, nats a token, but for `module`."""

    noise: float  # without a LoRA
    gap: float  # with one: the larger of two
    stale: float  # what another LoRA in its place, or none, would have shown: the smallest
    loudness: float  # of these LoRAs: rms of the update as a share of the weight's
    module: float  # largest difference of a module's outputs, as a share of what its LoRA adds

    def __str__(self) -> str:
        return (f"self-test: vLLM serves the LoRA it is given: log-probs within {self.gap:.2g} of the trainer's (without "
                f"one {self.noise:.2g}, with another {self.stale:.2g}), the outputs of each module within {self.module:.1g}")


def self_test(sampler: Sampler, updater: Updater, prompts: Sequence[Prompt], seed: int = 0) -> SelfTest:
    """Swap LoRAs in and compare. Leaves policy and engine as they were, if all is well, and tells the updater the noise.

    The second LoRA meets a prefix cache that was filled under the first. Raises SyncError where vLLM is not the trainer.
    """
    policy = updater.policy
    kept = {name: t.clone() for name, t in policy.lora().items()}
    try:
        _serve(policy, sampler, random_lora(policy, 1.0, seed))
        module = check_modules(policy, sampler, seed)
        nothing = {name: torch.zeros_like(t) for name, t in kept.items()}
        _serve(policy, sampler, nothing)
        groups = _sample(sampler, prompts, seed)
        noise, loudness, quiet, loud = check_base(updater, groups), FIRST, 0.0, None
        for _ in range(TRIES):
            first = random_lora(policy, loudness, seed + 1)
            gap, stale = _served(updater, sampler, prompts, first, nothing, seed + 1000)
            heard = stale / max(QUIETEST, CONTRAST * noise)
            if heard < 1 and loudness < 1:
                quiet = loudness
            elif heard > CHAOTIC:
                loud = loudness
            else:
                break
            loudness = min(1.0, 2 * quiet) if loud is None else (quiet or loud / 4) ** 0.5 * loud**0.5
        second = random_lora(policy, loudness, seed + 2)
        turns = [(gap, stale), _served(updater, sampler, prompts, second, first, seed + 2000)]
    finally:
        policy.load_tensors(kept)
    sampler.swap_lora(policy.lora())  # not where it failed: what was found is to be told, and no error of this
    for gap, stale in turns:
        if not gap < min(MARGIN * stale, noisiest(updater)):
            raise SyncError(f"vLLM does not serve the policy's LoRA: its log-probs differ from the trainer's by {gap:.3g} "
                            f"on average; without a LoRA they do by {noise:.3g}, and another LoRA's would by {stale:.3g}")
    updater.noise = noise
    groups = _sample(sampler, prompts, seed)
    check_parity(groups, updater.logps(groups), policy.dtype, noise, updater.config.rollout.temperature)
    return SelfTest(noise, max(gap for gap, _ in turns), min(stale for _, stale in turns), loudness, module)


def check_base(updater: Updater, groups: Sequence[Group]) -> float:
    """The noise: mean |log-prob of the trainer - vLLM's| on completions of the policy as it is now, nats a token.

    Raises SyncError where it is more than rounding explains, or where the trainer is nearer at another temperature.
    """
    noise, most = _gap(groups, updater.logps(groups)), noisiest(updater)
    if not noise <= most:
        raise SyncError("vLLM does not sample from the base as the trainer has it: without a LoRA its log-probs differ from "
                        f"the trainer's by {noise:.3g} nats on average; rounding explains {most:.3g} in "
                        f"{updater.policy.dtype}")
    config = updater.config
    try:
        for factor in (0.5, 2.0) if noise > TEMPERED else ():
            temperature = factor * config.rollout.temperature
            updater.config = config.model_copy(update={
                "rollout": config.rollout.model_copy(update={"temperature": temperature})})
            if _gap(groups, updater.logps(groups)) < noise:
                raise SyncError(f"vLLM does not sample at rollout.temperature = {config.rollout.temperature}: its log-probs "
                                f"differ from the trainer's by {noise:.3g} nats on average, and by less at {temperature}")
    finally:
        updater.config = config
    return noise


def noisiest(updater: Updater) -> float:
    """What rounding explains, in nats a token: logits are divided by the temperature, and their rounding with them."""
    return NOISIEST[updater.policy.dtype] / updater.config.rollout.temperature


def check_served(policy: Policy, sampler: Sampler) -> None:
    """Raises SyncError where a tensor in the engine's buffers is not the policy's, to the last bit of the base's dtype."""
    served = sampler.served_lora()
    for name, tensor in policy.lora().items():
        wanted = (tensor if "lora_A" in name else tensor * policy.scale).to(policy.dtype)
        if name not in served or not torch.equal(served[name].to(wanted), wanted):
            raise SyncError(f"vLLM does not hold {name} as the policy has it: the swap did not reach it")


@torch.no_grad()
def check_modules(policy: Policy, sampler: Sampler, seed: int) -> float:
    """Feed each module of vLLM and the trainer's the same noise; the LoRA should be loud.

    Returns the largest difference of their outputs, norm over the norm of what the LoRA adds. Raises SyncError where
    it is above MODULE_MARGIN.
    """
    policy.round_lora()
    generator, worst = torch.Generator().manual_seed(seed), 0.0
    widths = {name: t.shape[1] for name, t in policy.lora().items() if "lora_A" in name}
    noise = {width: torch.randn(ROWS, width, generator=generator).to(policy.device, policy.dtype)
             for width in sorted(set(widths.values()))}
    served = sampler.module_outputs(noise)
    for name, width in widths.items():
        if name not in served:
            raise SyncError(f"vLLM has no LoRA at {name.removesuffix('.lora_A.weight')}, which lora.targets asks for")
        module = policy.model.get_submodule(name.removesuffix(".lora_A.weight"))
        ours = module(noise[width])
        added = torch.linalg.vector_norm((ours - module.get_base_layer()(noise[width])).float())
        gap = (torch.linalg.vector_norm((served[name] - ours).float()) / added).item()
        if not gap <= MODULE_MARGIN:
            raise SyncError(f"vLLM does not compute {name.removesuffix('.lora_A.weight')} as the trainer does: the outputs "
                            f"differ by {gap:.3g} of what its LoRA adds")
        worst = max(worst, gap)
    return worst


@torch.no_grad()
def random_lora(policy: Policy, loudness: float, seed: int) -> dict[str, torch.Tensor]:
    """A random LoRA; `loudness` is the rms of each module's update as a share of the rms of its weight."""
    generator = torch.Generator(policy.device).manual_seed(seed)  # there: a CPU takes a second for the flagship's
    lora = {}
    for name, module in policy.model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        a, b = (torch.randn(policy.parameters[f"{name}.lora_{x}.weight"].shape, generator=generator, device=policy.device)
                for x in "AB")
        weight_rms = module.get_base_layer().weight.float().square().mean().sqrt().item()
        b *= loudness * weight_rms / (policy.scale * a.shape[0] ** 0.5)  # entries of B A have variance r
        lora[f"{name}.lora_A.weight"], lora[f"{name}.lora_B.weight"] = a, b
    return lora


def _served(
    updater: Updater, sampler: Sampler, prompts: Sequence[Prompt], lora: dict[str, torch.Tensor],
    previous: dict[str, torch.Tensor], seed: int
) -> tuple[float, float]:
    """Sample with a LoRA. Returns how far vLLM is from the trainer with it, and would be if the trainer had the previous."""
    _serve(updater.policy, sampler, lora)
    groups = _sample(sampler, prompts, seed)
    gap = _gap(groups, updater.logps(groups))
    updater.policy.load_tensors(previous)
    return gap, _gap(groups, updater.logps(groups))


def _serve(policy: Policy, sampler: Sampler, lora: dict[str, torch.Tensor]) -> None:
    policy.load_tensors(lora)
    sampler.swap_lora(policy.lora())
    check_served(policy, sampler)


def _sample(sampler: Sampler, prompts: Sequence[Prompt], seed: int) -> list[Group]:
    sampled = sampler.sample(prompts, [seed + place for place in range(len(prompts))], COMPLETIONS, TOKENS)
    return [Group(prompt, tuple(Completion(sample, "", Score(0.0)) for sample in samples))
            for prompt, samples in zip(prompts, sampled, strict=True)]


def _gap(groups: list[Group], logs: TokenLogs) -> float:
    return mean_gap([pair for of_prompt in token_pairs(groups, logs).values() for pair in of_prompt])
