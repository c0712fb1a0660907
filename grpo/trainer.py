"""Algorithm 1 of GRPO (arXiv 2402.03300), one gradient step a batch:

    repeat:  G completions of each of P prompts from the current policy            rollout.py, sampler.py
             a reward for each, from the task's verifier                           the task
             advantages, relative to the completions of the same prompt            advantage.py
             log-probs of the sampled tokens, loss, gradient, AdamW                logprob.py, loss.py, update.py
             the new LoRA to the sampler                                           sampler.py
"""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from grpo.config import Config
from grpo.evaluate import evaluate
from grpo.guards import checkpoint, kept
from grpo.guards.parity import SyncError
from grpo.guards.selftest import check_served
from grpo.ranks.ranks import ALONE, Ranks
from grpo.rollout import advantages, step_groups
from grpo.run.evaluations import Evaluations
from grpo.run.files import brief, new_directory, writable
from grpo.run.identity import fingerprint
from grpo.run.memory import memory_metrics
from grpo.run.metrics import completion_lines, rollout_metrics
from grpo.run.records import Clock
from grpo.run.signals import deferred, ignore
from grpo.run.startup import QUIET, Startup
from grpo.start import Start
from grpo.types import Aborted, Table, Task, UserError, VerifierError


class Trainer(Start):
    """A run: its parts, ready for the next step, and `done`, the step that was finished last."""

    def step(self, step: int) -> None:
        """One GRPO step. A signal abandons it while it samples; later it waits until the step is trained and recorded."""
        config, ranks, clock = self.config, self.ranks, Clock()
        with clock("rollout"):
            groups, replaced = step_groups(self.sampler, self.policy, self.task, self.train_prompts, step, config, ranks)
        with deferred():
            try:
                with clock("train"):
                    advantages_PG = advantages(groups, config)
                    learned, token_logs = self.updater.step(step, groups, advantages_PG)
            except Aborted as error:
                how = kept.keep_or_say_why(self.folder / "repro", step, self.updater, groups, str(error), ranks.first)
                raise type(error)(f"step {step}: {error}; {how}") from None
            with clock("sync"):
                self.sampler.swap_lora(self.policy.lora())
            if ranks.first:
                with clock("record"):
                    alarms, lines = self.alarms.check(groups + replaced)
                    health, norm = self.health.measure(step, self.updater.gradient_norms)
                    self.log.completions(step, completion_lines(step, groups, advantages_PG, token_logs))
                    self.log.modules(step, health)
                self.log.step(step, {**rollout_metrics(groups, replaced), **learned, **alarms, **norm, **clock.metrics(),
                                     **ranks.taken(), **memory_metrics(self.policy.device)})
                self.say(*(f"step {step}: {line}" for line in lines))
            self.done, self.updater.ahead = step, False
        if step < config.run.steps:  # else all that is left is to measure
            self.giving_up.check(groups, advantages_PG, self.evaluations.base())

    def measure(self) -> None:
        """Evaluate after the last finished step, if that is due and was not done before; keep its LoRA if it is the best."""
        when, step = self.config.eval, self.done
        if (step % when.every == 0 or step >= self.config.run.steps) and not self.evaluations.has("validation", step):
            table = self.evaluate("validation", step)
            with deferred():
                self.best.offer(step, table["overall"], self.policy)
        if (step == 0 or (when.test_every and step % when.test_every == 0)) and not self.evaluations.has("test", step):
            self.evaluate("test", step)

    def evaluate(self, split: Literal["validation", "test"], step: int) -> Table:
        """Accuracy of the policy, which is that of a step, on a split. Recorded before it is returned."""
        prompts = self.validation_prompts if split == "validation" else self.test_prompts
        table = evaluate(self.sampler, self.policy, self.task, prompts, self.ranks)
        with deferred():
            self.evaluations.add(split, step, table)
            if self.ranks.first:
                self.log.evaluation(split, step, table)
        return table

    def save(self) -> None:
        """Write a checkpoint of the last finished step.

        Raises SyncError where a base weight is not what it was, or where vLLM does not hold the LoRA that is saved.
        """
        if (self.policy.fingerprint(), self.sampler.fingerprint()) != (self.identity.base, self.served_base):
            raise SyncError(f"step {self.done}: a weight of the frozen base has changed since the start; nothing was saved")
        check_served(self.policy, self.sampler)
        if self.ranks.first:
            self.log.flush()
            self.say(*checkpoint.save(self.folder / "checkpoints", self.done, self.policy, self.updater, self.identity))
            self.best.prune()
        self.saved = self.done

    def rescue(self) -> None:
        """Where the run ends early: save finished steps, if the policy is theirs. No error of this hides what ended it."""
        if not self.ranks.first or self.done == self.saved or self.updater.ahead:
            return
        ignore()
        try:
            self.save()
        except (Aborted, UserError, OSError, RuntimeError) as fault:
            self.say(f"step {self.done} is finished, and could not be saved: {brief(fault)}")
        else:
            self.say(f"step {self.done} is saved; --resume goes on from there")

    def finish(self) -> None:
        """Measure the LoRA that eval.keep chooses on the test problems, and write it to adapter/.

        The last step is in a checkpoint by now: the policy may become an earlier one. Raises SyncError where vLLM does not
        hold the LoRA that is measured, UserError where the best one is damaged.
        """
        ranks, step = self.ranks, self.best.chosen(self.done)
        if step != self.done:
            self.best.load(self.policy)
            ranks.agree("LoRA", fingerprint(self.policy.lora().items()), "run.dir must be on a disk that all machines share")
            self.sampler.swap_lora(self.policy.lora())
        if not self.evaluations.has("test", step):
            check_served(self.policy, self.sampler)
            self.evaluate("test", step)
        if ranks.first:
            with new_directory(self.folder / "adapter") as part:
                self.policy.export(part)
            self.log.close()
        self.evaluations.keep(step)


def train(
    config: Config, task: Task, resume: bool, allowed: Collection[str] = (), ranks: Ranks = ALONE,
    startup: Startup = QUIET
) -> Evaluations:
    """Run GRPO to `run.steps`, from the start or from the newest checkpoint. Writes the run directory.

    allowed: config keys, "data" or "base", that may differ from the checkpoint's. Raises UserError, Aborted, Interrupted,
    RankLostError, and what the task raises; however it ends, finished steps are saved.
    """
    with writable(Path(config.run.dir), "checkpoints there are whole; make room, then go on with --resume"):
        run = Trainer(config, task, resume, allowed, ranks, startup)
        try:
            with startup("the first evaluation"):
                run.measure()
            run.say(str(startup))
            for step in range(run.done + 1, config.run.steps + 1):
                run.step(step)
                run.measure()
                if step % config.checkpoint.every == 0 or step == config.run.steps:
                    ranks.agree("LoRA", fingerprint(run.policy.lora().items()), "ranks have drifted apart: report this")
                    run.save()
            run.finish()
        except VerifierError as error:
            raise kept.with_sample(run.folder, error) from None
        finally:
            run.rescue()
        run.sampler.close()
    return run.evaluations
