"""Our commands in processes forked from one that has imported torch and vLLM: real ones, started in half the time.

Python's own forkserver. What such a process does not prove: its imports, and how the interpreter ends.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

from tests.conftest import LONG, ROOT

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["grpo.trainer"])


class Forked:
    """A process, with as much of Popen's interface as tests use."""

    def __init__(self, module: str, *arguments: str, out: Path, err: Path | None = None):
        """Run `python -m module arguments` here, as if it were, with what it prints at the end of these files."""
        self._process = FORKS.Process(target=_main, args=(module, arguments, dict(os.environ), out, err or out))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = LONG) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"still running after {timeout} s"
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        self._process.kill()


def run_forked(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess:
    """To its end. Its output is kept in the folder."""
    out, err = folder / "stdout", folder / "stderr"
    for path in (out, err):
        path.write_bytes(b"")
    code = Forked(module, *arguments, out=out, err=err).wait()
    return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def _main(module: str, arguments: tuple[str, ...], environment: dict[str, str], *outputs: Path) -> None:
    os.chdir(ROOT)
    os.environ.update(environment)  # beside what the imports have set
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
