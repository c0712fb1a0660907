"""How a run starts, phase by phase. Each is refused before the next one, which takes longer; the last writes.

    find_checkpoint   where it goes on
    encode            the problems as token ids
    start_engine      vLLM, and the policy on its weights
    restore           the policy as the checkpoint has it
    prove             the largest pass fits, and vLLM samples from the policy that is trained
    open_records      the run directory
"""

from collections.abc import Collection
from dataclasses import replace
from datetime import date
from pathlib import Path

from grpo.chat import Chat, encode, pick_device
from grpo.config import Config
from grpo.guards import checkpoint
from grpo.guards.alarms import Alarms
from grpo.guards.best import KEEP
from grpo.guards.dry_step import dry_step
from grpo.guards.giving_up import GivingUp
from grpo.guards.lora_health import LoraHealth
from grpo.guards.parity import bound
from grpo.guards.selftest import self_test
from grpo.policy import Policy, check_base
from grpo.ranks.ranks import ALONE, Ranks
from grpo.run import rundir
from grpo.run.evaluations import Evaluations
from grpo.run.identity import Identity, fingerprint
from grpo.run.records import RunLog, shown
from grpo.run.rollouts import KeptSteps
from grpo.run.startup import QUIET, Startup
from grpo.sampler import Sampler
from grpo.types import Task
from grpo.update import Updater


class Start:
    """A run's parts. With several ranks each has all of them, but for the records: rank 0 alone writes."""

    def __init__(
        self, config: Config, task: Task, resume: bool, allowed: Collection[str], ranks: Ranks = ALONE,
        startup: Startup = QUIET
    ):
        """Raises UserError where a phase is refused, Aborted where it goes wrong."""
        self.config, self.task, self.folder, self.ranks, self.startup = config, task, Path(config.run.dir), ranks, startup
        self.done, self.said = 0, []
        chat, context = self.encode(self.find_checkpoint(resume), allowed)
        self.start_engine(chat, context)
        self.restore(resume, allowed)
        self.prove()
        self.open_records(resume)
        self.say(*self.said, chat.stops(), *([] if ranks.size == 1 else [ranks.about(chat.device.type)]))
        ranks.taken()  # starting does not count

    def find_checkpoint(self, resume: bool) -> Path | None:
        """The newest whole one, where the run goes on."""
        folder = self.folder / "checkpoints"
        self.found = checkpoint.newest(folder) if resume and checkpoint.any_in(folder) else None
        path = self.found and self.found[0]
        self.ranks.agree("checkpoint", str(path), "run.dir must be on a disk that all machines share")
        self.config = checkpoint.dated(self.config, path, self.ranks.gather(date.today(), date)[0])
        return path

    def encode(self, found: Path | None, allowed: Collection[str]) -> tuple[Chat, int]:
        """All problems as token ids. A checkpoint of other ones, or of other settings, is refused."""
        chat = Chat(self.config.model, pick_device(self.config.model))
        self.train_prompts, self.validation_prompts, self.test_prompts, context = encode(chat, self.task, self.config)
        tokens = [p.token_ids for p in self.train_prompts + self.validation_prompts + self.test_prompts]
        self.identity = Identity.of(self.task, [*tokens, chat.stop_ids])
        self.state = checkpoint.check(found, self.config, self.identity, allowed) if found else {}
        check_base(chat, self.config.model, self.config.lora)
        return chat, context

    def start_engine(self, chat: Chat, context: int) -> None:
        """vLLM, and the policy on its weights."""
        config, ranks = self.config, self.ranks
        with ranks.in_turn(), self.startup("vLLM: weights, memory, CUDA graphs"):
            self.sampler = Sampler(chat, config, context)
        with self.startup("the policy"):
            self.policy = Policy(config.model, config.lora, chat.device, config.run.seed, self.sampler.weights())
            self.updater = Updater(self.policy, config, ranks)
            self.identity = replace(self.identity, base=self.policy.fingerprint())
        for what, value in {"config": config, "data set": self.identity.data, "base": self.identity.base}.items():
            ranks.agree(what, str(value), "give all machines the same files")

    def restore(self, resume: bool, allowed: Collection[str]) -> None:
        """The policy as the checkpoint has it; from the start, where there is none. vLLM serves it from now on."""
        if self.found:
            path, passed_over = self.found
            self.done, lines = checkpoint.restore(path, self.policy, self.updater, self.identity, allowed)
            self.said += [*passed_over, *lines]
        elif resume:
            self.said += ["--resume: no checkpoint yet; it starts at step 1"]
        self.saved, lora = self.done, fingerprint(self.policy.lora().items())
        self.ranks.agree("LoRA", lora, "run.dir must be on a disk that all machines share")
        self.sampler.serve(self.policy)
        self.served_base = self.sampler.fingerprint()

    def prove(self) -> None:
        """The largest pass fits, and vLLM samples from the policy that is trained."""
        with self.startup("the largest training pass, a trial of memory"):
            needs = dry_step(self.updater, self.train_prompts, self.sampler.memory())
        with self.startup("the self-test"):
            check = self_test(self.sampler, self.updater, self.train_prompts[:4])
        self.updater.noise = max(self.ranks.gather(self.updater.noise, float))
        self.proved = [self.policy.held, *needs, str(check)]

    def open_records(self, resume: bool) -> None:
        """The run directory. An earlier run that lies there is renamed; what a resumed run has measured is read."""
        config, ranks = self.config, self.ranks
        self.said += rundir.begin(self.folder, config.dump(), resume) if ranks.first else []
        ranks.meet()  # an earlier run, which may lie there, is out of the way
        others = bool(self.found) and (self.state["data"], self.state["base"]) != (self.identity.data, self.identity.base)
        self.said += ["data or base are not what they were: what was measured before is dropped"] if others else []
        self.evaluations = Evaluations(
            self.folder / "evaluation.json", self.task.references, 0 if others else self.done + 1, ranks.first)
        self.evaluations.rows = ranks.gather(self.evaluations.rows, dict[str, list[dict[str, int | float]]])[0]
        self.best = KEEP[config.eval.keep](self.folder, ranks.first)
        if ranks.first:
            self.said += self.best.restore(self.done, self.evaluations.rows["validation"], self.policy)
            self.log = RunLog(self.folder, self.done, config.run.steps, KeptSteps.of(config))
            self.alarms, self.health = Alarms(), LoraHealth(self.policy)
        self.best.at = ranks.gather(self.best.at, tuple[int, float] | None)[0]
        self.giving_up = GivingUp(config.run.give_up_after, self.updater.stepped)
        apart = bound(self.updater.noise, 1000, self.policy.dtype, config.rollout.temperature)
        self.said += [*self.proved, str(KeptSteps.of(config)), f"parity stops the run where log-probs are {apart:.2g} nats "
                      "apart over 1,000 tokens of a prompt"]
        self.said += [f"trivial policy: {t.label}: {shown(t.accuracy)}" for t in getattr(self.task, "trivial", [])]

    def say(self, *lines: str) -> None:
        """Print lines, once."""
        for line in lines if self.ranks.first else []:
            self.log.say(line)
