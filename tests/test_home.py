"""A shell expands ~ at the start of a word, and not after a `=`; files of expressions come from all kinds of editors."""

import io

import pytest

from adapter.ask import read_lines
from adapter.chain import Chain
from grpo.config import load
from grpo.run.files import at_home, read_object
from grpo.run.schema import read_config, validated
from grpo.run.tasks import load_class
from grpo.types import UserError
from symbols.settings import Settings
from tests.conftest import ROOT, TINY
from tests.test_ask import READ


def test_a_tilde_is_the_home_folder_in_every_setting_that_is_a_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load(TINY, ["run.dir=~/run", "model.path=~/base"])
    assert (config.run.dir, config.model.path) == (f"{tmp_path}/run", f"{tmp_path}/base")
    settings = validated(Settings, {"upstream": "anthropic", "api_answers": "~/a.jsonl", "data": "~/data"}, "task.")
    assert (settings.api_answers, settings.data) == (f"{tmp_path}/a.jsonl", f"{tmp_path}/data")
    (tmp_path / "task.py").write_text((ROOT / "examples" / "sums.py").read_text())
    assert load_class("~/task.py:Sums").__name__ == "Sums"
    (tmp_path / "base.yaml").write_text("run: {steps: 7}\n")
    (tmp_path / "mine.yaml").write_text("extends: ~/base.yaml\n")
    assert read_config(tmp_path / "mine.yaml") == {"run": {"steps": 7}}
    assert at_home("~/run") == tmp_path / "run"


def test_a_tilde_that_is_nobodys_is_one_line():
    name = "~nobody-of-that-name/x.py"
    for use in (at_home, Chain, lambda name: load(TINY, [f"run.dir={name}"]), lambda name: load_class(f"{name}:Task")):
        with pytest.raises(UserError, match=f"^{name}: there is no such user; write the path in full"):
            use(name)


def test_a_byte_order_mark_and_blank_lines_are_no_expressions(tmp_path):
    lines = "\ufeff3 + 4\r\n\n  \n6 θ 7\n\n"
    assert [q.question for q in read_lines(io.BytesIO(lines.encode()), "f", READ)] == ["3 + 4", "6 θ 7"]
    with pytest.raises(UserError, match="f: line 3: '3 % 4'"):
        list(read_lines(io.BytesIO(b"1 + 1\n\n3 % 4\n"), "f", READ))
    with pytest.raises(UserError, match="f: line 2: "):
        list(read_lines(io.BytesIO("1 + 1\n\ufeff3 + 4\n".encode()), "f", READ))
    (tmp_path / "marked").write_text('\ufeff{"steps": 7}\n')
    assert read_object(tmp_path / "marked") == read_config(tmp_path / "marked") == {"steps": 7}
