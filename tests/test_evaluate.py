"""`python -m adapter.evaluate`: its tables by hand, what it refuses, and one run from the outside."""

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from adapter.commands import run
from adapter.confidence import Calibration, read_calibration
from adapter.evaluate import main, notes, pays_in_part
from adapter.measure import folder as evaluated
from adapter.measure import tables
from adapter.measure.accuracy import api_alone, chain, rewarded
from adapter.measure.folder import FILES, check_replaceable, write
from adapter.measure.sections import Section
from adapter.verifiers.json import Json
from adapter.verifiers.number import Number
from grpo.types import UserError
from symbols.expression import GREEK
from symbols.failures import FAILURES
from symbols.report import policies
from tests.forked import run_forked
from tests.symbol_rows import row
from tests.test_outcomes import judge


def test_a_small_table_by_hand():
    answers = [("2 γ 3", "none", "6"), ("2 γ 4", "2", "CORRECT"), ("2 θ 4", "2", "6"),  # fixed, agreed wrongly, fixed
               ("5 + 5", "10", "CORRECT"), ("5 + 6", "11", "11"), ("5 + 7", "12", "13"), ("5 + 8", "12", "13")]
    outcomes = [judge(row(e, api), f"\\boxed{{{said}}}") for e, api, said in answers]
    rows, entry, alone = [o.row for o in outcomes], chain("adapter", outcomes), api_alone("API", outcomes)
    guessed = policies(rows, GREEK)["random_mapping"]
    table = [text.split() for text in tables.accuracy_table([alone, guessed, entry])]
    assert table[0] == ["custom", "standard", "overall"]
    assert table[2] == ["random", "mapping,", "expected", "25.0", "%", "100.0", "%", "67.9", "%"]  # (3/4 + 4) / 7
    assert table[3][:5] == ["adapter", "66.7", "%", "[20.8,", "93.9]"]
    cells = [text.split()[-1] for text in tables.api_table([alone, entry])[1:]]
    assert cells == ["(3/4)", "(1/3)", "(3/1)", "71.4]", "0.62", "(1/2)", "(1/3)"]  # 6 or 7 more of 7: 8 (3/7)^7 < 2.5 %
    failures = tables.failure_table("adapter", outcomes, FAILURES)
    assert [text.split()[-1] for text in failures if not text.startswith("      ")] == ["7", "1", "0", "1", "0", "0"]
    assert failures[2] == r"      2 γ 4 | true: 8 | API: 2 | \boxed{CORRECT}"


def task(verifier: object, may_agree: bool = True) -> SimpleNamespace:
    """As much of a task as notes need."""
    return SimpleNamespace(corrector=SimpleNamespace(verifier=verifier, prompt=SimpleNamespace(may_agree=may_agree)))


def test_what_a_reader_has_to_know_is_noted():
    right, half = judge(row("2 γ 3", "6"), "6"), replace(judge(row("2 γ 3", "6"), "6"), reward=0.5)
    late, other = replace(right, timed_out=True), rewarded("", [replace(right, reward=1.0)])
    now = rewarded("", [right])
    assert notes(task(Number()), {"adapter": [right]}, 3, now, now) == ["always CORRECT is the API alone"]
    assert notes(task(Number(), False), {"adapter": [right]}, 3, now, now)[0].startswith("the prompt does not offer CORRECT")
    assert notes(task(Number()), {"adapter": [right], "base": [late, late]}, 3, now, now)[1] == (
        "the verifier came to no end in its time for 2 of the base's completions, which count as wrong")
    assert "pays for what is right in part: the tables count" in notes(task(Number()), {"adapter": [half]}, 3, now, now)[1]
    assert notes(task(Number()), {"adapter": [right]}, 3, other, now)[1] == (
        "the run itself measured other accuracies at step 3: custom 100.0 %, overall 100.0 %")
    many = rewarded("", [replace(right, row=replace(right.row, kind=str(n))) for n in range(9)])
    assert notes(task(Number()), {"adapter": [right]}, 3, many, many)[1] == (
        "the pictures show the whole and the 7 largest kinds")


