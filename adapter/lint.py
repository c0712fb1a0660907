"""Can GRPO learn this task, and from what? Asked before any time of a GPU is spent.

    python -m adapter.lint my.yaml
    python -m adapter.lint my.yaml --no-base        the data and the verifier alone, without the model

Of the data and the verifier: true answers score 1, junk scores 0, scoring twice agrees, no question is in two splits, and
the last answer of an API's text is the one that is read. Of the base: how often it is right, cut off or without an answer,
and the share of groups that are mixed. From a group whose completions are all right, or all wrong, nothing is learned.
Exit codes: 0 nothing found; 1 something is wrong, a line each; 2 a mistake in the command or the config.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from adapter.commands import run, task_of
from adapter.corrector import RIGHT, Corrector
from adapter.questions import Row
from adapter.rows import Splits
from adapter.task import CorrectorTask, asked
from adapter.verdict import AGREE
from adapter.verifier_lint import VerifierReport, lint_verifier
from grpo.config import Config, load
from grpo.run.files import brief, printable
from grpo.run.preflight import missing
from grpo.run.tasks import load_class
from grpo.types import UserError

GROUP = 8  # completions of a question
FEW, CUT_OFF = 0.05, 0.5  # shares: of mixed groups, below which little is learned; of completions that are cut off


@dataclass(frozen=True)
class BaseReport:
    """What a base makes of some questions, GROUP completions each. Shares in [0, 1]."""

    questions: int
    right: float
    once: float  # of questions, at least one right
    mixed: float  # of groups: some are right, some are not
    truncated: float
    unparsed: float
    too_long: int  # questions whose prompts do not fit; they are not asked
    agreed: float = 0.0  # of the completions
    own_right: float = 0.0  # of those that give an answer of their own
    api_right: float = 0.0  # of the questions

    def findings(self, config: Config) -> list[str]:
        """What is wrong, a line each."""
        of, limit = self.questions * GROUP, config.rollout.max_new_tokens
        found = []
        if self.too_long:
            found.append(f"{self.too_long} prompts do not fit the model with rollout.max_new_tokens = {limit}; shorten "
                         "them, or take a base with more positions")
        if self.truncated > CUT_OFF:
            found.append(f"{self.truncated:.0%} of the completions are cut off at rollout.max_new_tokens = {limit}; allow "
                         "more")
        if not self.right:
            found.append(f"GRPO cannot start: no completion of {of} was right; ask for easier questions, allow more tokens, "
                         "show examples (task.prompt.examples), or take another base")
        elif self.right == 1:
            found.append(f"GRPO has nothing to teach: all {of} completions were right")
        elif self.mixed < FEW:
            found.append(f"GRPO would hardly start: {self.mixed:.1%} of groups are mixed; ask for questions that the base "
                         "gets right at times")
        return found

    def notes(self) -> list[str]:
        """What is no fault, and may become one."""
        if not self.agreed or self.own_right >= self.api_right:
            return []
        return [f"its own answers are right less often ({self.own_right:.0%}) than the API's ({self.api_right:.0%}): GRPO "
                "may learn to agree always. Let it work the answer out first (task.prompt.instructions, "
                "task.prompt.examples); the alarm same_answer rings where it agrees whatever it is asked"]

    def __str__(self) -> str:
        return (f"{self.questions} questions, {GROUP} completions each: {self.right:.1%} right; of {self.once:.1%} of the "
                f"questions at least one; {self.agreed:.1%} agree with the API, {self.truncated:.1%} cut off, "
                f"{self.unparsed:.1%} without an answer")


def lint_base(config: Config, corrector: Corrector, rows: Sequence[Row]) -> BaseReport:
    """Let the base answer the rows, which have their API's answers. Raises UserError, VerifierError."""
    from adapter.model import Model

    model = Model(config)
    model.hold(model.no_lora())
    problems = [corrector.problem(row) for row in rows]
    room = model.max_tokens - config.rollout.max_new_tokens
    fits = [problem for problem in problems if len(model.encode(problem).token_ids) <= room]
    if not fits:
        return BaseReport(0, 0.0, 0.0, 0.0, 0.0, 0.0, len(problems))
    groups = model.sample(fits, GROUP, config.run.seed)
    model.close()
    pending = [[corrector.submit(problem.data, c.text) for c in group] for problem, group in zip(fits, groups, strict=True)]
    scores = [[one.result() for one in of] for of in tqdm(pending, desc="verifying", delay=1, leave=False, disable=None)]
    right = [[score.reward >= RIGHT for score in of] for of in scores]
    count = len(fits) * GROUP
    agreed = sum(score.answer == AGREE for of in scores for score in of) / count
    own = [score.reward >= RIGHT for of in scores for score in of if score.answer not in (None, AGREE)]
    api = corrector.api_right([problem.data for problem in fits])
    return BaseReport(
        len(fits), sum(map(sum, right)) / count, sum(map(any, right)) / len(fits),
        sum(len({score.reward for score in of}) > 1 for of in scores) / len(fits),
        sum(c.truncated for group in groups for c in group) / count,
        sum(score.unparsed for of in scores for score in of) / count, len(problems) - len(fits),
        agreed, sum(own) / max(1, len(own)), sum(api) / len(api))


