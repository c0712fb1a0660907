"""How good a run's adapter is, and what it learned.

    python -m adapter.evaluate runs/tiny
    python -m adapter.evaluate runs/tiny --compare-base        the base answers too, LoRA off

prints the tables below, and writes them to RUN/evaluate/, where an earlier evaluation is replaced:

    report.txt   report.json   completions.jsonl    the tables; the same as data; each test question and its completion
    reward.png   accuracy.png                       for a slide; a task may add its own, as symbols.png

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

A task may have classes of its own, and a part of its own in the report, which explains them.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from adapter.commands import run
from adapter.measure import plots, report
from adapter.measure.accuracy import Entry, api_alone, chain, recorded, rewarded
from adapter.measure.outcomes import Outcome
from adapter.measure.records import read_evaluation, read_metrics, reward_curves
from adapter.measure.report import Evaluated
from adapter.measure.sections import Section
from adapter.task import CorrectorTask
from adapter.verifiers.settings import KINDS
from grpo.run.files import at_home, printable
from grpo.types import UserError

if TYPE_CHECKING:
    from adapter.trained import TrainedAdapter

FOLDER = "evaluate"
FILES = {"report.txt", "report.json", "completions.jsonl", "reward.png", "accuracy.png"}
AT_ONCE = 128  # questions between two moves of the progress bar


@dataclass(frozen=True)
class Earlier:
    """The run's own evaluations up to a step, by step: on the test and on the validation problems."""

    test: dict[int, Entry]
    validation: dict[int, Entry]


def evaluate(folder: Path, compare_base: bool) -> Evaluated:
    """Read the run, check what it recorded, and let its adapter answer the test questions. Raises UserError."""
    from adapter.trained import TrainedAdapter

    adapter = TrainedAdapter(folder)
    target = adapter.config.task.target
    task: CorrectorTask = adapter.task_class(adapter.settings.model_copy(update={"api_yes": False}), adapter.config.run.seed)
    sections = task.sections(folder, adapter.until, adapter.config)
    check_replaceable(folder / FOLDER, sections, target)
    known = earlier(folder, adapter.until, task)
    rewards = reward_curves(read_metrics(folder, adapter.until))
    outcomes = {"adapter": answered(adapter, task, "adapter")}
    if compare_base:
        with adapter.base_only():
            outcomes["base"] = answered(adapter, task, "base")
    adapter.close()
    now = rewarded(f"adapter, step {adapter.step}", outcomes["adapter"])
    past = known.test.setdefault(adapter.step, now)
    entries = compared(task, outcomes, adapter.step, known.test.get(0))
    api = task.references["api"].label.removesuffix(" alone")
    return Evaluated(folder, adapter.step, adapter.until, adapter.path, target, api, entries, outcomes,
                     task.corrector.failures, known.test, known.validation, rewards, sections,
                     notes(task, outcomes, adapter.step, past, now))


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


def answered(adapter: "TrainedAdapter", task: CorrectorTask, who: str) -> list[Outcome]:
    """The outcome of each test question, in order."""
    outcomes, problems = [], task.test
    with tqdm(total=len(problems), desc=who, unit="question", delay=1, leave=False, disable=None) as bar:
        for at in range(0, len(problems), AT_ONCE):
            some = problems[at : at + AT_ONCE]
            completions = adapter.complete(some)
            outcomes += task.corrector.judged([problem.data for problem in some], [c.text for c in completions],
                                              [c.truncated for c in completions])
            bar.update(len(some))
    return outcomes


def draw(found: Evaluated, folder: Path) -> None:
    """The pictures."""
    the = "the " if found.api.endswith(" API") else ""
    subtitle = f"Adapter on {Path(found.base).name}, behind {the}{found.api}"
    colours = plots.colours_of(plots.drawn_kinds(found.kinds))
    if any(found.rewards.get(kind) for kind in colours):
        plots.reward_plot(folder / "reward.png", found.rewards, colours, subtitle)
    others = {"API alone": found.entries["api"]}
    if len(colours) <= plots.FEW:
        others |= {entry.label.partition(",")[0]: entry for name, entry in found.entries.items()
                   if name not in ("api", "always_correct", "base", "adapter")}
    references = [(f"{who},\n{plots.with_value(kind, s.value, 1)}", kind, s.value) for who, entry in others.items()
                  for kind, s in entry.accuracy.items()
                  if s.of and (who == "API alone" or s.value < 1)]  # a line along the top says nothing
    plots.accuracy_plot(folder / "accuracy.png", *(dict(sorted(of.items())) for of in (found.measured, found.validation)),
                        found.step, references, colours, subtitle)
    for section in found.sections:
        if section.draw is not None:
            section.draw(folder / f"{section.name}.png", subtitle)


def check_replaceable(folder: Path, sections: list[Section], target: str) -> None:
    """Raises UserError where the folder holds what no evaluation wrote, or the task's sections cannot be written there."""
    try:
        pictures = {f"{name}.png" for name in report.check_names(sections)}
    except ValueError as error:
        raise UserError(f"task.target = {target}: {error}") from None
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else {"file"} if folder.exists() else set()
    if others := there - FILES - pictures:
        raise UserError(f"{folder}: holds what no evaluation wrote ({min(others)}); move it away, the report goes there")


def write(found: Evaluated, printed: str) -> Path:
    """Write RUN/evaluate, whole or not at all, in place of an earlier one. Returns it. Raises UserError where it cannot."""
    final = found.run / FOLDER
    texts = {"report.txt": printed, "report.json": json.dumps(report.data(found), indent=1, ensure_ascii=False) + "\n",
             "completions.jsonl": report.completion_lines(found.outcomes)}
    try:
        with tempfile.TemporaryDirectory(dir=found.run, prefix=f".{FOLDER}-") as place:
            new = Path(place) / "new"
            new.mkdir()
            for name, text in texts.items():  # half a surrogate pair, which no file holds, becomes JSON's escape for it
                (new / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            draw(found, new)
            if final.exists():
                shutil.move(final, Path(place) / "earlier")  # where an image holds it, no rename goes
            new.rename(final)
    except OSError as error:
        raise UserError(f"{final}: cannot be written ({error.strerror}); make room in the run's folder, or evaluate a "
                        "copy of it") from None
    return final


def main(arguments: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m adapter.evaluate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=at_home, metavar="RUN", help="a run directory that train.py wrote")
    parser.add_argument("--compare-base", action="store_true", help="let the base answer too, beside the adapter")
    options = parser.parse_args(arguments)
    found = evaluate(options.run, options.compare_base)
    printed = printable(report.text(found), keep="\n")  # report.txt too: it will be shown on one
    folder = write(found, printed)
    print(f"{printed}\nwritten to {folder}/")


if __name__ == "__main__":
    sys.exit(run(main))
