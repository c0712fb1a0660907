"""What a run recorded, read back: learning curves by hand, and damage named by file and line."""

import json
from pathlib import Path

import pytest

from adapter.measure.accuracy import recorded
from adapter.measure.curves import moving_mean, reached
from adapter.measure.records import read_evaluation, read_kept, read_metrics, reward_curves
from adapter.measure.tables import WIDTH
from grpo.types import UserError
from symbols.expression import GREEK, Op
from symbols.failures import FAILURES
from symbols.learning import read_learning
from symbols.report import section, symbol_table
from tests.conftest import tiny_config
from tests.symbol_rows import row


def line(step: int, problem: str, completion: str, reward: float = 0.0) -> dict:
    kind = "custom" if any(sign in problem for sign in GREEK) else "standard"
    return {"step": step, "problem": problem, "kind": kind, "completion": completion, "reward": reward, "advantage": None}


def write_rollouts(folder: Path, steps: dict[int, list[dict]]) -> None:
    (folder / "rollouts").mkdir()
    for step, lines in steps.items():
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines)
        (folder / "rollouts" / f"step-{step:05d}.jsonl").write_text(text)


def test_readings_are_learned_when_by_hand(tmp_path):
    right = {1: 0, 2: 0, 4: 1, 5: 2, 6: 2, 7: 2, 8: 2}  # of two completions; step 3 has no γ
    steps = {step: [line(step, "2 γ 3", "γ = ×" if i < n else "γ = +") for i in range(2)] for step, n in right.items()}
    steps[3] = [line(3, "2 + 3", "γ = ×"), line(3, "2 α 3 θ 4", "α = − , θ = − ; α = −")]
    write_rollouts(tmp_path, steps)
    found = read_learning(tmp_path, 8, 2, GREEK)
    assert (found.basis, found.steps, found.missing) == ("readings", 8, 0)
    assert found.curves["γ"] == {1: 0, 2: 0, 4: 0.5, 5: 1, 6: 1, 7: 1, 8: 1}
    assert (found.curves["α"], found.curves["θ"], found.curves["β"]) == ({3: 1}, {3: 0}, {})
    assert moving_mean(found.curves["γ"], 5) == {6: pytest.approx(0.5), 7: pytest.approx(0.7), 8: pytest.approx(0.9)}
    assert [reached(found.curves["γ"], level) for level in (0.5, 0.9, 0.95)] == [6, 8, None]
    assert reached(found.curves["α"], 0.5) is None  # one value is no mean of five
    table = symbol_table(found, GREEK)
    assert table[4].split() == ["γ", "(×)", "step", "6", "step", "8", "90.0", "%"]
    assert table[5].split() == ["β", "(÷)", "not", "yet", "not", "yet", "-"]


def test_the_experiments_part_of_the_report(tmp_path):
    config = tiny_config("rollout.prompts_per_step=1", "rollout.group_size=2")
    nothing = section(tmp_path, 3, config, GREEK, "vague")
    assert (nothing.lines[:2], nothing.draw) == (["condition vague", "symbols: not known, there are no rollouts"], None)
    write_rollouts(tmp_path, {step: [line(step, "2 γ 3", "γ = ×")] * 2 for step in range(1, 7)})
    part = section(tmp_path, 6, config, GREEK, "vague")
    assert max(map(len, part.lines)) <= WIDTH
    assert all(any(text.strip().startswith(failure) for text in part.lines) for failure in FAILURES)
    assert (part.name, part.data["condition"], part.data["learned"]["γ"]["first_step"]) == ("symbols", "vague", {
        "0.5": 5, "0.9": 5})
    part.draw(tmp_path / "symbols.png", "Adapter on tiny")
    assert (tmp_path / "symbols.png").stat().st_size > 20_000


def test_without_readings_the_reward_on_one_symbol_tells(tmp_path):
    write_rollouts(tmp_path, {2: [line(2, "2 γ 3", r"\boxed{6}", 1.0), line(2, "2 γ 3", r"\boxed{5}", 0.0),
                                  line(2, "2 γ 3 α 1", r"\boxed{5}", 1.0), line(2, "2 α 3 α 1", "α = −", 1.0)]})
    found = read_learning(tmp_path, 2, 4, GREEK)
    assert (found.basis, found.steps, found.missing) == ("reward", 1, 1)
    assert found.curves == {"γ": {2: 0.5}, "α": {2: 1.0}, "θ": {}, "β": {}}
    assert "rollouts/ holds 1 of 2 steps" in symbol_table(found, GREEK)[-1]


def test_standard_problems_teach_no_symbol(tmp_path):
    write_rollouts(tmp_path, {1: [line(1, "2 + 3", r"\boxed{5}", 1.0)]})
    signs = {"+": Op.MUL, "−": Op.DIV, "×": Op.ADD, "÷": Op.SUB}  # symbols that look like operators
    assert read_learning(tmp_path, 1, 1, signs).curves == {sign: {} for sign in signs}


GOOD = json.dumps(line(2, "2 γ 3", "γ = ×"))


