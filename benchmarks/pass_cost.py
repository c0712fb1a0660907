"""The training pass alone: what it costs beside the padded one, and how close their gradients are to float32's.

    python -m benchmarks.pass_cost --model DIR --out FILE [key.path=value ...]      # a GPU: minutes
    python -m benchmarks.pass_cost --model models/tiny --out FILE                   # a CPU: minutes, smaller numbers

The padded pass is the plain one: prompt and completion of every row, padded on the right to the longest of the micro-batch,
through the same layers (compiled where ours are) with PyTorch's scaled_dot_product_attention. Both use the same chunked
head and the same budget of tokens, so that what differs is the prompt computed once. One group at each point, forward and
backward; completions of one length, so that the padded pass wastes nothing on padding.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.our_step import CUDA, configured
from benchmarks.record import report
from grpo.batch import pad
from grpo.chat import pick_device
from grpo.config import Config
from grpo.policy import Policy
from grpo.speed.attention import NAME
from grpo.speed.head import head_logp
from grpo.types import Completion, Group, Problem, Prompt, Sample, Score
from grpo.update import Updater

GROUPS = (8, 16, 32, 64, 128, 256)
AT, AXES = (  # the middle of every axis, the vague prompt of either model; and the axes
    {"group": 64, "prompt": 300, "completion": 128},
    {"group": GROUPS, "prompt": (50, 150, 300, 600, 1000, 2000), "completion": (32, 64, 128, 256, 512, 1024)}) if CUDA else (
    {"group": 64, "prompt": 175, "completion": 24},
    {"group": GROUPS, "prompt": (50, 100, 175, 300, 600), "completion": (12, 24, 48, 96, 192)})
REPEATS = 2


def made_up(vocabulary: int, group: int, prompt: int, completion: int, seed: int = 0) -> Group:
    """A group of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocabulary, (prompt + group * completion,), generator=generator).tolist()
    rows = [tuple(ids[prompt + at * completion : prompt + (at + 1) * completion]) for at in range(group)]
    return Group(Prompt(Problem("random", "random", ()), tuple(ids[:prompt]), ""), tuple(
        Completion(Sample(row, (0.0,) * completion, "length"), "", Score(0.0)) for row in rows))


