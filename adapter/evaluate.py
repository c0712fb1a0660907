"""How good a run's adapter is, and what it learned when.

    python -m adapter.evaluate runs/tiny
    python -m adapter.evaluate runs/tiny --compare-base        the base answers too, LoRA off

prints the tables below, and writes them to RUN/evaluate/, where an earlier evaluation is replaced:

    report.txt   report.json   completions.jsonl      the tables; the same as data; each test problem and its completion
    reward.png   accuracy.png   symbols.png           for a slide

A finished run is evaluated with the LoRA it kept (eval.keep), an unfinished one with its best so far; the first line says of
which step. The API's answers are those it gave for the run. Accuracy is greedy, on the test problems.

    always CORRECT     lets every answer of the API stand
    random mapping     reads each symbol as any of the four operations, all equally likely: the expected accuracy
    fix rate           of the API's wrong answers, those that end right; harm rate, of its right ones, those that end wrong
    precision, recall  of CORRECT: P(API right | said CORRECT) and P(said CORRECT | API right)
    McNemar p          exact, two-sided, against the API alone

    truncated          a failure is of the first class that applies, in this order: cut off, with no answer;
    wrong symbol       states a false reading, such as `γ = +`;
    unparsed           holds no answer;
    echo               the API's wrong answer;
    wrong symbol       the exact value under another reading of the symbols;
    arithmetic slip    the rest

    learned            when completions read the symbol right; where they state no readings, when problems with that symbol
                       alone are rewarded
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from adapter.commands import run
from adapter.measure import plots, report
from adapter.measure.accuracy import Entry, api_alone, chain, random_mapping, recorded
from adapter.measure.records import read_evaluation, read_metrics
from adapter.measure.report import Evaluated
from grpo.run.files import at_home, printable
from grpo.types import UserError
from symbols.failures import Outcome, judge
from symbols.learning import read_learning
from symbols.simulated import SimulatedUpstream
from symbols.task import SymbolTask

if TYPE_CHECKING:
    from adapter.trained import TrainedAdapter

FOLDER = "evaluate"
FILES = {"report.txt", "report.json", "completions.jsonl", "reward.png", "accuracy.png", "symbols.png"}
AT_ONCE = 128  # problems between two moves of the progress bar


def evaluate(folder: Path, compare_base: bool) -> Evaluated:
    """Read the run, check what it recorded, and let its adapter answer the test problems. Raises UserError."""
    from adapter.trained import TrainedAdapter

    check_replaceable(folder / FOLDER)
    adapter = TrainedAdapter(folder)
    task = SymbolTask(adapter.settings.model_copy(update={"api_yes": False}), adapter.config.run.seed)
    measured, validation = earlier(folder, adapter.until, task)
    metrics = read_metrics(folder, adapter.until)
    rollout = adapter.config.rollout
    learning = read_learning(folder, adapter.until, rollout.prompts_per_step * rollout.group_size, task.notation)
    outcomes = {"adapter": answered(adapter, task, "adapter")}
    if compare_base:
        with adapter.base_only():
            outcomes["base"] = answered(adapter, task, "base")
    adapter.close()
    entries = compared(task, outcomes, adapter.step, measured.get(0))
    notes = ["always CORRECT is the API alone" if task.prompt.may_agree else
             "this condition does not offer CORRECT: always CORRECT gives no answer"]
    past = measured.setdefault(adapter.step, entries["adapter"])
    if past.accuracy != entries["adapter"].accuracy:
        notes.append(f"the run itself measured other accuracies at step {adapter.step}: "
                     + ", ".join(f"{kind} {100 * s.value:.1f} %" for kind, s in past.accuracy.items() if s.of))
    return Evaluated(folder, adapter.step, adapter.until, adapter.path, task, entries, outcomes, measured, validation,
                     metrics, learning, notes)


def earlier(folder: Path, until: int, task: SymbolTask) -> tuple[dict[int, Entry], dict[int, Entry]]:
    """The run's own evaluations up to a step, by step: on the test and on the validation problems.

    Raises UserError where they are not of the task's problems.
    """
    found = read_evaluation(folder, until, task.references["api"].accuracy)
    splits = [] if found is None else [("test", task.test, found.steps), ("validation", task.validation, found.validation)]
    entries: dict[str, dict[int, Entry]] = {"test": {}, "validation": {}}
    for split, problems, measured in splits:
        rows = [problem.data for problem in problems]
        for past in measured:
            try:
                entries[split][past.step] = recorded("base" if past.step == 0 else "adapter", past.table(), rows)
            except ValueError as error:
                raise UserError(f"{folder / 'evaluation.json'}: {split}, step {past.step}: {error}; restore the data the "
                                "run used, or delete the file to go on without it") from None
    return entries["test"], entries["validation"]


def compared(task: SymbolTask, outcomes: dict[str, list[Outcome]], step: int, base: Entry | None) -> dict[str, Entry]:
    """The rows of the tables. base: the base as the run measured it, for where it was not asked."""
    rows = [problem.data for problem in task.test]
    always = [judge(row, r"\boxed{CORRECT}", False, task.prompt) for row in rows]
    entries = {"api": api_alone(task.references["api"].label, rows), "always_correct": chain("always CORRECT", always),
               "random_mapping": random_mapping("random mapping, expected", rows, task.notation)}
    if "base" in outcomes:
        entries["base"] = chain("base", outcomes["base"])
    elif base is not None:
        entries["base"] = base
    return entries | {"adapter": chain(f"adapter, step {step}", outcomes["adapter"])}


def answered(adapter: "TrainedAdapter", task: SymbolTask, who: str) -> list[Outcome]:
    """The outcome of each test problem, in order."""
    outcomes, problems = [], task.test
    with tqdm(total=len(problems), desc=who, unit="problem", delay=1, leave=False, disable=None) as bar:
        for at in range(0, len(problems), AT_ONCE):
            some = problems[at : at + AT_ONCE]
            outcomes += [judge(problem.data, completion.text, completion.truncated, task.prompt)
                         for problem, completion in zip(some, adapter.complete(some), strict=True)]
            bar.update(len(some))
    return outcomes


def draw(found: Evaluated, folder: Path) -> None:
    """The pictures."""
    the = "the " if found.api == SimulatedUpstream.label else ""
    subtitle = f"Adapter on {Path(found.base).name}, behind {the}{found.api}"
    rewards = {kind: {line.step: value for line in found.metrics if (value := getattr(line, kind)) is not None}
               for kind in ("standard", "custom")}
    if found.metrics:
        plots.reward_plot(folder / "reward.png", rewards, subtitle)
    references = [(f"API alone,\n{kind} {100 * s.value:.1f} %", kind, s.value)
                  for kind, s in found.entries["api"].accuracy.items() if s.of and kind != "overall"]
    guess = found.entries["random_mapping"].accuracy["custom"]
    if guess.of:
        references.append((f"random mapping,\ncustom {100 * guess.value:.1f} %", "custom", guess.value))
    plots.accuracy_plot(folder / "accuracy.png", *(dict(sorted(of.items())) for of in (found.measured, found.validation)),
                        found.step, references, subtitle)
    if found.learning.steps:
        plots.symbols_plot(folder / "symbols.png", found.learning, found.task.notation, subtitle)


def check_replaceable(folder: Path) -> None:
    """Raises UserError where the folder holds what no evaluation wrote."""
    others = {path.name for path in folder.iterdir()} - FILES if folder.is_dir() else {"file"} if folder.exists() else set()
    if others:
        raise UserError(f"{folder}: holds what no evaluation wrote ({min(others)}); move it away, the report goes there")


def write(found: Evaluated, printed: str) -> Path:
    """Write RUN/evaluate, whole or not at all, in place of an earlier one. Returns it. Raises UserError where it cannot."""
    final = found.run / FOLDER
    try:
        with tempfile.TemporaryDirectory(dir=found.run, prefix=f".{FOLDER}-") as place:
            new = Path(place) / "new"
            new.mkdir()
            (new / "report.txt").write_text(printed, encoding="utf-8")
            (new / "report.json").write_text(json.dumps(report.data(found), indent=1, ensure_ascii=False) + "\n",
                                             encoding="utf-8")
            (new / "completions.jsonl").write_text(report.completion_lines(found.outcomes), encoding="utf-8")
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
