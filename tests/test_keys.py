"""The API's key is in no file of a run, and not in what it prints."""

import json

from tests.claude import KEY
from tests.conftest import run_train


def test_a_run_behind_a_real_api_writes_its_key_nowhere(server, tmp_path):
    done = run_train("configs/tiny.yaml", f"run.dir={tmp_path}/run", "run.steps=2", "task.terms=[2,2]", "task.train=12",
                     "task.validation=4", "task.test=6", "task.upstream=anthropic", "task.api_yes=true",
                     f"task.api_answers={tmp_path}/answers.jsonl", "rollout.prompts_per_step=2", "rollout.group_size=4",
                     "rollout.max_new_tokens=16",
                     "checkpoint.every=1", "eval.every=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 22
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["api"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert names >= {"config.yaml", "metrics.jsonl", "state.json", "adapter_model.safetensors", "step-00002.jsonl.gz"}
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in done.stdout + done.stderr
