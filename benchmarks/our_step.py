"""What a step costs here: the real trainer, on a workload of fixed lengths. Its last line is a JSON object.

    python -m benchmarks.our_step --model DIR --out FILE [--profile FILE] [key.path=value ...]
    python -m benchmarks.our_step --model models/tiny --prompts 4 --group 16 --prompt-tokens 60 --new-tokens 24

It is `train.py`'s own class that steps, with every guard, record and alarm of a run; under torchrun its ranks share the
step (benchmarks/scale.py). The workload is that of benchmarks/trl_step.py: prompts of --prompt-tokens tokens, completions of
exactly --new-tokens, rewards that differ within each group. On a GPU it also says which share of the matrix-product ceiling
of that GPU, measured beside it, the training pass reaches.
"""

from grpo.ranks.torchrun import join

RANKS = join()  # before bitsandbytes and vLLM are imported, which start CUDA

import argparse
import json
import sys
import tempfile
import time
import zlib
from pathlib import Path

import psutil
import torch
from pydantic import BaseModel
from transformers import AutoTokenizer

from benchmarks.record import report
from grpo.chat import Chat
from grpo.config import Config
from grpo.run.identity import versions
from grpo.run.memory import memory_metrics
from grpo.run.schema import read_config, validated
from grpo.trainer import Trainer
from grpo.types import Problem, Score

CUDA = torch.cuda.is_available()
PHASES = ("rollout", "sync", "train", "step", "wait", "allreduce")


class FixedLength:
    """Problems whose prompts have a given number of tokens, and rewards that nothing but the text decides."""

    class Settings(BaseModel):
        """`digits` in each question; Qwen's tokenizer and the embedded one spell digits one by one."""

        digits: int
        prompts: int

    def __init__(self, settings: Settings, seed: int):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(10, (settings.prompts, settings.digits), generator=generator).tolist()
        self.train = [Problem(str(place), "digits", ({"role": "user", "content": "".join(map(str, digits))},))
                      for place, digits in enumerate(drawn)]
        self.validation = self.test = self.train[:1]
        self.references = {}

    def score(self, problem: Problem, text: str) -> Score:
        """In [0, 1)."""
        return Score(zlib.crc32(text.encode()) % 1000 / 1000)


def overhead(model: str) -> int:
    """Tokens that the chat template adds to a question."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "1234567890"}], add_generation_prompt=True,
                                        enable_thinking=False, tokenize=True, return_dict=False)
    return len(ids) - 10


def ceiling() -> float | None:
    """TFLOP/s of a large bfloat16 matrix product on this GPU."""
    if not CUDA:
        return None
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - started) / 1e12


def training_flops(policy, tokens_read: int, tokens_sampled: int) -> float:
    """Of a step's training pass: 2 a weight and token forward, 2 backward (the base is frozen), 4 for the LoRA's gradients.

    The head is run on sampled tokens alone; attention, about a hundredth at these lengths, is left out.
    """
    lora = sum(p.numel() for p in policy.parameters.values())
    head = policy.head.weight.numel()
    embedding = policy.decoder.get_input_embeddings().weight.numel()
    body = sum(p.numel() for p in policy.decoder.parameters() if not p.requires_grad) - embedding
    return 4.0 * body * tokens_read + 4.0 * head * tokens_sampled + 6.0 * lora * tokens_read


def utilisation(flops: float, ranks: int, seconds: float, ceiling_tflops: float) -> float:
    """Which share of its ceiling each rank's GPU reaches, where ranks share the operations."""
    return flops / ranks / seconds / (1e12 * ceiling_tflops)


def configured(
    model: str, folder: str, overrides: list[str], prompts: int = 16, group: int = 64, new_tokens: int = 128,
    lora_rank: int = 32, steps: int = 1, vllm_gib: float = 39.5,
) -> Config:
    """configs/vague.yaml on a GPU and configs/tiny.yaml elsewhere, with the workload in place of the task."""
    share = vllm_gib * 2**30 / torch.cuda.get_device_properties(0).total_memory if CUDA else 0.5
    tree = read_config("configs/vague.yaml" if CUDA else "configs/tiny.yaml", [
        f"model.path={model}", f"run.dir={folder}", f"run.steps={steps}", f"rollout.prompts_per_step={prompts}",
        f"rollout.group_size={group}", f"rollout.max_new_tokens={new_tokens}", f"rollout.max_sequences={prompts * group}",
        f"rollout.gpu_memory_share={share}", f"lora.rank={lora_rank}", f"lora.alpha={2 * lora_rank}", "optim.warmup=0",
        "optim.lr=1e-6", *overrides])
    return validated(Config, tree | {"task": "benchmarks.our_step:FixedLength"})


