"""The script that makes the embedded base: what it teaches, and that it runs from nothing to a loadable model."""

import json
import random
import subprocess
import sys
from collections import Counter

from transformers import AutoModelForCausalLM, AutoTokenizer

from adapter.curriculum import CONDITIONS, Recipe, draw_sample
from adapter.scratchpad import write
from adapter.upstream import SimulatedUpstream
from symbols.expression import GREEK, Op, parse
from tests.conftest import ROOT


def pretrain(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "adapter.pretrain", *arguments], cwd=ROOT, capture_output=True, text=True,
                          check=False)


def test_the_scratchpad_of_the_issue():
    read = parse("6 × 5 − 3")
    reading = {"γ": Op.MUL, "α": Op.SUB}
    assert write(read, "none", True, 999, reading) == (
        r"γ = × , α = − ; 6 × 5 − 3 ; 6 × 5 = 30 ; 30 − 3 = 27 ; \boxed{27}")
    assert write(read, "27", True, 999, None) == r"6 × 5 − 3 ; 6 × 5 = 30 ; 30 − 3 = 27 ; \boxed{CORRECT}"
    assert write(read, "27", False, 999, None).endswith(r"\boxed{27}")
    assert write(parse("7 ÷ 2 + 1"), "none", True, 999, None) == r"7 ÷ 2 + 1 ; 7 ÷ 2 = none ; \boxed{none}"
    assert write(parse("99 × 99"), "1", True, 999, None) == r"99 × 99 ; 99 × 99 = none ; \boxed{none}"


def test_a_guess_says_nothing_about_the_true_operation():
    rng, upstream, recipe = random.Random(0), SimulatedUpstream(0), Recipe()
    seen = Counter()
    for _ in range(6000):
        sample = draw_sample(rng, recipe, upstream, "vague")
        if sample.custom:
            symbol, guessed = sample.completion[0], sample.completion[4]
            seen[symbol, guessed] += 1
            assert sample.notation == GREEK
    totals = {symbol: sum(n for (s, _), n in seen.items() if s == symbol) for symbol in GREEK}
    assert all(0.2 < seen[symbol, op.value] / totals[symbol] < 0.3 for symbol in GREEK for op in Op)


def test_explicit_prompts_define_the_symbols_anew_and_are_obeyed():
    rng, upstream, recipe = random.Random(0), SimulatedUpstream(0), Recipe()
    tables = set()
    for _ in range(300):
        sample = draw_sample(rng, recipe, upstream, "explicit")
        tables.add(tuple(sample.notation.items()))
        if sample.custom:
            named = dict(part.split(" = ") for part in sample.completion.split(" ; ")[0].split(" , "))
            assert all(sample.notation[symbol] == op for symbol, op in named.items())
    assert len(tables) == 24


def test_the_script_runs_from_nothing_to_a_model(tmp_path):
    done = pretrain(f"out={tmp_path}/base", "samples=320", "steps=3", "batch=8", "figures=8", "hidden=32", "heads=2",
                    "kv_heads=1", "head_dim=16", "intermediate=32", "layers=1")
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads((tmp_path / "base" / "figures.json").read_text())
    assert figures["steps"] == 3
    assert set(CONDITIONS) < set(figures)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "base").config.hidden_size == 32
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    text = "36 γ 52 | naïve 🦊 text"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_wrong_key_is_one_line():
    done = pretrain("layerz=3")
    assert done.returncode == 1
    assert "layerz" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_committed_tokenizer_splits_digits_and_honours_thinking():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny")
    assert [tokenizer.decode([i]) for i in tokenizer.encode("1872 γ 5")] == ["1", "8", "7", "2", " γ", " 5"]
    chat = [{"role": "user", "content": "hi"}]
    render = {on: tokenizer.apply_chat_template(chat, add_generation_prompt=True, enable_thinking=on, tokenize=False)
              for on in (True, False)}
    assert render[True] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert render[False] == render[True] + "<think>\n\n</think>\n\n"
