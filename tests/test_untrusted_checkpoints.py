"""Checkpoints from strangers: checksums that hold prove nothing, so every part is checked before it is used."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo.guards import checkpoint
from grpo.run.files import sha256
from grpo.run.identity import Identity
from grpo.types import UserError
from grpo.update import Updater
from tests.conftest import group_of, randomize, tiny_config, tiny_policy
from tests.test_untrusted_data import refused

LORA, OPTIMIZER, STATE = "adapter_model.safetensors", "optimizer.safetensors", "state.json"
BYTE = torch.uint8
IDENTITY = Identity({"train": "1" * 64, "test": "2" * 64}, "3" * 64)


@pytest.fixture(scope="module")
def policy():
    return tiny_policy(tiny_config())


@pytest.fixture(scope="module")
def honest(policy, tmp_path_factory) -> Path:
    """A checkpoint after a real step, which the policy then forgets."""
    updater, folder = Updater(policy, tiny_config()), tmp_path_factory.mktemp("honest")
    updater.accumulate([group_of([5, 9, 33], [[40, 41, 2], [43, 2]])], torch.tensor([[1.0, -1.0]]))
    updater._apply(1, 0.0)
    checkpoint.save(folder, 1, policy, updater, IDENTITY)
    randomize(policy, 0.05)
    return folder / "step-00001"


@pytest.fixture
def stolen(honest, tmp_path) -> Path:
    """A copy of it, to be tampered with."""
    return Path(shutil.copytree(honest, tmp_path / "checkpoints" / "step-00001"))


def signed(folder: Path) -> Path:
    """The checkpoint with a manifest that proves it."""
    manifest = {path.name: sha256(path) for path in folder.iterdir() if path.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.newest(folder.parent) == (folder, [])
    return folder


def restore(folder: Path, policy, config=None, identity: Identity = IDENTITY, allowed=()) -> tuple[int, Updater]:
    updater = Updater(policy, config or tiny_config())
    step, said = checkpoint.restore(folder, policy, updater, identity, allowed)
    assert all(line.startswith("run.steps was 60: the learning rate of step 1 is ") for line in said)
    return step, updater


def turned_away(folder: Path, policy, *words: str) -> None:
    """It is refused in one line, and the policy is what it was."""
    before = {name: p.detach().clone() for name, p in policy.parameters.items()}
    refused(lambda: restore(signed(folder), policy), *words)
    assert all(torch.equal(p, before[name]) for name, p in policy.parameters.items())


def test_an_honest_checkpoint_is_restored(honest, stolen, policy):
    step, updater = restore(signed(stolen), policy)
    assert step == 1
    saved = load_file(honest / LORA)
    assert all(torch.equal(p, saved[name]) for name, p in policy.parameters.items())
    states = [updater.optimizer.state[p] for p in policy.parameters.values()]
    assert [state["step"] for state in states] == [1] * len(states)
    kept = load_file(honest / OPTIMIZER)
    assert all(torch.equal(t, kept[f"{i}/{name}"]) for i, state in enumerate(states)
               for name, t in state.items() if name != "step")
    randomize(policy, 0.05)


def test_a_run_may_end_at_the_checkpoints_step(stolen, policy):
    assert restore(stolen, policy, tiny_config("run.steps=1"))[0] == 1
    randomize(policy, 0.05)


@pytest.mark.parametrize("changes", [
    {"9/state1": torch.zeros(575, 16, dtype=BYTE)}, {"9/state1": torch.zeros(9216, dtype=BYTE)},
    {"9/state2": torch.zeros(1, dtype=BYTE)}, {"9/state1": torch.zeros(576, 16)}, {"9/absmax1": torch.zeros(35)},
    {"9/absmax2": torch.zeros(36, dtype=torch.float64)}, {"9/qmap1": torch.zeros(255)},
    {"0/state1": torch.zeros(16, 192, dtype=BYTE)}, {"0/state1": torch.zeros(0)}, {"0/absmax1": torch.zeros(12)},
    {"0/state1": None}, {"9/absmax2": None}, {"55/state2": None}, {"0/state1": None, "0/state2": None},
    {"0/evil": torch.zeros(1)}, {"56/state1": torch.zeros(1)}, {"evil": torch.zeros(1)}, {"00/state1": torch.zeros(1)}])
def test_optimizer_tensors_that_do_not_fit(stolen, policy, changes):
    tensors = load_file(stolen / OPTIMIZER)
    assert {name: tuple(t.shape) for name, t in tensors.items() if name.startswith(("0/", "9/"))} == {
        "0/state1": (16, 192), "0/state2": (16, 192),  # fewer than 4096 numbers stay float32
        "9/state1": (576, 16), "9/state2": (576, 16), "9/absmax1": (36,), "9/absmax2": (36,),  # blocks of 256
        "9/qmap1": (256,), "9/qmap2": (256,)}
    (stolen / OPTIMIZER).unlink()
    save_file({name: t for name, t in (tensors | changes).items() if t is not None}, stolen / OPTIMIZER)
    turned_away(stolen, policy, "no checkpoint of this trainer (ValueError: the optimizer", "delete it")


@pytest.mark.parametrize(("changes", "words"), [
    ({"step": "1"}, "'1' is no number of steps"), ({"step": 1.0}, "1.0 is no"), ({"step": True}, "True is no"),
    ({"step": -1}, "-1 is no"), ({"step": float("inf")}, "inf is no"), ({"step": None}, "None is no"),
    ({"step": "\x1b[2J" * 10_000}, "x1b[2J"), ({"step": 61}, "run.steps = 60, and "),
    ({"config": []}, "TypeError"), ({"config": "x"}, "TypeError"), ({"config": {}}, "--resume: algorithm.advantage is"),
    ({"data": None}, "and None in the checkpoint"), ({"versions": 3}, "TypeError"), ({"versions": ["torch"]}, "ValueError"),
    ({"optimizer": []}, "TypeError"), ({"optimizer": {}}, "KeyError"), ({"optimizer": {"0": 7}}, "TypeError")])
def test_a_state_that_is_none(stolen, policy, changes, words):
    state = json.loads((stolen / STATE).read_text())
    (stolen / STATE).write_text(json.dumps(state | changes))
    with pytest.raises(UserError, match=r"no checkpoint of this trainer|--resume: ") as caught:
        restore(signed(stolen), policy)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("steps", ["1", -1, 1e300, [1], None])
def test_optimizer_steps_that_are_no_numbers(stolen, policy, steps):
    state = json.loads((stolen / STATE).read_text())
    state["optimizer"]["3"]["step"] = steps
    (stolen / STATE).write_text(json.dumps(state))
    turned_away(stolen, policy, "is no number of steps")


@pytest.mark.parametrize(("text", "words"), [
    ("[]", "holds no JSON object"), ("3", "holds no JSON object"), ("", "Expecting value"), ("{", "Expecting property name"),
    ('{"step":' * 100_000, "holds no JSON object"), ("[" * 100_000, "holds no JSON object"),
    (" " * 2**20 + "{}", "longer than 1048576 bytes")])
def test_a_state_that_is_no_object_or_too_long(stolen, policy, text, words):
    (stolen / STATE).write_text(text)
    turned_away(stolen, policy, "no checkpoint of this trainer (", words)


@pytest.mark.parametrize("depth", [100, 400, 800, 900, 960])
def test_a_state_nested_as_deep_as_can_be_read(stolen, policy, depth):
    text = (stolen / STATE).read_text()
    deep = '{"a": ' * depth + "1" + "}" * depth
    (stolen / STATE).write_text(text.replace('"config": {', f'"config": {{"a": {deep},', 1))
    turned_away(stolen, policy)


def test_a_state_nested_deeper_than_can_be_compared(stolen, policy, monkeypatch):
    """As Pythons read it that count C's recursion apart."""
    state = json.loads((stolen / STATE).read_text())
    for _ in range(5000):
        state["config"] = {"a": state["config"]}
    monkeypatch.setattr(checkpoint, "read_object", lambda *_: state)
    with pytest.raises(UserError, match=r"no checkpoint of this trainer \(RecursionError"):
        restore(stolen, policy)


