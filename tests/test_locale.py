"""A locale that is not UTF-8: files and output are UTF-8 all the same."""

import os
import subprocess
import sys

from grpo.run.preflight import missing
from tests.conftest import ROOT

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # a locale in which every γ is an error


def under_ascii(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env={**os.environ, **ASCII}, capture_output=True,
                          check=False)


def test_what_is_typed_and_printed():
    code = "import sys; from grpo.run.streams import {0}, typed; {0}(); {1}(typed(sys.argv[1]))"
    for start in ("print_utf8", "outlast_readers"):
        done = under_ascii("-c", code.format(start, "print"), "36 γ 27")
        assert (done.stdout.decode(), done.stderr) == ("36 γ 27\n", b"")
        assert under_ascii("-c", code.format(start, "sys.exit"), "36 γ 27").stderr.decode() == "36 γ 27\n"


def test_a_command_says_what_is_wrong_with_an_expression(tmp_path):
    done = under_ascii("-m", "adapter.ask", "36 γ 27", "--run", f"{tmp_path}/γ")
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"no run directory" in done.stderr


def test_a_report(fabricated):
    (fabricated / "report.html").unlink(missing_ok=True)
    done = under_ascii("-m", "grpo.report", str(fabricated))
    assert done.returncode == 0, done.stderr
    text = (fabricated / "report.html").read_bytes().decode()
    assert "θ" in text
    assert "Î" not in text


def test_a_name_that_the_locale_does_not_have(monkeypatch):
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode("ascii"))
    assert missing("models/tiny", "cpu", "runs/γ") == [
        r"a locale that can name the file 'runs/\u03b3' (LC_ALL=C.UTF-8)"]
