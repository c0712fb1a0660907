"""`make ablations`: from four finished runs to README's table and picture; from the repository's own configs to runs."""

import json

import pytest

from benchmarks import ablations
from grpo.config import load
from tests.conftest import ROOT


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Four runs as they would lie there, and a README to write into."""
    monkeypatch.setattr(ablations, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(ablations, "PICTURE", tmp_path / "picture.png")
    monkeypatch.setattr(ablations, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(f"before\n{ablations.MARKS[0]}old\n{ablations.MARKS[1]}after\n")
    for number, name in enumerate(ablations.CONDITIONS):
        run = tmp_path / "runs" / name
        (run / "adapter").mkdir(parents=True)
        (run / "config.yaml").write_text(load(ROOT / "configs" / "tiny" / f"{name}.yaml", [f"run.dir={run}"]).dump())
        rewards = [number / 4] * 30 + [1.0] * 30
        metrics = [{"step": step, "reward/custom": r, "reward/standard": 1.0} for step, r in enumerate(rewards, 1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        steps = [{"step": 0, "custom": number / 10, "standard": 1.0, "overall": 0.5},
                 {"step": 60, "custom": 0.985, "standard": 0.9, "overall": 0.9}]
        later = {"step": 70, "custom": 0.0, "standard": 0.0, "overall": 0.0}
        (run / "evaluation.json").write_text(json.dumps({"api": {}, "steps": [*steps, later], "kept": 60} if number else
                                                        {"api": {}, "steps": steps}))  # the first as an older run has it
    return tmp_path


def test_table_and_picture_are_written_and_nothing_is_trained_again(finished, monkeypatch):
    monkeypatch.setattr(ablations.subprocess, "run", lambda *_, **__: pytest.fail("it trains"))
    ablations.main()
    text = (finished / "README.md").read_text()
    assert text.startswith("before\n<!-- ablations -->\n| |")
    assert text.endswith("<!-- /ablations -->\nafter\n")
    assert "old" not in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows[0][4:6] == ["0.0, 98.5 %", "100.0, 90.0 %"]
    assert rows[1] == ["B", "not mentioned", "no", "0.25, 1.00", "10.0, 98.5 %", "100.0, 90.0 %", "*the same failure*"]
    assert [row[0] for row in rows] == list("ABCD")
    assert (finished / "picture.png").stat().st_size > 20_000


def test_a_run_of_other_settings_is_trained_again(finished, monkeypatch):
    trained = []
    monkeypatch.setattr(ablations.subprocess, "run", lambda command, **_: trained.append(command[2]))
    config = finished / "runs" / "vague" / "config.yaml"
    config.write_text(config.read_text().replace("steps: 60", "steps: 6"))
    ablations.main()
    assert trained == ["configs/tiny/vague.yaml"]


def test_a_readme_without_its_marks_stays_as_it_is(finished):
    (finished / "README.md").write_text(f"{ablations.MARKS[0]}precious\n")
    with pytest.raises(SystemExit, match="expected the lines"):
        ablations.main()
    assert (finished / "README.md").read_text() == f"{ablations.MARKS[0]}precious\n"
