"""What the prompt gives away decides what there is to learn: the four conditions at laptop size. `make ablations`.

Trains configs/tiny/CONDITION.yaml into runs/ablations/CONDITION, one after another (a finished one not again), then
writes the table into README.md, between its marks, and docs/ablations.png.
"""

import json
import subprocess
import sys
from pathlib import Path

from adapter.measure.curves import Curve
from adapter.measure.plots import BLUE, GREEN, PURPLE, VERMILLION, curves_plot
from adapter.measure.records import read_metrics, reward_curves
from grpo.config import Config, load

ROOT = Path(__file__).parents[1]
RUNS, PICTURE, README = ROOT / "runs" / "ablations", ROOT / "docs" / "ablations.png", ROOT / "README.md"
MARKS = "<!-- ablations -->\n", "<!-- /ablations -->\n"
CONDITIONS = {  # in the source's order A to D: what the prompt tells, whether it offers CORRECT, what the source saw
    "explicit_no_correct": ("defined", "no", "no learning, reward flat near 0.5"),
    "none_no_correct": ("not mentioned", "no", "the same failure"),
    "explicit": ("defined", "yes", "reward 1.0 from step 1"),
    "vague": ("named", "yes", "learns: the sweet spot")}


def main() -> None:
    """Train what is not trained yet; write table and picture."""
    before, start, rest = README.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not start or not end:
        sys.exit(f"README.md: expected the lines {MARKS[0].strip()} and {MARKS[1].strip()}, between which the table goes")
    for name in CONDITIONS:
        wanted = load(ROOT / "configs" / "tiny" / f"{name}.yaml", [f"run.dir={RUNS / name}"])
        if not (RUNS / name / "adapter").is_dir() or load(RUNS / name / "config.yaml") != wanted:
            subprocess.run([sys.executable, "train.py", f"configs/tiny/{name}.yaml", f"run.dir={RUNS / name}"], cwd=ROOT,
                           check=True)
    config = load(RUNS / "vague" / "config.yaml")
    curves = {name: reward_curves(read_metrics(RUNS / name, config.run.steps))["custom"] for name in CONDITIONS}
    conditions_plot(PICTURE, curves, "Sampled completions, embedded base, behind the simulated API")
    README.write_text(before + MARKS[0] + section(config) + MARKS[1] + after, encoding="utf-8")
    print(section(config))


def conditions_plot(path: Path, curves: dict[str, Curve], subtitle: str) -> None:
    """Mean reward on custom symbols under the conditions, by name, in the order of CONDITIONS."""
    colours = (GREEN, PURPLE, VERMILLION, BLUE)
    lines = [(name.replace("_no_correct", ",\nno CORRECT"), curve, colour)
             for (name, curve), colour in zip(curves.items(), colours, strict=True)]
    curves_plot(path, "Reward on custom symbols, by condition", lines, subtitle)


def section(config: Config) -> str:
    """The part of README between the marks."""
    lines = ["| | symbols | CORRECT | sampled reward on custom, first and last 5 steps | greedy custom, before and after "
             "| greedy standard | *the source saw* |", "|---|---|---|---|---|---|---|"]
    for letter, (name, (symbols, correct, source)) in zip("ABCD", CONDITIONS.items(), strict=True):
        rewards = list(reward_curves(read_metrics(RUNS / name, config.run.steps))["custom"].values())
        first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
        found = json.loads((RUNS / name / "evaluation.json").read_text(encoding="utf-8"))
        lines.append(f"| {letter} | {symbols} | {correct} | {first:.2f}, {last:.2f} | {greedy(found, 'custom')} "
                     f"| {greedy(found, 'standard')} | *{source}* |")
    made = f"`make ablations`: {config.run.steps} steps each, seed {config.run.seed}, the same 400 test expressions."
    return "\n".join([*lines, "", "![Reward on custom symbols under the four conditions](docs/ablations.png)", "", made, ""])


def greedy(found: dict, kind: str) -> str:
    """Accuracy on the test expressions before GRPO and of the LoRA that was kept. found: evaluation.json."""
    steps = found["steps"]
    kept = next(row for row in steps if row["step"] == found.get("kept", steps[-1]["step"]))
    return f"{100 * steps[0][kind]:.1f}, {100 * kept[kind]:.1f} %"


if __name__ == "__main__":
    main()
