"""Run directories from an attacker: of a LoRA only numbers are taken, nothing runs, and nothing is written elsewhere."""

import json
import os
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load_file, save_file

from adapter.chain import Chain
from adapter.confidence import Calibration
from adapter.measure import folder, plots, report, tables
from adapter.trained import LONGEST_SETTINGS, TrainedAdapter
from grpo.guards import checkpoint
from grpo.run.files import new_directory
from symbols.failures import FAILURES
from tests.conftest import ROOT, randomize, tiny_config, tiny_policy
from tests.symbol_rows import row
from tests.test_outcomes import judge
from tests.test_untrusted_data import DEEP, refused

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    """A run directory with a LoRA of random numbers."""
    run, config = tmp_path_factory.mktemp("run"), tiny_config(f"model.path={ROOT}/models/tiny")
    policy = tiny_policy(config)
    randomize(policy, 0.05)
    policy.save(run / "adapter")
    (run / "config.yaml").write_text(config.dump())
    return run


@pytest.fixture
def stolen(honest, tmp_path) -> Path:
    """A copy of it, to be tampered with."""
    return shutil.copytree(honest, tmp_path / "run")


def test_an_honest_run_is_read(honest):
    adapter = TrainedAdapter(honest)
    assert adapter.lora().keys() == load_file(honest / "adapter" / WEIGHTS).keys()
    assert (len(adapter.lora()), adapter.scale, adapter.step) == (56, 2.0, 60)


@pytest.mark.parametrize(("text", "words"), [
    (DEEP, "holds no JSON object"), ("[]", "holds no JSON object"),
    (" " * LONGEST_SETTINGS + "{}", "longer than 1048576 bytes"),
    ({"r": 8}, "r is '8', expected 16"), ({"lora_alpha": 512}, "lora_alpha is '512', expected 32"),
    ({"use_rslora": True}, "use_rslora is 'True', expected False"), ({"alpha_pattern": {"q": 9}}, "alpha_pattern is"),
    ({"use_dora": "x" * 10**5}, "use_dora is 'xxx"), ({"rank_pattern": {"q_proj": 1}}, "rank_pattern is")])
def test_hostile_settings_of_a_lora_are_refused(stolen, text, words):
    path = stolen / "adapter" / SETTINGS
    path.write_text(text if isinstance(text, str) else json.dumps(json.loads(path.read_text()) | text))
    refused(lambda: TrainedAdapter(stolen), f"{stolen}/adapter: no LoRA that can be read (", words, "restore what train.py")


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(("changes", "words"), [
    ({"evil": (1,)}, "'evil' is 1, expected absent"),
    ({"\x1b[2J" + "x" * 10**5: (1,)}, "xxx' is 1, expected absent"),
    ({"base_model.model.lm_head.lora_A.weight": (16, 192)}, "lm_head.lora_A.weight' is 16 x 192, expected absent"),
    ({f"{LAYER}.lora_B.weight": None}, "lora_B.weight' is absent, expected "),
    ({f"{LAYER}.lora_A.weight": (1,) * 100}, "is 1 x 1 x 1"),
    ({f"{LAYER}.lora_A.weight": ()}, "is one number, expected 16 x 192")])
def test_hostile_tensors_are_refused(stolen, changes, words):
    path = stolen / "adapter" / WEIGHTS
    tensors = load_file(path) | {name: shape if shape is None else torch.zeros(shape) for name, shape in changes.items()}
    path.unlink()
    save_file({name: t for name, t in tensors.items() if t is not None}, path)
    refused(lambda: TrainedAdapter(stolen), f"{path}: the LoRA of another base", words)


