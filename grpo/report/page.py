"""The parts of a report put into one HTML file, which asks for nothing else.

Everything a run recorded goes in as JSON that cannot end its element, and is shown as text; the page's policy lets no other
script run, and nothing be fetched.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs
from transformers import AutoTokenizer

from grpo.advantage import EPSILON
from grpo.guards.alarms import SAME, SEVERAL, SOLVED, TRUNCATED, UNPARSED
from grpo.report.charts import compare_charts, lora_chart, run_charts, templates
from grpo.report.records import LoraLine, Run, read_rollout
from grpo.report.steps import BUDGET, all_packed, asked, packed_step, packed_text, sample
from grpo.run.schema import to_yaml

HERE = Path(__file__).parent
SCRIPTS = ("numbers.js", "reader.js", "page.js")  # in the order in which they define what the next one uses
ALARMS = {
    "same_answer": f"{SAME:.0%} of a step's completions or more give one answer, whatever they were asked, "
                   f"and are rewarded less than {SOLVED:g} on average for it",
    "several_answers": f"{SEVERAL:.0%} of a step's completions or more give several answers",
    "unparsed": f"{UNPARSED:.0%} of a step's completions or more give no answer",
    "truncated": f"{TRUNCATED:.0%} of a step's completions or more are cut off at rollout.max_new_tokens"}


def page(run: Run, wanted: str | None = None, budget: int = BUDGET) -> str:
    """The report's HTML. wanted: the steps whose completions are in it ("12,40-60"), not a sample of `budget` bytes."""
    ids: set[int] = set()

    def pack(step: int) -> str:
        return packed_step(read_rollout(run.rollouts[step], run.config.rollout), run.config, ids)

    sizes = {step: path.stat().st_size for step, path in run.rollouts.items()}
    steps = sample(sizes, pack, budget) if wanted is None else all_packed(asked(wanted, sorted(sizes)), pack)
    texts, special, no_texts = _pieces(run.config.model.path, ids)
    charts = run_charts(run)
    for comparison in run.comparisons:
        charts |= {f"{name}-{comparison.step}": chart for name, chart in compare_charts(comparison).items()}
    if run.lora:
        charts["lora"] = lora_chart()
    blocks = {
        "run": _about(run) | {"embedded": list(steps), "asked": wanted is not None, "budget": budget, "special": special,
                              "no_texts": no_texts},
        "charts": charts, "templates": templates(), "texts": texts,
        "compare": {c.step: c.model_dump() for c in run.comparisons}}
    packed = {"plotly": packed_text(get_plotlyjs()), **{f"step-{step}": text for step, text in steps.items()}}
    if run.lora:
        packed["lora"] = packed_text(_json(_lora(run.lora)))
    return _filled(_name(run), blocks, packed)


