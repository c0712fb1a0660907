"""Run directories as train.py leaves them, of random tokens, recorded by the real code; and a browser for their reports."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from grpo.config import Config
from grpo.guards.alarms import Alarms
from grpo.report.__main__ import report
from grpo.rollout import advantages
from grpo.run.evaluations import Evaluations
from grpo.run.metrics import completion_lines, rollout_metrics
from grpo.run.records import RunLog
from grpo.run.rollouts import KeptSteps
from grpo.types import Completion, Group, Problem, Prompt, Sample, Score, TokenLog, TokenLogs
from tests.conftest import ROOT, tiny_config

SMALL = ("run.steps=6", "rollout.prompts_per_step=3", "rollout.group_size=8")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]
MODULES = [f"layers.{layer}.{part}_proj" for layer in range(4) for part in (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")]


def fabricate(folder: Path, *overrides: str, distinct: int = 3, tokens: tuple[int, int] = (20, 60), seed: int = 0,
              prompt: str = "<|im_start|>user\n52 β 4 α 96 | API answer: none -><|im_end|>\n") -> Config:
    """A finished run of run.steps steps. The first `distinct` have their own completions, the others share them."""
    config = tiny_config(f"run.dir={folder}", f"model.path={ROOT / 'models/tiny'}", *overrides)
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.dump())
    log, alarms = RunLog(folder, 0, config.run.steps, KeptSteps.of(config)), Alarms()
    evaluations = Evaluations(folder / "evaluation.json", {}, before=1)
    for step in range(1, config.run.steps + 1):
        rollouts = folder / "rollouts"
        if step <= distinct:
            groups = [_group(rng, config, f"{step} β {p}", tokens, prompt) for p in range(config.rollout.prompts_per_step)]
            logs, advantages_PG = _logs(rng, groups, config), advantages(groups, config)
            log.completions(step, completion_lines(step, groups, advantages_PG, logs))
            found = {**rollout_metrics(groups, []), **alarms.check(groups)[0]}
            found |= {"policy/kl_ref": 0.01 * step} if config.algorithm.beta > 0 else {}
            found |= {"policy/correction": 1.001} if config.algorithm.correction != "none" else {}
        else:
            os.link(rollouts / f"step-{(step - 1) % distinct + 1:05d}.jsonl.gz", rollouts / f"step-{step:05d}.jsonl.gz")
        share = step / config.run.steps
        log.modules(step, {name: (0.01 * share * (n + 1), None if step == 2 else 0.1 + n, 1 + share * n)
                           for n, name in enumerate(MODULES)})
        log.step(step, {**found, "loss": -0.01 * (1 - share), "policy/entropy": 0.1 * (1 - share),
                        "policy/clip_fraction": 0.0, "tokens/trained": 9000.0, "policy/lr": 1e-3,
                        "policy/grad_norm": None if step % 7 == 0 else 0.2,
                        "parity/logp_max_abs_diff": 1e-5, "parity/logp_mean_abs_diff": 1e-7, "parity/kl": 1e-13,
                        "time/rollout_s": 5.0, "time/train_s": 2.0, "time/sync_s": 0.01, "time/step_s": 7.1})
    for split in ("validation", "test"):
        for step in (0, config.run.steps):
            evaluations.add(split, step, {"custom": 0.2 + 0.7 * (step > 0), "standard": 1.0,
                                          "overall": 0.6 + 0.35 * (step > 0)})
    evaluations.keep(config.run.steps)
    log.close()
    return config


def add_comparison(folder: Path, step: int) -> None:
    """compare/step-NNNNN.json: two variants, three groups."""
    groups = [{"problem": f"{n} β 2", "right": n, "of": 64, "success": 12.5 / n, "failure": -0.2} for n in (1, 8, 32)]
    variants = [{"name": name, "paper": "arXiv 2503.14476", "settings": {"advantage": name, "beta": 0.0}, "clipped": 0.0125,
                 "grad_norm": 0.12, "tokens": 12034.0, "groups": groups} for name in ("grpo", "maxrl")]
    (folder / "compare").mkdir(exist_ok=True)
    (folder / "compare" / f"step-{step:05d}.json").write_text(
        json.dumps({"step": step, "updates": 1, "variants": variants, "cosine": [[1.0, 0.5], [0.5, 1.0]]}))


def small_run(folder: Path) -> Path:
    """A run with everything a run can have, and its report."""
    fabricate(folder, *SMALL, "algorithm.epochs=2", "algorithm.beta=0.05", distinct=6)
    add_comparison(folder, 2)
    report(folder, folder / "report.html")
    return folder


def chromium() -> Iterator:
    """Headless Chromium; skips the test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def offline_pages(browser) -> Iterator[Callable]:
    """Opens a file, offline; at the end there was no error on any console, and no request but for the files."""
    problems, contexts = [], []

    def opened(path: Path, fragment: str = "", width: int = 1280, height: int = 900, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # two cores, and other tests beside this
        page.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: request.url.split("#")[0] != path.as_uri() and problems.append(request.url[:200]))
        page.goto(path.as_uri() + fragment, wait_until="commit")
        page.wait_for_selector("html[data-ready='1']", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def shown(page, step: int, group: int, quantity: str) -> None:
    """Returns when the page shows that."""
    page.wait_for_selector(f"#tokens[data-shown='{step} {group} {quantity}']")


def _group(rng: np.random.Generator, config: Config, name: str, tokens: tuple[int, int], prompt: str) -> Group:
    """Every fourth is all right, and has no signal."""
    chance = 1.0 if rng.random() < 0.25 else rng.uniform(0.1, 0.9)
    completions = []
    for n in range(config.rollout.group_size):
        ids = (*rng.integers(3, 480, rng.integers(*tokens) - 1).tolist(), 2)
        logp = -rng.exponential(0.3, len(ids))
        right = n == 0 or rng.random() < chance
        completions.append(Completion(Sample(ids, tuple(logp.tolist()), "stop" if rng.random() < 0.9 else "length"), "",
                                      Score(float(right), answer=str(n % 3))))
    return Group(Prompt(Problem(name, "custom", ()), (5, 6), prompt), tuple(completions))


def _logs(rng: np.random.Generator, groups: list[Group], config: Config) -> TokenLogs:
    """Of the groups with a signal; at the last epoch, if there are several, the log-probs have moved."""
    logs: TokenLogs = {}
    for p, group in enumerate(groups):
        if len({c.score.reward for c in group.completions}) == 1 and config.algorithm.beta == 0:
            continue
        for row, completion in enumerate(group.completions):
            logp = np.array(completion.sample.logp)
            n = len(logp)
            logs[p, row] = TokenLog(
                (logp + rng.normal(0, 1e-4, n)).tolist(), rng.exponential(0.5, n).tolist(),
                (logp + rng.normal(0, 0.1, n)).tolist() if config.algorithm.beta > 0 else None,
                (logp + rng.normal(0, 0.2, n)).tolist() if config.algorithm.epochs > 1 else None)
    return logs
