"""Where a rollout's time goes on a CPU, with vLLM's own LoRA arithmetic and with grpo/speed/engine.py's.

    python -m benchmarks.cpu_rollout        # prints the table kept in benchmarks/cpu_rollout.md; a minute or two

One step of configs/tiny.yaml (8 prompts x 64 completions), the same seeds both ways, in one process.
"""

import cProfile
import pstats
import time

import torch

from grpo.config import load
from grpo.guards.selftest import random_lora
from grpo.policy import Policy
from grpo.rollout import rollout, step_prompts
from grpo.sampler import Sampler
from grpo.speed.engine import two_products_a_layer_cpu
from symbols.task import Settings, SymbolTask

REPEATS = 3


def vllms_own(model: torch.nn.Module) -> None:
    """Undo `two_products_a_layer_cpu`."""
    for wrapper in model.lora_manager.punica_wrapper_mapping.values():
        del wrapper.add_lora_linear, wrapper.add_lora_logits


def main() -> None:
    """Measure both ways in turn and print Markdown."""
    config = load("configs/tiny.yaml", ["model.device=cpu"])
    task = SymbolTask(Settings(limit=999, train=200, test=10), seed=0)
    policy = Policy(config.model, config.lora, torch.device("cpu"), seed=0)
    prompts = [policy.encode(problem) for problem in task.train]
    sampler = Sampler(policy, config, context=320)
    sampler.serve(policy)
    sampler.swap_lora(random_lora(policy, 0.1, seed=0))

    def once() -> tuple[float, int]:
        started = time.perf_counter()
        groups = rollout(sampler, policy, task, step_prompts(prompts, 1, 8, seed=0), 1, 0, 64)
        return time.perf_counter() - started, sum(len(c.sample.token_ids) for g in groups for c in g.completions)

    once()
    print("| LoRA arithmetic | seconds (best of 3) | tokens/s | share of time in LoRA |\n|---|---|---|---|")
    ways = (("grpo/speed/engine.py", None), ("vLLM's", vllms_own), ("grpo/speed/engine.py again", two_products_a_layer_cpu))
    for label, switch in ways:
        if switch:
            sampler._llm.apply_model(switch)
        seconds, tokens = min(once() for _ in range(REPEATS))
        profile = cProfile.Profile()
        profile.runcall(once)
        print(f"| {label} | {seconds:.2f} | {tokens / seconds:,.0f} | {100 * lora_share(pstats.Stats(profile)):.0f} % |")
    sampler.close()


def lora_share(stats: pstats.Stats) -> float:
    """Cumulative time of the two entry points to LoRA arithmetic, over the whole."""
    lora = sum(row[3] for (_, _, name), row in stats.stats.items() if name in ("add_lora_linear", "add_lora_logits"))
    return lora / stats.total_tt


if __name__ == "__main__":
    main()
