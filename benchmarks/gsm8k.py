"""Can a small adapter tell a large model's right answers from its wrong ones? Recorded answers to GSM8K: docs/evidence.md.

    python -m benchmarks.gsm8k make example_model_solutions.jsonl data/gsm8k    the file of openai/grade-school-math
    python train.py benchmarks/gsm8k.yaml
    python -m benchmarks.rivals sft benchmarks/gsm8k.yaml --out runs/gsm8k-sft
    python -m adapter.evaluate runs/gsm8k                                       and of runs/gsm8k-sft
    python -m benchmarks.gsm8k report runs/gsm8k runs/gsm8k-sft [--out FILE]

Four models answered 1,319 problems. A question shows a problem and one of its answers; what is claimed of each, in the API's
place, is that it is right. The adapter says CORRECT, or \\boxed{wrong}. All answers to a problem are in one split.

The report orders the test answers by the probability that they are right, P(CORRECT) or 1 - P(wrong) of the greedy box, and
by their length, shorter first. AURC: mean share of wrong answers among the first 1, 2, ...; AUROC: P(a right one comes
before a wrong one). Intervals: 95 %, bootstrap over problems.
"""

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from adapter.commands import run
from adapter.measure.calibration import risk_coverage
from benchmarks.record import report as write_json
from grpo.run.files import at_home
from grpo.types import UserError

SHARES = {"train": 0.6, "validation": 0.1, "test": 0.3}
CLAIM = "right"  # what the API's place says of every answer
RESAMPLES = 2000


def make(source: Path, folder: Path) -> dict[str, int]:
    """Write train.jsonl, validation.jsonl and test.jsonl. Returns how many rows each has. Raises UserError."""
    rows: dict[str, list[dict]] = {name: [] for name in SHARES}
    try:
        problems = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        for number, problem in enumerate(problems):
            split = _split(problem["question"])
            for model, answer in problem.items():
                if model in ("question", "ground_truth"):
                    continue
                shown = re.sub(r"<<.*?>>", "", answer["solution"]).strip()
                rows[split].append({
                    "question": f"{problem['question'].strip()}\n\nAnswer: {shown}", "api_answer": CLAIM,
                    "answer": CLAIM if answer["is_correct"] else "wrong", "kind": model, "id": f"{number} {model}"})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{source}: no recorded answers ({error!r:.100}); give example_model_solutions.jsonl of "
                        "openai/grade-school-math") from None
    folder.mkdir(parents=True, exist_ok=True)
    for split, some in rows.items():
        alike = {row["question"]: row for row in some}.values()  # two models may have written the same
        rows[split] = list(alike)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alike), encoding="utf-8")
    return {split: len(some) for split, some in rows.items()}


def _split(question: str) -> str:
    """Of a problem, by its hash."""
    place = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") / 2**64
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    return "test"


def p_right(line: dict) -> float:
    """That an answer is right, by the adapter: of a line of completions.jsonl. One half where it says neither."""
    p = math.prod(probability for _, probability in line["box"] or [])
    return p if line["verdict"] == "correct" else 1 - p if line["final"] == "wrong" else 0.5


def scores(lines: Sequence[dict]) -> dict[str, np.ndarray]:
    """By each way to order them, larger first."""
    return {"adapter": np.array([p_right(line) for line in lines]),
            "length": -np.array([len(line["question"].partition("\n\nAnswer: ")[2]) for line in lines])}


def aurc(score: np.ndarray, right: np.ndarray) -> float:
    """Area under the risk-coverage curve."""
    return float(np.mean(risk_coverage(score.tolist(), right.tolist())))


def auroc(score: np.ndarray, right: np.ndarray) -> float:
    """P(a right answer has the larger score), ties count half."""
    ranks, count = rankdata(score), int(right.sum())
    return float((ranks[right].sum() - count * (count + 1) / 2) / (count * (len(right) - count)))


def measured(lines: Sequence[dict], resamples: int = RESAMPLES) -> dict:
    """AURC and AUROC of both orders, what the adapter gains over length, and each model's own AUROC."""
    right = np.array([line["answer"] == CLAIM for line in lines])
    by, problems = scores(lines), np.array([int(line["id"].split()[0]) for line in lines])
    members = [np.flatnonzero(problems == one) for one in np.unique(problems)]
    generator = np.random.default_rng(0)
    drawn = [np.concatenate([members[m] for m in generator.integers(len(members), size=len(members))])
             for _ in range(resamples)]

    def interval(value: Callable[[np.ndarray], float]) -> dict[str, float]:
        low, high = np.quantile([value(some) for some in drawn], [0.025, 0.975])
        return {"value": round(value(np.arange(len(lines))), 4), "low": round(low, 4), "high": round(high, 4)}

    found = {"answers": len(lines), "right": round(float(right.mean()), 4)}
    for name, of in (("aurc", aurc), ("auroc", auroc)):
        found[name] = {who: interval(lambda some, of=of, who=who: of(by[who][some], right[some])) for who in by}
        found[name]["gain"] = interval(
            lambda some, of=of: of(by["adapter"][some], right[some]) - of(by["length"][some], right[some]))
    models = np.array([line["kind"] for line in lines])
    found["auroc_by_model"] = {str(model): {who: round(auroc(score[models == model], right[models == model]), 4)
                                            for who, score in by.items()} for model in np.unique(models)}
    return found


def main(arguments: list[str]) -> None:
    """The commands."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gsm8k", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    making = parts.add_parser("make")
    making.add_argument("source", type=at_home)
    making.add_argument("folder", type=at_home)
    reporting = parts.add_parser("report")
    reporting.add_argument("runs", nargs="+", type=at_home)
    reporting.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.part == "make":
        print(", ".join(f"{split}: {count} answers" for split, count in make(options.source, options.folder).items()))
        return
    found = {}
    for folder in options.runs:
        path = folder / "evaluate" / "completions.jsonl"
        if not path.is_file():
            raise UserError(f"{path}: is missing; python -m adapter.evaluate {folder} writes it")
        found[folder.name] = measured([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    write_json(found, options.out)


if __name__ == "__main__":
    sys.exit(run(main))