def _filled(title: str, blocks: dict[str, Any], packed: dict[str, str]) -> str:
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    parts = {
        "title": html.escape(title), "css": (HERE / "page.css").read_text(encoding="utf-8"), "script": script,
        "policy": " ".join(f"'sha256-{_digest(text)}'" for text in (script, get_plotlyjs())),
        "data": "\n".join([
            *(f'<script type="application/json" id="data-{name}">{_json(block)}</script>' for name, block in blocks.items()),
            *(f'<script type="text/plain" id="data-{name}">{text}</script>' for name, text in packed.items())])}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], (HERE / "page.html").read_text(encoding="utf-8"))


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(value: Any) -> str:
    """Compact, and inert inside a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _about(run: Run) -> dict[str, Any]:
    tree = run.config.model_dump(mode="json")
    tree["run"].pop("dir")  # says how somebody's disk is laid out
    return {
        "name": _name(run), "model": Path(run.config.model.path).name, "planned": run.config.run.steps,
        "metric_steps": [line["step"] for line in run.metrics], "recorded": sorted(run.rollouts),
        "prompts": run.config.rollout.prompts_per_step,
        "group_size": run.config.rollout.group_size,
        "algorithm": tree["algorithm"], "epsilon": EPSILON, "settings": to_yaml(tree),
        "figures": _figures(run), "alarms": _alarms(run)}


def _name(run: Run) -> str:
    return run.folder.resolve().name


def _figures(run: Run) -> list[list[str]]:
    """What a reader asks first: [label, value]."""
    rewards = [line["reward/mean"] for line in run.metrics if line.get("reward/mean") is not None]
    figures = [["steps", f"{len(run.metrics):,} of {run.config.run.steps:,}"]]
    if rewards:
        ends = [sum(part) / len(part) for part in (rewards[:5], rewards[-5:])]
        figures.append(["reward, first and last 5 steps", f"{ends[0]:.2f} → {ends[1]:.2f}"])
    if run.evaluation and run.evaluation.steps:
        steps, kept = run.evaluation.steps, run.evaluation.kept
        after = next((table for table in steps if table.get("step") == kept), steps[-1])
        ends = [table.get("overall") for table in (steps[0], after)]
        if None not in ends and after is not steps[0]:  # an unfinished run has the first alone
            figures.append(["greedy test accuracy, before and after", " → ".join(f"{end:.1%}" for end in ends)])
        if kept is not None:
            figures.append(["step whose LoRA is kept", f"{kept:,}"])
    figures.append(["tokens trained on", f"{sum(line.get('tokens/trained') or 0 for line in run.metrics):,.0f}"])
    figures.append(["time in steps", _duration(sum(line.get("time/step_s") or 0 for line in run.metrics))])
    return figures


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _alarms(run: Run) -> list[dict[str, Any]]:
    """Each alarm that this run knows: its name, what it means, and the stretches of steps in which it rang."""
    names = {key.removeprefix("alarm/"): None for line in run.metrics for key in line if key.startswith("alarm/")}
    return [{"name": name.replace("_", " "), "meaning": ALARMS.get(name, "a sign of a degenerate policy"),
             "rang": _stretches(line["step"] for line in run.metrics if line.get(f"alarm/{name}"))} for name in names]


def _stretches(steps: Iterable[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for step in steps:
        if found and step == found[-1][1] + 1:
            found[-1][1] = step
        else:
            found.append([step, step])
    return found


def _lora(lines: list[LoraLine]) -> dict[str, Any]:
    """By quantity and module a row over the steps, of 4 digits; modules stand by projection, then by layer."""
    modules = list({name: None for line in lines for name in line.modules})
    projections = list({_split(name)[0]: None for name in modules})
    ordered = sorted(modules, key=lambda name: (projections.index(_split(name)[0]), _split(name)[1], name))
    rows = [[[_short(line.modules[name][q]) if name in line.modules else None for line in lines] for name in ordered]
            for q in range(3)]
    # an effective rank is that of the module's last turn (grpo/guards/lora_health.py)
    rows[2] = [list(accumulate(row, lambda last, value: last if value is None else value)) for row in rows[2]]
    return {"steps": [line.step for line in lines], "modules": ordered,
            "projections": [_split(name)[0] for name in ordered], "values": rows}


def _split(name: str) -> tuple[str, int]:
    """layers.3.mlp.up_proj -> up_proj, 3."""
    number = re.search(r"\.(\d{1,9})\.", name)
    return name.rsplit(".", 1)[-1], int(number[1]) if number else 0


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _pieces(path: str, ids: set[int]) -> tuple[dict[int, str], list[int], str]:
    """The text of each token, which are special, and why there are no texts, if so. Nothing is downloaded."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        return ({i: tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in sorted(ids)},
                sorted(ids & set(tokenizer.all_special_ids)), "")
    except (OSError, ValueError, KeyError, RecursionError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return {}, [], f"Token ids are shown, because model.path = {path} holds no tokenizer here ({reason[0][:200]})."
