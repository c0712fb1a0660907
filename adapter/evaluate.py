"""How good a run's adapter is, and what it learned.

    python -m adapter.evaluate runs/tiny
    python -m adapter.evaluate runs/tiny --compare-base        the base answers too, LoRA off
    python -m adapter.evaluate runs/tiny --harm-below 1%       chooses the confidence below which the API's answer stands

prints the tables below, and writes them to RUN/evaluate/, where an earlier evaluation is replaced:

    report.txt   report.json   completions.jsonl    the tables; the same as data; each test question and its completion
    reward.png   accuracy.png                       for a slide; a task may add its own, as symbols.png
    reliability.png   risk_coverage.png             the same, of confidence
    confidence.json                                 the temperature and the threshold: adapter.ask and serve go by them
    validation.jsonl                                as completions.jsonl: adapter.serve compares with it what comes later

A finished run is evaluated with the LoRA it kept (eval.keep), an unfinished one with its best so far; the first line says of
which step. The API's answers are those it gave for the run. Accuracy is greedy, on the test questions, by kind and overall:
the share that is fully right.

    always CORRECT     lets every answer of the API stand
    fixes, harms       the API's wrong answers that end right, and its right answers that end wrong
    repair rate        fixes / the API's errors (also called fix rate); harm rate: harms / its right answers
    fixes / harms      the improvement-to-degradation ratio
    net lift           accuracy of the chain minus the API's, in points, with a 95 % interval by a paired bootstrap
    McNemar p          exact, two-sided, against the API alone
    precision, recall  of CORRECT: P(API right | said CORRECT) and P(said CORRECT | API right)

    truncated          a failure is of the first class that applies, in this order: cut off, with no answer;
    unparsed           holds no answer;
    wrong agreement    says CORRECT of a wrong answer;
    echo               gives the API's wrong answer again;
    wrong override     the rest: an answer of its own, and a wrong one

    confidence         the probability that the adapter's verdict is right: sigmoid(logit(p) / temperature), p being the
                       geometric mean of its tokens' probabilities; the validation questions are asked for the temperature.
                       Without an answer it is 0
    calibration error  expected (ECE): mean distance of confidence from accuracy, in bins of as many questions each
    AURC               area under the risk-coverage curve: mean share of wrong verdicts among the surest 1, 2, ... questions
    the box, agreement two other p, to compare with: the probability of the last box, given what stands before it; and of
                       --agreement samples, the share that ends in the same answer

A task may have classes of its own, and a part of its own in the report, which explains them.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapter.commands import run
from adapter.measure import confidence_report, plots, report
from adapter.measure.accuracy import Entry, api_alone, chain, recorded, rewarded
from adapter.measure.answering import agreement, answered, start
from adapter.measure.calibration import read_share
from adapter.measure.confidence_report import Confidence
from adapter.measure.folder import check_replaceable, write
from adapter.measure.outcomes import Outcome
from adapter.measure.records import read_evaluation, read_metrics, reward_curves
from adapter.measure.report import Evaluated
from adapter.task import CorrectorTask
from adapter.verifiers.settings import KINDS
from grpo.run.files import at_home, printable
from grpo.types import UserError

if TYPE_CHECKING:
    from adapter.trained import TrainedAdapter

MOST_SAMPLES = 64  # of a question


@dataclass(frozen=True)
class Earlier:
    """The run's own evaluations up to a step, by step: on the test and on the validation problems."""

    test: dict[int, Entry]
    validation: dict[int, Entry]


def evaluate(folder: Path, compare_base: bool, harm_below: float | None = None, samples: int = 0) -> Evaluated:
    """Read the run, check what it recorded, and let its adapter answer the validation and the test questions.

    harm_below: the share of the API's right answers that may be harmed; it chooses a threshold. samples: of each question,
    for their agreement. Raises UserError.
    """
    from adapter.trained import TrainedAdapter

    adapter = TrainedAdapter(folder)
    target = adapter.config.task.target
    task: CorrectorTask = adapter.task_class(adapter.settings.model_copy(update={"api_yes": False}), adapter.config.run.seed)
    sections = task.sections(folder, adapter.until, adapter.config)
    check_replaceable(folder, sections, target)
    known = earlier(folder, adapter.until, task)
    rewards = reward_curves(read_metrics(folder, adapter.until))
    sure = confidence(adapter, task, harm_below, samples)
    outcomes = {"adapter": list(sure.test)}
    if compare_base:
        with adapter.base_only():
            outcomes["base"], _ = answered(adapter, task, task.test, "base")
    adapter.close()
    now = rewarded(f"adapter, step {adapter.step}", outcomes["adapter"])
    past = known.test.setdefault(adapter.step, now)
    entries = compared(task, outcomes, adapter.step, known.test.get(0))
    api = task.references["api"].label.removesuffix(" alone")
    return Evaluated(folder, adapter.step, adapter.until, adapter.path, target, api, entries, outcomes,
                     task.corrector.failures, known.test, known.validation, rewards, sure, sections,
                     notes(task, outcomes, adapter.step, past, now))


