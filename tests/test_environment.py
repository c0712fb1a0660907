"""Variables of the environment that vLLM or torchrun would stumble over: harmless, or one line that names it."""

import os
import subprocess
import sys

import pytest

from grpo.ranks import torchrun
from grpo.speed.engine import check_environment
from grpo.types import UserError
from tests.conftest import ROOT


@pytest.mark.parametrize(("name", "value", "words"), [
    ("VLLM_CPU_KVCACHE_SPACE", "4GiB", "VLLM_CPU_KVCACHE_SPACE = '4GiB': vLLM cannot read"),
    ("VLLM_BATCH_INVARIANT", "yes", "VLLM_BATCH_INVARIANT = 'yes': vLLM cannot read"),
    ("VLLM_BATCH_INVARIANT", "1", "no batch-invariant kernels for a CPU"),
    ("VLLM_LOGGING_LEVEL", "verbose", "VLLM_LOGGING_LEVEL = 'verbose': no logging level; set it to one of CRITICAL")])
def test_what_vllm_cannot_follow_is_named_before_it_starts(monkeypatch, name, value, words):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "debug")
    check_environment(on_gpu=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        check_environment(on_gpu=False)


def test_what_is_meant_for_others_does_no_harm():
    """A service named vllm in Kubernetes, and a shell that prefers ModelScope."""
    env = os.environ | {"VLLM_PORT": "tcp://10.43.1.39:8000", "VLLM_USE_MODELSCOPE": "True"}
    code = "from grpo.sampler import LLM; from grpo.speed.engine import check_environment; check_environment(False)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]


@pytest.mark.parametrize(("given", "words"), [
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two' in the environment: expected a number; start several"),
    ({"WORLD_SIZE": "1", "LOCAL_RANK": "-1"}, "LOCAL_RANK = '-1'"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE = 2 in the environment: .* MASTER_ADDR expected, .* unset WORLD_SIZE")])
def test_variables_that_torchrun_did_not_set_are_one_line(monkeypatch, given, words):
    for name in (*torchrun.VARIABLES, "TORCHELASTIC_MAX_RESTARTS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        torchrun.join()
