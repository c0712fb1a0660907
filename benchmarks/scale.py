"""What more GPUs bring: the same step on 1 of them, then on 2, ...

    python -m benchmarks.scale --model DIR --out FILE [--ranks 1 2] [what benchmarks/our_step.py takes]

Each number of ranks is a torchrun of its own. FILE gets what every step took, beside what it holds of other numbers of them;
a table of medians over the steps after the first is printed. `wait` and `allreduce` are parts of the others.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.record import report

PHASES = ("step_s", "rollout_s", "train_s", "wait_s", "allreduce_s")


def measure(ranks: int, words: list[str]) -> dict:
    """One number of ranks. Raises CalledProcessError where it fails.

    torchrun gives each of several one OpenMP thread, and one alone as many as there are cores: here all have one.
    """
    threads = {"OMP_NUM_THREADS": "1"} | os.environ
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "step.json"
        subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
                        "-m", "benchmarks.our_step", "--out", str(out), *words], check=True, env=threads)
        return json.loads(out.read_text(encoding="utf-8"))


def table(found: dict[str, dict]) -> str:
    """Markdown: seconds, and how many times the steps of the fewest ranks."""
    rows, first = [], None
    for ranks, record in found.items():
        seconds = {phase: statistics.median(step.get(phase, 0.0) for step in record["steps"][1:] or record["steps"])
                   for phase in PHASES}
        first = first or seconds["step_s"]
        rows.append(f"| {ranks} | " + " | ".join(f"{value:.3f}" for value in seconds.values())
                    + f" | {1 / seconds['step_s']:.3f} | {first / seconds['step_s']:.2f} |")
    names = " | ".join(phase.removesuffix("_s") for phase in PHASES)
    return "\n".join([f"| ranks | {names} | steps/s | times |", "|---" * (len(PHASES) + 3) + "|", *rows])


def main(words: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, required=True)
    args, rest = parser.parse_known_args(words)
    found = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    for ranks in args.ranks:
        found[str(ranks)] = measure(ranks, rest)
        report(found, args.out)
    print(table(found))


if __name__ == "__main__":
    main(sys.argv[1:])
