"""Which test runs where and when, in two processes: a plugin of pytest that conftest.py names."""

import os

import pytest

LONGEST = ("served", "serve_engine", "faults", "sums", "torchrun", "serve_reload", "resume", "examples", "changing_it",
           "report_charts", "train", "compare", "ending", "ask", "sampler")
ONE_SERVER = ("served", "serve_engine")  # one after the other in one process: both ask vllm_server, which starts once


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist the files that take longest come first, so that no process is left with one at the end."""
    places = {f"test_{name}.py": at for at, name in enumerate(LONGEST)} if "PYTEST_XDIST_WORKER" in os.environ else {}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """A file is one process's, as with --dist loadfile; files that share a server are too."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "one server" if file in {f"tests/test_{name}.py" for name in ONE_SERVER} else file

    return Together(config, log) if config.getoption("dist") == "loadfile" else None
