"""Two cheap rivals of a corrector that GRPO trained, on the same questions.

    python -m benchmarks.rivals sft CONFIG --out runs/sft [--lr 2e-4] [--epochs 3] [key.path=value ...]
    python -m adapter.evaluate runs/sft
    python -m benchmarks.rivals vote CONFIG --url http://127.0.0.1:8000 --model NAME --k 8 --out vote.json

sft: supervised fine-tuning of the LoRA that train.py would train: base, rank, prompts and train questions, with the API's
answers, are the config's. The target is \\boxed{CORRECT} where the API is right, else \\boxed{the truth}, and the token that
ends a turn, as a rollout ends. The loss is the cross-entropy of the target alone, a mean over the batch's tokens. Optimizer
and schedule are `optim`, but for --lr. The last step's LoRA is kept; nothing is chosen on the validation questions, whose
loss is printed. RUN/sft.json says what was done.

vote: no training at all. The API, any server of OpenAI's protocol, answers each test question k times at a temperature; the
verifier extracts the answers, and the commonest counts, of equally common ones the first. Beside it, one greedy answer. A
reply without an answer has no vote. It asks at once, and says no price.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import compress

import torch

from adapter.commands import run
from adapter.corrector import RIGHT
from adapter.dataset import configured
from adapter.questions import Row
from adapter.task import CorrectorTask
from adapter.verdict import AGREE
from benchmarks.rivals_vote import vote
from grpo.batch import MicroBatch
from grpo.chat import encode, pick_device
from grpo.config import Config, load
from grpo.logprob import score
from grpo.policy import Policy
from grpo.run import rundir
from grpo.run.files import at_home, new_directory, writable, write_text
from grpo.run.memory import ran_out
from grpo.run.preflight import missing
from grpo.speed import micro_batches
from grpo.types import Completion, Group, NonFiniteError, Prompt, Sample, Score, UserError
from grpo.update import Updater, learning_rate

OWN_OPTIONS = {"run.dir": "--out", "run.steps": "--epochs", "optim.lr": "--lr"}


def main(arguments: list[str]) -> None:
    """The commands."""
    first = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    first.add_argument("command", choices=("sft", "vote"))
    first.add_argument("rest", nargs=argparse.REMAINDER, help="see sft --help, vote --help")
    chosen = first.parse_args(arguments)
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.rivals {chosen.command}")
    parser.add_argument("config", help="a YAML file, as train.py takes it")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's")
    parser.set_defaults(yes=False)
    if chosen.command == "sft":
        parser.add_argument("--out", required=True, type=at_home, metavar="RUN", help="the run directory to write")
        parser.add_argument("--lr", type=float, default=2e-4, help="peak learning rate (default: %(default)s)")
        parser.add_argument("--epochs", type=_positive, default=3, help="how often each question comes (%(default)s)")
        parser.add_argument("--batch", type=_positive, default=16, help="questions in an optimizer step (%(default)s)")
        parser.add_argument("--yes", action="store_true", help="let the task ask a paid API without asking first")
    else:
        parser.add_argument("--out", required=True, type=at_home, metavar="FILE", help="the JSON file to write")
        parser.add_argument("--url", required=True, help="the server's address, with or without /v1")
        parser.add_argument("--model", required=True, help="a model that it serves")
        parser.add_argument("--k", type=_positive, default=8, help="votes on a question (default: %(default)s)")
        parser.add_argument("--temperature", type=float, default=0.7, help="of the votes (default: %(default)s)")
    options = parser.parse_intermixed_args(chosen.rest)
    (train if chosen.command == "sft" else vote)(options)


def train(options: argparse.Namespace) -> None:
    """sft: train, and write a run directory that adapter.evaluate takes."""
    for key, option in OWN_OPTIONS.items():
        if any(o.startswith(f"{key}=") for o in options.overrides):
            raise UserError(f"{key}: here {option} says it; give {option} instead")
    options.overrides += [f"run.dir={options.out}", f"optim.lr={options.lr}"]
    config, task_class, settings = configured(options)
    if lacking := missing(config.model.path, config.model.device) + task_class.missing(settings):
        raise UserError(f"missing here: {'; '.join(lacking)}")
    rundir.check(options.out, False)
    task = task_class(settings, config.run.seed)
    policy = Policy(config.model, config.lora, pick_device(config.model), config.run.seed)
    train_prompts, validation_prompts, *_ = encode(policy, task, config)
    groups, counts = supervised(policy, task, task.rows.train, train_prompts, config.rollout.max_new_tokens)
    validation, _ = supervised(policy, task, task.rows.validation, validation_prompts, config.rollout.max_new_tokens)
    if not groups:
        raise UserError(f"{options.config}: no train question has a target that its verifier calls right; choose others")
    steps = options.epochs * math.ceil(len(groups) / options.batch)
    config = load(options.config, [*options.overrides, f"run.steps={steps}", f"model.date={policy.date}"])
    losses = fine_tune(policy, config, groups, options.batch, lambda: mean_loss(policy, config, validation))
    for line in rundir.begin(options.out, config.dump(), False):
        print(line)
    with writable(options.out, "make room there, or choose another --out"):
        with new_directory(options.out / "adapter") as part:
            policy.export(part)
        record = {"epochs": options.epochs, "batch": options.batch, "lr": options.lr, "steps": steps, **counts,
                  "losses": losses}
        write_text(options.out / "sft.json", json.dumps(record, indent=1) + "\n")
    print(f"{options.out}: the LoRA of step {steps}; python -m adapter.evaluate {options.out} measures it")


def supervised(
    policy: Policy, task: CorrectorTask, rows: Sequence[Row], prompts: Sequence[Prompt], most: int
) -> tuple[list[Group], dict[str, int]]:
    """Each question and its target, as a group of one; and how many targets there are of each kind.

    A question whose truth is unknown, or whose target the verifier does not call right, is left out and counted. Raises
    UserError where a target has more than `most` tokens, which no rollout has.
    """
    corrector = task.corrector
    agrees = [right and corrector.prompt.may_agree for right in corrector.api_right(rows)]
    contents = [AGREE if agree else task.true_answer(row) for row, agree in zip(rows, agrees, strict=True)]
    texts = ["" if content is None else f"\\boxed{{{content}}}" for content in contents]
    pending = [corrector.submit(row, text) for row, text in zip(rows, texts, strict=True)]
    right = [one.result().reward >= RIGHT for one in pending]
    end = policy.turn_end()
    end = policy.tokenizer.eos_token_id if end is None else end
    if end not in policy.stop_ids:
        raise UserError(f"model.path = {policy.path}: no token ends an answer, in chat template or tokenizer; set the "
                        "tokenizer's eos_token")
    groups = []
    for prompt, text in compress(zip(prompts, texts, strict=True), right):
        ids = (*policy.tokenizer.encode(text, add_special_tokens=False), end)
        if len(ids) > most:
            raise UserError(f"rollout.max_new_tokens = {most}: the target of {prompt.problem.name} has {len(ids)} tokens; "
                            "allow as many")
        groups.append(Group(prompt, (Completion(Sample(ids, (0.0,) * len(ids), "stop"), text, Score(1.0)),)))
    agreed = sum(agree and good for agree, good in zip(agrees, right, strict=True))
    return groups, {"correct": agreed, "override": len(groups) - agreed, "left_out": len(rows) - len(groups)}


def fine_tune(
    policy: Policy, config: Config, groups: Sequence[Group], size: int, validation_loss: Callable[[], float | None]
) -> list[dict[str, float | None]]:
    """Train for `run.steps`, in an order that `run.seed` draws anew each epoch. Returns an epoch's losses, nats a token.

    `train` is measured while the policy changes, `validation` at the epoch's end.
    """
    updater, losses, step = Updater(policy, config), [], 0
    generator = torch.Generator().manual_seed(config.run.seed)
    while step < config.run.steps:
        total = tokens = 0
        for places in torch.randperm(len(groups), generator=generator).split(size):
            step += 1
            batch = [groups[place] for place in places.tolist()]
            loss, count = _update(updater, config, batch, step)
            total, tokens = total + loss, tokens + count
        losses.append({"train": total / tokens, "validation": validation_loss()})
        print(f"step {step} of {config.run.steps}: " + ", ".join(
            f"{name} loss {value:.4f}" for name, value in losses[-1].items() if value is not None), flush=True)
    policy.round_lora()
    return losses


def _update(updater: Updater, config: Config, groups: Sequence[Group], step: int) -> tuple[float, int]:
    """One optimizer step. Returns the sum of the tokens' losses, and how many tokens there are."""
    policy, total = updater.policy, 0.0
    tokens = sum(len(group.completions[0].sample.token_ids) for group in groups)
    policy.round_lora()
    try:
        for loss in _losses(policy, config, groups):
            (loss / tokens).backward()
            total += loss.item()
    except RuntimeError as error:
        if not ran_out(error):
            raise
        raise UserError(f"{policy.device.type}: out of memory in a training pass; lower train.micro_batch_tokens, or set "
                        "train.recompute_layers") from None
    norm = float(torch.nn.utils.clip_grad_norm_(policy.parameters.values(), config.optim.max_grad_norm))
    if not math.isfinite(total) or not math.isfinite(norm):
        raise NonFiniteError(f"step {step}: loss {total / tokens}, gradient norm {norm}; nothing was written")
    for settings in updater.optimizer.param_groups:
        settings["lr"] = learning_rate(step, config.run.steps, config.optim)
    updater.optimizer.step()
    updater.optimizer.zero_grad(set_to_none=True)
    return total, tokens


@torch.no_grad()
def mean_loss(policy: Policy, config: Config, groups: Sequence[Group]) -> float | None:
    """Cross-entropy of the targets, nats a token; None where there are none."""
    policy.round_lora()
    tokens = sum(len(group.completions[0].sample.token_ids) for group in groups)
    return sum(loss.item() for loss in _losses(policy, config, groups)) / tokens if tokens else None


def _losses(policy: Policy, config: Config, groups: Sequence[Group]) -> Iterator[torch.Tensor]:
    """The sum of the tokens' losses, of one micro-batch after the other."""
    for rows in micro_batches.split(groups, [(p, 0) for p in range(len(groups))], config.train.micro_batch_tokens):
        batch = MicroBatch.of(groups, rows, policy.device)
        scored = score(policy.decoder, policy.head, batch, 1 / policy.logit_scale, config.train.head_chunk_tokens,
                       policy.logit_cap)
        yield -scored.logp_BT.sum()


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


if __name__ == "__main__":
    sys.exit(run(main))
