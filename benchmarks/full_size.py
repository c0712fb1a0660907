"""The source's experiment at its full size, beside ours: `python -m benchmarks.full_size RUN [--conditions FOLDER] ...`.

RUN is a run of configs/full.yaml that `python -m adapter.evaluate RUN --compare-base` has evaluated; FOLDER holds the four
conditions, run on one shape, as full-CONDITION; `--also RUN NAME HOW` adds another run, evaluated or not. What they hold
becomes benchmarks/results/full.json and four pictures beside it, and what of it is text is written into
benchmarks/full_size.md, between its marks.
"""

import argparse
import json
import shutil
import statistics
import sys
from itertools import pairwise
from pathlib import Path

from adapter.measure.accuracy import share
from adapter.measure.records import read_metrics, reward_curves
from benchmarks.ablations import CONDITIONS, conditions_plot
from grpo.config import load
from grpo.types import UserError

ROOT = Path(__file__).parents[1]
KINDS = ("custom", "standard", "overall")
PAGE, RESULTS = ROOT / "benchmarks" / "full_size.md", ROOT / "benchmarks" / "results"
MARKS = "<!-- full size -->\n", "<!-- /full size -->\n"
SOURCE = {"Claude Haiku alone": (0.0, 75.5, 37.8), "Qwen3-8B, step 500": (21.5, 97.5, 59.5),
          "Qwen3-8B, step 1000": (84.0, 97.5, 90.8)}
PICTURES = {"reward.png": "full_reward.png", "accuracy.png": "full_accuracy.png", "symbols.png": "full_symbols.png"}
REPORT = Path("evaluate") / "report.json"
TIMES = ("step", "rollout", "train", "sync", "record")
AT_EACH_END = 5  # steps whose reward is averaged


def collect(
    run: Path, conditions: Path | None, machine: str, resumed: list[int], others: list[tuple[str, str, str]]
) -> dict[str, object]:
    """What full.json holds. Raises UserError where the run has not been evaluated."""
    if not (run / REPORT).is_file():
        raise UserError(f"{run}: is not evaluated; run `python -m adapter.evaluate {run} --compare-base` first")
    found, lines = json.loads((run / REPORT).read_text(encoding="utf-8")), metrics(run)
    return {
        "command": "python train.py configs/full.yaml", "machine": machine, "resumed_after": resumed,
        "accuracy": {"api": {k: interval(s["hits"], s["of"]) for k, s in found["policies"]["api"]["accuracy"].items()}}
        | measured(found),
        "against_api": found["policies"]["adapter"]["against_api"]["overall"],
        "failures": {who: {name: f["count"] for name, f in failures.items()} for who, failures in found["failures"].items()},
        "examples": [e for f in found["failures"]["adapter"].values() for e in f["examples"]],
        "symbols": {sign: {"operation": s["operation"], "first_step": s["first_step"]}
                    for sign, s in found["symbols"]["learned"].items()},
        "curves": {name: curve(lines, name) for name in ("custom", "standard")},
        "seconds": seconds(lines),
        "tokens": [round(line["completion/mean_tokens"], 2) for line in lines],
        "parity": statistics.median(gap for line in lines if (gap := line["parity/logp_mean_abs_diff"]) is not None),
        "peak_gib": max(line["memory/peak_gib"] for line in lines),
        "conditions": {name: condition(conditions / f"full-{name}") for name in CONDITIONS
                       if conditions and (conditions / f"full-{name}").is_dir()},
        "also": {name: other_run(Path(folder), how) for folder, name, how in others}}


def other_run(run: Path, how: str) -> dict[str, object]:
    """Another run of this size."""
    lines, report = metrics(run), run / REPORT
    return {"how": how, "accuracy": measured(json.loads(report.read_text(encoding="utf-8"))) if report.is_file() else {},
            "custom": curve(lines, "custom"), "seconds": seconds(lines)}


def measured(report: dict) -> dict[str, dict]:
    """The accuracy at each evaluated step, with intervals."""
    of = {kind: report["policies"]["adapter"]["accuracy"][kind]["of"] for kind in KINDS}
    return {step: {kind: interval(value * of[kind], of[kind]) for kind, value in table.items()}
            for step, table in report["accuracy_by_step"].items()}


def curve(lines: list[dict], kind: str) -> list[float | None]:
    """The mean reward of each step's completions."""
    return [None if line.get(f"reward/{kind}") is None else round(line[f"reward/{kind}"], 4) for line in lines]


def seconds(lines: list[dict]) -> list[list[float]]:
    """TIMES x steps."""
    return [[round(line[f"time/{name}_s"], 3) for line in lines] for name in TIMES]


def condition(run: Path) -> dict[str, object]:
    """One of the four conditions, on one shape: its rewards on custom symbols, and its own evaluations."""
    steps = load(run / "config.yaml").run.steps
    rewards = reward_curves(read_metrics(run, steps))["custom"].values()
    measured = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["steps"]
    return {"rewards": [round(r, 4) for r in rewards], "evaluations": measured}


def metrics(run: Path) -> list[dict]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def interval(hits: float, of: int) -> dict[str, float | int | None]:
    """A share, with its 95 % Wilson interval."""
    s = share(round(hits), of)
    return {"hits": s.hits, "of": s.of, "value": s.value, "low": round(s.low, 4), "high": round(s.high, 4)}


