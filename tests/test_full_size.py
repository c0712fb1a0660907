"""benchmarks/full_size.py: from a finished run to a record, and from a record to the page; the page quotes its record."""

import json
import shutil
import statistics

import pytest

from benchmarks import full_size
from grpo.config import load
from tests.conftest import ROOT


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """An evaluated run of four steps, resumed after the second, one other condition, and a page to write into."""
    monkeypatch.setattr(full_size, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(full_size, "RESULTS", tmp_path)
    (tmp_path / "page.md").write_text(f"before\n{full_size.MARKS[0]}old\n{full_size.MARKS[1]}after\n")
    run, other = tmp_path / "full", tmp_path / "others" / "full-explicit"
    (run / "evaluate").mkdir(parents=True)
    other.mkdir(parents=True)
    lines = [{"step": step, "reward/custom": reward, "reward/standard": 1.0, "completion/mean_tokens": 20.0 + step,
              "parity/logp_mean_abs_diff": 0.01, "memory/peak_gib": 2.0 + step,
              **{f"time/{name}_s": seconds for name in full_size.TIMES}}
             for step, reward, seconds in ((1, 0.1, 9.0), (2, None, 1.0), (3, 0.5, 7.0), (4, 0.9, 2.0))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    accuracy = {"custom": {"hits": 9, "of": 10}, "standard": {"hits": 10, "of": 10}, "overall": {"hits": 19, "of": 20}}
    report = {"policies": {"adapter": {"accuracy": accuracy, "against_api": {"overall": {}}}, "api": {"accuracy": accuracy}},
              "accuracy_by_step": {"0": {"custom": 0.1, "standard": 1.0, "overall": 0.55},
                                   "4": {"custom": 0.9, "standard": 1.0, "overall": 0.95}},
              "failures": {"adapter": {"echo": {"count": 1, "examples": [{"expression": "1 γ 2"}]},
                                       "unparsed": {"count": 0, "examples": []}}},
              "symbols": {"learned": {"γ": {"operation": "×", "first_step": {"0.5": 3, "0.9": None}}}}}
    (run / "evaluate" / "report.json").write_text(json.dumps(report))
    for picture in full_size.PICTURES:
        (run / "evaluate" / picture).write_bytes(b"png")
    (other / "config.yaml").write_text(load(ROOT / "configs" / "full" / "explicit.yaml", [f"run.dir={other}"]).dump())
    (other / "metrics.jsonl").write_text('{"step": 1, "reward/custom": 1.0, "reward/standard": 1.0}\n')
    (other / "evaluation.json").write_text(json.dumps({"api": {}, "steps": [
        {"step": step, "custom": 0.995, "standard": 1.0, "overall": 0.9975} for step in (0, 1)]}))
    return tmp_path


def test_a_run_becomes_a_record_and_a_page(finished):
    shorter = finished / "shorter"
    shorter.mkdir()
    (shorter / "metrics.jsonl").write_text("".join((finished / "full" / "metrics.jsonl").read_text().splitlines(True)[:2]))
    full_size.main([str(finished / "full"), "--conditions", str(finished / "others"), "--machine", "A machine",
                    "--resumed", "2", "--also", str(finished / "full"), "again", "the same once more",
                    "--also", str(shorter), "shorter", "of two steps"])
    page = (finished / "page.md").read_text()
    assert page.startswith("before\n<!-- full size -->\n|  | custom |")
    assert page.endswith("<!-- /full size -->\nafter\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    assert ["here, step 4", "90.0 % [59.6, 98.2]", "100.0 % [72.2, 100.0]", "95.0 % [76.4, 99.1]"] in rows
    assert ["*source:* Qwen3-8B, step 1000", "*84.0 %*", "*97.5 %*", "*90.8 %*"] in rows
    assert ["steps 1 to 2", *["1.00"] * 5, "100 %"] in rows  # without the step that compiles
    assert ["steps 3 to 4", *["2.00"] * 5, "0 %"] in rows
    assert ["again, steps 3 to 4", *["2.00"] * 5, "0 %"] in rows  # cut where the shorter one ends
    assert [row for row in rows if row[0].startswith("shorter")] == [["shorter, steps 1 to 2", *["1.00"] * 5, "100 %"]]
    assert ["again, step 4", "90.0 % [59.6, 98.2]", "100.0 % [72.2, 100.0]", "95.0 % [76.4, 99.1]"] in rows
    assert not [row for row in rows if row[0] == "again, step 0"]
    assert "- *shorter*: of two steps\n" in page
    assert ["C", "defined", "yes", "1", "1.00, 1.00", "99.5, 99.5 %", "100.0, 100.0 %", "*reward 1.0 from step 1*"] in rows
    assert not [row for row in rows if row[0] in ("A", "B", "D")]  # which were not run
    for text in ("Failures of the adapter: 1 echo.", "γ (×) step 3 and not yet", "At most 6.0 GiB", "after steps 2.",
                 "A machine"):
        assert text in page
    assert (finished / "full_symbols.png").read_bytes() == b"png"


def test_a_run_that_was_not_evaluated_is_one_line(finished):
    shutil.rmtree(finished / "full" / "evaluate")
    with pytest.raises(SystemExit, match=r"is not evaluated; run `python -m adapter\.evaluate .*full --compare-base` first"):
        full_size.main([str(finished / "full")])


def test_the_page_quotes_its_record():
    record = json.loads((ROOT / "benchmarks" / "results" / "full.json").read_text())
    page = (ROOT / "benchmarks" / "full_size.md").read_text()
    assert full_size.section(record) in page
    text, medians = page.replace("\n", " "), {}
    for name, run in record["also"].items():
        steps = run["seconds"][0]
        medians[name] = statistics.median(steps[1:60])
        if name == "two processes":
            share = statistics.mean(second <= 1.5 for second in steps)
            assert f"a median of {statistics.median(steps):.2f} s over {len(steps)} steps, {100 * share:.0f} % of" in text
        assert min(reward for reward in run["custom"][40:60] if reward is not None) > 0.6
    assert f"one process took {medians['one process there']:.2f} s where two took {medians['two processes']:.2f}:" in text


def test_the_page_quotes_the_flagship():
    flagship = json.loads((ROOT / "benchmarks" / "results" / "flagship.json").read_text())
    page = (ROOT / "benchmarks" / "full_size.md").read_text()
    printed = page.partition("<!-- flagship -->\n")[2].partition("<!-- /flagship -->")[0].splitlines()
    first, second = flagship["printed"]
    assert printed == [f"    {line}" for line in
                       first + [line for line in second if line not in first and not line.startswith("memory: ")]]
    took = [f"{line['time/step_s']:.1f}" for line in flagship["metrics"]]
    assert f"A step took {took[0]}, {took[1]} and, in the second process, {took[2]} s" in page
    assert f"at most {max(line['memory/peak_gib'] for line in flagship['metrics']):.1f} GiB" in page
    assert f"saw {flagship['most_mib_by_nvidia_smi']:,} MiB" in page
