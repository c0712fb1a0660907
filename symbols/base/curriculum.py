"""What the embedded base is taught: prompts under all four conditions, with the completions it should write.

A prompt that defines the symbols defines them anew in every sample, so that it has to be read; one that does not is
answered with a uniform guess, so that nothing can leak.

A larger base learns its arithmetic first, from samples that are nothing but a question and its completion: the prompt's 150
tokens of instructions, the same each time, would be most of what is computed.
"""

import math
import multiprocessing
import random
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from adapter.questions import NONE
from symbols.base import scratchpad
from symbols.base.tokenizer import chat_ids
from symbols.expression import GREEK, STANDARD, Expression, Notation, Op, evaluate, render
from symbols.generate import Range, draw
from symbols.prompt import PromptText, question
from symbols.simulated import SimulatedUpstream, near_miss

# Share of each condition among the samples. The vague one is what GRPO trains on; the base must read the others too.
CONDITIONS = {"vague": 0.55, "explicit": 0.15, "explicit_no_correct": 0.15, "none_no_correct": 0.15}
NEAR_MISSES = 0.4  # of the standard samples: the API being almost right is rare, and the hardest thing to notice
DRILLS = 0.4  # of the samples without instructions: single operations on numbers as large as those that steps lead to
IGNORE = -100  # the label of tokens that carry no loss: the prompt and the padding


@dataclass
class Recipe:
    """Everything that decides the weights. Lengths in tokens, rates per step; configs/pretrain/ has recipes by name."""

    out: str = "models/tiny"
    seed: int = 0
    operands: list[int] = field(default_factory=lambda: [1, 99])
    terms: list[int] = field(default_factory=lambda: [2, 4])
    limit: int = 999
    digits: int = 1  # of a token of a number: 1, or 2
    worked: bool = False  # products and quotients are worked out on paper, symbols/base/scratchpad.py
    layers: int = 4
    hidden: int = 192
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    intermediate: int = 576
    samples: int = 1_200_000
    batch: int = 512
    parts: int = 1  # of a batch, by length, each padded to its own longest
    bare: float = 0.0  # the share of the training that comes first, on samples without instructions
    bare_samples: int = 0
    bare_batch: int = 2048
    steps: int = 9000
    lr: float = 2e-3
    weight_decay: float = 0.05
    z_loss: float = 1e-3
    compile: bool = False  # torch.compile the layers
    minutes: float = 60.0  # the schedule is shortened to fit
    figures: int = 1000  # samples per condition that the finished base is measured on

    def __post_init__(self):
        """Raises ValueError where a number is of samples that there are none of."""
        if self.bare_samples and not self.bare:
            raise ValueError(f"bare_samples {self.bare_samples} needs bare above 0")

    def range(self) -> Range:
        """The expressions the base must be able to compute."""
        return Range(tuple(self.operands), tuple(self.terms), self.limit)


@dataclass(frozen=True)
class Sample:
    """One prompt with the completion the base is taught, or is measured against."""

    condition: str  # of CONDITIONS
    expression: str  # as shown
    custom: bool
    api_answer: str
    completion: str
    notation: Notation  # of the prompt

    def messages(self) -> list[dict[str, str]]:
        """The chat that the completion answers."""
        return PromptText(self.condition, self.notation).messages(self.expression, self.api_answer, self.api_answer)

    def question(self) -> str:
        """The prompt's last line, without the instructions."""
        return question(self.expression, self.api_answer)


def draw_sample(rng: random.Random, recipe: Recipe, upstream: SimulatedUpstream, condition: str) -> Sample:
    """A sample, half of them in symbols, whose meaning is drawn anew. An explicit prompt states that meaning.

    The others are those of GRPO to the letter, true examples included; nothing in the samples makes the examples useful.
    """
    within, custom = recipe.range(), rng.random() < 0.5
    notation = dict(zip(GREEK, rng.sample(list(Op), len(Op)), strict=True))
    expression = draw(rng, within)
    shown = render(expression, notation if custom else STANDARD)
    api_answer, reading, read = upstream.answer(expression, custom), None, expression
    if not custom and rng.random() < NEAR_MISSES:
        api_answer = str(near_miss(rng, evaluate(expression)))
    if custom and condition.startswith("explicit"):
        sign_of = {op: sign for sign, op in notation.items()}
        reading = {sign_of[op]: op for op in expression.ops}
    elif custom:
        read, reading = scratchpad.guess(rng, expression, notation)
    prompted = notation if condition.startswith("explicit") else GREEK
    may_agree = PromptText(condition, prompted).may_agree
    completion = scratchpad.write(read, api_answer, may_agree, within.limit, reading, recipe.worked)
    return Sample(condition, shown, custom, api_answer, completion, prompted)