def section(record: dict) -> str:
    """The page's part between the marks."""
    steps = [step for step in record["accuracy"] if step != "api"]
    rows = [["*source:* " + name, *(f"*{value:.1f} %*" for value in values)] for name, values in SOURCE.items()]
    rows += [[name, *(shown(record["accuracy"][step][kind]) for kind in KINDS)] for name, step in
             [("simulated API alone", "api"), *((f"here, step {step}", step) for step in chosen(steps))]]
    rows += [[f"{name}, step {step}", *(shown(run["accuracy"][step][kind]) for kind in KINDS)]
             for name, run in record["also"].items() for step in chosen(list(run["accuracy"])) if step != "0"]
    learned = "; ".join(f"{sign} ({s['operation']}) {at(s['first_step'])}" for sign, s in record["symbols"].items())
    failed = {who: ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "none"
              for who, counts in record["failures"].items()}
    return "\n".join([
        table(["", *KINDS], rows), "",
        f"Greedy, 400 held-out expressions, 95 % Wilson intervals. {record['machine']}; `{record['command']}`, then "
        f"`--resume` after steps {' and '.join(map(str, record['resumed_after']))}.", "",
        *(f"Failures of the {who}: {text}." for who, text in failed.items()),
        f"Read right in 50 % and 90 % of completions (mean of five steps): {learned}.", "",
        table(["seconds a step (median, first step of each part left out)", *TIMES, "within 1.5"], [
            [name, *(f"{statistics.median(values[first:last]):.2f}" for values in taken),
             f"{100 * statistics.mean(s <= 1.5 for s in taken[0][first:last]):.0f} %"]
            for name, taken, first, last in parts(record)]), "",
        *(f"- *{name}*: {run['how']}" for name, run in record["also"].items()), "",
        f"At most {record['peak_gib']:.1f} GiB of the GPU; {statistics.median(record['tokens']):.0f} tokens a completion; "
        f"log-probs of vLLM and trainer {record['parity']:.4f} nats apart.", "", *conditions_table(record), ""])


def conditions_table(record: dict) -> list[str]:
    """The four conditions, in the source's order."""
    rows = []
    for letter, (name, (symbols, correct, source)) in zip("ABCD", CONDITIONS.items(), strict=True):
        if name not in record["conditions"]:
            continue
        ends = [record["conditions"][name]["evaluations"][place] for place in (0, -1)]
        rewards = record["conditions"][name]["rewards"]
        first, last = (statistics.mean(part) for part in (rewards[:AT_EACH_END], rewards[-AT_EACH_END:]))
        rows.append([letter, symbols, correct, str(len(rewards)), f"{first:.2f}, {last:.2f}",
                     *(f"{100 * ends[0][kind]:.1f}, {100 * ends[1][kind]:.1f} %" for kind in ("custom", "standard")),
                     f"*{source}*"])
    return [table(["", "symbols", "CORRECT", "steps with custom prompts", "sampled reward on custom, first and last 5",
                   "greedy custom, before and after", "greedy standard", "*the source saw*"], rows)]


def parts(record: dict) -> list[tuple[str, list[list[float]], int, int]]:
    """The runs, cut where they were resumed and where the shortest ends: a name, seconds, first and last place."""
    runs = {"": record["seconds"]} | {f"{name}, ": run["seconds"] for name, run in record["also"].items()}
    shortest, found = min(len(taken[0]) for taken in runs.values()), []
    for name, taken in runs.items():
        bounds = sorted({0, *([] if name else record["resumed_after"]), shortest, len(taken[0])})
        found += [(f"{name}steps {first + 1} to {last}", taken, first + 1, last) for first, last in pairwise(bounds)]
    return found


def chosen(steps: list[str]) -> list[str]:
    """Step 0, every hundredth, and the last."""
    return [step for step in steps if int(step) % 100 == 0 or step == steps[-1]]


def shown(s: dict) -> str:
    """A share and its interval."""
    return f"{100 * s['value']:.1f} % [{100 * s['low']:.1f}, {100 * s['high']:.1f}]"


def at(first_step: dict[str, int | None]) -> str:
    """When levels were reached."""
    return " and ".join("not yet" if step is None else f"step {step}" for step in first_step.values())


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def main(words: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--conditions", type=Path, help="the folder of the four conditions' runs")
    parser.add_argument("--machine", default="", help="where it ran, in words")
    parser.add_argument("--also", nargs=3, action="append", default=[], metavar=("RUN", "NAME", "HOW"),
                        help="another run, what to call it, and how it was made")
    parser.add_argument("--resumed", type=int, nargs="*", default=[], help="after which steps the run was resumed")
    args = parser.parse_args(words)
    try:
        record = collect(args.run, args.conditions, args.machine, args.resumed, args.also)
    except UserError as error:
        sys.exit(f"error: {error}")
    (RESULTS / "full.json").write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    for theirs, ours in PICTURES.items():
        shutil.copy(args.run / "evaluate" / theirs, RESULTS / ours)
    if len(record["conditions"]) == len(CONDITIONS):
        curves = {name: dict(enumerate(record["conditions"][name]["rewards"], 1)) for name in CONDITIONS}
        conditions_plot(RESULTS / "full_conditions.png", curves, "Sampled completions, full size, behind the simulated API")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    PAGE.write_text(before + MARKS[0] + section(record) + MARKS[1] + rest.partition(MARKS[1])[2], encoding="utf-8")
    print(section(record))


if __name__ == "__main__":
    main(sys.argv[1:])
