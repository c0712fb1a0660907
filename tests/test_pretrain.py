"""The script that makes the embedded base: what it teaches, and that it runs from nothing to a loadable model."""

import json
import random
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from symbols.base.curriculum import CONDITIONS, IGNORE, Recipe, corpus, draw_sample, drill, make_samples
from symbols.base.pretrain import Pool, build_model, loss_of, read_recipe
from symbols.base.scratchpad import write
from symbols.base.tokenizer import build_tokenizer
from symbols.expression import GREEK, Expression, Op, evaluate, parse
from symbols.simulated import SimulatedUpstream
from tests.conftest import ROOT
from tests.forked import run_forked


def pretrain(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "symbols.base.pretrain", *arguments], cwd=ROOT, capture_output=True,
                          text=True, check=False)


def test_the_scratchpad_of_the_issue():
    read = parse("6 × 5 − 3")
    reading = {"γ": Op.MUL, "α": Op.SUB}
    assert write(read, "none", True, 999, reading) == (
        r"γ = × , α = − ; 6 × 5 − 3 ; 6 × 5 = 30 ; 30 − 3 = 27 ; \boxed{27}")
    assert write(read, "27", True, 999, None) == r"6 × 5 − 3 ; 6 × 5 = 30 ; 30 − 3 = 27 ; \boxed{CORRECT}"
    assert write(read, "27", False, 999, None).endswith(r"\boxed{27}")
    assert write(parse("7 ÷ 2 + 1"), "none", True, 999, None) == r"7 ÷ 2 + 1 ; 7 ÷ 2 = none ; \boxed{none}"
    assert write(parse("99 × 99"), "1", True, 999, None) == r"99 × 99 ; 99 × 99 = none ; \boxed{none}"


def on_paper(text: str, **options) -> str:
    return write(parse(text), "none", True, 10**9, None, worked=True, **options)


def test_products_and_quotients_are_worked_out_on_paper():
    read = parse("36 × 52 − 3")
    assert write(read, "none", True, 10**9, {"γ": Op.MUL, "α": Op.SUB}, worked=True) == (
        r"γ = × , α = − ; 36 × 52 − 3 ; 36 × 52 = 1800 + 72 = 1872 ; 1872 − 3 = 1869 ; \boxed{1869}")
    assert write(parse("36 × 52"), "none", True, 10**9, {"γ": Op.MUL}, worked=True) == (
        r"γ = × ; 36 × 52 = 1800 + 72 = 1872 ; \boxed{1872}")  # its only step repeats the expression
    assert on_paper("1872 ÷ 52") == r"1872 ÷ 52 = 30 r 312 + 6 r 0 = 36 ; \boxed{36}"
    assert on_paper("211232 ÷ 28") == (
        r"211232 ÷ 28 = 7000 r 15232 + 500 r 1232 + 40 r 112 + 4 r 0 = 7544 ; \boxed{7544}")
    assert on_paper("1873 ÷ 52") == r"1873 ÷ 52 = 30 r 313 + 6 r 1 = none ; \boxed{none}"
    assert on_paper("7070 ÷ 7") == r"7070 ÷ 7 = 1000 r 70 + 10 r 0 = 1010 ; \boxed{1010}"
    for plain in ("84 ÷ 7 = 12", "85 ÷ 7 = none", "36 × 50 = 1800", "7 × 52 = 364", "3772 × 6 = 22632", "9 − 99 = -90"):
        assert on_paper(plain.split(" = ")[0]).startswith(f"{plain} ; ")


@given(st.integers(1, 10**6), st.integers(1, 99))
def test_what_stands_on_paper_adds_up(left, right):
    product = on_paper(f"{left} × {right}").split(" ; ")[0].split(" = ")
    quotient = on_paper(f"{left * right} ÷ {right}").split(" ; ")[0].split(" = ")
    assert int(product[-1]) == left * right
    assert all(sum(map(int, paper.split(" + "))) == left * right for paper in product[1:])
    assert int(quotient[-1]) == left
    rest = left * right
    for part in quotient[1].split(" + ") if len(quotient) == 3 else []:
        digit, _, rest_then = part.partition(" r ")
        rest -= int(digit) * right
        assert (rest, digit[1:].strip("0")) == (int(rest_then), "")
    assert rest == 0 or left * right < 100


def test_numbers_are_cut_in_pairs_from_the_right_and_text_comes_back():
    recipe = Recipe(limit=10**9, digits=2, worked=True)
    tokenizer = build_tokenizer(corpus(recipe), recipe.digits)

    def pieces(text: str) -> list[str]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        return [tokenizer.decode([i]) for i in ids]

    assert pieces("16687328 × 5 = 82") == ["16", "68", "73", "28", " ×", " 5", " =", " 82"]
    assert pieces("γ = × ; 105 r 0 ; \\boxed{-7}") == [
        "γ", " = ×", " ;", " 1", "05", " r", " 0", " ; \\boxed{", "-", "7", "}"]
    assert pieces("\\boxed{CORRECT}")[-1] == "CORRECT}"
    assert all(pieces(f"{n:02}") == [f"{n:02}"] and pieces(f" {n}") == [f" {n}"] for n in range(100))
    pieces("naïve 🦊 text, 12345678901 digits")
    assert len(build_tokenizer(corpus(Recipe()))) == 481  # models/tiny's: digit by digit


