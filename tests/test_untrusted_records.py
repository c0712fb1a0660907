"""Run directories from strangers, on resume: nothing is written through a link, and no record is too deep or too large."""

import os

import pytest

from grpo.run import rundir
from grpo.run.evaluations import Evaluations
from grpo.run.records import RunLog
from grpo.types import UserError
from tests.test_untrusted_data import refused

HUGE = 100 * 2**20  # bytes of a file of zeros, which takes no room on the disk


@pytest.mark.parametrize("place", ["rollouts/step-00001.jsonl.gz", "checkpoints", ".config.yaml.part", "metrics.part",
                                   "tensorboard/events", "evaluation.json", "checkpoints/.step-00001.part", "config.yaml"])
def test_a_run_directory_links_nowhere(tmp_path, place):
    run, victim = tmp_path / "run", tmp_path / "victim"
    victim.write_text("precious\n")
    rundir.begin(run, "run: 1\n", resume=False)
    (run / place).parent.mkdir(exist_ok=True)
    for target in (victim, tmp_path, tmp_path / "nowhere"):
        (run / place).unlink(missing_ok=True)
        (run / place).symlink_to(target)
        refused(lambda: rundir.begin(run, "run: 2\n", resume=True), f"{place} is a link; a run directory holds none")
    assert victim.read_text() == "precious\n"
    assert not (tmp_path / "nowhere").exists()
    assert place == "config.yaml" or (run / "config.yaml").read_text() == "run: 1\n"


@pytest.mark.parametrize("name", ["x" * 300, "below/" + "x" * 300])
def test_a_name_that_no_disk_takes(tmp_path, name):
    with pytest.raises(UserError, match=r"cannot be written \(File name too long\); make room there, or choose another"):
        rundir.begin(tmp_path / name, "run: 1\n", resume=False)


@pytest.mark.parametrize("line", [
    "3", "[]", "{", "\x00", '{"loss": 1}', '{"step": "x"}', '{"step": null}', "[" * 50_000, '{"step": ' + "9" * 999 + "}"])
def test_metrics_that_are_none(tmp_path, line):
    text = f'{{"step": 1}}\n{line}\n{{"step": 2}}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    refused(lambda: RunLog(tmp_path, 2, 9), "metrics.jsonl: holds a line that is no step's metrics; delete the line")
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_metrics_without_a_newline(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    os.truncate(tmp_path / "metrics.jsonl", HUGE)
    refused(lambda: RunLog(tmp_path, 2, 9), "metrics.jsonl: a line is longer than 1048576 bytes")
    assert (tmp_path / "metrics.jsonl").stat().st_size == HUGE


@pytest.mark.parametrize("text", [
    "3", "[]", "{", "{}", '{"steps": 3}', '{"steps": [3]}', '{"steps": [[]]}', '{"steps": ["step"]}', '{"steps": [{}]}',
    '{"steps": [{"step": "0"}]}', '{"steps": [{"step": 0, "overall": "x"}]}', '{"steps": [{"step": 0, "overall": NaN}]}',
    '{"steps": [{"step": 0, "overall": {}}]}', '{"steps": [{"step": 0, "overall": 1' + "0" * 400 + "}]}", "[" * 100_000,
    '{"steps": [{"step": 0}]}', '{"steps": [{"step": true, "overall": 1}]}', '{"steps": [{"step": -1, "overall": 1}]}',
    '{"steps": [{"step": 0, "overall": true}]}', '{"steps": [], "validation": 3}',
    '{"steps": [], "validation": [{"step": 0}]}', '{"steps": [], "validation": {"step": 0}}',
    '{"steps": [], "validation": [{"step": 0.5, "overall": 1}]}',
    '{"steps": [], "validation": [{"step": 1' + "0" * 5000 + ', "overall": 1}]}', '{"steps": [], "validation": null}',
    '{"steps":' * 100_000, '{"steps": [' + "[]," * 10**5 + "[]]}", HUGE])
def test_evaluations_that_are_none(tmp_path, text):
    path = tmp_path / "evaluation.json"
    path.touch()
    os.truncate(path, text) if isinstance(text, int) else path.write_text(text)
    refused(lambda: Evaluations(path, {}, before=5), f"{path}: damaged (", "delete it to go on without")
