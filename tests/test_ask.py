"""The chain: `python -m adapter.ask`, and Chain as a library, on a real run."""

import json
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter import ask as command
from adapter.ask import LONGEST_LINE, MOST_AT_ONCE, as_they_come, read_lines
from adapter.chain import Chain, read_question
from adapter.commands import run
from grpo.types import UserError
from symbols.settings import Settings
from symbols.task import SymbolTask
from tests.conftest import ROOT

EXPRESSIONS = ["6 θ 7", "9 α 4", "6 γ 7", "8 β 4", "6 + 7", "9 - 4", "6 * 7", "8/4"]
READ = partial(read_question, SymbolTask.make_corrector(Settings()))


def test_stdin_is_answered_in_order_as_it_comes(toy):
    command = [sys.executable, "-m", "adapter.ask", "--file", "-", "--run", str(toy[0]), "--json"]
    process = subprocess.Popen(command, cwd=ROOT, text=True, **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE))
    answers = []
    for expression in EXPRESSIONS:  # each is written only once the one before has been answered
        process.stdin.write(expression + "\n")
        process.stdin.flush()
        answers.append(json.loads(process.stdout.readline()))
    process.stdin.write("6 θ 7\n3 % 4\n9 α 4\n")
    process.stdin.close()
    rest, errors = process.stdout.read(), process.stderr.read()
    assert process.wait() == 2
    assert [a["question"] for a in answers] == ["6 θ 7", "9 α 4", "6 γ 7", "8 β 4", "6 + 7", "9 − 4", "6 × 7", "8 ÷ 4"]
    assert sum(a["answer"] == right for a, right in zip(answers, ["13", "5", "42", "2"] * 2, strict=True)) >= 7
    assert set(answers[0]) == {"question", "api_text", "api_answer", "verdict", "answer", "completion", "confidence", "kept"}
    assert all(0 < a["confidence"] < 1 and not a["kept"] for a in answers)
    assert f"{toy[0]}: its confidence is not calibrated; python -m adapter.evaluate does that" in errors.splitlines()
    assert [json.loads(line)["question"] for line in rest.splitlines()] == ["6 θ 7"]
    assert errors.splitlines()[-1].startswith("error: stdin: line 10: '3 % 4': expected one of")


