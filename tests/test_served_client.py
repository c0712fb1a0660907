"""The example client of a served adapter, as people start it: what the server says that is no plain answer is one line."""

import os
import subprocess
import sys

import pytest

from examples.served_client import ServedAdapter
from tests.conftest import ROOT


@pytest.mark.parametrize("path", ["", "/v1"])
def test_thoughts_before_the_answer_are_no_part_of_it(server, path):
    server.faults.append({"content": [{"type": "thinking", "thinking": "\\boxed{5}", "signature": "s"},
                                      {"type": "text", "text": "\\boxed{27}"}]})
    assert ServedAdapter(server.url + path).correct("36 γ 27", "none") == "27"


def test_an_empty_reply_is_no_answer(server):
    server.faults.append({"content": []})
    assert ServedAdapter(server.url).correct("36 γ 27", "5") is None


@pytest.mark.parametrize(("url", "words"), [("http://127.0.0.1:9", "APIConnectionError"), ("127.0.0.1:9", "protocol")])
def test_a_server_that_is_not_there_is_one_line(url, words):
    done = subprocess.run([sys.executable, "-m", "examples.served_client", "36 γ 27", "none"], cwd=ROOT, check=False,
                          capture_output=True, text=True, env=os.environ | {"VLLM_URL": url})
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: VLLM_URL = {url}: ")
    assert words in done.stderr