def some(rows: Sequence[Row], most: int) -> list[Row]:
    """Up to `most`, evenly spread."""
    return [rows[at * len(rows) // most] for at in range(most)] if len(rows) > most else list(rows)


def told(splits: Splits[list[Row]], corrector: Corrector, found: VerifierReport) -> list[str]:
    """What there is to know beside what is wrong."""
    sizes = ", ".join(f"{len(rows):,} {name}" for name, rows in splits._asdict().items())
    row = splits.train[0]
    lines = [f"data        {sizes} questions; kinds: {', '.join(sorted({row.kind for row in splits.train})[:8])}",
             f"verifier    {corrector.verifier.form}; {found.calls:,} calls, {1e3 * found.p50:.2g} ms at the median, "
             f"{1e3 * found.p99:.2g} ms at the 99th percentile"]
    if found.unknown:
        lines.append(f"            of {found.unknown} rows only the function can tell a true answer; theirs were not tried")
    lines += [f"{'API text' if not at else '':<12}{brief(repr(e.text), 60)} -> {e.found or 'no answer'}"
              for at, e in enumerate(found.extractions)]
    prompt = "\n".join(message["content"] for message in corrector.problem(row).messages)
    return [*lines, "prompt", *(f"    {line}" for line in prompt.splitlines())]


def check(config: Config, task_class: type[CorrectorTask], settings: object, questions: int, base: bool) -> list[str]:
    """Print what is found; return what is wrong, a line each."""
    corrector = task_class.make_corrector(settings)
    splits = task_class.read_rows(settings, config.run.seed, corrector)
    chosen = some(splits.train, questions)
    upstream = task_class.make_upstream(settings, config.run.seed, corrector)
    answered = asked(Splits(chosen, [], []), upstream).train if base else chosen
    known = {(row.question, row.id): row for row in answered}
    splits = Splits(*([known.get((row.question, row.id), row) for row in rows] for rows in splits))
    found = lint_verifier(splits._asdict(), corrector.verifier)
    wrong = [finding.line for finding in found.findings]
    for line in told(splits, corrector, found):
        print(printable(line))
    if base and not any(finding.check == "raises" for finding in found.findings):
        of_base = lint_base(config, corrector, answered)
        print(f"base        {printable(config.model.path)}: {of_base}")
        for note in of_base.notes():
            print(f"note        {note}")
        wrong += of_base.findings(config)
        if not of_base.findings(config):
            print(f"GRPO can start: {of_base.mixed:.0%} of groups are mixed")
    return wrong


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m adapter.lint", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, such as configs/tiny.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that replace the file's")
    parser.add_argument("--no-base", action="store_true", help="the data and the verifier alone")
    parser.add_argument("--questions", type=int, default=64, help="how many the base is asked (default 64)")
    options = parser.parse_intermixed_args(arguments)
    if bad := [o for o in options.overrides if "=" not in o]:
        raise UserError(f"{bad[0]}: expected key.path=value, such as task.verifier=number")
    if options.questions < 1:
        raise UserError(f"--questions {options.questions}: expected 1 or more")
    config = load(options.config, options.overrides)
    named = any(o.startswith(("task=", "task.target=")) for o in options.overrides)
    task_class, settings = task_of(config, load_class(config.task.target, named), options.config)
    lacking = [] if options.no_base else missing(config.model.path, config.model.device) + task_class.missing(settings)
    if lacking:
        raise UserError(f"missing here: {'; '.join(lacking)}; --no-base checks the data and the verifier without them")
    wrong = check(config, task_class, settings, options.questions, not options.no_base)
    for line in wrong:
        print(f"wrong: {printable(line)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(run(main))
