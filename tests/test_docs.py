"""docs/algorithm.md and docs/metrics.md say what the code does: names, lines, presets, keys, and the worked numbers."""

import ast
import importlib
import re
from functools import reduce
from pathlib import Path
from typing import get_args

import pytest
import torch
from matplotlib.mathtext import MathTextParser
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.advantages import PICTURE, of_a_group, of_a_success
from grpo.advantage import ADVANTAGES
from grpo.compare.variants import PAPERS
from grpo.config import Algorithm, Config
from grpo.presets import PRESETS
from grpo.update import Updater, learning_rate
from symbols.settings import Settings
from tests.conftest import ROOT, every, group_of, lines, tiny_config, tiny_policy
from tests.renew_lines import DOCS, REFERENCE, places, renewed

ALGORITHM, METRICS = (ROOT / "docs" / name for name in ("algorithm.md", "metrics.md"))
CONDITIONAL = {"policy/kl_ref", "policy/correction"}  # with beta, with a correction
RANKS = {"time/wait_s", "time/allreduce_s"}  # with several ranks: tests/test_torchrun.py sees them


def cells(line: str) -> list[str]:
    """Of a row of a table; a code span may hold a bar."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def section(path: Path, title: str) -> str:
    """The text under a heading."""
    return re.split(rf"^## {title}.*$", path.read_text(), flags=re.M)[1].split("\n## ")[0]


def first_cells(text: str) -> set[str]:
    """What stands in backticks in the first cells of the tables of a text."""
    rows = [cells(line)[0] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}


# ---- names and lines


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_every_name_is_where_the_document_says(path):
    text = path.read_text()
    found = REFERENCE.findall(text)
    assert len(found) >= 4
    assert len(found) == len(re.findall(r"\]\(\.\./[\w/]+\.py#", text))  # none is written in another way
    for name, _, shown, line, linked, anchor in found:
        assert (shown, line) == (linked, anchor), name
        here = places(ast.parse((ROOT / shown).read_text())).get(name)
        assert here == int(line), f"{name} is at {shown}:{here}, not {line}: python -m tests.renew_lines"
        module = importlib.import_module(shown.removesuffix(".py").replace("/", "."))
        assert reduce(getattr, name.split("."), module) is not None
    assert renewed(text) == text


def test_lines_are_renewed():
    line = places(ast.parse((ROOT / "grpo/loss.py").read_text()))["clip"]
    assert renewed("`clip`\n([grpo/loss.py:1](../grpo/loss.py#L2))") == (
        f"`clip`\n([grpo/loss.py:{line}](../grpo/loss.py#L{line}))")
    with pytest.raises(KeyError):
        renewed("`klip` ([grpo/loss.py:1](../grpo/loss.py#L1))")
    tree = ast.parse("@property\ndef f(): ...\nclass A:\n    b: int = 1\n    def g(self): ...\nC = D = 2\n")
    assert places(tree) == {"f": 2, "A": 3, "A.b": 4, "A.g": 5, "C": 6, "D": 6}


def test_every_equation_is_in_the_document():
    named = {(path, name) for name, _, path, *_ in REFERENCE.findall(ALGORITHM.read_text())}
    for module in ("advantage", "loss", "batch", "rollout", "logprob"):
        for node in ast.parse((ROOT / "grpo" / f"{module}.py").read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert (f"grpo/{module}.py", node.name) in named, f"grpo/{module}.py: {node.name} is not in algorithm.md"
    for name in ("learning_rate", "Updater.step", "Updater.epoch", "Updater.accumulate"):
        assert ("grpo/update.py", name) in named


def test_every_choice_and_every_key_is_in_the_document():
    text = ALGORITHM.read_text()
    words = set(re.findall(r"`([\w.]+)`", text)) | set(re.findall(r"algorithm\.(\w+)", text))
    for key, field in Algorithm.model_fields.items():
        if key != "preset":
            assert key in words, f"algorithm.{key} is not in algorithm.md"
            assert set(get_args(field.annotation)) <= words, key


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_keys_of_the_config_exist(path):
    sections = {name: set(field.annotation.model_fields) for name, field in Config.model_fields.items() if name != "task"}
    sections["task"] = {*Settings.model_fields, "target", "larges"}  # the last is changing-it.md's example of a mistake
    named = re.findall(rf"`(?:[^`\n]* )?({'|'.join(sections)})\.([a-z_]+)(?=[`= ])", path.read_text())
    assert len(named) > 3
    assert [f"{part}.{key}" for part, key in named if key not in sections[part] | {"py", "jsonl"}] == []


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_lead_somewhere_and_equations_parse(path):
    text = path.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert [link for link in links if not (path.parent / link).exists()] == []
    plain = re.sub(r"```.*?```|`[^`\n]*`|^    .*?$", "", text, flags=re.S | re.M)
    formulas = re.findall(r"\$\$(.+?)\$\$", plain, re.S) + re.findall(r"(?<!\$)\$([^$\n]+)\$(?!\$)", plain)
    assert plain.count("$") == 2 * len(formulas) + 2 * plain.count("$$") // 2
    for formula in formulas:
        assert not re.search(r"\\[^a-zA-Z]", formula), formula  # Markdown would take the backslash away
        MathTextParser("path").parse(f"${re.sub(r'.(lvert|rvert)', '|', formula.strip())}$".replace(r"\gt", ">"))


# ---- tables


def test_the_presets_are_the_codes():
    rows = [cells(line) for line in section(ALGORITHM, "Presets").splitlines() if line.startswith("|")]
    keys, found = rows[0][2:], {row[0]: row for row in rows[2:]}
    default = found.pop("*default*")
    assert set(found) == set(PRESETS)
    for name, (_, paper, *values) in found.items():
        assert paper == PAPERS[name]
        assert {key: value for key, value in zip(keys, values, strict=True) if value} == {
            key: str(value) for key, value in PRESETS[name].items()}
    assert dict(zip(keys, default[2:], strict=True)) == {key: str(getattr(Algorithm(), key)) for key in keys}


def test_what_is_recorded_for_each_token(toy):
    folder, _ = toy
    text = section(ALGORITHM, "Recorded")
    rollout = lines(folder / "rollouts" / "step-00001.jsonl.gz")
    assert first_cells(text) == set(rollout[0])
    for line in rollout:
        for name in ("logp_sampler", "logp_trainer", "entropy"):
            assert line[name] is None or len(line[name]) == len(line["token_ids"])
        assert (line["logp_last"], line["logp_ref"]) == (None, None)  # one epoch, beta 0
    modules = lines(folder / "lora.jsonl")[0]["modules"]
    assert "layers.0.self_attn.q_proj" in modules
    assert all(len(numbers) == 3 for numbers in modules.values())


def test_every_key_is_documented_and_every_documented_key_is_logged(toy):
    folder, _ = toy
    logged = {key for line in lines(folder / "metrics.jsonl") for key in line}
    events = set(EventAccumulator(str(folder / "tensorboard")).Reload().Tags()["scalars"])
    assert {key for key in events if not key.startswith(("validation/", "test/"))} <= logged
    assert logged - events <= {"step", "policy/clip_fraction"}
    documented = first_cells(METRICS.read_text())
    assert documented - CONDITIONAL - RANKS == logged | events
    assert documented >= CONDITIONAL | RANKS


def test_the_conditional_keys_have_their_conditions():
    def found(*overrides: str) -> set[str]:
        config = tiny_config(*overrides)
        groups = [group_of([5, 6, 7], [[8, 9], [10, 11, 2]])]
        metrics, logs = Updater(tiny_policy(config), config).accumulate(groups, torch.tensor([[1.0, -1.0]]))
        assert len(logs) == len(every(groups))
        return set(metrics)

    plain = found()
    assert not plain & CONDITIONAL
    assert found("algorithm.beta=0.1") - plain == {"policy/kl_ref"}
    assert found("algorithm.correction=truncated") - plain == {"policy/correction"}


# ---- worked numbers


def test_the_worked_step_by_hand():
    text = ALGORITHM.read_text()
    (right, *_, wrong) = ADVANTAGES["grpo"](torch.tensor([[1.0] * 16 + [0.0] * 48]))[0].tolist()
    sums = [16 * right, *(count * wrong for count in (18, 17, 13))]
    assert sum(sums) == pytest.approx(0, abs=1e-3)
    config = tiny_config()
    numbers = [f"{right:.5f}", f"{wrong:.5f}", f"{1e4 * right / 14934:.4f}", *(f"{x:+.1f}" for x in sums),
               f"{1e4 * learning_rate(1, config.run.steps, config.optim):.2f}"]
    assert numbers == ["1.71807", "-0.57269", "1.1504", "+27.5", "-10.3", "-9.7", "-7.4", "3.33"]
    assert all(number in text for number in numbers)


def test_the_figures_numbers_and_size():
    success, group = of_a_success(), of_a_group()
    assert success["centred"] == (63 / 64, 0.5)
    assert success["rloo"] == pytest.approx((1.0, 32 / 63))
    assert success["grpo"] == pytest.approx((7.875, 63**0.5 / 8), rel=1e-3)  # s = 1/8, and 4 / sqrt(63)
    assert success["maxrl"] == pytest.approx((63.0, 1.0))
    assert all(group[name] == pytest.approx((rare, 32 * even)) for name, (rare, even) in success.items())
    assert PICTURE.stat().st_size < 80_000
    assert Image.open(PICTURE).size == (1600, 675)
