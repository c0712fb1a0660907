"""What the embedded base can and cannot do, measured on expressions drawn afresh."""

import random

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from adapter.verdict import Agree, Answer, boxes_in, final_answer
from adapter.verifiers.number import Number
from symbols.base.curriculum import CONDITIONS, Recipe, Sample, draw_sample
from symbols.base.tokenizer import chat_ids
from symbols.expression import GREEK, Op
from symbols.simulated import SimulatedUpstream

LONGEST = 160  # tokens of a completion


def measure(recipe: Recipe, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    """The figures of the model card: shares of `recipe.figures` samples per condition; greedy unless said otherwise.

    standard_computed: right where the API was wrong.  standard_agreed: CORRECT where the API was right.
    as_taught: the completion equals, to the letter, the one it was taught (custom symbols: explicit prompts only).
    guess: mean probability of each operation right after `symbol =`, under the vague prompt.
    """
    rng = random.Random(f"{recipe.seed}/figures")
    upstream = SimulatedUpstream(rng.getrandbits(32), GREEK)
    figures: dict[str, object] = {}
    for condition in CONDITIONS:
        drawn = [draw_sample(rng, recipe, upstream, condition) for _ in range(recipe.figures)]
        written = complete(model, tokenizer, drawn)
        standard = [(s, text) for s, text in zip(drawn, written, strict=True) if not s.custom]
        custom = [(s, text) for s, text in zip(drawn, written, strict=True) if s.custom]
        agreed = [(s, t) for s, t in standard if isinstance(_answer(s.completion), Agree)]
        figures[condition] = {
            "standard_computed": _share(_answer(t) == _answer(s.completion)
                                        for s, t in standard if (s, t) not in agreed),
            **({"standard_agreed": _share(_answer(t) == Agree() for _, t in agreed)} if agreed else {}),
            "standard_as_taught": _share(t == s.completion for s, t in standard),
            "custom_as_taught": _share(t == s.completion for s, t in custom)}
        if condition == "vague":
            figures["guess"] = guess_table(model, tokenizer, [s for s, _ in custom])
    return figures


@torch.no_grad()
def complete(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: list[Sample]) -> list[str]:
    """Greedy completions, in order."""
    texts = []
    at_once = 1000 if model.device.type == "cuda" else 250
    for at in range(0, len(samples), at_once):
        prompts = [chat_ids(tokenizer, sample.messages()) for sample in samples[at : at + at_once]]
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
        out = model.generate(**batch, max_new_tokens=LONGEST, do_sample=False)
        texts += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1]:], skip_special_tokens=True)
    return texts


@torch.no_grad()
def guess_table(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, samples: list[Sample]
) -> dict[str, dict[str, float]]:
    """P(operation | prompt, "symbol =") for the first symbol of each expression, averaged by symbol."""
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    for sample in samples:
        symbol = next(c for c in sample.expression if c in sample.notation)
        guesses = [tokenizer.encode(f"{symbol} = {op}", add_special_tokens=False) for op in Op]
        choices = [guess[-1] for guess in guesses]
        ids = torch.tensor([chat_ids(tokenizer, sample.messages()) + guesses[0][:-1]], device=model.device)
        p = model(ids).logits[0, -1].float().softmax(-1)[choices].cpu()
        sums[symbol] = sums.get(symbol, torch.zeros(len(Op))) + p
        counts[symbol] = counts.get(symbol, 0) + 1
    return {s: {op.value: round(float(v), 4) for op, v in zip(Op, sums[s] / counts[s], strict=True)} for s in sorted(sums)}


def _answer(completion: str) -> Answer:
    return final_answer(boxes_in(completion), Number())


def _share(hits) -> float:
    hits = list(hits)
    return round(sum(hits) / len(hits), 4)
