"""What the embedded base is taught: prompts under all four conditions, with the completions it should write.

A prompt that defines the symbols defines them anew in every sample, so that it has to be read; one that does not is
answered with a uniform guess, so that nothing can leak.
"""

import math
import multiprocessing
import random
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerFast

from adapter import scratchpad
from adapter.prompt import PromptText
from adapter.tokenizer import chat_ids
from adapter.upstream import Question, SimulatedUpstream, near_miss
from symbols.expression import GREEK, STANDARD, Notation, Op, evaluate, render
from symbols.generate import Range, draw

# Share of each condition among the samples. The vague one is what GRPO trains on; the base must read the others too.
CONDITIONS = {"vague": 0.55, "explicit": 0.15, "explicit_no_correct": 0.15, "none_no_correct": 0.15}
NEAR_MISSES = 0.4  # of the standard samples: the API being almost right is rare, and the hardest thing to notice
IGNORE = -100  # the label of tokens that carry no loss: the prompt and the padding


@dataclass
class Recipe:
    """Everything that decides the weights. Lengths in tokens, rates per step."""

    out: str = "models/tiny"
    seed: int = 0
    operands: list[int] = field(default_factory=lambda: [1, 99])
    terms: list[int] = field(default_factory=lambda: [2, 4])
    limit: int = 999
    layers: int = 4
    hidden: int = 192
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    intermediate: int = 576
    samples: int = 1_200_000
    batch: int = 512
    steps: int = 9000
    lr: float = 2e-3
    weight_decay: float = 0.05
    z_loss: float = 1e-3
    minutes: float = 60.0  # the schedule is shortened to fit
    figures: int = 1000  # samples per condition that the finished base is measured on

    def range(self) -> Range:
        """The expressions the base must be able to compute."""
        return Range(tuple(self.operands), tuple(self.terms), self.limit)


@dataclass(frozen=True)
class Sample:
    """One prompt with the completion the base is taught, or is measured against."""

    condition: str
    expression: str  # as shown
    custom: bool
    api_answer: str
    completion: str
    notation: Notation  # of the prompt

    def messages(self) -> list[dict[str, str]]:
        """The chat that the completion answers."""
        return PromptText(self.condition, self.notation).messages(self.expression, self.api_answer)


def draw_sample(rng: random.Random, recipe: Recipe, upstream: SimulatedUpstream, condition: str) -> Sample:
    """A sample, half of them in symbols, whose meaning is drawn anew. An explicit prompt states that meaning.

    The others are those of GRPO to the letter, true examples included; nothing in the samples makes the examples useful.
    """
    within, custom = recipe.range(), rng.random() < 0.5
    notation = dict(zip(GREEK, rng.sample(list(Op), len(Op)), strict=True))
    expression = draw(rng, within)
    shown = render(expression, notation if custom else STANDARD)
    (answered,) = upstream.answers([Question(shown, expression, custom)])
    api_answer, reading, read = answered.text, None, expression
    if not custom and rng.random() < NEAR_MISSES:
        api_answer = str(near_miss(rng, evaluate(expression)))
    if custom and condition.startswith("explicit"):
        sign_of = {op: sign for sign, op in notation.items()}
        reading = {sign_of[op]: op for op in expression.ops}
    elif custom:
        read, reading = scratchpad.guess(rng, expression, notation)
    prompted = notation if condition.startswith("explicit") else GREEK
    may_agree = PromptText(condition, prompted).may_agree
    completion = scratchpad.write(read, api_answer, may_agree, within.limit, reading)
    return Sample(condition, shown, custom, api_answer, completion, prompted)


def make_shard(job: tuple[int, int, Recipe, PreTrainedTokenizerFast]) -> list[tuple[list[int], int]]:
    """`count` samples as (token ids, length of the prompt), for one worker process."""
    shard, count, recipe, tokenizer = job
    rng = random.Random(f"{recipe.seed}/{shard}")
    upstream = SimulatedUpstream(rng.getrandbits(32))
    rows = []
    for _ in range(count):
        condition = rng.choices(list(CONDITIONS), list(CONDITIONS.values()))[0]
        sample = draw_sample(rng, recipe, upstream, condition)
        prompt = chat_ids(tokenizer, sample.messages())
        completion = tokenizer.encode(sample.completion, add_special_tokens=False)
        rows.append((prompt + completion + [tokenizer.eos_token_id], len(prompt)))
    return rows


def make_samples(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """ids_NT (int16, right-padded) and labels_NT (the same, IGNORE on prompt and padding)."""
    shards = 16 * math.ceil(recipe.samples / 160_000)
    jobs = [(i, recipe.samples // shards, recipe, tokenizer) for i in range(shards)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        rows = [row for shard in pool.imap(make_shard, jobs) for row in shard]
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id, dtype=torch.int16)
    labels = torch.full_like(ids, IGNORE)
    for i, (row, prompt) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int16)
        labels[i, prompt : len(row)] = ids[i, prompt : len(row)]
    return ids, labels


def corpus(recipe: Recipe) -> list[str]:
    """Prompts and completions to learn the tokenizer's merges from."""
    rng, texts = random.Random(recipe.seed), []
    upstream = SimulatedUpstream(recipe.seed)
    for condition in [*CONDITIONS] * 100:
        sample = draw_sample(rng, recipe, upstream, condition)
        texts += [sample.messages()[0]["content"], sample.completion, "user\n", "assistant\n"]
    return texts
