"""Algorithm 1 of GRPO (arXiv 2402.03300), one gradient step a batch:

    repeat:  G completions of each of P prompts from the current policy            rollout.py, sampler.py
             a reward for each, from the task's verifier                           the task
             advantages, relative to the completions of the same prompt            advantage.py
             log-probs of the sampled tokens, loss, gradient, AdamW                logprob.py, loss.py, update.py
             the new LoRA to the sampler                                           sampler.py
"""

from pathlib import Path

import torch

from grpo import checkpoint, rundir
from grpo.advantage import ADVANTAGES
from grpo.config import Config
from grpo.evaluate import Evaluations, evaluate
from grpo.metrics import Clock, RunLog, parity, peak_memory_gib, rollout_metrics
from grpo.parity import check_parity, self_test
from grpo.policy import Policy, pick_device
from grpo.rollout import rollout, step_prompts
from grpo.sampler import Sampler
from grpo.types import Prompt, Task, UserError
from grpo.update import Updater


def train(config: Config, task: Task, resume: bool) -> Evaluations:
    """Run GRPO to `run.steps`, from the start or from the newest checkpoint. Writes the run directory."""
    folder, device = Path(config.run.dir), pick_device(config.model)
    found = checkpoint.newest(folder / "checkpoints") if resume else None
    policy = Policy(config.model, config.lora, device, config.run.seed)
    train_prompts, test_prompts, context = encode(policy, task, config)
    updater = Updater(policy, config)
    start = checkpoint.restore(found[0], policy, updater) if found else 0
    sampler = Sampler(policy, config, context)
    said = [*(found[1] if found else []), *rundir.begin(config, resume)]
    log = RunLog(folder, start, config.run.steps)
    for line in said:
        log.say(line)
    check = self_test(policy, sampler, config, train_prompts[:2])
    log.say(f"self-test: vLLM serves the LoRA it is given (log-probs within {check['gap']:.2g} of the trainer's; "
            f"a stale LoRA would show {check['stale_gap']:.2g})")
    evaluations = Evaluations(folder / "evaluation.json", task.references, before=start + 1)

    def measure(step: int) -> None:
        table = evaluate(sampler, policy, task, test_prompts)
        evaluations.add(step, table)
        log.evaluation(step, table)

    if start == 0:
        measure(0)
    for step in range(start + 1, config.run.steps + 1):
        clock = Clock()
        prompts = step_prompts(train_prompts, step, config.rollout.prompts_per_step, config.run.seed)
        with clock("rollout"):
            groups = rollout(sampler, policy, task, prompts, step, config.run.seed, config.rollout.group_size)
        with clock("train"):
            rewards_PG = torch.tensor([[c.score.reward for c in g.completions] for g in groups])
            advantages_PG = ADVANTAGES[config.algorithm.advantage](rewards_PG)
            learned, token_logs = updater.step(step, groups, advantages_PG)
        with clock("sync"):
            sampler.swap_lora(policy.lora())
        agreement = parity(groups, token_logs)
        log.completions(step, groups, advantages_PG, token_logs)
        log.step(step, {**rollout_metrics(groups), **learned, **agreement, **clock.metrics(),
                        "memory/peak_gib": peak_memory_gib(device)})
        check_parity(agreement["parity/logp_mean_abs_diff"], policy.dtype)
        if step % config.eval.every == 0 or step == config.run.steps:
            measure(step)
        if step % config.checkpoint.every == 0 or step == config.run.steps:
            log.flush()
            checkpoint.save(folder / "checkpoints", step, policy, updater, config.checkpoint.keep)
    policy.save(folder / "adapter")
    sampler.close()
    log.close()
    return evaluations


def encode(policy: Policy, task: Task, config: Config) -> tuple[list[Prompt], list[Prompt], int]:
    """The task's train and test problems as token ids, and the most tokens of a prompt with its completion.

    Raises UserError where those do not fit the model.
    """
    train_prompts, test_prompts = ([policy.encode(p) for p in problems] for problems in (task.train, task.test))
    longest = max(len(p.token_ids) for p in train_prompts + test_prompts)
    if longest + config.rollout.max_new_tokens > policy.max_tokens:
        raise UserError(f"rollout.max_new_tokens = {config.rollout.max_new_tokens}: with the longest prompt ({longest} "
                        f"tokens) it exceeds the model's {policy.max_tokens} positions; "
                        f"at most {policy.max_tokens - longest} fit")
    return train_prompts, test_prompts, longest + config.rollout.max_new_tokens
