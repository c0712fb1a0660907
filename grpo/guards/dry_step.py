"""Before step 1: does the largest training pass fit? If not, let layers run twice, or say which key to lower.

What autograd keeps of a pass grows with the tokens it reads. Two small passes measure that; the largest is then predicted,
and run only if it should fit: on a CPU a pass that does not fit is killed, with nobody left to say why.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from grpo.run.memory import GIB, available, counting_saved, ran_out
from grpo.speed.attention import scores_bytes
from grpo.speed.window import window_of
from grpo.types import Completion, Group, Prompt, Sample, Score, UserError

if TYPE_CHECKING:
    from grpo.config import Config
    from grpo.update import Updater

Shape = list[list[int]]  # tokens of each completion, by group
PASSING = 0.12  # of the activations, for what lives for a moment; seen on an H200 at the 8B shape: 0.1
PROBES: list[Shape] = [[[8, 8]], [[40, 40]]]  # behind the prompt's first PROBED tokens
PROBED = 64


def dry_step(updater: "Updater", prompts: Sequence[Prompt], engine: tuple[int, int]) -> list[str]:
    """Run the training pass at its largest, on the longest prompt. Nothing is trained.

    engine: bytes of vLLM's weights and KV cache. Returns a line that says what takes what, and one where prompts fill the
    micro-batches. With `train.recompute_layers` = -1, as few layers as need be keep no activations. Raises UserError where
    it does not fit.
    """
    config, policy = updater.config, updater.policy
    prompt = max(prompts, key=lambda p: len(p.token_ids))
    layers = len(policy.decoder.layers)
    free = available(policy.device) // updater.ranks.sharing(policy.device.type)
    updater.ranks.meet()  # all have looked before one takes any
    own = sum(p.nbytes for p in policy.model.parameters())
    held = {"base and LoRA": own, "vLLM's weights": engine[0], "KV cache": engine[1]}
    if policy.shares_base:
        held = {"base and LoRA, vLLM's too": max(own, engine[0]), "KV cache": engine[1]}
    recomputed = max(0, config.train.recompute_layers)
    while True:
        probed, measured = _kept(updater, replace(prompt, token_ids=prompt.token_ids[:PROBED]), PROBES), None
        if probed is not None:
            sizes = _sizes(config, updater, prompt, probed)
            if sum(sizes.values()) < free:
                measured = _kept(updater, prompt, [largest_shape(config, prompt)])
        if measured is not None or config.train.recompute_layers >= 0 or recomputed == layers:
            break
        needed = layers if probed is None else _to_recompute(updater, prompt, sizes, free)
        recomputed = needed if needed > recomputed else layers  # the estimate was short
        updater.recompute(recomputed)
    if probed is None:
        raise UserError(f"not even a training pass over two short completions fits in the {free / GIB:.2f} GiB free beside "
                        f"{_listed(held)}; lower {_cure_of_one(updater)}")
    if measured is None:
        raise UserError(f"the training pass does not fit: {_listed(sizes)}, with {free / GIB:.2f} GiB free beside "
                        f"{_listed(held)}; lower {_cure(updater, prompt, probed, free)}")
    sizes |= {"activations": measured[0], "passing buffers": PASSING * measured[0]}
    said = (f"; {recomputed} of {layers} layers keep none and run twice, which a lower train.micro_batch_tokens may spare"
            if recomputed else "")
    return [f"memory: {_listed(held)}; a training pass takes up to {_listed(sizes)}, of {free / GIB:.2f} GiB free{said}",
            *read_again(config, prompts)]


def read_again(config: "Config", prompts: Sequence[Prompt]) -> list[str]:
    """A line where prompts fill the micro-batches, so that groups of full completions read half as much again, or more."""
    rollout, budget, lengths = config.rollout, config.train.micro_batch_tokens, [len(p.token_ids) for p in prompts]
    parts = [math.ceil(rollout.group_size / max(1, (budget - length) // rollout.max_new_tokens)) for length in lengths]
    sampled = rollout.group_size * rollout.max_new_tokens
    once = sum(length + sampled for length in lengths)
    read = sum(n * length + sampled for n, length in zip(parts, lengths, strict=True))
    if read < 1.5 * once:
        return []
    return [f"train.micro_batch_tokens = {budget}: prompts of up to {max(lengths)} tokens fill it, and are read up to "
            f"{max(parts)} times each: training reads up to {read / once:.1f} times as many tokens as it must; raise it, as "
            f"far as memory allows, to {max(lengths) + sampled} at most, which holds a group"]


def largest_shape(config: "Config", prompt: Prompt) -> Shape:
    """As many groups as it takes to fill the budget, with equal shares of it; one full completion at least."""
    rollout, budget, length = config.rollout, config.train.micro_batch_tokens, len(prompt.token_ids)
    whole = length + rollout.group_size * rollout.max_new_tokens
    groups = max(1, min(rollout.prompts_per_step, math.ceil(budget / whole), budget // (length + 1)))
    share = max(rollout.max_new_tokens, (min(budget, groups * whole) - groups * length) // groups)
    rows = [rollout.max_new_tokens] * (share // rollout.max_new_tokens)
    return [rows + [share % rollout.max_new_tokens] * (share % rollout.max_new_tokens > 0)] * groups


def _read(shape: Shape, prompt: Prompt) -> int:
    return sum(len(prompt.token_ids) + sum(rows) for rows in shape)


def _kept(updater: "Updater", prompt: Prompt, shapes: list[Shape]) -> list[float] | None:
    """Bytes that autograd keeps of a pass of each shape, forward and backward. None where memory runs out."""
    kept = []
    try:
        for shape in shapes:
            groups = [Group(prompt, tuple(Completion(Sample((0,) * tokens, (0.0,) * tokens, "stop"), "", Score(0.0))
                                          for tokens in rows)) for rows in shape]
            with counting_saved(updater.policy.model.parameters()) as saved:
                updater.accumulate(groups, torch.ones(len(shape), max(map(len, shape))))
            kept.append(float(saved.most))
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return None
    finally:
        updater.optimizer.zero_grad(set_to_none=True)
    return kept


def _sizes(config: "Config", updater: "Updater", prompt: Prompt, probed: list[float]) -> dict[str, float]:
    """Bytes of what the largest training pass takes; `probed` is what PROBES kept."""
    policy, shape = updater.policy, largest_shape(config, prompt)
    few, more = (_read(probe, prompt) for probe in PROBES)
    activations = (probed[1] - probed[0]) / (more - few) * _read(shape, prompt)
    scores = scores_bytes([len(prompt.token_ids)] * len(shape), [sum(rows) for rows in shape],
                          [tokens for rows in shape for tokens in rows], policy.decoder.config.num_attention_heads,
                          torch.empty(0, dtype=policy.dtype, device=policy.device), window_of(policy.decoder.config) or 0,
                          bool(getattr(policy.decoder.config, "attn_logit_softcapping", None)))
    # grpo/speed/head.py has four float32 tensors of a chunk's logits at once, six with a soft cap
    chunk = min(config.train.head_chunk_tokens, sum(sum(rows) for rows in shape))
    return {"activations": activations, "passing buffers": PASSING * activations,
            **({"attention scores": float(scores)} if scores else {}),
            "logits": (24.0 if policy.logit_cap else 16.0) * policy.head.out_features * chunk,
            "gradients and optimizer": (6.1 + 8 * (updater.ranks.size > 1)) * sum(  # ranks: and two more to add up
                p.numel() for p in policy.parameters.values())}


def _to_recompute(updater: "Updater", prompt: Prompt, sizes: dict[str, float], free: int) -> int:
    """The fewest layers that must keep nothing but their input, and all of them at most; from what all keep without."""
    policy, layers = updater.policy, len(updater.policy.decoder.layers)
    read = _read(largest_shape(updater.config, prompt), prompt)
    one = sizes["activations"] / layers
    spared = (1 + PASSING) * (one - read * policy.head.in_features * policy.dtype.itemsize)
    excess = sum(sizes.values()) - free + one  # one is there while it runs again
    return layers if spared <= 0 else min(layers, max(1, math.ceil(excess / spared)))


def _listed(sizes: dict[str, float]) -> str:
    return ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in sizes.items())


def _cure(updater: "Updater", prompt: Prompt, probed: list[float], free: int) -> str:
    """The key to lower, its value, and one that should fit."""
    config, train = updater.config, updater.config.train
    sizes = _sizes(config, updater, prompt, probed)
    if sizes["logits"] > sizes["activations"]:
        return f"train.head_chunk_tokens (now {train.head_chunk_tokens})"
    lower = 2 ** ((_read(largest_shape(config, prompt), prompt) - 1).bit_length() - 1)
    while lower >= len(prompt.token_ids) + config.rollout.max_new_tokens:
        smaller = config.model_copy(update={"train": train.model_copy(update={"micro_batch_tokens": lower})})
        if sum(_sizes(smaller, updater, prompt, probed).values()) < free:
            return f"train.micro_batch_tokens (now {train.micro_batch_tokens}), to {lower} or less"
        lower //= 2
    return _cure_of_one(updater)


def _cure_of_one(updater: "Updater") -> str:
    rollout = updater.config.rollout
    share = "gpu_memory_share" if updater.policy.device.type == "cuda" else "cpu_kv_cache_gib"
    return (f"rollout.{share} (now {getattr(rollout, share)}), rollout.max_new_tokens (now {rollout.max_new_tokens}) or the "
            "prompts, one completion at a time being too much")