@pytest.mark.parametrize("name", [LORA, OPTIMIZER])
@pytest.mark.parametrize("raw", [b"", b"\xff" * 100, b"\x05" + bytes(7) + b"hello", "\x1b[2J" * 5_000])
def test_tensors_that_are_none(stolen, policy, name, raw):
    """The last names a dtype that the error repeats."""
    if isinstance(raw, str):
        header = json.dumps({"x": {"dtype": raw, "shape": [1], "data_offsets": [0, 1]}}).encode()
        raw = len(header).to_bytes(8, "little") + header + b"0"
    (stolen / name).write_bytes(raw)
    turned_away(stolen, policy, "no checkpoint of this trainer (SafetensorError: ")


@pytest.mark.parametrize("changes", [
    {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(8, 192)},
    {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": None}, {"evil": torch.zeros(1)}])
def test_a_lora_of_another_shape(stolen, policy, changes):
    tensors = load_file(stolen / LORA)
    assert tensors.keys() >= {name for name, t in changes.items() if name != "evil"}
    (stolen / LORA).unlink()
    save_file({name: t for name, t in (tensors | changes).items() if t is not None}, stolen / LORA)
    turned_away(stolen, policy, "the LoRA of another base, rank or targets")


@pytest.mark.parametrize("name", [LORA, OPTIMIZER])
def test_tensors_of_any_size_are_not_read(stolen, policy, name):
    """2^32 bytes that take no room on the disk, and would in memory."""
    header = json.dumps({"0/state1": {"dtype": "U8", "shape": [2**32], "data_offsets": [0, 2**32]}}).encode()
    (stolen / name).write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(stolen / name, 8 + len(header) + 2**32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"do not fit|another base"):
        restore(stolen, policy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.mark.parametrize("names", [["../evil"], ["/etc/passwd"], ["evil"], []])
def test_a_manifest_of_other_files(stolen, policy, names):
    manifest = json.loads((stolen / "manifest.json").read_text())
    for name in names:
        (stolen / name).touch()
        manifest[name] = sha256(stolen / name)
    if not names:
        del manifest[STATE]
    (stolen / "manifest.json").write_text(json.dumps(manifest))
    refused(lambda: checkpoint.newest(stolen.parent), "no complete checkpoint", "manifest.json names other files than")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", 100 * 2**20])  # bytes of zeros, which take no room on the disk
def test_a_manifest_that_is_none(stolen, text):
    if isinstance(text, int):
        os.truncate(stolen / "manifest.json", text)
    else:
        (stolen / "manifest.json").write_text(text)
    refused(lambda: checkpoint.newest(stolen.parent), "no complete checkpoint", "manifest.json is missing or damaged")


OTHER = (tiny_config("optim.lr=1", "optim.warmup=0", "rollout.temperature=0.5", "run.steps=99", "run.dir=elsewhere"),
         Identity({"train": "9" * 64, "test": "2" * 64}, "8" * 64))
KEYS = ["base", "data.train", "optim.lr", "optim.warmup", "rollout.temperature"]


@pytest.mark.parametrize(("allowed", "refuses"), [
    ([], KEYS), (["opt", "rollout.temp", "data.trai", "bas"], KEYS),
    (["optim"], ["base", "data.train", "rollout.temperature"]),
    (["optim.lr", "base"], ["data.train", "optim.warmup", "rollout.temperature"]),
    (["data", "optim", "rollout"], ["base"]), (KEYS, []), (["base", "data", "optim", "rollout.temperature"], [])])
def test_every_other_setting_is_named_and_only_what_is_allowed_goes_through(stolen, policy, allowed, refuses):
    if not refuses:
        assert restore(stolen, policy, *OTHER, allowed)[0] == 1
        randomize(policy, 0.05)
        return
    with pytest.raises(UserError, match="--resume: ") as caught:
        restore(stolen, policy, *OTHER, allowed)
    said = str(caught.value)
    assert said.isprintable()
    assert said.endswith("add " + " ".join(f"--allow-change {key}" for key in refuses))
    assert ("optim.lr is 1.0 here and 0.002 in the checkpoint" in said) == ("optim.lr" in refuses)
