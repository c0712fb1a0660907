"""Shared pieces: the tiny policy, small configs, and the plain padded pass that the shared-prefix pass must equal."""

import gzip
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import train
from adapter.api.claude import ClaudeUpstream
from examples.smollm2 import weights as smollm2_weights
from grpo.batch import pad
from grpo.config import Config, load
from grpo.policy import Policy
from grpo.run import rundir
from grpo.speed.attention import NAME
from grpo.types import Completion, Group, Problem, Prompt, Row, Sample, Score, UserError
from tests.claude import INSTRUCTION, KEY
from tests.messages_server import MessagesServer

pytest_plugins = ("tests.order",)
ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs" / "tiny.yaml"
LONG = 1200.0  # seconds after which something hangs; a busy machine takes less
TOY = ("configs/tiny.yaml", "task.terms=[2,2]", "task.train=200", "task.validation=40", "task.test=40",
       "rollout.prompts_per_step=6", "rollout.group_size=32", "rollout.max_new_tokens=40", "rollout.max_sequences=192",
       "optim.lr=3e-3", "checkpoint.keep=2")


def tiny_config(*overrides: str) -> Config:
    """configs/tiny.yaml with overrides."""
    return load(TINY, list(overrides))


def tiny_policy(config: Config) -> Policy:
    """The embedded base with a fresh LoRA."""
    return Policy(config.model.model_copy(update={"path": str(ROOT / config.model.path)}), config.lora,
                  torch.device("cpu"), config.run.seed)


def randomize(policy: Policy, std: float, seed: int = 0) -> None:
    """Give the LoRA random numbers, so that it matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.parameters.values():
            p.copy_(std * torch.randn(p.shape, generator=generator))


def group_of(prompt_ids: list[int], completions: list[list[int]]) -> Group:
    """A group of given tokens, without scores."""
    prompt = Prompt(Problem("given", "custom", ()), tuple(prompt_ids), "")
    return Group(prompt, tuple(
        Completion(Sample(tuple(ids), (0.0,) * len(ids), "stop"), "", Score(0.0)) for ids in completions))


def every(groups: list[Group]) -> list[Row]:
    """All completions of the groups."""
    return [(p, row) for p, group in enumerate(groups) for row in range(len(group.completions))]


def padded_logps(policy: Policy, group: Group, temperature: float = 1.0) -> torch.Tensor:
    """The oracle: prompt and completion in one padded batch, through the whole model, logits and all. logp_BT."""
    prompt = group.prompt.token_ids
    rows = [prompt + c.sample.token_ids for c in group.completions]
    ids_BT, longest = pad(rows, torch.int64), max(len(row) for row in rows)
    attention = torch.arange(longest) < torch.tensor([[len(row)] for row in rows])
    policy.decoder.set_attn_implementation("eager")  # transformers' own, with a mask
    logits = policy.model(input_ids=ids_BT, attention_mask=attention.long()).logits.float() / temperature
    policy.decoder.set_attn_implementation(NAME)
    logp = logits[:, :-1].log_softmax(-1).gather(2, ids_BT[:, 1:, None])[..., 0]
    return torch.where(attention[:, 1:], logp, 0.0)[:, len(prompt) - 1 :]


def sampled_by(policy: Policy, groups: list[Group]) -> list[Group]:
    """The groups with the log-probs that the policy gives their tokens, as if it had sampled them."""
    with torch.no_grad():
        logps = [padded_logps(policy, group) for group in groups]
    return [replace(group, completions=tuple(
        replace(c, sample=replace(c.sample, logp=tuple(logp[: len(c.sample.token_ids)])))
        for c, logp in zip(group.completions, logp_BT.tolist(), strict=True)))
        for group, logp_BT in zip(groups, logps, strict=True)]


def run_train(*arguments: str) -> subprocess.CompletedProcess:
    """`python train.py ...` as a user would run it."""
    return subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True,
                          timeout=LONG, check=False)


def train_here(*arguments: str) -> subprocess.CompletedProcess:
    """The same in this process, in half the time. For runs that end well, or end before vLLM starts: it is left running."""
    out, err, held = io.StringIO(), io.StringIO(), {*rundir._held}
    with chdir(ROOT), redirect_stdout(out), redirect_stderr(err):
        code = train.main([*arguments])
    for folder in rundir._held.keys() - held:  # as the end of a process gives its lock back
        rundir._held.pop(folder).close()
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def lines(path: Path) -> list[dict]:
    """The objects of a JSONL file, gzip'd if its name says so."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return [json.loads(line) for line in file]