def shared(updater: Updater, groups: list[Group]) -> None:
    """Ours: adds the gradient of the mean of advantage * log-prob; rows take turns between advantage 1 and -1."""
    updater.accumulate(groups, torch.tensor([[1.0, -1.0] * (len(g.completions) // 2) for g in groups]))


def padded(updater: Updater, groups: list[Group]) -> None:
    """The same gradient, every row with its own prompt."""
    policy, train = updater.policy, updater.config.train
    policy.round_lora()
    policy.decoder.set_attn_implementation("sdpa")
    tokens = sum(len(c.sample.token_ids) for g in groups for c in g.completions)
    rows = [(g.prompt.token_ids, c.sample.token_ids, 1.0 - 2 * (at % 2))
            for g in groups for at, c in enumerate(g.completions)]
    rows.sort(key=lambda row: -len(row[0]) - len(row[1]))
    while rows:
        count = max(1, train.micro_batch_tokens // (len(rows[0][0]) + len(rows[0][1])))
        micro, rows = rows[:count], rows[count:]
        ids_BT = pad([prompt + ids for prompt, ids, _ in micro], torch.int64).to(policy.device)
        counted_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        for b, (prompt, ids, _) in enumerate(micro):
            counted_BT[b, len(prompt) : len(prompt) + len(ids)] = True
        embedded_BTH = policy.decoder.get_input_embeddings()(ids_BT).requires_grad_()
        positions = torch.arange(ids_BT.shape[1], device=policy.device)[None]
        hidden_BTH = policy.decoder(inputs_embeds=embedded_BTH, position_ids=positions, use_cache=False).last_hidden_state
        logp_M, _ = head_logp(hidden_BTH[:, :-1][counted_BT[:, 1:]], policy.head.weight, policy.head.bias,
                              ids_BT[counted_BT], updater.config.rollout.temperature / policy.logit_scale,
                              train.head_chunk_tokens)
        sign_B = torch.tensor([sign for *_, sign in micro], device=policy.device)
        weight_M = (sign_B[:, None] * counted_BT / tokens)[counted_BT]
        (-(logp_M - logp_M.detach()).exp() * weight_M).sum().backward()
    policy.decoder.set_attn_implementation(NAME)


def gradient(updater: Updater) -> torch.Tensor:
    """Takes the LoRA's gradient away."""
    flat = torch.cat([p.grad.flatten().float() for p in updater.policy.parameters.values()])
    updater.optimizer.zero_grad(set_to_none=True)
    return flat


def seconds(run: Callable[[], None], updater: Updater) -> float:
    """The best of a few, after a warm-up."""
    taken = []
    for _ in range(REPEATS + 1):
        if CUDA:
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if CUDA:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
        updater.optimizer.zero_grad(set_to_none=True)
    return min(taken[1:])


def loud(policy: Policy, std: float = 0.02) -> None:
    """A LoRA of random numbers that bfloat16 holds, so that every pass sees the same one."""
    generator = torch.Generator().manual_seed(0)
    policy.load_tensors({name: (std * torch.randn(p.shape, generator=generator)).bfloat16().float()
                         for name, p in policy.parameters.items()})


def curves(config: Config, most: int) -> list[dict]:
    """Seconds of both passes along each axis, points of more than `most` padded tokens left out."""
    policy = Policy(config.model, config.lora, pick_device(config.model), seed=0)
    loud(policy)
    updater, points = Updater(policy, config), []
    for axis, values in AXES.items():
        for value in values:
            at = AT | {axis: value}
            if at["group"] * (at["prompt"] + at["completion"]) > most:
                continue
            group = made_up(policy.head.out_features, **at)
            points.append({"axis": axis, **at, "shared_s": seconds(lambda g=group: shared(updater, [g]), updater),
                           "padded_s": seconds(lambda g=group: padded(updater, [g]), updater)})
            print(json.dumps(points[-1]), file=sys.stderr, flush=True)
    return points


def fidelity(config: Config) -> dict[str, float]:
    """Relative distances of gradients from that of float32's padded pass; `float32_halved` is that pass in smaller parts.

    The latter is what another order of summing changes in float32. Float32 runs uncompiled.
    """
    found = {}
    for dtype in ("float32", "bfloat16"):
        model = config.model.model_copy(update={"dtype": dtype})
        train = config.train.model_copy(update={"compile": "never"} if dtype == "float32" else {})
        policy = Policy(model, config.lora, pick_device(model), seed=0)
        loud(policy)
        updater = Updater(policy, config.model_copy(update={"train": train}))
        groups = [made_up(policy.head.out_features, 16, AT["prompt"], 64, seed) for seed in range(2)]
        for run in (shared, padded):
            run(updater, groups)
            found[f"{dtype}_{run.__name__}"] = gradient(updater).cpu()
        if dtype == "float32":
            halved = train.model_copy(update={"micro_batch_tokens": train.micro_batch_tokens // 2})
            updater.config = config.model_copy(update={"train": halved})
            padded(updater, groups)
            found["float32_halved"] = gradient(updater).cpu()
        del policy, updater
    reference = found.pop("float32_padded")
    return {name: ((of_one - reference).norm() / reference.norm()).item() for name, of_one in found.items()}


def main(words: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pass_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--fidelity-model", help="where a smaller one must do in float32 (default: the same)")
    parser.add_argument("--most-tokens", type=int, default=200_000, help="padded tokens of a point")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args(words)
    config = configured(args.model, "runs/none", args.overrides)
    small = config.model.model_copy(update={"path": args.fidelity_model or args.model})
    record = {"device": torch.cuda.get_device_name() if CUDA else "cpu", "model": args.model,
              "micro_batch_tokens": config.train.micro_batch_tokens,
              "gradient_distance": fidelity(config.model_copy(update={"model": small})),
              "curves": curves(config, args.most_tokens)}
    report(record, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
