"""What is deployed: the Dockerfile, which is not built here, the systemd unit, and each gateway command of the documents."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from adapter.serve.__main__ import options_of
from tests.conftest import ROOT

DOCKERFILE = (ROOT / "examples" / "serving" / "Dockerfile").read_text()
LINES = re.sub(r"\\\n", " ", DOCKERFILE).splitlines()
STEPS = [line.split(maxsplit=1) for line in LINES if line and not line.startswith("#")]
COMMAND = re.compile(r"python -m adapter\.serve((?: (?!  )[^\s`|]+)+)")


def copied() -> dict[str, str]:
    """From where in the project to where in the image."""
    return dict(line.split() for name, line in STEPS if name == "COPY")


def commands() -> list[tuple[str, str]]:
    """File and arguments of each `python -m adapter.serve ...` that a document tells people to type, or a unit runs."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "adapter" / "serve" / "__main__.py",
             ROOT / "examples" / "serving" / "corrector.service"]
    return [(path.name, found) for path in files
            for found in COMMAND.findall(re.sub(r" *\\\n *", " ", path.read_text())) if "--help" not in found]


def test_everything_that_the_image_copies_is_there():
    sources = copied()
    assert len(sources) > 4
    assert [name for name in sources if not (ROOT / name).exists()] == []
    assert all(place == name for name, place in sources.items())  # beside each other, as here: imports find each other


def test_what_the_image_installs_is_there_and_is_copied_first():
    done: set[str] = set()
    used = []
    for name, line in STEPS:
        done |= {line.split()[0]} if name == "COPY" else set()
        for file in re.findall(r"\brequirements/[\w.-]+", line) if name == "RUN" else []:
            assert (ROOT / file).is_file()
            assert file in done, f"{file} is used before it is copied"
            used.append(file)
    assert used
    (pattern,) = re.findall(r"sed -n '([^']+)'", DOCKERFILE)  # the pin of torch, which is installed by itself
    found = subprocess.run(["sed", "-n", pattern, ROOT / used[0]], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"torch==[\d.]+\S*\n", found)


def test_what_the_gateway_imports_is_copied_or_pinned():
    ours = {name for name in copied() if (ROOT / name).is_dir()}
    pinned = {re.sub("[-_.]+", "-", name).lower() for name in re.findall(
        r"^([\w.-]+)==", (ROOT / "requirements" / "cuda.txt").read_text(), re.MULTILINE)}
    distributions, seen = packages_distributions(), set()
    for path in (ROOT / "adapter" / "serve").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [
                node.module] if isinstance(node, ast.ImportFrom) else []
            seen |= {name.split(".")[0] for name in names}
    others = seen - ours - set(sys.stdlib_module_names)
    assert {"fastapi", "uvicorn", "vllm", "aiohttp", "prometheus_client"} <= others
    named = {name: {re.sub("[-_.]+", "-", of).lower().removesuffix("-cpu") for of in distributions[name]} for name in others}
    assert {name for name, of in named.items() if not of & pinned} == set()


def test_the_image_runs_with_what_is_copied(tmp_path):
    """Its entry point and the arguments that the file's head gives, by the folders that the image has and no others."""
    (entry,) = [json.loads(line) for name, line in STEPS if name == "ENTRYPOINT"]
    assert entry[:3] == ["python", "-m", "adapter.serve"]
    told = re.sub(r"\\\n#", " ", DOCKERFILE)
    arguments = shlex.split(re.search(r"docker run .* corrector (--run .*)", told)[1])
    options = options_of([*entry[3:], *arguments])
    assert (options.host, options.mode, options.capture) == ("0.0.0.0", "shadow", Path("/captured"))
    (port,) = [int(line) for name, line in STEPS if name == "EXPOSE"]
    assert (options.port, f"127.0.0.1:{port}/healthz" in DOCKERFILE) == (port, True)
    for name in copied():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    code = "import adapter.serve.app, adapter.serve.page, adapter.dataset; print(adapter.serve.app.__file__)"
    for command in (["-c", code], ["-m", "adapter.serve", *entry[3:], "--help"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert str(tmp_path) in done.stdout or "--threshold" in done.stdout


@pytest.mark.parametrize(("file", "command"), commands())
def test_a_command_of_the_documents_is_one(file, command):
    options = options_of(shlex.split(command))
    assert options.run
    assert options.upstream


def test_there_are_such_commands():
    assert {file for file, _ in commands()} >= {"README.md", "gateway.md", "serving.md", "__main__.py", "corrector.service"}
