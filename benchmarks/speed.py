"""A step here against a step of TRL, on one machine and in one run: JSON, a table, and plots of what lengths cost.

    python -m benchmarks.speed --model DIR --out FOLDER                 # a GPU: a quarter of an hour
    python -m benchmarks.speed --model models/tiny --out FOLDER         # a CPU: minutes, on a small workload
    python -m benchmarks.speed --model DIR --out FOLDER --parts ours trl_default

Each part is a process of its own (benchmarks/our_step.py, trl_step.py, pass_cost.py) and leaves FOLDER/PART.json; parts that
are not run keep the file of an earlier call. TRL needs requirements/bench.txt. Step 1 of each pays for what is compiled,
cached or allocated once, so that figures are of the steps after it.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch

CUDA = torch.cuda.is_available()
WORKLOAD = [] if CUDA else ["--prompts", "4", "--group", "16", "--prompt-tokens", "180", "--new-tokens", "24"]
TRL_BEST = ["--best", "16,8"] if CUDA else ["--best", "64,32,16"]
PARTS = {  # name -> module and arguments
    "ours": ["benchmarks.our_step", *WORKLOAD],
    "trl_default": ["benchmarks.trl_step", *WORKLOAD],
    "trl_best": ["benchmarks.trl_step", *TRL_BEST, *WORKLOAD],
    "trl_best_checkpointed": ["benchmarks.trl_step", "--best", "32,16", "--checkpointing", *WORKLOAD],
    "trl_transformers": ["benchmarks.trl_step", *TRL_BEST, "--generate", "transformers", *WORKLOAD],
    "passes": ["benchmarks.pass_cost"]}
USUAL = ["ours", "trl_default", "trl_best", "trl_best_checkpointed" if CUDA else "trl_transformers", "passes"]
COLUMNS = ("step_s", "rollout_s", "generate_s", "sync_s", "old_logp_s", "train_s", "other_s")


def measure(part: str, model: str, folder: Path, timeout: float) -> bool:
    """Run a part, and say whether it ended well. What it prints goes to FOLDER/PART.log."""
    module, *arguments = PARTS[part]
    out = folder / f"{part}.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", module, "--model", model, "--out", str(out), *arguments]
    said = " ".join(["python", *command[1:]]).replace(str(out), "FILE")
    print(said, flush=True)
    with (folder / f"{part}.log").open("w", encoding="utf-8") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=timeout).returncode
        except subprocess.TimeoutExpired:
            code = "time is up"
    if not code:
        out.write_text(json.dumps({"command": said, **json.loads(out.read_text(encoding="utf-8"))}) + "\n", encoding="utf-8")
    else:
        print(f"{part}: {code}; the end of {log.name}:\n" + Path(log.name).read_text(encoding="utf-8")[-2000:], flush=True)
    return not code


def table(found: dict[str, dict]) -> str:
    """Markdown: seconds of each phase, memory, tokens/s, and how many times ours each step takes."""
    lines = ["| | step | rollout | sync | old log-probs | train | other | peak GiB | completion tokens/s | x ours |",
             "|---" * 10 + "|"]
    ours = seconds(found["ours"])["step_s"] if "ours" in found else None
    for part, record in found.items():
        if "steps" not in record:
            continue
        s = seconds(record)
        tokens = record["prompts"] * record["group"] * record["new_tokens"]
        cells = [s["step_s"], s.get("rollout_s", s.get("generate_s")), s["sync_s"], s.get("old_logp_s", 0.0), s["train_s"],
                 s["other_s"]]
        lines.append(f"| {label(part, record)} | " + " | ".join(f"{cell:.2f}" for cell in cells)
                     + f" | {record['peak_gib']:.1f} | {tokens / s['step_s']:,.0f} | "
                     + (f"{s['step_s'] / ours:.2f} |" if ours else "|"))
    return "\n".join(lines)


def label(part: str, record: dict) -> str:
    """A record in words."""
    if part == "ours":
        return "here"
    kept = "checkpointed" if record["checkpointing"] else "not checkpointed"
    engine = record["generate"].replace("vllm", "vLLM")
    return f"{record['rival']}, {record['setting']}, {engine}, micro-batch {record['micro_batch']}, {kept}"


def seconds(record: dict) -> dict[str, float]:
    """The median of each phase over the steps after the first, where there are others."""
    steps = record["steps"][1:] or record["steps"]
    return {name: statistics.median(step[name] for step in steps) for name in COLUMNS if name in steps[0]}


def plots(passes: dict, folder: Path) -> None:
    """One PNG: what the training pass of a group costs along each axis, ours and the padded one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    middle = {key: next(p[key] for p in passes["curves"] if p["axis"] == "group") for key in ("prompt", "completion")}
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    names = {"group": "completions a prompt", "prompt": "prompt tokens", "completion": "completion tokens"}
    for axis, (key, name) in zip(axes, names.items(), strict=True):
        points = [point for point in passes["curves"] if point["axis"] == key]
        for kind, colour, marker in (("padded", "#d55e00", "s"), ("shared", "#0072b2", "o")):
            axis.plot([p[key] for p in points], [p[f"{kind}_s"] for p in points], color=colour, marker=marker,
                      label={"padded": "padded", "shared": "prompt shared (here)"}[kind])
        axis.set(xlabel=name, xscale="log", yscale="log")
        axis.set_xticks([p[key] for p in points], [str(p[key]) for p in points])
        taken = [p[f"{kind}_s"] for p in points for kind in ("shared", "padded")]
        marks = [m for m in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if min(taken) / 1.5 < m < max(taken) * 1.5]
        axis.set_yticks(marks, [f"{m:g}" for m in marks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds, forward and backward")
    axes[0].legend(frameon=False)
    figure.suptitle("Training pass of one group; what an axis does not change is 64 completions of "
                    f"{middle['completion']} tokens behind {middle['prompt']}; {passes['device']}", fontsize=10)
    figure.savefig(folder / "passes.png", dpi=110)


def main(words: list[str]) -> int:
    """The command. Returns 1 where a part failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small-model", help="whose gradients are compared with float32's (default: the same)")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=USUAL)
    parser.add_argument("--timeout", type=float, default=540, help="seconds of a part")
    args = parser.parse_args(words)
    args.out.mkdir(parents=True, exist_ok=True)
    PARTS["passes"] += ["--fidelity-model", args.small_model or args.model]
    well = [measure(part, args.model, args.out, args.timeout) for part in args.parts]
    found = {part: json.loads(path.read_text(encoding="utf-8"))
             for part in PARTS if (path := args.out / f"{part}.json").is_file()}
    (args.out / "speed.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if "passes" in found:
        plots(found["passes"], args.out)
    print(table(found), flush=True)
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
