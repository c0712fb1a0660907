"""Policy, engine and updater, as the trainer has them: real vLLM, on the embedded base.

In bfloat16 where the processor has AVX-512, else in float32: emulated, bfloat16 is slow and rounds otherwise.
"""

import torch

from grpo.guards.parity import check_parity
from grpo.guards.selftest import self_test
from grpo.rollout import rollout, step_prompts
from grpo.sampler import Sampler
from grpo.update import Updater
from symbols.task import Settings, SymbolTask
from tests.conftest import tiny_config, tiny_policy

DTYPE = "bfloat16" if "AVX512" in torch.backends.cpu.get_cpu_capability() else "float32"


class Loop:
    """Policy, engine and updater, as the trainer has them."""

    def __init__(self):
        self.config = tiny_config("model.device=cpu", f"model.dtype={DTYPE}", "rollout.group_size=16",
                                  "rollout.max_sequences=128", "optim.lr=1e-3", "optim.warmup=0.0")
        self.task = SymbolTask(Settings(limit=999, train=200, test=20), seed=0)
        self.policy = tiny_policy(self.config)
        self.prompts = [self.policy.encode(p) for p in self.task.train]
        self.sampler = Sampler(self.policy, self.config, context=300)
        self.sampler.serve(self.policy)
        self.updater = Updater(self.policy, self.config)

    def groups(self, step: int, seed: int = 0):
        prompts = step_prompts(self.prompts, step, 8, seed)
        return rollout(self.sampler, self.policy, self.task, prompts, step, seed, 16)

    def check(self):
        return self_test(self.sampler, self.updater, self.prompts[:4])

    def parity(self, step: int) -> tuple[float, float]:
        """|Difference| over every token of 128 completions, the 99.5th percentile and the mean. Leaves no gradient."""
        groups = self.groups(step)
        _, logs = self.updater.accumulate(groups, torch.ones(8, 16))
        self.updater.optimizer.zero_grad()
        check_parity(groups, logs, self.policy.dtype, 0.0, 1.0)
        gaps = torch.tensor([a - b for (p, row), log in logs.items()
                             for a, b in zip(log.logp, groups[p].completions[row].sample.logp, strict=True)]).abs()
        return gaps.quantile(0.995).item(), gaps.mean().item()
