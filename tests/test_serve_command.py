"""Mistakes in the gateway's command."""

import os
import socket
import subprocess
import sys

import pytest

from adapter.serve.__main__ import main
from grpo.types import UserError
from tests.conftest import ROOT


@pytest.mark.parametrize(("arguments", "said"), [
    (["--mode", "canary=0%"], "--mode canary=0%: expected on, shadow, or a share"),
    (["--mode", "canary"], "--mode canary: expected on, shadow, or a share"),
    (["--threshold", "2"], "threshold 2: expected a number from 0 to 1"),
    (["--threshold", "auto"], "threshold auto: none is chosen"), (["--redact", "a.py:f"], "add --capture DIR"),
    (["--capture", "/x", "--capture-mb", "1"], "--capture-mb 1: expected 8 or more"),
    (["--timeout-ms", "0"], "--timeout-ms 0: expected 1 or more"),
    (["--upstream", "claude"], "--upstream claude: neither anthropic nor openai"),
    (["--host", "no such host"], "--host no such host --port 8080: cannot be listened on"),
    (["--port", "99999"], "--port 99999: expected 0 to 65535"),
    (["--run", "/nowhere"], "/nowhere: no run directory")])
def test_a_mistake_is_one_line(toy, arguments, said):
    given = ["--run", str(toy[0]), "--upstream", "anthropic", *arguments]
    with pytest.raises(UserError) as error:
        main(given)
    assert str(error.value).startswith(said) or said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_port_that_is_taken_and_a_threshold_without_a_calibration(toy):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(UserError, match=f"--port {port}: cannot be listened on"):
            main(["--run", str(toy[0]), "--upstream", "openai", "--port", port])
    with pytest.raises(UserError, match="no calibrated confidence of step"):
        main(["--run", str(toy[0]), "--upstream", "openai", "--port", "0", "--threshold", "0.5"])


def test_a_mistake_ends_with_2():
    done = subprocess.run([sys.executable, "-m", "adapter.serve", "--run", "runs/x", "--upstream", "claude"], cwd=ROOT,
                          capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert done.stderr.startswith("error: --upstream claude")
    assert done.stderr.count("\n") == 1