def confidence(adapter: "TrainedAdapter", task: CorrectorTask, harm_below: float | None, samples: int) -> Confidence:
    """The adapter's answers, how sure it is of them, and what that is worth."""
    start(adapter, [*task.validation, *task.test])
    (validation, first), (test, second) = (answered(adapter, task, problems, who) for problems, who in (
        (task.validation, "validation"), (task.test, "adapter")))
    agreements = None
    if samples:
        seed = adapter.config.run.seed
        (of_validation, some), (of_test, others) = (agreement(adapter, task, of, samples, seed, f"{samples} samples")
                                                    for of in (validation, test))
        agreements = f"agreement of {samples}", of_validation, of_test, some + others
    return confidence_report.measured(adapter.step, validation, test, first + second, harm_below, agreements)


def earlier(folder: Path, until: int, task: CorrectorTask) -> Earlier:
    """See Earlier. Raises UserError where the evaluations are not of the task's problems."""
    found = read_evaluation(folder, until, task.references["api"].accuracy)
    splits = [] if found is None else [("test", task.rows.test, found.steps),
                                       ("validation", task.rows.validation, found.validation)]
    entries: dict[str, dict[int, Entry]] = {"test": {}, "validation": {}}
    for split, rows, measured in splits:
        for past in measured:
            try:
                entries[split][past.step] = recorded("base" if past.step == 0 else "adapter", past.table(), rows,
                                                     in_part=pays_in_part(task))
            except ValueError as error:
                raise UserError(f"{folder / 'evaluation.json'}: {split}, step {past.step}: {error}; restore the data the "
                                "run used, or delete the file to go on without it") from None
    return Earlier(**entries)


def pays_in_part(task: CorrectorTask) -> bool:
    """Whether the verifier may pay less than 1 for what is right in part: those that come with the package do not."""
    return not isinstance(task.corrector.verifier, tuple(KINDS.values()))


def compared(task: CorrectorTask, outcomes: dict[str, list[Outcome]], step: int, base: Entry | None) -> dict[str, Entry]:
    """The rows of the tables. base: the base as the run measured it, for where it was not asked."""
    rows = task.rows.test
    always = task.corrector.judged(rows, [r"\boxed{CORRECT}"] * len(rows), [False] * len(rows))
    entries = {"api": api_alone(task.references["api"].label, always), "always_correct": chain("always CORRECT", always)}
    entries |= task.policies()
    if "base" in outcomes:
        entries["base"] = chain("base", outcomes["base"])
    elif base is not None:
        entries["base"] = base
    return entries | {"adapter": chain(f"adapter, step {step}", outcomes["adapter"])}


def notes(task: CorrectorTask, outcomes: dict[str, list[Outcome]], step: int, past: Entry, now: Entry) -> list[str]:
    """What has to be known to read the tables. past: what the run itself measured at that step; now: the same, here."""
    found = ["always CORRECT is the API alone" if task.corrector.prompt.may_agree else
             "the prompt does not offer CORRECT: always CORRECT gives no answer"]
    for who, of in outcomes.items():
        if late := sum(o.timed_out for o in of):
            found.append(f"the verifier came to no end in its time for {late} of the {who}'s completions, which count as "
                         "wrong")
    if any(0 < o.reward < 1 for of in outcomes.values() for o in of):
        found.append("the verifier pays for what is right in part: the tables count what is fully right; accuracy.png, "
                     "accuracy_by_step and a base that was not asked are mean rewards")
    pairs = [(s, past.accuracy[kind]) for kind, s in now.accuracy.items()]
    if any(a.of and abs(a.value - b.value) > 1e-9 for a, b in pairs):
        found.append(f"the run itself measured other accuracies at step {step}: "
                     + ", ".join(f"{kind} {100 * s.value:.1f} %" for kind, s in past.accuracy.items() if s.of))
    if len(past.accuracy) - 1 > len(plots.COLOURS):
        found.append(f"the pictures show the whole and the {len(plots.COLOURS) - 1} largest kinds")
    return found


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m adapter.evaluate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=at_home, metavar="RUN", help="a run directory that train.py wrote")
    parser.add_argument("--compare-base", action="store_true", help="let the base answer too, beside the adapter")
    parser.add_argument("--harm-below", metavar="SHARE", help="choose, on validation, the threshold of most net lift that "
                        "harms at most this share of the API's right answers, such as 1%% or 0.01")
    parser.add_argument("--agreement", type=int, default=0, metavar="K", help="sample K completions of each question too, "
                        "and compare their agreement, as a confidence, with the confidence that costs nothing")
    options = parser.parse_args(arguments)
    harm_below = None if options.harm_below is None else read_share(options.harm_below)
    if not (options.agreement == 0 or 2 <= options.agreement <= MOST_SAMPLES):
        raise UserError(f"--agreement {options.agreement}: expected 2 to {MOST_SAMPLES} samples, such as 8")
    found = evaluate(options.run, options.compare_base, harm_below, options.agreement)
    printed = printable(report.text(found), keep="\n")  # report.txt too: it will be shown on one
    folder = write(found, printed)
    print(f"{printed}\nwritten to {folder}/")


if __name__ == "__main__":
    sys.exit(run(main))
