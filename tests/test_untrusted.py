"""Configs and model directories from strangers: no code of theirs runs, one line says why, in little memory."""

import json
import shutil
import tracemalloc
import webbrowser
from pathlib import Path

import pytest
import torch

import train
from grpo.chat import Chat
from grpo.policy import Policy
from grpo.types import Problem, UserError
from tests.conftest import ROOT, TINY, tiny_config

BASE = f"extends: {TINY}\nmodel: {{path: {ROOT}/models/tiny}}\n"


@pytest.fixture
def marker(tmp_path) -> Path:
    """What code of a stranger's would create, if it ran."""
    return tmp_path / "marker"


@pytest.fixture
def evil(tmp_path, marker) -> Path:
    """Such code, in a file outside the current directory."""
    path = tmp_path / "evil.py"
    path.write_text(f"open({str(marker)!r}, 'w')\nclass Task: pass\n")
    return path


@pytest.fixture
def complaint(capsys, tmp_path, monkeypatch):
    """Run train.py in an empty place on a config of these words. Gives its one line; nothing else happens."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(train, "missing", lambda *_: pytest.fail("it goes on to train"))
    config = tmp_path / "theirs.yaml"

    def run(text: str, *arguments: str) -> str:
        config.write_text(text)
        before = set(tmp_path.rglob("*"))
        tracemalloc.start()
        assert train.main([str(config), *arguments]) == 2
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100 * 2**20
        out = capsys.readouterr()
        assert out.out == ""
        assert out.err.startswith("error: ")
        assert out.err.removesuffix("\n").isprintable()
        assert len(out.err) < 1000
        assert set(tmp_path.rglob("*")) == before
        return out.err

    return run


@pytest.mark.parametrize("text", [
    "run: {dir: '${oc.env:SECRET}'}", "run: {dir: 'runs/${oc.decode:${oc.env:SECRET}}'}",
    "run: {dir: \"\\x24{oc.env:SECRET}\"}", "extends: '${oc.env:SECRET}'", "'${oc.env:SECRET}': 1"])
def test_a_config_does_not_read_the_environment(complaint, monkeypatch, text):
    monkeypatch.setenv("SECRET", "hunter2")
    line = complaint((BASE if "extends" not in text else "") + text)
    assert "a file sets plain values; ${...} is not read in it" in line
    assert "hunter2" not in line
    assert "Unsupported interpolation type oc.env" in complaint(BASE, "run.dir=${oc.env:SECRET}")


@pytest.mark.parametrize("value", [
    "!!python/object/apply:os.system ['touch %s']", "!!python/object/new:os.system ['touch %s']", "!!python/name:os.system",
    "!!python/module:os", "!!binary x"])
def test_a_tag_makes_nothing_but_values(complaint, marker, value):
    complaint(f"{BASE}run: {value.replace('%s', str(marker))}\n")
    assert not marker.exists()


LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10 if i else ['ha'] * 10)}]\n" for i in range(12))
WORDS = "".join(f"a{i}: '{f'${{a{i - 1}}}' * 10 if i else 'ha'}'\n" for i in range(12))
ECHO = f"a: &a long\nb: {list(range(200))}\nrun: {{dir: [{', '.join(['*a'] * 2_000)}]}}"
TOWER = "".join(f"a{i}: &a{i} {'[' * 40}{f'*a{i - 1}' if i else 1}{']' * 40}\n" for i in range(20))


@pytest.mark.parametrize(("text", "words"), [
    (LAUGHS, "YAML node expansion exceeds"), (WORDS, "is not read in it"), (TOWER, "not a YAML config"),
    ("a: " + "[" * 100_000 + "]" * 100_000, "nested deeper than 50"), ("a: " + "{b: " * 60 + "}" * 60, "nested deeper"),
    ("#" * 2**20, "longer than 1048576 bytes"), ("- a\n" * 200_000, "not a YAML config"),
    (f"run: {{seed: 0b{'1' * 100_000}}}", "a value of more than 3000 characters"),
    (f"run: {{seed: 0x{'f' * 2_990}}}", "run.seed = 2"), (f"run: {{seed: {'9' * 2_990}}}", "run.seed = 9"),
    (ECHO.replace("long", "x" * 2_990), "run.dir = ['xxx"),
    (ECHO.replace("long", "x" * 900_000), "a value of more than 3000"),
    (f"{'k' * 1_000}: 1", "kkk...: unknown key"), ("\"run\\n\\e[2J\": 1", r"run\n\x1b[2J: unknown key"),
    ("run: {dir: \"a\\0b\"}", "a file sets plain values"), ("extends: [a]", "not a YAML config"),
    ("extends: /dev/zero", "longer than 1048576 bytes"), ("extends: .", "cannot be read (Is a directory)")])
def test_a_config_that_grows_is_one_line(complaint, text, words):
    assert words in complaint(text if text.startswith("extends") else BASE + text)


@pytest.mark.parametrize("place", ["{evil}", "../evil.py", "./link.py", "below/../../evil.py"])
def test_a_config_runs_no_file_from_elsewhere_unless_it_is_named(complaint, evil, marker, place):
    Path("link.py").symlink_to(evil)
    Path("below").mkdir()
    target = f"{place.format(evil=evil)}:Task"
    assert "say so on the command line: task.target=" in complaint(f"{BASE}task: {{target: '{target}'}}\n")
    assert "say so on the command line: task.target=" in complaint(f"{BASE}task: {target}\n", "run.steps=5")
    assert not marker.exists()
    assert train.main(["../theirs.yaml", f"task.target={target}"]) == 2  # it is no task, but it is run to find that out
    assert marker.exists()


def test_a_file_below_the_current_directory_is_the_users_own(complaint, evil, marker):
    shutil.copy(evil, "mine.py")
    Path("../mine.yaml").write_text(f"{BASE}task: mine.py:Task\n")
    assert train.main(["../mine.yaml"]) == 2
    assert marker.exists()


@pytest.mark.parametrize(("target", "words"), [
    ("os:system", "os holds no task"), ("json:dumps", "json holds no task"), ("unittest.mock:call", "holds no task"),
    ("antigravity:fly", "holds no task"), ("pip.__main__:main", "holds no task"), ("..evil:Task", "holds no task"),
    ("pydantic:VERSION", "VERSION is no task: it has no Settings"), ("{evil}:Task", "No module named"),
    ("../evil:Task", "holds no task")])
def test_a_target_that_is_no_task(complaint, evil, marker, monkeypatch, target, words):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    line = complaint(f"{BASE}task: {{target: '{target.format(evil=evil.with_suffix(''))}'}}\n")
    assert words in line
    assert "name a class, as module:Class" in line
    assert not opened
    assert not marker.exists()


def hostile(tmp_path: Path, evil: Path, **changes: dict) -> Path:
    """A copy of models/tiny with a stranger's code beside it, and JSON files changed."""
    folder = Path(shutil.copytree(ROOT / "models" / "tiny", tmp_path / "model"))
    for name in ("evil.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(evil, folder / name)
    for name, change in changes.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


def policy(folder: Path) -> Policy:
    config = tiny_config(f"model.path={folder}")
    return Policy(config.model, config.lora, torch.device("cpu"), 1)


@pytest.fixture(autouse=True)
def yes_to_all(monkeypatch):
    """A user who says yes to whatever is asked."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")


CODE = {"AutoConfig": "evil.Task", "AutoModelForCausalLM": "evil.Task", "AutoTokenizer": ["evil.Task", "evil.Task"]}


@pytest.mark.parametrize("changes", [
    {"config": {"auto_map": CODE}}, {"config": {"auto_map": CODE, "model_type": "evil"}},
    {"tokenizer_config": {"auto_map": CODE}}, {"tokenizer_config": {"auto_map": CODE, "tokenizer_class": "Task"}},
    {"config": {"auto_map": CODE, "model_type": "evil"}, "tokenizer_config": {"auto_map": CODE, "tokenizer_class": "Task"}},
    {"generation_config": {"custom_generate": "evil.py", "auto_map": CODE}}])
def test_a_model_brings_no_code(tmp_path, evil, marker, changes):
    folder = hostile(tmp_path, evil, **changes)
    said = f"model.path = {folder}: no "
    try:
        assert policy(folder).stop_ids == [2]
    except UserError as error:
        said = str(error)
    assert said.startswith(f"model.path = {folder}: no ")
    assert said.isprintable()
    assert not marker.exists()


def test_a_models_stop_tokens_bring_no_code(tmp_path, evil, marker):
    folder = hostile(tmp_path, evil, config={"auto_map": CODE, "model_type": "evil"})
    (folder / "generation_config.json").unlink()
    chat = Chat(tiny_config(f"model.path={folder}").model, torch.device("cpu"))
    with pytest.raises(UserError, match="no configuration there"):
        _ = chat.stop_ids
    assert not marker.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_of_any_depth_is_one_line(tmp_path, evil, name):
    folder = hostile(tmp_path, evil)
    (folder / name).write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"model\.path = "):
        policy(folder)


def test_weights_that_are_a_pickle_are_refused(tmp_path, evil, marker):
    folder = hostile(tmp_path, evil)
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.bin", "adapter_model.bin"):
        (folder / name).write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())  # a pickle that runs a command
    with pytest.raises(UserError, match="no causal language model there"):
        policy(folder)
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"],
        "base_model_name_or_path": str(ROOT / "models" / "tiny"),
        "auto_mapping": {"base_model_class": "Task", "parent_library": "evil"}}))
    with pytest.raises(UserError, match="no causal language model there"):
        policy(folder)
    assert not marker.exists()


@pytest.mark.parametrize("template", [
    "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}", "{{ lipsum.__globals__['os'].system('touch MARKER') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}"])
def test_a_chat_template_stays_in_its_sandbox(tmp_path, evil, marker, template):
    folder = hostile(tmp_path, evil)
    (folder / "chat_template.jinja").write_text(template.replace("MARKER", str(marker)))
    chat = Chat(tiny_config(f"model.path={folder}").model, torch.device("cpu"))
    with pytest.raises(UserError, match="its chat template refuses q"):
        chat.encode(Problem("q", "custom", ({"role": "user", "content": "hi"},)))
    assert not marker.exists()