def write_lines(path: Path, objects: list[dict]) -> None:
    """Such a file."""
    text = "".join(json.dumps(one) + "\n" for one in objects).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def shared_by_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all of pytest's processes see."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> tuple[Path, str]:
    """A finished toy run and what it printed: one for all of pytest's processes. Tests copy what they change."""
    shared = shared_by_workers(tmp_path_factory)
    folder, printed = shared / "toy" / "run", shared / "toy-printed"
    with FileLock(shared / "toy.lock"):
        if not printed.exists():
            done = run_train(*TOY, f"run.dir={folder}", "run.steps=20", "eval.every=10", "checkpoint.every=8")
            assert done.returncode == 0, done.stderr[-3000:]
            printed.write_text(done.stdout)
    return folder, printed.read_text()


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct out of its package, made by the command: one for all of pytest's processes."""
    try:
        smollm2_weights()
    except UserError as error:
        pytest.skip(str(error))
    shared = shared_by_workers(tmp_path_factory)
    folder = shared / "smollm2" / "model"
    with FileLock(shared / "smollm2.lock"):
        if not folder.exists():
            done = subprocess.run([sys.executable, "-m", "examples.smollm2", str(folder)], cwd=ROOT, capture_output=True,
                                  text=True, timeout=LONG, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def vllm_server(toy) -> Iterator[str]:
    """vLLM's own server, as docs/serving.md starts it: the base, and the toy run's LoRA as "adapter".

    Its copy of the base ships what a pretrained one does, and what training ignores. Gives its address.
    """
    base = shutil.copytree(ROOT / "models" / "tiny", toy[0].parent / "served", dirs_exist_ok=True)
    (base / "generation_config.json").write_text(json.dumps({
        "eos_token_id": 2, "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.5,
        "max_new_tokens": 3}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base),
               "--served-model-name", "models/tiny", "--enable-lora",
               "--max-lora-rank", "16", "--lora-modules", f"adapter={toy[0]}/adapter",
               "--default-chat-template-kwargs", '{"enable_thinking": false}',
               "--generation-config", "vllm", "--override-generation-config", '{"temperature": 0}',
               "--enforce-eager", "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512"]
    with open(toy[0].parent / "server.log", "w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                                   env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_WAIT_POLICY": "PASSIVE"})
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=2)
                    break
                except OSError:
                    assert process.poll() is None, log.seek(0) or log.read()[-3000:]
                    time.sleep(0.3)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def fp32_policy() -> Policy:
    policy = tiny_policy(tiny_config())
    randomize(policy, 0.05)
    return policy


@pytest.fixture
def server(monkeypatch):
    """The Messages API on this machine, and a key for it in the environment."""
    httpd = MessagesServer()
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", httpd.url)
    yield httpd
    httpd.stop()


@pytest.fixture
def claude(tmp_path) -> ClaudeUpstream:
    """A client for it."""
    return ClaudeUpstream("anthropic", "claude-haiku-4-5", tmp_path / "deep" / "answers.jsonl", concurrency=8, agreed=True,
                          prompt=INSTRUCTION + "{question}", timeout_s=2, poll_s=0.02)


@pytest.fixture(scope="module")
def fabricated(tmp_path_factory) -> Path:
    """A small run with everything a run can have, and its report."""
    from tests.report_run import small_run

    return small_run(tmp_path_factory.mktemp("report") / "small")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Headless Chromium."""
    from tests.report_run import chromium

    yield from chromium()


@pytest.fixture
def opened(browser) -> Iterator[Callable]:
    """Opens a report in it, offline."""
    from tests.report_run import offline_pages

    yield from offline_pages(browser)