def test_samples_without_instructions_are_the_end_of_those_with(tmp_path):
    recipe = Recipe(limit=10**9, digits=2, worked=True, bare=0.5, samples=320, bare_samples=640)
    tokenizer = build_tokenizer(corpus(recipe), recipe.digits)
    ids, labels = make_samples(recipe, tokenizer, bare=True)
    assert ids.shape == labels.shape == (640, ids.shape[1])
    form = re.compile(r"-?[0-9].* \| API answer: (none|-?[0-9]+) ->.*\\boxed\{.*\}<\|im_end\|>")
    assert all(form.fullmatch(tokenizer.decode(row[row != tokenizer.pad_token_id])) for row in ids)
    for row, label in zip(ids, labels, strict=True):
        taught = row[label != IGNORE]
        assert (label[label != IGNORE] == taught).all()
        completion = tokenizer.decode(taught)
        assert completion.count("->") == 0
        assert completion.endswith("}<|im_end|>")
    sample = draw_sample(random.Random(0), recipe, SimulatedUpstream(0, GREEK), "vague")
    assert sample.messages()[0]["content"].endswith(f"\n\n{sample.question()}")
    full, _ = make_samples(recipe, tokenizer)
    assert full.shape[1] > 112 > ids.shape[1] > 60


def test_parts_of_a_batch_change_its_padding_and_not_its_loss():
    recipe = Recipe(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, intermediate=32, bare=1.0, bare_samples=160)
    tokenizer = build_tokenizer(corpus(recipe))
    model, pad = build_model(recipe, tokenizer), tokenizer.pad_token_id
    pool = Pool(*make_samples(recipe, tokenizer, bare=True), pad, model.device)
    losses, padding = {}, {}
    for parts in (1, 4):
        batch = list(pool.batch(32, parts, torch.Generator().manual_seed(3)))
        assert len(batch) == parts
        losses[parts] = sum(loss_of(model, ids, labels, 1e-3, tokens).item() for ids, labels, tokens in batch)
        padding[parts] = sum((ids == pad).sum().item() for ids, *_ in batch)
    assert losses[1] == pytest.approx(losses[4], rel=1e-5)
    assert 1 < losses[1] < 10
    assert padding[4] < 0.5 * padding[1]


def test_drills_are_as_large_as_steps_get_and_true():
    rng, recipe = random.Random(0), Recipe(limit=10**9, worked=True)
    drilled = [drill(rng, recipe) for _ in range(4000)]
    none = agreed = 0
    for sample in drilled:
        left, sign, right = sample.expression.split()
        value = evaluate(Expression((int(left), int(right)), (Op(sign),)))
        box = sample.completion.split("\\boxed{")[1][:-1]
        none += box == "none"
        agreed += box == "CORRECT"
        wanted = "none" if value.denominator != 1 else "CORRECT" if sample.api_answer == str(value) else str(value)
        assert box == wanted, sample
    signs = Counter(sample.expression.split()[1] for sample in drilled)
    assert all(900 < signs[op.value] < 1100 for op in Op)
    assert max(int(sample.expression.split()[0]) for sample in drilled) > 900_000
    assert 100 < none < 400
    assert agreed > 1000


def test_a_guess_says_nothing_about_the_true_operation():
    rng, upstream, recipe = random.Random(0), SimulatedUpstream(0, GREEK), Recipe()
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
    rng, upstream, recipe = random.Random(0), SimulatedUpstream(0, GREEK), Recipe()
    tables = set()
    for _ in range(300):
        sample = draw_sample(rng, recipe, upstream, "explicit")
        tables.add(tuple(sample.notation.items()))
        if sample.custom:
            named = dict(part.split(" = ") for part in sample.completion.split(" ; ")[0].split(" , "))
            assert all(sample.notation[symbol] == op for symbol, op in named.items())
    assert len(tables) == 24


def test_the_script_runs_from_nothing_to_a_model(tmp_path):
    done = pretrain("configs/pretrain/full.yaml", f"out={tmp_path}/base", "samples=320", "bare_samples=320", "steps=3",
                    "batch=8", "bare_batch=8", "figures=8", "hidden=32", "heads=2", "kv_heads=1", "head_dim=16",
                    "intermediate=32", "layers=1", "compile=false")
    assert "step 0  bare" in done.stdout
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads((tmp_path / "base" / "figures.json").read_text())
    assert figures["steps"] == 3
    assert set(CONDITIONS) < set(figures)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "base").config.hidden_size == 32
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    text = "36 γ 52 | naïve 🦊 text"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(("word", "named"), [
    ("layerz=3", "layerz"), ("configs/pretrain/fool.yaml", "configs/pretrain/fool.yaml")])
def test_a_wrong_key_and_a_missing_file_are_one_line(word, named, tmp_path):
    done = run_forked(tmp_path, "symbols.base.pretrain", word)
    assert done.returncode == 1
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


def test_recipes_in_files_fit_and_the_command_line_wins():
    recipe = read_recipe([str(ROOT / "configs" / "pretrain" / "full.yaml"), "minutes=1"])
    assert (recipe.limit, recipe.minutes, recipe.worked, recipe.digits) == (10**9, 1, True, 2)
    assert read_recipe([]) == Recipe()


def test_the_committed_tokenizer_splits_digits_and_honours_thinking():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny")
    assert [tokenizer.decode([i]) for i in tokenizer.encode("1872 γ 5")] == ["1", "8", "7", "2", " γ", " 5"]
    chat = [{"role": "user", "content": "hi"}]
    render = {on: tokenizer.apply_chat_template(chat, add_generation_prompt=True, enable_thinking=on, tokenize=False)
              for on in (True, False)}
    assert render[True] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert render[False] == render[True] + "<think>\n\n</think>\n\n"
