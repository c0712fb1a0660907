"""Runs of one config that differ in their seed: a JSON file, a table and a plot.

    python train.py configs/smollm2.yaml run.seed=S run.dir=runs/smollm2_S        # for S = 1, 2, 3
    python -m benchmarks.seeds runs/smollm2_1 runs/smollm2_2 runs/smollm2_3 --out benchmarks/results/smollm2.json
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from grpo.config import load
from grpo.run.files import write_text

COLOURS = "#0072b2", "#d55e00", "#009e73", "#cc79a7"


def read(run: Path) -> dict[str, Any]:
    """What a finished run recorded."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {"seed": load(run / "config.yaml").run.seed, "rewards": [round(line["reward/mean"], 4) for line in lines],
            "step_s": [round(line["time/step_s"], 3) for line in lines],
            "parity": [line["parity/logp_mean_abs_diff"] for line in lines],
            "evaluation": json.loads((run / "evaluation.json").read_text(encoding="utf-8"))}


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: greedy accuracy on the test problems, of the API, the base and the LoRA that was kept."""
    kinds = list(runs[0]["evaluation"]["api"])
    lines = [f"| seed | policy | {' | '.join(kinds)} |", "|---" * (2 + len(kinds)) + "|"]
    for run in runs:
        found = run["evaluation"]
        steps = {row["step"]: row for row in found["steps"]}
        for name, row in (("API alone", found["api"]), ("base", steps[0]), (f"step {found['kept']}", steps[found["kept"]])):
            lines.append(f"| {run['seed']} | {name} | " + " | ".join(f"{100 * row[kind]:.1f} %" for kind in kinds) + " |")
    return "\n".join(lines)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Sampled reward, mean of 5 steps, and greedy accuracy on the validation problems; a star where the LoRA was kept."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for run, colour in zip(runs, COLOURS, strict=False):
        rewards, found, name = run["rewards"], run["evaluation"], f"seed {run['seed']}"
        smooth = [statistics.fmean(rewards[max(0, i - 4) : i + 1]) for i in range(len(rewards))]
        left.plot(range(1, len(smooth) + 1), smooth, color=colour, label=name)
        rows = [(row["step"], row["overall"]) for row in found["validation"]]
        right.plot(*zip(*rows, strict=True), color=colour, marker="o", markersize=3, label=name)
        right.plot(*next(row for row in rows if row[0] == found["kept"]), color=colour, marker="*", markersize=12)
    left.set(title="sampled reward, mean of 5 steps", xlabel="step", ylim=(0, 1))
    right.set(title="greedy accuracy on validation; star: kept", xlabel="step")
    right.legend(frameon=False, loc="lower right")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def main(words: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--machine", default="", help="what they ran on, in words")
    args = parser.parse_args(words)
    runs = [read(run) for run in args.runs]
    write_text(args.out, json.dumps({"machine": args.machine, "runs": runs}) + "\n")
    draw(runs, args.out.with_suffix(".png"))
    print(table(runs))
    print("median s a step:", *[statistics.median(run["step_s"]) for run in runs])


if __name__ == "__main__":
    main(sys.argv[1:])
