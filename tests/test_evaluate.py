"""`python -m adapter.evaluate`: its tables by hand, what it refuses, and one run from the outside."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from adapter.commands import run
from adapter.evaluate import FILES, check_replaceable, main
from adapter.measure import plots, report
from adapter.measure.accuracy import api_alone, chain, mcnemar_p, random_mapping, share
from symbols.expression import GREEK
from symbols.failures import FAILURES, judge
from tests.conftest import LONG, ROOT
from tests.test_outcomes import VAGUE, row


@pytest.mark.parametrize(("hits", "of", "low", "high"), [
    (8, 10, 0.490162, 0.943318),  # (0.8 + 0.192073 ± 1.959964 √(0.016 + 0.0096036)) / 1.384146
    (0, 200, 0.0, 0.018845),  # 0 and 0.0192073 / 1.0192073
    (200, 200, 0.981155, 1.0),
])
def test_wilson_intervals_by_hand(hits, of, low, high):
    found = share(hits, of)
    assert (found.value, found.hits, found.of) == (hits / of, hits, of)
    assert (found.low, found.high) == (pytest.approx(low, abs=2e-6), pytest.approx(high, abs=2e-6))


@pytest.mark.parametrize(("fixed", "harmed", "p"), [
    (5, 1, 14 / 64),  # 2 (C(6,0) + C(6,1)) / 2^6
    (1, 5, 14 / 64), (8, 0, 2 / 256), (0, 8, 2 / 256), (0, 0, 1.0), (3, 3, 1.0)])
def test_mcnemar_by_hand(fixed, harmed, p):
    assert mcnemar_p(fixed, harmed) == pytest.approx(p)


def test_a_small_table_by_hand():
    answers = [("2 γ 3", "none", "6"), ("2 γ 4", "2", "CORRECT"), ("2 θ 4", "2", "6"),  # fixed, agreed wrongly, fixed
               ("5 + 5", "10", "CORRECT"), ("5 + 6", "11", "11"), ("5 + 7", "12", "13"), ("5 + 8", "12", "13")]
    outcomes = [judge(row(e, api), f"\\boxed{{{said}}}", False, VAGUE) for e, api, said in answers]
    entry = chain("adapter", outcomes)
    assert {kind: (s.hits, s.of) for kind, s in entry.accuracy.items()} == {
        "custom": (2, 3), "standard": (3, 4), "overall": (5, 7)}
    made = entry.against_api
    assert [(s.hits, s.of) for s in (made.fix_rate, made.harm_rate, made.correct_precision, made.correct_recall)] == [
        (3, 4), (1, 3), (1, 2), (1, 3)]
    assert made.mcnemar_p == pytest.approx(10 / 16)  # 3 against 1: 2 (1 + 4) / 2^4
    alone = api_alone("API", [o.row for o in outcomes])
    assert {kind: s.hits for kind, s in alone.accuracy.items()} == {"custom": 0, "standard": 3, "overall": 3}
    guessed = random_mapping("guess", [o.row for o in outcomes], GREEK)
    table = [text.split() for text in report.accuracy_table([alone, guessed, entry])]
    assert table[2] == ["guess", "25.0", "%", "100.0", "%", "67.9", "%"]  # (3/4 + 4) / 7
    assert table[3][:5] == ["adapter", "66.7", "%", "[20.8,", "93.9]"]
    cells = [text.split()[-1] for text in report.api_table([alone, entry])[1:]]
    assert cells == ["(3/4)", "(1/3)", "(1/2)", "(1/3)", "0.62"]
    failures = report.failure_table("adapter", outcomes)
    assert [text.split()[-1] for text in failures if not text.startswith("      ")] == ["7", "1", "0", "1", "0", "0"]
    assert failures[2] == r"      2 γ 4 = 8 | API: 2 | \boxed{CORRECT}"


def test_a_ratio_of_nothing_is_a_dash():
    entry = chain("adapter", [judge(row("2 γ 3", "none"), r"\boxed{6}", False, VAGUE)])
    assert entry.accuracy["standard"].value is None
    lines = report.accuracy_table([entry]) + report.api_table([entry])
    assert lines[1].split() == ["adapter", "100.0", "%", "[20.7,", "100.0]", "-", "100.0", "%", "[20.7,", "100.0]"]
    assert [line.split()[-1] for line in lines[4:7]] == ["-", "-", "-"]  # harm, precision, recall


@pytest.mark.parametrize(("wanted", "heights", "places"), [
    ([0.1, 0.5, 0.9], [0.1] * 3, [0.1, 0.5, 0.9]),
    ([0.50, 0.52], [0.1] * 2, [0.46, 0.56]),
    ([0.30, 0.40, 0.40], [0.1] * 3, [0.8 / 3, 1.1 / 3, 1.4 / 3]),  # want 0.3, 0.3, 0.2 less their offsets
    ([0.50, 0.52], [0.1, 0.3], [0.41, 0.61]),
    ([1.0, 1.0, 1.0], [0.1] * 3, [0.8, 0.9, 1.0]),  # none above the top
    ([], [], []),
])
def test_labels_keep_apart(wanted, heights, places):
    assert plots.spread(wanted, heights, 1.0) == pytest.approx(places)


def exit_code(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
    return run(main)


def test_a_missing_run_is_one_line(tmp_path, monkeypatch, capsys):
    assert exit_code(monkeypatch, tmp_path / "nowhere") == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {tmp_path}/nowhere: no run directory")
    assert (printed.err.count("\n"), printed.out) == (1, "")
    with pytest.raises(SystemExit) as caught:
        exit_code(monkeypatch, "--help")
    assert caught.value.code == 0
    assert "--compare-base" in capsys.readouterr().out


def copied(toy: tuple[Path, str], folder: Path) -> Path:
    """The toy run under another name; its files are shared until they are replaced."""
    subprocess.run(["cp", "-rl", toy[0], folder], check=True)
    return folder


def test_bad_runs_are_one_line_and_nothing_is_written(toy, tmp_path, monkeypatch, capsys):
    place = copied(toy, tmp_path / "run")
    rollout, weights = place / "rollouts" / "step-00007.jsonl.gz", place / "adapter" / "adapter_model.safetensors"
    good, tensors = rollout.read_bytes(), load_file(weights)

    def refused(*words: str) -> None:
        before = sorted(place.rglob("*"))
        assert exit_code(monkeypatch, place) == 2
        printed = capsys.readouterr()
        assert all(word in printed.err for word in words), printed.err
        assert (printed.err.count("\n"), printed.out, sorted(place.rglob("*"))) == (1, "", before)

    rollout.unlink()
    rollout.write_bytes(good[: len(good) // 2])
    refused(f"error: {rollout}: line ", "cut short")
    rollout.write_bytes(good)
    (place / "evaluate").mkdir()
    (place / "evaluate" / "thesis.tex").write_text("precious\n")
    refused("thesis.tex", "move it away")
    (place / "evaluate" / "thesis.tex").unlink()
    weights.unlink()
    save_file({name: tensor[:, :-1].contiguous() for name, tensor in tensors.items()}, weights)
    refused("the LoRA of another base")


def test_an_earlier_evaluation_may_be_replaced(tmp_path):
    check_replaceable(tmp_path / "none")
    for name in FILES:
        (tmp_path / name).touch()
    check_replaceable(tmp_path)


def test_a_run_from_the_outside(toy, tmp_path):
    place = copied(toy, tmp_path / "run")
    (place / "evaluate").mkdir()
    (place / "evaluate" / "report.txt").write_text("an earlier one\n")
    done = subprocess.run([sys.executable, "-m", "adapter.evaluate", str(place), "--compare-base"], cwd=ROOT,
                          capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    written = place / "evaluate"
    assert {path.name for path in written.iterdir()} == FILES
    assert sorted(path.name for path in place.iterdir() if path.name.startswith(".")) == [".lock"]
    assert done.stdout == (written / "report.txt").read_text() + f"\nwritten to {written}/\n"
    assert max(len(text) for text in (written / "report.txt").read_text().splitlines()[1:]) <= 100
    found = json.loads((written / "report.json").read_text())
    steps = {m["step"]: m for m in json.loads((place / "evaluation.json").read_text())["steps"]}
    kept = json.loads((place / "evaluation.json").read_text())["kept"]
    assert done.stdout.startswith(f"{place}: the adapter of step {kept}, the best of 3 on validation (")
    assert (found["step"], found["trained_to_step"]) == (kept, 20)
    assert list(found["validation_by_step"]) == ["0", "10", "20"]
    for who, step in (("base", 0), ("adapter", kept)):
        for kind, of in (("custom", 20), ("standard", 20), ("overall", 40)):
            accuracy = found["policies"][who]["accuracy"][kind]
            assert (accuracy["value"], accuracy["of"]) == (steps[step][kind], of)
    assert found["policies"]["api"]["accuracy"] == found["policies"]["always_correct"]["accuracy"]
    lines = [json.loads(text) for text in (written / "completions.jsonl").read_text().splitlines()]
    for who, answers in (("adapter", lines), ("base", [text["base"] for text in lines])):
        assert sum(a["right"] for a in answers) == found["policies"][who]["accuracy"]["overall"]["hits"]
        counted = Counter(a["failure"] for a in answers if not a["right"])
        assert {f: found["failures"][who][f]["count"] for f in FAILURES} == {f: counted[f] for f in FAILURES}
    assert found["failures"]["base"]["wrong symbol"]["count"] > 8  # it guesses, and says so
    assert found["symbols"]["basis"] == "readings"
    assert all(symbol["first_step"]["0.5"] for symbol in found["symbols"]["learned"].values())
    for name in ("reward.png", "accuracy.png", "symbols.png"):
        png = (written / name).read_bytes()
        assert png.startswith(b"\x89PNG")
        assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == (1920, 1080)