@pytest.mark.parametrize(("text", "words"), [
    (f"{GOOD}\n{GOOD}", "line 2: cut short"),
    (f"{GOOD}\n{GOOD[:40]}\n", "line 2: Invalid JSON"),
    (f"\n{GOOD}\n", "line 1: Invalid JSON"),
    (f"{GOOD}\n[1]\n", "line 2: Input should be an object"),
    (f"{GOOD}\n" + GOOD.replace('"reward": 0.0', '"reward": 2.0') + "\n", "line 2: reward: "),
    (f"{GOOD}\n" + GOOD.replace('"reward": 0.0', '"reward": NaN') + "\n", "line 2: reward: "),
    (f"{GOOD}\n" + GOOD.replace("completion", "text") + "\n", "line 2: completion: Field required"),
    (f"{GOOD}\n" + GOOD.replace("custom", "strange") + "\n", "line 2: kind: "),
    (f"{GOOD}\n" + GOOD.replace('"step": 2', '"step": 3') + "\n", "line 2: step is 3, expected 2"),
    (f"{GOOD}\n" + GOOD.replace(json.dumps("2 γ 3"), '"2 γ"') + "\n", "line 2: problem: expected a number at position 4"),
    (f"{GOOD}\n", "line 2: missing"), ("", "line 1: missing"),
    (f"{GOOD}\n" * 3, "line 3: one more"),
    (f"{GOOD}\n".encode() + b'{"step": "\xff"}\n', "line 2: Invalid JSON"),
])
def test_damaged_rollouts_name_file_and_line(tmp_path, text, words):
    write_rollouts(tmp_path, {1: [line(1, "2 γ 3", "γ = ×")] * 2})
    path = tmp_path / "rollouts" / "step-00002.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_learning(tmp_path, 1, 2, GREEK).steps == 1  # what is past the LoRA's step is not read
    with pytest.raises(UserError) as caught:
        read_learning(tmp_path, 2, 2, GREEK)
    assert str(caught.value).startswith(f"{path}: {words}")
    assert "\n" not in str(caught.value)
    assert "delete the file" in str(caught.value)


def test_records_are_read_up_to_a_step_and_checked(tmp_path):
    metrics, evaluation = tmp_path / "metrics.jsonl", tmp_path / "evaluation.json"
    assert (read_metrics(tmp_path, 9), read_evaluation(tmp_path, 9, {})) == ([], None)
    metrics.write_text('{"step": 1, "reward/a": 0.5, "loss": "x"}\n{"step": 2, "reward/b": 1.0, "reward/a": null, '
                       '"reward/mean": 0.75}\n{"step": 3, "rew')
    assert reward_curves(read_metrics(tmp_path, 2)) == {"a": {1: 0.5}, "b": {2: 1.0}, "overall": {2: 0.75}}
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 3: cut short; delete that line"):
        read_metrics(tmp_path, 3)
    api = {"custom": 0.0, "overall": 0.0}
    steps = [{"step": step, "custom": value, "overall": value} for step, value in ((0, 0.25), (10, 0.5), (20, 0.75))]
    evaluation.write_text(json.dumps({"api": api, "steps": steps}))
    rows = [row(f"2 γ {n}", "none") for n in range(4)]
    found = read_evaluation(tmp_path, 15, api)
    assert (found.validation, found.kept, read_kept(tmp_path)) == ([], None, None)  # an older run
    past = found.steps
    hits = {m.step: recorded("", m.table(), rows, in_part=False).accuracy["custom"].hits for m in past}
    assert hits == {0: 1, 10: 2}
    with pytest.raises(ValueError, match=r"custom: 0\.25 is no share of 3 problems"):
        recorded("", past[0].table(), rows[:3], in_part=False)
    with pytest.raises(UserError, match="restore the data it used"):
        read_evaluation(tmp_path, 15, {"custom": 0.1, "overall": 0.1})
    evaluation.write_text(json.dumps({"api": api, "steps": steps[:1], "validation": steps, "kept": 20}))
    found = read_evaluation(tmp_path, 15, api)
    assert [m.step for m in found.validation] == [0, 10]
    assert (found.kept, read_kept(tmp_path)) == (20, 20)
    for text in ("", "[]", '{"api": {}}', evaluation.read_text().replace("0.25", "25")):
        evaluation.write_text(text)
        with pytest.raises(UserError, match=r"evaluation\.json: ") as caught:
            read_evaluation(tmp_path, 15, api)
        assert "\n" not in str(caught.value)


def test_kinds_may_have_any_name(tmp_path):
    kinds = {"table": 0.5, "model_config": 0.25, "a b/c": 1.0, "": 0.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, **{f"reward/{k}": v for k, v in kinds.items()}}) + "\n")
    assert reward_curves(read_metrics(tmp_path, 1)) == {**{k: {1: v} for k, v in kinds.items()}, "overall": {}}
    table = {**kinds, "overall": 0.5}
    (tmp_path / "evaluation.json").write_text(json.dumps({"api": table, "steps": [{"step": 0, **table}]}))
    assert read_evaluation(tmp_path, 1, table).steps[0].table() == table
