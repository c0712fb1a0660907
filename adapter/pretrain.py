"""Make the embedded base from nothing: `python -m adapter.pretrain [key=value ...]`, keys as in `Recipe`.

The base is what an instruction-tuned model would be to the real experiment: it knows the prompt, the answer format
and the arithmetic, and it has no idea what the symbols mean. Its loss is on the completion only; its completions
are written by adapter/scratchpad.py, with a uniform guess for every symbol that the prompt does not define.

What is left out: everything a language model knows. It reads this prompt and nothing else.
"""

import json
import math
import multiprocessing
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from adapter import scratchpad
from adapter.prompt import PromptText
from adapter.tokenizer import build_tokenizer, chat_ids
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

    def messages(self, notation: Notation) -> list[dict[str, str]]:
        """The chat the completion answers; `notation` gives the symbols and, where it defines them, their meaning."""
        return PromptText(self.condition, notation).messages(self.expression, self.api_answer)


def draw_sample(rng: random.Random, recipe: Recipe, upstream: SimulatedUpstream, condition: str) -> tuple[Sample, Notation]:
    """A sample, half of them in symbols, and the notation of its prompt.

    Each prompt gives the symbols other meanings: a prompt that defines them has to be read, and one that does not
    can leak nothing.
    """
    within, custom = recipe.range(), rng.random() < 0.5
    notation = dict(zip(GREEK, rng.sample(list(Op), len(Op)), strict=True))
    expression = draw(rng, within)
    shown = render(expression, notation if custom else STANDARD)
    (api_answer,), reading, read = upstream.answers([Question(shown, expression, custom)]), None, expression
    if not custom and rng.random() < NEAR_MISSES:
        api_answer = str(near_miss(rng, evaluate(expression)))
    if custom and condition.startswith("explicit"):
        sign_of = {op: sign for sign, op in notation.items()}
        reading = {sign_of[op]: op for op in expression.ops}
    elif custom:
        read, reading = scratchpad.guess(rng, expression, notation)
    may_agree = PromptText(condition, notation).may_agree
    completion = scratchpad.write(read, api_answer, may_agree, within.limit, reading)
    return Sample(condition, shown, custom, api_answer, completion), _as_prompted(notation, condition)


def _as_prompted(notation: Notation, condition: str) -> Notation:
    """The notation a prompt is made with: the true table, but for prompts that define the symbols otherwise.

    The examples of the vague prompt use the true table, as they do when GRPO runs.
    """
    return notation if condition.startswith("explicit") else GREEK


def make_shard(job: tuple[int, int, Recipe, PreTrainedTokenizerFast]) -> list[tuple[list[int], int]]:
    """`count` samples as (token ids, length of the prompt), for one worker process."""
    shard, count, recipe, tokenizer = job
    rng = random.Random(f"{recipe.seed}/{shard}")
    upstream = SimulatedUpstream(rng.getrandbits(32))
    rows = []
    for _ in range(count):
        condition = rng.choices(list(CONDITIONS), list(CONDITIONS.values()))[0]
        sample, notation = draw_sample(rng, recipe, upstream, condition)
        prompt = chat_ids(tokenizer, sample.messages(notation))
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
        sample, notation = draw_sample(rng, recipe, upstream, condition)
        texts += [sample.messages(notation)[0]["content"], sample.completion, "user\n", "assistant\n"]
    return texts


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A fresh Qwen3 with tied embeddings, fp32."""
    torch.manual_seed(recipe.seed)
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=recipe.hidden, intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.02,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))


def loss_of(model: Qwen3ForCausalLM, ids_BT: torch.Tensor, labels_BT: torch.Tensor, z_loss: float) -> torch.Tensor:
    """Mean cross-entropy of the completion tokens, plus z_loss * (log Z)^2.

    The second term keeps the log of the softmax's denominator near 0 (PaLM, arXiv 2204.02311, section 5), and with
    it the logits that matter: small logits survive bf16, so that two engines agree on their log-probs.
    """
    hidden_BTH = model.model(ids_BT).last_hidden_state
    targets_BT = labels_BT[:, 1:]
    counted_BT = targets_BT != IGNORE
    logits_NV = model.lm_head(hidden_BTH[:, :-1][counted_BT]).float()
    log_z_N = logits_NV.logsumexp(-1)
    return F.cross_entropy(logits_NV, targets_BT[counted_BT]) + z_loss * log_z_N.square().mean()


def train(recipe: Recipe, model: Qwen3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> int:
    """AdamW, linear warm-up, then cosine to zero. Returns the number of steps that the time allowed."""
    device, generator = model.device, torch.Generator().manual_seed(recipe.seed)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
    started, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        progress = max((step + 1) / recipe.steps, (time.monotonic() - started) / (60 * recipe.minutes))
        warm_up = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * warm_up * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        rows = torch.randint(len(ids), (recipe.batch,), generator=generator).to(ids.device)
        width = int((ids[rows] != model.config.pad_token_id).any(0).sum())
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(model, ids[rows, :width].long(), labels[rows, :width].long(), recipe.z_loss)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 200 == 0:
            print(f"step {step}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s", flush=True)
        step += 1
    return step


def main(recipe: Recipe) -> None:
    """Build, train, measure, and write model, tokenizer and figures to `recipe.out`."""
    out, device = Path(recipe.out), "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = build_tokenizer(corpus(recipe))
    model = build_model(recipe, tokenizer).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(tokenizer)} tokens, on {device}", flush=True)
    ids, labels = make_samples(recipe, tokenizer)
    print(f"{len(ids):,} samples of at most {ids.shape[1]} tokens", flush=True)
    steps = train(recipe, model, ids.to(device), labels.to(device))
    model = model.to(torch.bfloat16)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    from adapter.pretrain_figures import measure

    figures = {"recipe": asdict(recipe), "parameters": parameters, "steps": steps, "device": device,
               "torch": torch.__version__, **measure(recipe, model, tokenizer)}
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), OmegaConf.from_cli(sys.argv[1:]))))
