"""Learning rate and rank: what each pair reaches in the same few steps. A JSON file, a table and a plot.

    python -m benchmarks.lr_rank configs/smollm2.yaml --out benchmarks/results/lr_rank_smollm2.json run.steps=80
    python -m benchmarks.lr_rank configs/full.yaml --out benchmarks/results/lr_rank_full.json --kind custom run.steps=80

Runs `train.py CONFIG optim.lr=LR lora.rank=R lora.alpha=2R` for each, --at-once of them beside each other. A run that has
ended before is not run again; --out is written anew after each. --draw only makes table and plot of what is there.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from grpo.config import load
from grpo.run.files import write_text

LRS, RANKS = (5e-6, 2e-5, 1e-4, 4e-4), (1, 8, 32)
LAST = 10  # steps: sampled reward is the mean over so many at the end
COLOURS = {1: "#0072b2", 8: "#d55e00", 32: "#009e73"}


def run(config: str, overrides: list[str], folder: Path, lr: float, rank: int, limit: float) -> dict[str, Any]:
    """Train, and read what the run recorded. A run that failed or took too long says so in `error`."""
    words = ["train.py", config, f"run.dir={folder}", f"optim.lr={lr}", f"lora.rank={rank}", f"lora.alpha={2 * rank}",
             *overrides]
    record: dict[str, Any] = {"lr": lr, "rank": rank, "command": "python " + " ".join(words).replace(str(folder), "RUN")}
    wanted = load(config, words[2:])
    if not (folder / "adapter").is_dir() or load(folder / "config.yaml") != wanted:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):  # a start can fail as another run gives memory back while vLLM measures what is free
            with folder.with_name(f"{folder.name}.log").open("w", encoding="utf-8") as log:
                try:
                    code = subprocess.run([sys.executable, *words], stdout=log, stderr=log, timeout=limit).returncode
                except subprocess.TimeoutExpired:
                    code = "time is up"
            if not code or (folder / "metrics.jsonl").is_file():
                break
        if code:
            printed = Path(log.name).read_text(errors="replace", encoding="utf-8").splitlines()
            said = [line for line in printed if line.startswith(("error:", "stopped:"))]
            record["error"] = f"{code}: {said[-1] if said else 'see its log'}"
    metrics = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.is_file() else []
    record["rewards"] = {kind.removeprefix("reward/"): [round(line[kind], 4) for line in lines if line.get(kind) is not None]
                         for kind in sorted({key for line in lines for key in line if key.startswith("reward/")})}
    record["step_s"] = [round(line["time/step_s"], 3) for line in lines]
    evaluation = folder / "evaluation.json"
    return record | {"evaluation": json.loads(evaluation.read_text(encoding="utf-8")) if evaluation.is_file() else None}


def reached(record: dict[str, Any], kind: str) -> tuple[float | None, float | None]:
    """Sampled reward over the last LAST steps, and greedy test accuracy of the LoRA that was kept."""
    rewards = record["rewards"].get("mean" if kind == "overall" else kind, [])[-LAST:]
    found = record["evaluation"] or {}
    kept = [row[kind] for row in found.get("steps", []) if "kept" in found and row["step"] == found["kept"]]
    return sum(rewards) / len(rewards) if rewards else None, kept[0] if kept else None


def table(found: dict[str, Any]) -> str:
    """Markdown: a row a learning rate, a column a rank."""
    kind, runs = found["kind"], {(r["lr"], r["rank"]): reached(r, found["kind"]) for r in found["runs"]}
    lines = [f"| lr | {' | '.join(f'rank {rank}' for rank in RANKS)} |", "|---" * (1 + len(RANKS)) + "|"]
    for lr in LRS:
        cells = [runs.get((lr, rank), (None, None)) for rank in RANKS]
        lines.append(f"| {lr:.0e} | " + " | ".join(
            f"{'-' if reward is None else f'{reward:.2f}'}, {'-' if right is None else f'{100 * right:.1f} %'}"
            for reward, right in cells) + " |")
    said = f"Sampled reward ({kind}) over the last {LAST} steps, and greedy test accuracy of the LoRA that was kept."
    return "\n".join([*lines, "", said])


def draw(found: dict[str, Any], path: Path) -> None:
    """One panel a learning rate: sampled reward by step, a line a rank."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    key = "mean" if found["kind"] == "overall" else found["kind"]
    figure, axes = pyplot.subplots(1, len(LRS), figsize=(12, 3.2), sharey=True, layout="constrained")
    for axis, lr in zip(axes, LRS, strict=True):
        for record in sorted((r for r in found["runs"] if r["lr"] == lr), key=lambda r: r["rank"]):
            rewards = record["rewards"].get(key, [])
            smooth = [sum(rewards[max(0, i - 4) : i + 1]) / len(rewards[max(0, i - 4) : i + 1]) for i in range(len(rewards))]
            axis.plot(range(1, len(smooth) + 1), smooth, color=COLOURS[record["rank"]], label=f"rank {record['rank']}")
        axis.set(title=f"lr {lr:.0e}", xlabel="step", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("sampled reward")
    axes[0].legend(frameon=False, loc="upper left")
    figure.suptitle(f"{found['config']}, {found['device']}, one seed; reward of {found['kind']} problems, mean of 5 steps",
                    fontsize=10)
    figure.savefig(path, dpi=100)


def main(words: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lr_rank", description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, help="where the runs go (default: runs/lr_rank/CONFIG)")
    parser.add_argument("--kind", default="overall", help="the kind of problem that is reported")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--apart", type=float, default=20, help="seconds between two starts on one GPU")
    parser.add_argument("--limit", type=float, default=3600, help="seconds of a run")
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args = parser.parse_intermixed_args(words)
    runs = args.runs or Path("runs/lr_rank") / Path(args.config).stem
    if not args.draw:
        import torch

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        found: dict[str, Any] = {"config": args.config, "kind": args.kind, "device": device, "at_once": args.at_once,
                                 "runs": []}

        writing = threading.Lock()

        def one(place: int, lr: float, rank: int) -> None:
            time.sleep(args.apart * place if place < args.at_once else 0)
            record = run(args.config, args.overrides, runs / f"lr{lr:g}_rank{rank}", lr, rank, args.limit)
            with writing:
                found["runs"].append(record)
                write_text(args.out, json.dumps(found) + "\n")
            print(lr, rank, reached(record, args.kind), record.get("error", ""), flush=True)

        with ThreadPoolExecutor(args.at_once) as pool:
            list(pool.map(lambda job: one(job[0], *job[1]), enumerate(product(reversed(LRS), RANKS))))
    found = json.loads(args.out.read_text(encoding="utf-8"))
    draw(found, args.out.with_suffix(".png"))
    print(table(found))


if __name__ == "__main__":
    main(sys.argv[1:])