def drill(rng: random.Random, recipe: Recipe) -> Sample:
    """One operation, one side of it as large as results get, in ordinary operators. Of four divisions, three are exact."""
    op, small = rng.choice(list(Op)), rng.randint(*recipe.operands)
    large = int(10 ** rng.uniform(0, 6))
    left, right = large, small
    match op:
        case Op.DIV if rng.random() < 0.75:
            left = max(1, large // small) * small
        case Op.ADD | Op.SUB:
            right = rng.choice((small, small, int(10 ** rng.uniform(0, 6))))
            left = large * rng.choice((1, 1, -1))
            left, right = (right, left) if left > 0 and rng.random() < 0.3 else (left, right)
    expression = Expression((left, right), (op,))
    truth = evaluate(expression)
    api_answer = rng.choice((NONE, str(truth), str(near_miss(rng, truth)))) if truth.denominator == 1 else NONE
    completion = scratchpad.write(expression, api_answer, True, recipe.limit, None, recipe.worked)
    return Sample("vague", render(expression), False, api_answer, completion, GREEK)


def make_shard(job: tuple[int, int, bool, Recipe, PreTrainedTokenizerFast]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For one worker process, `count` samples: the token ids of all, lengths, and lengths of their prompts.

    bare: without instructions.
    """
    shard, count, bare, recipe, tokenizer = job
    rng = random.Random(f"{recipe.seed}/{shard}/bare" if bare else f"{recipe.seed}/{shard}")
    upstream = SimulatedUpstream(rng.getrandbits(32), GREEK)
    samples = []
    for _ in range(count):
        if bare and rng.random() < DRILLS:
            samples.append(drill(rng, recipe))
        else:
            condition = "vague" if bare else rng.choices(list(CONDITIONS), list(CONDITIONS.values()))[0]
            samples.append(draw_sample(rng, recipe, upstream, condition))
    if bare:
        prompts = tokenizer([sample.question() for sample in samples], add_special_tokens=False)["input_ids"]
    else:
        prompts = [chat_ids(tokenizer, sample.messages()) for sample in samples]
    completions = tokenizer([sample.completion for sample in samples], add_special_tokens=False)["input_ids"]
    rows = [[*prompt, *completion, tokenizer.eos_token_id] for prompt, completion in zip(prompts, completions, strict=True)]
    return np.array(list(chain(*rows)), np.int16), np.array([*map(len, rows)]), np.array([*map(len, prompts)])


def make_samples(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, bare: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """ids_NT (int16, right-padded) and labels_NT (the same, IGNORE on prompt and padding). bare: without instructions."""
    wanted = recipe.bare_samples if bare else recipe.samples
    shards = 16 * math.ceil(wanted / 160_000)
    jobs = [(i, wanted // shards, bare, recipe, tokenizer) for i in range(shards)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        tokens, lengths_N, prompts_N = (np.concatenate(part) for part in zip(*pool.imap(make_shard, jobs), strict=True))
    places_T = np.arange(lengths_N.max())
    written_NT = places_T < lengths_N[:, None]
    ids_NT = np.full(written_NT.shape, tokenizer.pad_token_id, np.int16)
    ids_NT[written_NT] = tokens
    labels_NT = np.where(written_NT & (places_T >= prompts_N[:, None]), ids_NT, np.int16(IGNORE))
    return torch.from_numpy(ids_NT), torch.from_numpy(labels_NT)


def corpus(recipe: Recipe) -> list[str]:
    """Prompts and completions to learn the tokenizer's merges from."""
    rng, texts = random.Random(recipe.seed), []
    upstream = SimulatedUpstream(recipe.seed, GREEK)
    for condition in [*CONDITIONS] * 100:
        sample = draw_sample(rng, recipe, upstream, condition)
        texts += [sample.messages()[0]["content"], sample.completion, "user\n", "assistant\n"]
    return texts