def main(words: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.our_step", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    for name, number in (("prompts", 16), ("group", 64), ("prompt-tokens", 300), ("new-tokens", 128), ("lora-rank", 32),
                         ("steps", 3)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--vllm-gib", type=float, default=39.5, help="of the GPU, for vLLM: half of an H100's")
    parser.add_argument("--profile", type=Path, help="write a table of the last step's kernels here")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args(words)
    Chat.stop_ids = property(lambda self: [])  # nothing ends a completion early
    with tempfile.TemporaryDirectory() as own:
        folder = RANKS.gather(own, str)[0]
        config = configured(args.model, folder, args.overrides, args.prompts, args.group, args.new_tokens, args.lora_rank,
                            args.steps, args.vllm_gib)
        most = ceiling()
        task = FixedLength(FixedLength.Settings(digits=args.prompt_tokens - overhead(args.model),
                                                prompts=args.prompts * args.steps), seed=0)
        trainer = Trainer(config, task, resume=False, allowed=(), ranks=RANKS)
        ready = time.time() - psutil.Process().create_time()
        for step in range(1, args.steps + 1):
            if args.profile and step == args.steps:
                profiled(trainer, step, args.profile)
            else:
                trainer.step(step)
        if not RANKS.first:
            return
        trainer.log.flush()
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        lengths = [len(p.token_ids) for p in trainer.train_prompts]
        record = described(args, config, trainer, lines, lengths) | {"start_s": round(ready, 1), "ceiling_tflops": most}
        trainer.sampler.close()
    if most:
        rows = args.prompts * args.group
        read = args.prompts * record["prompt_tokens"] + rows * (args.new_tokens - 1)
        flops = training_flops(trainer.policy, read, rows * args.new_tokens)
        record["train_mfu"] = [utilisation(flops, RANKS.size, line["time/train_s"], most) for line in lines]
    report(record, args.out)


def described(args: argparse.Namespace, config: Config, trainer: Trainer, lines: list[dict], lengths: list[int]) -> dict:
    """What was run, and the figures of every step."""
    steps = [{f"{phase}_s": line[f"time/{phase}_s"] for phase in PHASES if f"time/{phase}_s" in line} for line in lines]
    for step, line in zip(steps, lines, strict=True):
        step["other_s"] = step["step_s"] - step["rollout_s"] - step["sync_s"] - step["train_s"]
        step["tokens_per_s"] = line["tokens/trained"] / step["step_s"]
    engine_weights, cache = trainer.sampler.memory()
    gib = memory_metrics(trainer.policy.device)["memory/peak_gib"]
    return {"rival": "this trainer", "model": args.model, "ranks": RANKS.size,
            "about": RANKS.about(trainer.policy.device.type), "prompts": args.prompts, "group": args.group,
            "prompt_tokens": sum(lengths) / len(lengths), "new_tokens": args.new_tokens, "lora_rank": args.lora_rank,
            "micro_batch_tokens": config.train.micro_batch_tokens, "held": trainer.policy.held,
            "vllm_weights_gib": engine_weights / 2**30, "kv_cache_gib": cache / 2**30, "peak_gib": gib,
            "parity": [line["parity/logp_mean_abs_diff"] for line in lines],
            "completion_tokens": [line["completion/mean_tokens"] for line in lines], "steps": steps,
            "device": torch.cuda.get_device_name() if CUDA else "cpu", "threads": torch.get_num_threads(),
            "versions": versions()}


def profiled(trainer: Trainer, step: int, path: Path) -> None:
    """One step under torch.profiler: its training pass's kernels, by time."""
    original = trainer.updater.step

    def train(*inner):
        kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * CUDA
        with torch.profiler.profile(activities=kinds) as profile:
            result = original(*inner)
            if CUDA:
                torch.cuda.synchronize()
        order = "self_device_time_total" if CUDA else "self_cpu_time_total"
        path.write_text(profile.key_averages().table(sort_by=order, row_limit=45, max_name_column_width=90),
                        encoding="utf-8")
        return result

    trainer.updater.step = train
    trainer.step(step)


if __name__ == "__main__":
    main(sys.argv[1:])
    RANKS.close()
