"""Before step 1: does the largest training pass fit? If not, say what takes the memory, and which key to lower.

What autograd keeps of a pass grows with its tokens and, because every row holds a copy of the prompt's keys and values,
with its rows. Three small passes measure both; the worst shapes are then predicted, and run only if they should fit.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from grpo.types import Completion, Group, Prompt, Sample, Score, UserError
from harness.memory import GIB, available, counting_saved, ran_out

if TYPE_CHECKING:
    from grpo.config import Config
    from grpo.update import Updater

Shape = tuple[int, int]  # rows, and tokens of each
PASSING = 0.12  # of the activations, for what lives for a moment; seen: 0 to 0.15 on an H100 at the 8B shape
PROBES: list[Shape] = [(1, 4), (1, 8), (2, 4)]  # of 1 or 2 tokens a row copies no keys: that says nothing of longer ones


def dry_step(updater: "Updater", prompts: Sequence[Prompt], engine: tuple[int, int]) -> str:
    """Run the training pass in its worst shapes, on the longest prompt. Nothing is trained.

    engine: bytes of vLLM's weights and KV cache. Returns a line that says what takes what; raises UserError where it
    does not fit.
    """
    config, policy = updater.config, updater.policy
    prompt = max(prompts, key=lambda p: len(p.token_ids))
    probed, free = _kept(updater, prompt, PROBES), available(policy.device)
    held = {"base and LoRA": sum(p.nbytes for p in policy.model.parameters()),
            "vLLM's weights": engine[0], "KV cache": engine[1]}
    if probed is None:
        raise UserError(f"not even a training pass over one short completion fits in the {free / GIB:.2f} GiB free beside "
                        f"{_listed(held)}; lower {_cure_of_one(updater)}")
    sizes = _sizes(config, updater, probed)
    measured = _kept(updater, prompt, worst_shapes(config)) if sum(sizes.values()) < free else None
    if measured is None:
        raise UserError(f"the training pass does not fit: {_listed(sizes)}, with {free / GIB:.2f} GiB free beside "
                        f"{_listed(held)}; lower {_cure(updater, probed, free)}")
    sizes |= {"activations": max(measured), "passing buffers": PASSING * max(measured)}
    return f"memory: {_listed(held)}; a training pass takes up to {_listed(sizes)}, of {free / GIB:.2f} GiB free"


def worst_shapes(config: "Config") -> list[Shape]:
    """The full micro-batches that take most: of full completions, and of as many rows as a group has."""
    budget, group, longest = config.train.micro_batch_tokens, config.rollout.group_size, config.rollout.max_new_tokens
    rows = min(group, budget)
    return sorted({(min(group, max(1, budget // longest)), longest), (rows, min(longest, budget // rows))})


def _kept(updater: "Updater", prompt: Prompt, shapes: list[Shape]) -> list[float] | None:
    """Bytes that autograd keeps of a pass of each shape, forward and backward. None where memory runs out."""
    kept = []
    try:
        for rows, tokens in shapes:
            sample = Sample((0,) * tokens, (0.0,) * tokens, "length")
            group = Group(prompt, (Completion(sample, "", Score(0.0)),) * rows)
            with counting_saved(updater.policy.model.parameters()) as saved:
                updater.accumulate([group], torch.ones(1, rows))
            kept.append(float(sum(saved.values())))
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return None
    finally:
        updater.optimizer.zero_grad(set_to_none=True)
    return kept


def _sizes(config: "Config", updater: "Updater", probed: list[float]) -> dict[str, float]:
    """Bytes of what a training pass takes, in the worst shapes of `config`; `probed` is what PROBES kept."""
    few, longer, more = probed
    per_token = (longer - few) / 4
    per_row = max(0.0, more - longer)
    policy, shapes = updater.policy, worst_shapes(config)
    # grpo.logprob's head has four float32 tensors of a chunk's logits at once
    chunk = min(config.train.head_chunk_tokens, max(rows * tokens for rows, tokens in shapes))
    activations = max(few + per_token * (rows * tokens - 4) + per_row * (rows - 1) for rows, tokens in shapes)
    return {"activations": activations, "passing buffers": PASSING * activations,
            "logits": 16.0 * policy.head.out_features * chunk,
            "gradients and optimizer": 6.1 * sum(p.numel() for p in policy.parameters.values())}


def _listed(sizes: dict[str, float]) -> str:
    return ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in sizes.items())


def _cure(updater: "Updater", probed: list[float], free: int) -> str:
    """The key to lower, its value, and one that should fit."""
    config, train = updater.config, updater.config.train
    sizes = _sizes(config, updater, probed)
    if sizes["logits"] > sizes["activations"]:
        return f"train.head_chunk_tokens (now {train.head_chunk_tokens})"
    most = max(rows * tokens for rows, tokens in worst_shapes(config))
    lower = 2 ** ((most - 1).bit_length() - 1)
    while lower >= config.rollout.max_new_tokens:
        smaller = config.model_copy(update={"train": train.model_copy(update={"micro_batch_tokens": lower})})
        if sum(_sizes(smaller, updater, probed).values()) < free:
            return f"train.micro_batch_tokens (now {train.micro_batch_tokens}), to {lower} or less"
        lower //= 2
    return _cure_of_one(updater)


def _cure_of_one(updater: "Updater") -> str:
    rollout = updater.config.rollout
    share = "gpu_memory_share" if updater.policy.device.type == "cuda" else "cpu_kv_cache_gib"
    return (f"rollout.{share} (now {getattr(rollout, share)}), rollout.max_new_tokens (now {rollout.max_new_tokens}) or the "
            "prompts, one completion at a time being too much")
