"""What vLLM says when it does not start becomes one line that names what to change."""

import pytest
from safetensors import SafetensorError

from grpo.run.engine_faults import why_not
from tests.conftest import tiny_config


@pytest.mark.parametrize(("error", "on_gpu", "words"), [
    (ValueError("Free memory on device (3.1/79.2 GiB) on startup is less than desired"), True,
     ["vLLM does not fit", "3.1/79.2 GiB", "raise rollout.gpu_memory_share (now 0.5)"]),
    (ValueError("No available memory for the cache blocks"), False, ["lower rollout.cpu_kv_cache_gib (now"]),
    (AssertionError("Error in memory profiling. Initial free memory 76.97 GiB, current free memory 77.9 GiB."), True,
     ["another process gave memory", "start again"]),
    (RuntimeError("[enforce fail at /x/gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to find address for: eth9"),
     False, ["no network interface", "Unable to find address for: eth9", "unset GLOO_SOCKET_IFNAME"]),
    (RuntimeError("Cannot find any model weights with `there`"), False, ["model.path = there: no causal language model"]),
    (ValueError("Following weights were not initialized from checkpoint: {'model.norm.weight'}"), False,
     ["model.path = there: weights that config.json asks for are not in its safetensors files ({'model.norm.weight'})"]),
    (SafetensorError("invalid header"), False, ["model.path = there: weights that cannot be read (invalid header)"]),
])
def test_a_known_complaint_says_what_to_change(error, on_gpu, words):
    said = str(why_not(error, "there", tiny_config("rollout.gpu_memory_share=0.5"), on_gpu))
    assert "\n" not in said
    for word in words:
        assert word in said


def test_a_path_that_vllm_takes_for_a_pattern_is_named():
    said = str(why_not(RuntimeError("Cannot find any model weights with `m[1]`"), "m[1]", tiny_config(), False))
    assert said == "model.path = m[1]: vLLM takes *, ? and [ in a path for a pattern; rename the directory"


def test_an_unknown_complaint_is_not_reworded():
    assert why_not(AssertionError("something else"), "there", tiny_config(), True) is None
