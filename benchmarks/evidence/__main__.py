"""Trains correctors behind a served model, and gathers what became of them: docs/evidence.md.

    python -m examples.smollm2
    python -m vllm.entrypoints.openai.api_server --model models/smollm2 --served-model-name api --port 8100 \\
        --max-model-len 2048 --gpu-memory-utilization 0.1
    python -m benchmarks.evidence lint                       every set of benchmarks/evidence/*.yaml, before any training
    python -m benchmarks.evidence train gcd aiw --gpus 2     seeds 1, 2, 3; with seed 1 a control that never sees
                                                             the API's answer, and supervised fine-tuning
    python -m benchmarks.evidence transfer                   what is trained, behind other APIs: the same model hot, asked
                                                             otherwise, and "other", if the server has that
    python -m benchmarks.evidence gather                     writes benchmarks/results/evidence.json, prints the table

A run's folder is runs/evidence/SET-SEED, SET-alone, SET-sft (benchmarks/rivals.py), or SET-SEED-behind-API. What is there is
not run again.
Overrides of a config come last.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Lock

import yaml

from adapter.commands import task_of
from grpo.config import load
from grpo.run.tasks import load_class

HERE, RUNS, OUT = Path(__file__).parent, Path("runs/evidence"), Path("benchmarks/results/evidence.json")
SETS = sorted(path.stem for path in HERE.glob("*.yaml"))
APART_S, TRIES = 3.0, 5  # between two starts: each vLLM looks at how much memory of the GPU is free
STARTING = Lock()
IN_THE_WAY = ("another process gave memory", "vLLM does not fit")  # what a start says that shared the GPU with another
OTHERS = {"hot": ["task.api_parameters={temperature: 1.0}"], "other": ["task.api_model=other"],  # other APIs
          "terse": ["task.api_prompt={question}\n\nReply with the answer alone, without a word around it."]}
ALONE = "Work the answer out, and end with it in \\boxed{}."
LINT = re.compile(r"(?P<questions>\d+) questions, 8 completions each: (?P<right>[\d.]+)% right; of (?P<once>[\d.]+)%.*?"
                  r"(?P<agreed>[\d.]+)% agree with the API, (?P<cut>[\d.]+)% cut off, (?P<none>[\d.]+)% without", re.DOTALL)


def config_of(name: str, kind: str) -> Path:
    """The config of a run. Of the control's, nothing shows the API's answer, and no example agrees with it."""
    if kind != "alone":
        return HERE / f"{name}.yaml"
    config = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    prompt = config["task"]["prompt"]
    prompt |= {"instructions": ALONE, "template": "{question}"}
    for shot in prompt["examples"]:
        answer = shot.pop("api_answer")
        shot["completion"] = shot["completion"].replace("CORRECT", answer)
    path = RUNS / f"{name}-alone.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, allow_unicode=True, width=10_000), encoding="utf-8")
    return path


def command(module: list[str], log: Path, gpu: int | None, seconds: float) -> int:
    """Run a command; its output goes to a file. 124 where it took too long. Where another start was in its way, again."""
    env, until = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}), time.monotonic() + seconds
    log.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(TRIES):
        with STARTING:
            time.sleep(0 if gpu is None else APART_S)
        with log.open("a", encoding="utf-8") as out:
            try:
                status = subprocess.run([sys.executable, *module], stdout=out, stderr=out, env=env, check=False,
                                        timeout=max(1, until - time.monotonic())).returncode
            except subprocess.TimeoutExpired:
                return 124
        if status == 0 or not any(said in log.read_text(encoding="utf-8")[-1000:] for said in IN_THE_WAY):
            break
    return status


def linted(name: str, gpu: int | None, overrides: list[str], seconds: float) -> dict:
    """What adapter.lint says of a set, as numbers."""
    log = RUNS / f"{name}-lint.log"
    log.unlink(missing_ok=True)
    status = command(["-m", "adapter.lint", str(config_of(name, "lint")), *overrides], log, gpu, seconds)
    text = log.read_text(encoding="utf-8")
    found = LINT.search(text)
    mixed = re.search(r"GRPO can start: (\d+)%", text)
    return {"set": name, "status": status, "mixed": int(mixed[1]) if mixed else None,
            **({key: float(value) for key, value in found.groupdict().items()} if found else {"last": text[-300:]})}


def trained(name: str, kind: str, gpu: int | None, overrides: list[str], until: float) -> str:
    """Train and evaluate a run, unless it is there."""
    run, left = RUNS / f"{name}-{kind}", lambda: until - time.monotonic()
    log, start = RUNS / f"{name}-{kind}.log", time.monotonic()
    if (run / "evaluate" / "report.json").is_file():
        return f"{run}: there"
    if left() < 60:
        return f"{run}: no time"
    seed = kind if kind.isdigit() else "1"
    config = [str(config_of(name, kind)), f"run.seed={seed}", f"task.api_answers=data/evidence/{name}-{seed}.jsonl"]
    if kind == "sft":
        program = ["-m", "benchmarks.rivals", "sft", *config, "--out", str(run)]
        own = [one for one in overrides if one.partition("=")[0] not in ("run.steps", "optim.lr")]  # it has its own
    else:
        program, own = ["train.py", *config, f"run.dir={run}"], overrides
    status = command([*program, *own], log, gpu, left())
    middle = time.monotonic()
    evaluated = command(["-m", "adapter.evaluate", str(run), "--harm-below", "2%", "--compare-base"], log, gpu,
                        left()) if status == 0 else None
    return f"{run}: train {status} in {middle - start:.0f} s, evaluate {evaluated} in {time.monotonic() - middle:.0f} s"


def transferred(run: Path, api: str, gpu: int | None, overrides: list[str], until: float) -> str:
    """Evaluate a trained run behind another API than the one that it was trained behind."""
    behind = RUNS / f"{run.name}-behind-{api}"
    log, left = RUNS / f"{behind.name}.log", lambda: until - time.monotonic()
    if (behind / "evaluate" / "report.json").is_file():
        return f"{behind}: there"
    if left() < 60:
        return f"{behind}: no time"
    behind.mkdir(exist_ok=True)
    (behind / "adapter").exists() or (behind / "adapter").symlink_to((run / "adapter").resolve())
    for name in ("evaluation.json", "metrics.jsonl"):
        if (run / name).is_file():
            (behind / name).write_bytes((run / name).read_bytes())
    config = load(run / "config.yaml", [f"run.dir={behind}", f"task.api_answers=data/evidence/{behind.name}.jsonl",
                                        *OTHERS[api], *overrides])
    (behind / "config.yaml").write_text(config.dump(), encoding="utf-8")
    task_class, settings = task_of(config, load_class(config.task.target, named=False), behind)
    task_class(settings, config.run.seed)  # asks it
    return f"{behind}: evaluate {command(['-m', 'adapter.evaluate', str(behind), '--harm-below', '2%'], log, gpu, left())}"


def gathered() -> dict:
    """Of each finished run: accuracies, fixes and harms against the API, calibration, and what `--harm-below` chose."""
    found = {}
    for path in sorted(RUNS.glob("*/evaluate/report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        found[path.parent.parent.name] = {
            "step": report["step"],
            "validation_by_step": {step: right["overall"] for step, right in report["validation_by_step"].items()},
            "policies": {who: {part: (of[part] or {}).get("overall") for part in ("accuracy", "against_api")}
                         for who, of in report["policies"].items()},
            "failures": {name: one["count"] for name, one in report["failures"]["adapter"].items()},
            "confidence": {part: report["confidence"][part] for part in ("temperature", "estimators", "harm_below")}}
    return found


def row(name: str, run: dict) -> str:
    """A line of docs/evidence.md's table."""
    of, sure = run["policies"], run["confidence"]
    here, chosen = of["adapter"]["against_api"], (sure["harm_below"] or {}).get("test")
    shares = [f"{100 * of[who]['accuracy']['value']:.1f}" if who in of else "-" for who in ("api", "base", "adapter")]
    return " | ".join((
        f"| {name}", *shares, "{points:+.1f} [{low:.1f}, {high:.1f}]".format(**here["net_lift"]), str(here["fixes"]),
        "{hits} of {of}".format(**here["harm_rate"]), "{fixes}, {harms}".format(**chosen) if chosen else "-",
        f"{sure['estimators']['completion']['before']['aurc']:.3f} |"))


