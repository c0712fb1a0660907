"""What a slow verifier adds to a step: a user's function that takes 50 ms, scored as completions end, and after all have.

    python -m benchmarks.verifier_step --model DIR [--out FILE]        on a GPU, configs/vague.yaml's shape: 16 x 64
    python -m benchmarks.verifier_step --model models/tiny --prompts 4 --group 16 --prompt-tokens 60 --new-tokens 24

The real trainer steps, with every guard. One token of the vocabulary in `--stops` ends a completion, so that lengths differ
at random weights too. Steps without a verifier and of the two ways follow each other in one run. Its last line is a JSON
object.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoConfig

from adapter.questions import Row
from adapter.verifiers.own import Own, own_verifier
from benchmarks.our_step import CUDA, FixedLength, configured, overhead
from benchmarks.record import report
from grpo.chat import Chat
from grpo.ranks.ranks import ALONE
from grpo.run.identity import versions
from grpo.sampler import Sampler
from grpo.trainer import Trainer
from grpo.types import Problem, Score

FUNCTION = "import time\n\ndef verify(row, answer):\n    time.sleep(0.05)\n    return int(answer) % 2 == 0\n"
WAYS = ("none", "as they end", "after all")
as_they_end = Sampler.as_they_end


def after_all(sampler: Sampler, *asked) -> Iterator:
    """In the place of Sampler.as_they_end: nothing is handed over before all have ended."""
    yield from list(as_they_end(sampler, *asked))


class Pending:
    """A score that is being worked out."""

    def __init__(self, call):
        self._call = call

    def result(self) -> Score:
        """Waits for it."""
        return Score(self._call.result().score)


class Verified(FixedLength):
    """The fixed prompts of benchmarks/our_step.py, each completion a call of the verifier."""

    verifier: Own | None = None

    def score(self, problem: Problem, text: str) -> Score | Pending:
        """By the text's length; at once where there is no verifier."""
        if self.verifier is None:
            return super().score(problem, text)
        return Pending(self.verifier.submit(Row(problem.name, ""), str(len(text))))


def main(words: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verifier_step", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    for name, number in (("prompts", 16), ("group", 64), ("prompt-tokens", 300), ("new-tokens", 128), ("rounds", 4),
                         ("stops", 75)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "verify.py").write_text(FUNCTION, encoding="utf-8")
        own = own_verifier(f"{folder}/verify.py:verify", True, 5.0, None, None)
        steps = len(WAYS) * (args.rounds + 1)  # the first round starts processes and fills caches
        config = configured(args.model, f"{folder}/run", [], args.prompts, args.group, args.new_tokens, steps=steps)
        digits = args.prompt_tokens - overhead(args.model)
        task = Verified(FixedLength.Settings(digits=digits, prompts=args.prompts * steps), seed=0)
        vocabulary = AutoConfig.from_pretrained(args.model).vocab_size
        stops = random.Random(0).sample(range(vocabulary), max(1, vocabulary // args.stops))
        Chat.stop_ids = property(lambda self: stops)
        trainer = Trainer(config, task, resume=False, allowed=(), ranks=ALONE)
        for step in range(1, steps + 1):
            way = WAYS[step % len(WAYS)]
            task.verifier = None if way == "none" else own
            Sampler.as_they_end = after_all if way == "after all" else as_they_end
            trainer.step(step)
        trainer.log.flush()
        lines = list(map(json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()))
        trainer.sampler.close()
    kept = lines[len(WAYS):]
    report({"calls": args.prompts * args.group, "verifier_s": 0.05,
            "completion_tokens": mean(kept, "completion/mean_tokens"),
            "ways": {way: {key: mean([line for line in kept if WAYS[line["step"] % len(WAYS)] == way], f"time/{key}")
                           for key in ("rollout_s", "train_s", "step_s")} for way in WAYS},
            "device": "cuda" if CUDA else "cpu", "versions": versions()}, args.out)


def mean(lines: list[dict], key: str) -> float:
    """Of a metric over steps."""
    return sum(line[key] for line in lines) / len(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
