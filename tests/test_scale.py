"""What several GPUs bring: benchmarks/scale.py, and docs/scale.md beside what was measured."""

import json
import re

import pytest

from benchmarks import scale
from benchmarks.our_step import utilisation
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "scale.md").read_text()
RECORD = json.loads((ROOT / "benchmarks" / "results" / "scale.json").read_text())


def test_the_table_of_ranks():
    record = {"steps": [{"step_s": 9.0, "rollout_s": 5.0, "train_s": 4.0},
                        {"step_s": 4.0, "rollout_s": 3.0, "train_s": 1.0}]}
    two = {"steps": [{"step_s": 2.5, "rollout_s": 1.5, "train_s": 0.75, "wait_s": 0.125, "allreduce_s": 0.0625}]}
    assert scale.table({"1": record, "2": two}).splitlines()[2:] == [
        "| 1 | 4.000 | 3.000 | 1.000 | 0.000 | 0.000 | 0.250 | 1.00 |",
        "| 2 | 2.500 | 1.500 | 0.750 | 0.125 | 0.062 | 0.400 | 1.60 |"]


def test_other_numbers_of_ranks_stay_in_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scale, "measure", lambda ranks, words: {"steps": [{"step_s": 1.0 / ranks}], "words": words})
    for ranks in ("1", "2"):
        scale.main(["--out", str(tmp_path / "found"), "--ranks", ranks, "--model", "M"])
    assert json.loads((tmp_path / "found").read_text()) == {
        ranks: {"steps": [{"step_s": 1 / int(ranks)}], "words": ["--model", "M"]} for ranks in ("1", "2")}
    assert "| 2 | 0.500 | 0.000 | 0.000 | 0.000 | 0.000 | 2.000 | 2.00 |" in capsys.readouterr().out


def test_ranks_share_the_operations():
    assert utilisation(4e15, 2, 4.0, 1000.0) == 0.5


def test_what_was_measured_is_quoted():
    assert scale.table(RECORD) in TEXT
    one, two = ([step["step_s"] for step in RECORD[ranks]["steps"][1:]] for ranks in ("1", "2"))
    quotient = f"{min(one) / min(two):.2f}"
    sentences = (f"took {one[0]:.1f}, {one[1]:.1f} and {one[2]:.1f} s", f"{two[0]:.1f}, {two[1]:.1f} and {two[2]:.1f}. ",
                 f"fastest, {quotient},", f"two is {min(one) / max(two):.2f} times")
    assert all(sentence in TEXT.replace("\n", " ") for sentence in sentences), sentences
    readme = (ROOT / "README.md").read_text()
    assert f"takes {min(one):.1f} s on one H100 and {min(two):.1f} s on two, {quotient} times" in readme


def test_the_cost_model_gives_the_table_it_stands_beside():
    """Its formulas and constants, written down once more."""
    rows = [[cell.strip().replace(",", "") for cell in line.strip("|").split("|")]
            for line in TEXT.splitlines() if re.match(r"\| \d+ \| \d+ \|", line)]
    assert [row[0] for row in rows] == ["1", "2", "8", "64", "512"]
    alone = None
    for ranks, prompts, *said in ([float(cell) for cell in row] for row in rows):
        completions = 64 * prompts
        rollout = 0.54e-3 * completions / ranks + 128 * (4.5e-3 + 39.4e-6 * completions / ranks)
        train = 9.76e-3 * completions / ranks
        allreduce = 2 * (ranks - 1) / ranks * 349e6 / (300e9 if ranks <= 8 else 40e9)
        host = (0.38e-3 if ranks == 1 else 0.42e-3) * completions
        step = rollout + train + allreduce + host
        alone = alone or completions / step
        wanted = [rollout, train, allreduce, host, step, 1 / step, completions / step, completions / step / alone]
        assert said == pytest.approx(wanted, rel=0.05, abs=0.05), (ranks, wanted)