def test_an_answer_that_is_missing_shows_in_the_exit_code(toy, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert command.main(["98 γ 97", "--run", str(toy[0])]) == 1  # beyond what the embedded base computes
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("98 γ 97  |  simulated API: ")
    assert line.endswith("|  answer: none")


def test_below_the_threshold_the_apis_answer_stands(toy, tmp_path, monkeypatch, capsys):
    kept = json.loads((toy[0] / "evaluation.json").read_text())["kept"]
    run, asked = tmp_path / "run", [{"question": "6 + 7", "api_answer": "14"}, {"question": "98 γ 97", "api_answer": "1"}]
    shutil.copytree(toy[0], run)
    (run / "evaluate").mkdir()
    monkeypatch.chdir(ROOT)
    engine = Chain(run)._adapter  # one for all

    def answers(above: str, **calibration: object) -> list[tuple]:
        (run / "evaluate" / "confidence.json").write_text(json.dumps({"step": kept, "temperature": 1.0} | calibration))
        chain = Chain(run, threshold=above)
        assert chain.calibrated == (calibration.get("step", kept) == kept)
        chain._adapter = engine
        found = chain(asked)
        return [(a.answer, a.verdict, a.kept, a.confidence) for a in found]

    plain = answers("0", threshold=None)
    assert [a[:3] for a in plain] == [("13", "override", False), (None, "unparsed", False)]
    assert (0.5 < plain[0][3] < 1, plain[1][3]) == (True, 0)
    assert [a[:3] for a in answers("1", threshold=None)] == [("14", "override", True), ("1", "unparsed", True)]
    lower, higher = plain[0][3] - 1e-3, (plain[0][3] + 1) / 2
    assert [a[:3] for a in answers("auto", threshold=lower)] == [("13", "override", False), ("1", "unparsed", True)]
    assert [a[:3] for a in answers("auto", threshold=higher)] == [("14", "override", True), ("1", "unparsed", True)]
    hotter = answers("0", threshold=None, temperature=50.0)[0][3]
    odds = plain[0][3] / (1 - plain[0][3])
    assert hotter / (1 - hotter) == pytest.approx(odds ** (1 / 50), rel=1e-3)
    assert answers("0.5", threshold=0.9, step=kept + 1)[0][0] == "13"  # another step's: as if there were none
    with pytest.raises(UserError, match="threshold auto: none is chosen for the adapter of step"):
        answers("auto", threshold=0.9, step=kept + 1)
    with pytest.raises(UserError, match=r"confidence\.json: temperature: Input should be"):
        answers("0", threshold=None, temperature=0)
    engine.close()
    (run / "evaluate" / "confidence.json").unlink()
    assert command.main(["6 + 7", "--api-answer", "14", "--run", str(run), "--threshold", "1"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("6 + 7  |  API: 14  |  adapter: override, 9")
    assert line.endswith(" %, too unsure  |  answer: 14")


@pytest.mark.parametrize(("arguments", "words"), [
    (["3 θ 4", "--run", "RUN", "--threshold", "high"], "threshold high: expected a number from 0 to 1, such as 0.8,"),
    (["3 θ 4", "--run", "RUN", "--threshold", "auto"], "run python -m adapter.evaluate"),
    (["", "--run", "RUN"], "position 1, found the end"),
    (["3 % 4", "--run", "RUN"], "'3 % 4': expected one of + − × ÷ at position 3"),
    (["3 θ 4 + 5", "--run", "RUN"], "expected one of θ α γ β at position 7"),
    (["٣ θ 4", "--run", "RUN"], "expected a number at position 1"),
    (["4 β 0", "--run", "RUN"], "division by zero"),
    (["36", "--run", "RUN"], "no operation"),
    (["9" * 10_000, "--run", "RUN"], "10000 characters; at most 1000"),
    (["9" * 996 + "+1", "--run", "RUN"], "leave the adapter room"),
    (["9" * 997 + "+1", "--run", "RUN"], "the expression has 1001 characters; at most 1000"),
    (["3 θ 4", "--run", "nowhere"], "nowhere: no run directory"),
    (["3 θ 4", "--run", "RUN", "--concurrency", "0"], "api_concurrency = 0"),
    (["--file", "nowhere.txt", "--run", "RUN"], "nowhere.txt: cannot be read"),
    (["--file", "FILE", "--run", "RUN"], "line 2: not UTF-8"),
    (["3 θ 4", "--run", "OTHER TASK"], "its task is examples/sums.py:Sums, which corrects no API; this command knows tasks"),
    (["3 θ 4", "--run", "OTHER BASE"], "the LoRA of another base than models/tiny"),
    (["3 θ 4", "--run", "DAMAGED"], "no LoRA that can be read"),
    (["3 θ 4", "--run", "UNTRAINED"], "holds no LoRA yet"),
])
def test_mistakes_are_one_line(toy, tmp_path, arguments, words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = [place(a, toy[0], tmp_path) for a in arguments]
    monkeypatch.setattr(sys, "argv", ["ask", *arguments])
    assert run(command.main) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 400


def test_an_error_ends_it_though_the_pipe_stays_open(toy):
    process = subprocess.Popen([sys.executable, "-m", "adapter.ask", "--file", "-", "--run", str(toy[0])], cwd=ROOT,
                               text=True, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write("3 % 4\n")
    process.stdin.flush()
    assert process.wait(60) == 2
    assert process.stderr.read().splitlines()[-1].startswith("error: stdin: line 1: '3 % 4'")


def test_a_real_api_is_asked_for_many_only_with_leave(toy, server, tmp_path, monkeypatch, capsys):
    (tmp_path / "file.txt").write_text("6 θ 7\n9 α 4\n")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["ask", "--file", str(tmp_path / "file.txt"), "--run", str(toy[0]), "--upstream",
                                      "anthropic", "--answers", str(tmp_path / "answers.jsonl")])
    assert run(command.main) == 2
    assert "2 to ask: about" in (said := capsys.readouterr().err)
    assert "--yes" in said
    assert server.asked == []


def test_the_runs_settings_choose_the_api_but_never_a_batch(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    shutil.copytree(toy[0] / "adapter", tmp_path / "adapter")
    config = (toy[0] / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config + "  upstream: anthropic\n  api_batch: true\n  api_model: claude-opus-5\n")
    chain = Chain(tmp_path)
    assert (chain.upstream.model, chain.upstream.batch, chain.upstream.agreed) == ("claude-opus-5", False, False)
    assert Chain(tmp_path, api_yes=True).upstream.agreed
    assert Chain(tmp_path, upstream="simulated").upstream.label == "simulated API"
    with pytest.raises(UserError, match="upstreem: unknown key; did you mean upstream"):
        Chain(tmp_path, upstreem="simulated")


def test_a_reader_that_dies_is_heard():
    def dies():
        yield READ("1 + 1")
        raise KeyError("a bug")

    with pytest.raises(RuntimeError, match="the reader ended early"):
        list(as_they_come(dies()))


def place(argument: str, folder: Path, tmp_path: Path) -> str:
    """Stand-ins for paths: the toy run, or a copy of its files that is wrong in some way."""
    if argument == "FILE":
        (tmp_path / "file.txt").write_bytes("3 θ 4\n".encode() + b"\xff\xfe\n")
        return str(tmp_path / "file.txt")
    if argument not in ("OTHER TASK", "OTHER BASE", "DAMAGED", "UNTRAINED"):
        return str(folder) if argument == "RUN" else argument
    copy = tmp_path / "run"
    shutil.copytree(folder / "adapter", copy / "adapter")
    shutil.copy(folder / "config.yaml", copy)
    weights = copy / "adapter" / "adapter_model.safetensors"
    if argument == "OTHER TASK":
        text = (copy / "config.yaml").read_text()
        (copy / "config.yaml").write_text(text.replace("target: symbols", "target: examples/sums.py:Sums"))
    elif argument == "OTHER BASE":
        save_file({name: torch.zeros(t.shape[0], t.shape[1] + 1) for name, t in load_file(weights).items()}, weights)
    elif argument == "DAMAGED":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        shutil.rmtree(copy / "adapter")
    return str(copy)


def test_the_step_is_said_once_and_apart_from_the_answers(toy, tmp_path, monkeypatch, capsys):
    (tmp_path / "file.txt").write_text("6 θ 7\n" * (MOST_AT_ONCE + 1))
    monkeypatch.chdir(ROOT)
    command.main(["--file", str(tmp_path / "file.txt"), "--run", str(toy[0]), "--json"])
    out, err = capsys.readouterr()
    kept = json.loads((toy[0] / "evaluation.json").read_text())["kept"]
    assert err.count(f"{toy[0]}: the adapter of step {kept} answers\n") == 1
    assert len([json.loads(line) for line in out.splitlines()]) == MOST_AT_ONCE + 1


def test_a_full_pipe_is_read_in_batches_and_a_trickle_at_once():
    everything = list(as_they_come(READ(f"{n} + 1") for n in range(3 * MOST_AT_ONCE)))
    assert [q.question for batch in everything for q in batch] == [f"{n} + 1" for n in range(3 * MOST_AT_ONCE)]
    assert max(map(len, everything)) <= MOST_AT_ONCE
    more = threading.Event()

    def trickle():
        for n in range(3):
            yield READ(f"{n} + 1")
            more.wait()
            more.clear()

    for n, batch in enumerate(as_they_come(trickle())):
        assert [q.question for q in batch] == [f"{n} + 1"]  # handed out before the next exists
        more.set()


def test_memory_stays_flat_on_an_endless_pipe():
    made = 0

    def endless():
        nonlocal made
        while True:
            made += 1
            yield READ("1 + 1")

    batches = as_they_come(endless())
    next(batches)
    time.sleep(0.2)
    assert made < 4 * MOST_AT_ONCE  # the reader waits for the asker


def test_a_line_without_an_end_is_refused(tmp_path):
    (tmp_path / "long.txt").write_bytes(b"1 + 1\n" + b"9" * LONGEST_LINE)
    with (tmp_path / "long.txt").open("rb") as file, pytest.raises(UserError, match="line 2: a line of 1,048,576 bytes"):
        list(read_lines(file, "long.txt", READ))