def test_only_a_verifier_of_the_users_own_may_pay_in_part():
    assert [pays_in_part(task(verifier)) for verifier in (Number(), Json(), object())] == [False, False, True]


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


@pytest.mark.parametrize(("arguments", "words"), [
    (("--harm-below", "1"), "--harm-below 1: expected a share of the API's right answers, below 1, such as 1% or 0.01"),
    (("--agreement", "1"), "--agreement 1: expected 2 to 64 samples"),
    (("--agreement", "65"), "--agreement 65: expected 2 to 64 samples")])
def test_a_wrong_option_is_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    assert exit_code(monkeypatch, tmp_path, *arguments) == 2
    assert words in (said := capsys.readouterr().err)
    assert said.count("\n") == 1


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
    check_replaceable(tmp_path, [], "a:B")
    (tmp_path / "evaluate").mkdir()
    for name in (*FILES, "symbols.png"):
        (tmp_path / "evaluate" / name).touch()
    check_replaceable(tmp_path, [Section("symbols", [])], "a:B")
    with pytest.raises(UserError, match=r"holds what no evaluation wrote \(symbols\.png\); move it away"):
        check_replaceable(tmp_path, [], "a:B")
    with pytest.raises(UserError, match=r"task\.target = a:B: its report has a section 'api'"):
        check_replaceable(tmp_path, [Section("api", [])], "a:B")


def test_half_of_a_surrogate_pair_is_written_as_json_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluated, "draw", lambda *_: None)
    monkeypatch.setattr(evaluated.report, "data", lambda _: {"half": "\ud83d"})
    odd = replace(judge(row("2 γ 3", "6"), "6"), completion="\ud83d")
    sure = SimpleNamespace(calibration=Calibration(3), validation=[])
    folder = write(SimpleNamespace(run=tmp_path, outcomes={"adapter": [odd]}, confidence=sure), "")
    assert json.loads((folder / "report.json").read_text()) == {"half": "\ud83d"}
    assert json.loads((folder / "completions.jsonl").read_text())["completion"] == "\ud83d"


def check_confidence(found: dict, lines: list[dict], run: Path, kept: int, printed: str) -> None:
    """What the report says of confidence follows from the lines of completions.jsonl."""
    chosen = read_calibration(run, kept)
    assert (found["step"], found["temperature"], found["threshold"]) == (kept, chosen.temperature, chosen.threshold)
    for line in lines:
        answered = line["verdict"] != "unparsed"
        assert answered == (line["mean_probability"] is not None)
        assert line["confidence"] == pytest.approx(chosen(math.log(line["mean_probability"])) if answered else 0, abs=1e-6)
        assert not answered or line["least_sure"][1] <= min(line["mean_probability"], *(p for _, p in line["box"])) + 1e-6
        assert not answered or line["completion"].rpartition("boxed{")[2].startswith("".join(t for t, _ in line["box"])[:-1])
    assert any(line["least_sure"][1] < 0.9 for line in lines)  # the policy's own, not those of a choice that is certain
    api = [line["api_extracted"] == line["answer"] for line in lines]
    for gate in [*found["thresholds"], found["harm_below"]["test"]]:
        ends = [line["right"] if line["confidence"] >= gate["threshold"] else right
                for line, right in zip(lines, api, strict=True)]
        assert gate["fixes"] == sum(end and not right for end, right in zip(ends, api, strict=True))
        assert gate["harms"] == sum(right and not end for end, right in zip(ends, api, strict=True))
        assert gate["net_lift"]["points"] == pytest.approx(2.5 * (gate["fixes"] - gate["harms"]))
    assert [found["thresholds"][at]["threshold"] for at in (0, -1)] == [0, 1]
    assert found["harm_below"]["share"] == 0.2
    assert found["harm_below"]["threshold"] == chosen.threshold
    assert found["harm_below"]["validation"]["harm_rate"]["value"] <= 0.2
    assert found["risk_coverage"][-1] == [1.0, pytest.approx(sum(not line["right"] for line in lines) / 40)]
    assert found["questions"] == 80
    whole, box, agreement = (found["estimators"][name] for name in ("completion", "box", "agreement"))
    assert (whole["temperature"], whole["cost"]["tokens"]) == (chosen.temperature, 0)
    assert (box["cost"]["tokens"], agreement["label"]) == (0, "agreement of 3")
    assert 2 * found["greedy"]["tokens"] < agreement["cost"]["tokens"] <= 3 * 80 * 40
    errors = [e[when][name] for e in (whole, box, agreement) for when in ("before", "after") for name in ("ece", "aurc")]
    assert all(0 <= error <= 1 for error in errors)
    assert "confidence: the probability that the adapter's verdict is right" in printed.splitlines()
    assert "harm below 20 %: threshold" in printed


