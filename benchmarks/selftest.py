"""The self-test's two error rates: how often it stops a healthy engine, and which faults it misses. Prints JSON.

    python -m benchmarks.selftest --model models/smollm2 --dtype bfloat16 [--seeds 50] [--faults 3] [--temperature 1]

Each seed has other LoRAs, samples and prompts (sums of examples/sums.py). Each fault of tests/swap_faults.py is put in for
--faults seeds: `caught` counts those that the whole self-test stops; `by_modules` and `by_log_probs` what stops where
that comparison is the only one.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import grpo.guards.selftest
from benchmarks.record import report
from examples.sums import Sums
from grpo.chat import pick_device
from grpo.config import load
from grpo.guards.parity import SyncError
from grpo.guards.selftest import self_test
from grpo.policy import Policy
from grpo.run.identity import versions
from grpo.sampler import Sampler
from grpo.update import Updater
from tests import swap_faults

FAULTS = (swap_faults.stale_cache, swap_faults.unswapped, swap_faults.wrong_keys, swap_faults.half_the_modules,
          swap_faults.one_module, swap_faults.one_module_ignores_its_lora, swap_faults.wrong_scale, swap_faults.transposed,
          swap_faults.exchanged, swap_faults.temperature)
PROMPTS = 4
SAYS = {None: "", "modules": "does not compute", "log_probs": "log-probs differ"}  # what each comparison's message has


def stopped(loop: SimpleNamespace, seed: int, fault: Callable | None = None, only: str | None = None) -> str | None:
    """Why the self-test stops an engine with a fault, or None. only: "modules" or "log_probs" are compared alone."""
    prompts = [loop.prompts[(PROMPTS * seed + i) % len(loop.prompts)] for i in range(PROMPTS)]
    try:
        with pytest.MonkeyPatch.context() as broken:
            if fault:
                fault(loop, broken)
            if only:
                broken.setattr(grpo.guards.selftest, "check_served", lambda *_: None)
            if only == "log_probs":
                broken.setattr(grpo.guards.selftest, "check_modules", lambda *_: 0.0)
            loop.found = self_test(loop.sampler, loop.updater, prompts, 10_000 * seed)
        reason = None
    except SyncError as error:
        reason = str(error) if SAYS[only] in str(error) else None
    loop.sampler.swap_lora(loop.policy.lora())
    return reason


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selftest", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True, choices=["bfloat16", "float32"])
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--faults", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.5, help="of the GPU, for vLLM")
    parser.add_argument("--temperature", type=float, default=1.0, help="rollout.temperature")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    config = load("configs/smollm2.yaml", [
        f"model.path={args.model}", f"model.dtype={args.dtype}", "model.device=auto", "rollout.max_new_tokens=32",
        "rollout.max_sequences=64", f"rollout.gpu_memory_share={args.share}", f"rollout.temperature={args.temperature}"])
    policy = Policy(config.model, config.lora, pick_device(config.model), 0)
    prompts = [policy.encode(p) for p in Sums(Sums.Settings(), seed=0).train]
    sampler = Sampler(policy, config, max(len(p.token_ids) for p in prompts) + 32)
    policy = Policy(config.model, config.lora, pick_device(config.model), 0, sampler.weights())
    sampler.serve(policy)
    loop = SimpleNamespace(config=config, policy=policy, sampler=sampler, updater=Updater(policy, config), prompts=prompts)
    stopped(loop, 0)  # compiles and allocates
    healthy, reasons, seconds = [], [], []
    for seed in range(args.seeds):
        started = time.perf_counter()
        reason = stopped(loop, seed)
        seconds.append(time.perf_counter() - started)
        reasons += [reason] if reason else []
        healthy += [] if reason else [asdict(loop.found)]
        print(seed, reason or loop.found, flush=True)
    spread = {name: [min(values), statistics.median(values), max(values)] for name in (healthy[0] if healthy else ())
              for values in [[found[name] for found in healthy]]}
    faults = {}
    for fault in FAULTS:
        found = {kind: [reason for seed in range(args.faults) if (reason := stopped(loop, seed, fault, only))]
                 for kind, only in (("caught", None), ("by_modules", "modules"), ("by_log_probs", "log_probs"))}
        faults[fault.__name__] = {kind: len(reasons) for kind, reasons in found.items()} | {
            "of": args.faults, "said": [*found["by_log_probs"], *found["by_modules"], *found["caught"], "nothing"][0]}
        print(fault.__name__, json.dumps(faults[fault.__name__]), flush=True)
    report({"command": f"python -m benchmarks.selftest --model {args.model} --dtype {args.dtype} --seeds {args.seeds} "
                       f"--faults {args.faults} --temperature {args.temperature}",
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability(),
            "versions": versions(), "healthy": len(healthy), "false_stops": reasons,
            "least_median_most": spread, "seconds": statistics.median(seconds), "faults": faults}, args.out)
    sampler.close()


if __name__ == "__main__":
    main()