def spread(jobs: list, work, gpus: int, at_once: int) -> None:
    """Do the jobs, so many at once, each on the GPU with a free place."""
    places = Queue()
    for place in range(at_once):
        places.put(place % gpus if gpus else None)

    def one(job: tuple) -> None:
        gpu = places.get()
        print(work(*job, gpu), flush=True)
        places.put(gpu)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, jobs))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["lint", "train", "transfer", "gather"])
    parser.add_argument("names", nargs="*", help="sets (default: all), then overrides such as run.steps=100")
    parser.add_argument("--gpus", type=int, default=1, help="how many to spread over; 0: on CPU")
    parser.add_argument("--at-once", type=int, default=4, help="runs that share the GPUs")
    parser.add_argument("--kinds", help="train: seeds, supervised fine-tuning, and the control (1,sft,alone,2,3); transfer: "
                        "other APIs (hot,terse)")
    parser.add_argument("--seconds", type=float, default=1e9, help="no run goes on after these")
    options = parser.parse_intermixed_args()
    kinds = (options.kinds or ("hot,terse" if options.part == "transfer" else "1,sft,alone,2,3")).split(",")
    overrides = [name for name in options.names if "=" in name]
    names, until = [name for name in options.names if "=" not in name] or SETS, time.monotonic() + options.seconds
    if unknown := sorted({*names} - {*SETS}):
        parser.error(f"no set is called {', '.join(unknown)}; there are {', '.join(SETS)}")
    if not options.gpus:
        overrides.insert(0, "model.device=cpu")
    if options.part == "lint":
        spread([(name,) for name in names], lambda name, gpu: json.dumps(linted(
            name, gpu, overrides, until - time.monotonic())), options.gpus, options.at_once)
    elif options.part == "train":
        spread([(name, kind) for kind in kinds for name in names], lambda name, kind, gpu: trained(
            name, kind, gpu, overrides, until), options.gpus, options.at_once)
    elif options.part == "transfer":
        runs = [path.parent for name in names for path in sorted(RUNS.glob(f"{name}-[0-9]/adapter"))]
        spread([(run, api) for run in runs for api in kinds], lambda run, api, gpu: transferred(
            run, api, gpu, overrides, until), options.gpus, options.at_once)
    else:
        found = gathered()
        OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print("\n".join(row(name, run) for name, run in found.items()))


if __name__ == "__main__":
    main()