def test_a_run_from_the_outside(toy, tmp_path):
    place = copied(toy, tmp_path / "run")
    (place / "evaluate").mkdir()
    (place / "evaluate" / "report.txt").write_text("an earlier one\n")
    done = run_forked(tmp_path, "adapter.evaluate", str(place), "--compare-base", "--harm-below", "20%", "--agreement", "3")
    assert done.returncode == 0, done.stderr[-3000:]
    written = place / "evaluate"
    assert {path.name for path in written.iterdir()} == FILES | {"symbols.png"}
    assert sorted(path.name for path in place.iterdir() if path.name.startswith(".")) == [".lock"]
    assert done.stdout == (written / "report.txt").read_text() + f"\nwritten to {written}/\n"
    assert max(len(text) for text in (written / "report.txt").read_text().splitlines()[1:]) <= 100
    found = json.loads((written / "report.json").read_text())
    lines = [json.loads(text) for text in (written / "completions.jsonl").read_text().splitlines()]
    steps = {m["step"]: m for m in json.loads((place / "evaluation.json").read_text())["steps"]}
    kept = json.loads((place / "evaluation.json").read_text())["kept"]
    assert done.stdout.startswith(f"{place}: the adapter of step {kept}, the best of 3 on validation (")
    assert (found["step"], found["trained_to_step"]) == (kept, 20)
    assert list(found["validation_by_step"]) == ["0", "10", "20"]
    for who, step in (("base", 0), ("adapter", kept)):
        for kind, of in (("custom", 20), ("standard", 20), ("overall", 40)):
            accuracy = found["policies"][who]["accuracy"][kind]
            assert (accuracy["value"], accuracy["of"]) == (steps[step][kind], of)
    assert found["policies"]["random_mapping"]["accuracy"]["standard"]["value"] == 1
    lifted = found["policies"]["adapter"]["against_api"]["overall"]["net_lift"]
    gained = 2.5 * sum((o["right"]) - (o["api_extracted"] == o["answer"]) for o in lines)  # points of 40 questions
    assert lifted["points"] == pytest.approx(gained)
    assert f"net lift {gained:+.1f} [{lifted['low']:.1f}, {lifted['high']:.1f}] points" in done.stdout
    assert found["policies"]["api"]["accuracy"] == found["policies"]["always_correct"]["accuracy"]
    for who, answers in (("adapter", lines), ("base", [text["base"] for text in lines])):
        assert sum(a["right"] for a in answers) == found["policies"][who]["accuracy"]["overall"]["hits"]
        counted = Counter(a["failure"] for a in answers if not a["right"])
        assert {f: found["failures"][who][f]["count"] for f in FAILURES} == {f: counted[f] for f in FAILURES}
    assert found["failures"]["base"]["wrong symbol"]["count"] > 8  # it guesses, and says so
    assert (found["symbols"]["condition"], found["symbols"]["basis"]) == ("vague", "readings")
    assert {"condition vague", "random mapping     reads each symbol as any of the four operations, all equally likely: the "
            "expected"} <= set(done.stdout.splitlines())
    assert all(symbol["first_step"]["0.5"] for symbol in found["symbols"]["learned"].values())
    check_confidence(found["confidence"], lines, place, kept, done.stdout)
    for name in ("reward.png", "accuracy.png", "symbols.png", "reliability.png", "risk_coverage.png"):
        png = (written / name).read_bytes()
        assert png.startswith(b"\x89PNG")
        assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == (1920, 1080)
