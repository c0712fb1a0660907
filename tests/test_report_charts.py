"""The report's charts and tables in a real browser; how large it is, and how soon it opens."""

import json
import re
import shutil

import pytest

from grpo.report.__main__ import report
from grpo.report.charts import run_charts
from grpo.report.page import _figures
from grpo.report.records import read_rollout, read_run
from grpo.report.tokens import step_tokens
from tests.conftest import lines, write_lines
from tests.forked import run_forked
from tests.report_run import MODULES, SMALL, fabricate, shown

MIB = 2**20


def test_charts_are_drawn_when_they_come_into_view(fabricated, opened):
    page = opened(fabricated / "report.html")
    drawn = "[...document.querySelectorAll('.js-plotly-plot')].map(p => p.parentNode.dataset.chart)"
    page.wait_for_selector("[data-chart=reward] .main-svg")
    assert "parity" not in page.evaluate(drawn)
    for name in ("reward", "accuracy", "groups", "loss", "entropy", "clip", "kl", "grad", "lr", "length", "faults", "time",
                 "lora", "parity"):
        page.evaluate(f"document.querySelector('[data-chart={name}]').scrollIntoView({{behavior: 'instant'}})")
        page.wait_for_selector(f"[data-chart={name}] .main-svg")
    assert "parity" in page.evaluate(drawn)
    assert page.query_selector("[data-chart=replaced]") is None  # without refills it would be a line of zeros
    assert page.evaluate("document.querySelector('[data-chart=reward] .plot').data.map(d => d.name)") == ["custom", "mean"]
    recorded = [line["reward/custom"] for line in lines(fabricated / "metrics.jsonl")]
    assert page.evaluate("document.querySelector('[data-chart=reward] .plot').data[0].y") == recorded


def curves(run) -> dict[str, tuple[list, list]]:
    """Of the accuracy chart, by name."""
    return {trace["name"]: (trace["x"], trace["y"]) for trace in run_charts(read_run(run))["accuracy"]["figure"]["data"]}