def test_a_lora_of_any_size_is_not_read(stolen):
    path = stolen / "adapter" / WEIGHTS
    header = json.dumps({f"{LAYER}.lora_A.weight": {"dtype": "F32", "shape": [2**36], "data_offsets": [0, 2**38]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + 2**38)  # 256 GiB of zeros, which take no room
    refused(lambda: TrainedAdapter(stolen), "has more than ", "bytes, the most that a LoRA of")


def test_only_numbers_reach_vllm(stolen, tmp_path):
    settings = json.loads((stolen / "adapter" / SETTINGS).read_text())
    hostile = {"base_model_name_or_path": "evil/base", "auto_mapping": {"base_model_class": "os.system"},
               "modules_to_save": ["lm_head"], "layer_replication": [[0, 9]], "evil": 1}
    (stolen / "adapter" / SETTINGS).write_text(json.dumps(settings | hostile))
    (stolen / "adapter" / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    adapter = TrainedAdapter(stolen)
    adapter.save(tmp_path / "served")
    assert {path.name for path in (tmp_path / "served").iterdir()} == {WEIGHTS, SETTINGS}
    assert json.loads((tmp_path / "served" / SETTINGS).read_text()) == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": f"{ROOT}/models/tiny", "r": 16,
        "lora_alpha": 32, "bias": "none", "inference_mode": True,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
    served, trained = load_file(tmp_path / "served" / WEIGHTS), load_file(stolen / "adapter" / WEIGHTS)
    assert served.keys() == trained.keys()
    assert all(torch.equal(served[name], trained[name]) for name in trained)
    assert PeftConfig.from_pretrained(str(tmp_path / "served")).r == 16


def test_a_base_brings_no_code(stolen, tmp_path, monkeypatch):
    base = shutil.copytree(ROOT / "models" / "tiny", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}))
    (base / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\nfrom transformers import Qwen3Config as Evil\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    path = stolen / "config.yaml"
    path.write_text(path.read_text().replace(f"{ROOT}/models/tiny", str(base)))
    refused(lambda: TrainedAdapter(stolen), f"model.path = {base}: no ")
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_of_no_step_is_none(stolen):
    for number in ("evil", "9" * 16, "9" * 200, "-1", "٣", ""):
        for place in ("checkpoints", "best"):
            with new_directory(stolen / place / f"step-{number}") as part:
                for name in checkpoint.FILES:
                    (part / name).touch()
    assert not checkpoint.any_in(stolen / "checkpoints")
    assert TrainedAdapter(stolen).folder == stolen / "adapter"


def test_a_run_does_not_decide_what_is_spent(stolen):
    with (stolen / "config.yaml").open("a") as config:
        config.write("  upstream: anthropic\n  api_yes: true\n")
    assert TrainedAdapter(stolen).settings.api_yes
    assert not Chain(stolen).upstream.agreed
    assert Chain(stolen, api_yes=True).upstream.agreed


def test_a_report_is_written_through_no_link(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "data", lambda _: {})
    monkeypatch.setattr(folder, "draw", lambda *_: None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.txt").write_text("precious")
    (tmp_path / "evaluate").symlink_to(tmp_path / "mine")
    sure = SimpleNamespace(calibration=Calibration(3), validation=[])
    folder.write(SimpleNamespace(run=tmp_path, outcomes={"adapter": []}, confidence=sure), "new")
    assert (tmp_path / "mine" / "report.txt").read_text() == "precious"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["report.txt"]
    assert not (tmp_path / "evaluate").is_symlink()
    assert (tmp_path / "evaluate" / "report.txt").read_text() == "new"


def test_what_a_model_writes_does_not_move_the_terminal():
    outcome = judge(row("2 γ 3", "none"), "\x1b]0;yours\x07 \x9b2J \\boxed{7}")
    lines = tables.failure_table("adapter", [outcome], FAILURES)
    assert all(line.isprintable() for line in lines)
    assert any(r"\boxed{7}" in line for line in lines)


def test_a_name_is_no_formula(tmp_path):
    rewards = {"$x$": {1: 0.5, 2: 0.75}}
    plots.reward_plot(tmp_path / "reward.png", rewards, {"$x$": plots.BLUE}, r"Adapter on $\frac$, behind $\nothing$")
    assert (tmp_path / "reward.png").stat().st_size > 10_000