def test_accuracy_on_validation_and_test_and_the_step_that_is_kept(fabricated, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(fabricated, run)
    rows = [{"step": step, "custom": value, "overall": value} for step, value in ((0, 0.25), (3, 0.75), (6, 0.5))]
    found = {"api": {"custom": 0.125, "overall": 0.125}, "steps": [rows[0], rows[1] | {"custom": 0.625, "overall": 0.625}],
             "validation": rows, "kept": 3}
    (run / "evaluation.json").write_text(json.dumps(found))
    api = ([0, 6], [0.125, 0.125])
    assert curves(run) == {"custom: validation": ([0, 3, 6], [0.25, 0.75, 0.5]), "custom: test": ([0, 3], [0.25, 0.625]),
                           "custom: api": api, "kept: step 3": ([3, 3], [0, 1])}
    figures = dict(_figures(read_run(run)))
    assert figures["greedy test accuracy, before and after"] == "25.0% → 62.5%"
    assert figures["step whose LoRA is kept"] == "3"
    (run / "evaluation.json").write_text(json.dumps({"api": found["api"], "steps": rows}))  # of an older run
    assert curves(run) == {"custom: test": ([0, 3, 6], [0.25, 0.75, 0.5]), "custom: api": api}
    assert dict(_figures(read_run(run)))["greedy test accuracy, before and after"] == "25.0% → 50.0%"


def test_every_chart_has_its_place_and_is_drawn_there(tmp_path, opened):
    fabricate(tmp_path / "run", *SMALL, "algorithm=dapo", "algorithm.correction=truncated", "algorithm.beta=0.05")
    report(tmp_path / "run", tmp_path / "report.html")
    page = opened(tmp_path / "report.html")
    charts = run_charts(read_run(tmp_path / "run")).keys()
    assert {"replaced", "correction", "kl"} <= charts
    for name in charts:
        page.evaluate(f"document.querySelector('[data-chart={name}]').scrollIntoView({{behavior: 'instant'}})")
        page.wait_for_selector(f"[data-chart={name}] .main-svg")


def test_lora_health_by_module(fabricated, opened):
    page = opened(fabricated / "report.html", "#step=6&group=1&show=logp")
    page.evaluate("document.querySelector('#lora').scrollIntoView({behavior: 'instant'})")
    page.wait_for_selector("[data-chart=lora] .main-svg")
    z = "document.querySelector('[data-chart=lora] .plot').data[0].z"
    assert page.evaluate(f"{z}[0][5]") == 0.01
    rows = page.evaluate("document.querySelector('[data-chart=lora] .plot').data[0].y")
    assert sorted(name for name in rows if name.strip()) == sorted(MODULES)
    page.select_option("#lora-show", "2")
    page.wait_for_function(f"{z}[0][5] === 1")
    assert page.inner_text("#lora-extremes td") == MODULES[-1]
    assert page.inner_text("#lora-extremes td.num") == "28"


def test_alarms_and_comparisons(fabricated, tmp_path, opened):
    run = tmp_path / "run"
    shutil.copytree(fabricated, run)
    rang = [json.dumps(line | {"alarm/unparsed": float(line["step"] in (2, 3, 6)), "alarm/truncated": 0.0})
            for line in lines(run / "metrics.jsonl")]
    (run / "metrics.jsonl").write_text("\n".join(rang) + "\n")
    report(run, run / "report.html")
    page = opened(run / "report.html")
    table = page.inner_text("#alarm-table")
    assert re.search(r"⚠ unparsed\s+steps 2–3, 6\s+50% of a step's completions or more give no answer", table)
    assert re.search(r"truncated\s+never", table)
    assert "⚠ unparsed" in page.inner_text("#figures")
    assert page.is_visible("#compare")
    assert "arXiv 2503.14476" in page.inner_text("#compare-table")
    page.evaluate("document.querySelector('#compare').scrollIntoView({behavior: 'instant'})")
    page.wait_for_selector("#compare-charts .main-svg >> nth=1")
    assert page.evaluate("document.querySelector('#compare-charts .plot').data[0].y") == [12.5, 12.5 / 8, 12.5 / 32]


def test_an_older_run_says_what_it_lacks(fabricated, tmp_path, opened):
    run = tmp_path / "run"
    shutil.copytree(fabricated, run)
    for name in ("lora.jsonl", "evaluation.json"):
        (run / name).unlink()
    shutil.rmtree(run / "compare")
    for path in (run / "rollouts").iterdir():
        older = [{k: v for k, v in line.items() if k not in ("logp_ref", "logp_last")} for line in lines(path)]
        path.unlink()
        write_lines(path.with_suffix(""), older)  # not compressed
    report(run, run / "report.html")
    page = opened(run / "report.html", "#step=2&group=1&show=ratio")
    shown(page, 2, 1, "ratio")
    assert page.is_visible("#no-lora")
    assert not page.is_visible("#compare")
    assert not page.query_selector("[data-chart=accuracy]")
    assert page.get_attribute("[data-quantity=ratio] .number", "data-value") == "1"


def test_a_page_opens_no_step_before_it_is_looked_at(tmp_path, browser):
    """15 steps of 8 x 64 completions."""
    run = tmp_path / "tiny"
    fabricate(run, "run.steps=15")
    report(run, run / "report.html")
    page = browser.new_context(viewport={"width": 1280, "height": 600}, offline=True).new_page()
    page.goto((run / "report.html").as_uri(), wait_until="commit")
    page.wait_for_selector("html[data-ready='1']", state="attached")
    page.wait_for_selector("[data-chart=reward] .main-svg", timeout=120_000)
    assert page.get_attribute("#tokens", "data-shown") is None
    page.context.close()


def test_a_long_run_keeps_to_its_size(tmp_path, opened):
    """1,000 steps of 1,024 completions of up to 128 random tokens, the worst there is to pack: under 20 MiB."""
    run = tmp_path / "long"
    fabricate(run, "run.steps=1000", "rollout.prompts_per_step=16", "rollout.max_new_tokens=128", distinct=1,
              tokens=(100, 129))
    report(run, run / "report.html")
    assert (run / "report.html").stat().st_size < 20 * MIB
    page = opened(run / "report.html")
    about = page.inner_text("#sample")
    steps = [int(text.replace(",", "")) for text in re.search(r"MiB: (.*)\. For others", about)[1].split(", ")]
    assert steps[0] == 1
    assert steps[-1] == 1000
    assert len(steps) >= 3
    assert f"{len(steps)} of 1,000" in about
    assert "--steps" in about
    page.evaluate("document.querySelector('#tokens').scrollIntoView({behavior: 'instant'})")
    page.wait_for_selector("#tokens[data-shown^='1 ']")
    assert len(page.query_selector_all(".completion")) == 64
    page.keyboard.press("]")
    page.wait_for_selector(f"#tokens[data-shown^='{steps[1]} ']")


def test_a_real_run(toy, tmp_path, opened):
    """The command on a run of train.py's: each step's loss is found again, and the page shows a completion of it."""
    out = tmp_path / "report.html"
    done = run_forked(tmp_path, "grpo.report", str(toy[0]), "--out", str(out), "--steps", "1,20")
    assert done.returncode == 0, done.stderr[-2000:]
    run = read_run(toy[0])
    for line in run.metrics:
        recorded = read_rollout(run.rollouts[line["step"]], run.config.rollout)
        tokens = step_tokens(recorded, run.config.algorithm, run.config.rollout)
        assert tokens.loss == pytest.approx(line["loss"], abs=2e-5)
        assert (tokens.clip_fraction or 0.0) == (line["policy/clip_fraction"] or 0.0)
    page = opened(out, "#step=1&group=1&show=logp")
    shown(page, 1, 1, "logp")
    first = lines(run.rollouts[1])[: run.config.rollout.group_size]
    best = max(first, key=lambda line: line["reward"])
    text = page.evaluate("document.querySelector('#completions .text').textContent")
    assert text.removesuffix("<|im_end|>").replace("↵\n", "\n") == best["completion"]
