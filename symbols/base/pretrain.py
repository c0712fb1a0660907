"""Make a base from nothing: `python -m symbols.base.pretrain [RECIPE.yaml] [key=value ...]`, keys as in curriculum.Recipe.

Without a recipe it makes the embedded one, models/tiny; configs/pretrain/full.yaml is for the full-sized task, on a GPU.

The base is what an instruction-tuned model would be to the real experiment: it knows the prompt, the answer format
and the arithmetic, and it has no idea what the symbols mean. Its loss is on the completion only; its completions
are written by symbols/base/scratchpad.py, with a uniform guess for every symbol that the prompt does not define.

What is left out: everything a language model knows. It reads this prompt and nothing else.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from yaml import YAMLError

from grpo.run.files import at_home
from grpo.run.streams import outlast_readers
from symbols.base.curriculum import IGNORE, Recipe, corpus, make_samples
from symbols.base.figures import measure
from symbols.base.tokenizer import build_tokenizer


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A fresh Qwen3 with tied embeddings, fp32."""
    torch.manual_seed(recipe.seed)
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=recipe.hidden, intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.02,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))


def loss_of(
    model: Qwen3ForCausalLM, ids_BT: torch.Tensor, labels_BT: torch.Tensor, z_loss: float, tokens: int
) -> torch.Tensor:
    """Cross-entropy of the completion tokens, plus z_loss * (log Z)^2, summed and divided by `tokens`.

    The second term keeps the log of the softmax's denominator near 0 (PaLM, arXiv 2204.02311, section 5), and with
    it the logits that matter: small logits survive bf16, so that two engines agree on their log-probs.
    """
    hidden_BTH = model.model(ids_BT, use_cache=False).last_hidden_state
    targets_BT = labels_BT[:, 1:]
    counted_BT = targets_BT != IGNORE
    logits_NV = model.lm_head(hidden_BTH[:, :-1][counted_BT]).float()
    log_z_N = logits_NV.logsumexp(-1)
    loss = F.cross_entropy(logits_NV, targets_BT[counted_BT], reduction="sum")
    return (loss + z_loss * log_z_N.square().sum()) / tokens


class Pool:
    """Samples to draw batches from: ids_NT and labels_NT as make_samples gives them."""

    def __init__(self, ids_NT: torch.Tensor, labels_NT: torch.Tensor, pad: int, device: torch.device):
        self.lengths_N = (ids_NT != pad).sum(1)
        self.counted_N = (labels_NT != IGNORE).sum(1)
        self.ids_NT, self.labels_NT = ids_NT.to(device), labels_NT.to(device)

    def batch(self, rows: int, parts: int, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        """A batch in parts of similar lengths: ids_BT, labels_BT, and the completion tokens of the whole batch."""
        drawn = torch.randint(len(self.lengths_N), (rows,), generator=generator)
        drawn = drawn[self.lengths_N[drawn].argsort()]
        tokens = int(self.counted_N[drawn].sum())
        for part in drawn.chunk(parts):
            width, at = int(self.lengths_N[part].max()), part.to(self.ids_NT.device)
            yield self.ids_NT[at, :width].long(), self.labels_NT[at, :width].long(), tokens


def train(
    recipe: Recipe, model: Qwen3ForCausalLM, samples: tuple[torch.Tensor, torch.Tensor],
    bare: tuple[torch.Tensor, torch.Tensor] | None = None
) -> int:
    """AdamW, linear warm-up, then cosine to zero. Returns the number of steps that the time allowed.

    samples, bare: ids_NT and labels_NT of samples with and without instructions. The latter come first, for `recipe.bare` of
    the way.
    """
    device, generator = model.device, torch.Generator().manual_seed(recipe.seed)
    pad = model.config.pad_token_id
    pools = {name: Pool(*given, pad, device) for name, given in (("bare", bare), ("full", samples)) if given}
    decayed = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
    for layer in model.model.layers if recipe.compile else []:
        layer.compile(dynamic=True)
    started, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        stage = "bare" if bare and progress < recipe.bare else "full"
        progress = max((step + 1) / recipe.steps, (time.monotonic() - started) / (60 * recipe.minutes))
        warm_up = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * warm_up * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        loss = torch.zeros((), device=device)
        rows = recipe.bare_batch if stage == "bare" else recipe.batch
        for ids_BT, labels_BT, tokens in pools[stage].batch(rows, recipe.parts, generator):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                part = loss_of(model, ids_BT, labels_BT, recipe.z_loss, tokens)
            part.backward()
            loss += part.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 200 == 0:
            print(f"step {step}  {stage}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s", flush=True)
        step += 1
    return step


def main(recipe: Recipe) -> None:
    """Build, train, measure, and write model, tokenizer and figures to `recipe.out`."""
    out, device = at_home(recipe.out), "cuda" if torch.cuda.is_available() else "cpu"
    started = time.monotonic()
    tokenizer = build_tokenizer(corpus(recipe), recipe.digits)
    model = build_model(recipe, tokenizer).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(tokenizer)} tokens, on {device}", flush=True)
    samples = make_samples(recipe, tokenizer)
    bare = make_samples(recipe, tokenizer, bare=True) if recipe.bare else None
    for name, (ids_NT, _) in {"with instructions": samples, **({"without": bare} if bare else {})}.items():
        print(f"{len(ids_NT):,} samples {name} of at most {ids_NT.shape[1]} tokens, "
              f"{time.monotonic() - started:.0f} s", flush=True)
    steps = train(recipe, model, samples, bare)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    model = Qwen3ForCausalLM.from_pretrained(out, dtype=torch.bfloat16).to(device)  # layers as they are saved, not compiled
    figures = {"recipe": asdict(recipe), "parameters": parameters, "steps": steps, "device": device,
               "torch": torch.__version__, "seconds": round(time.monotonic() - started), **measure(recipe, model, tokenizer)}
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


def read_recipe(words: list[str]) -> Recipe:
    """A recipe from `[FILE.yaml] [key=value ...]`. Raises OmegaConfBaseException, OSError, yaml.YAMLError, ValueError."""
    files = [OmegaConf.load(word) for word in words if "=" not in word]
    given = OmegaConf.from_cli([word for word in words if "=" in word])
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), *files, given))


if __name__ == "__main__":
    outlast_readers()
    try:
        chosen = read_recipe(sys.argv[1:])
    except (OmegaConfBaseException, OSError, YAMLError, ValueError) as error:
        sys.exit(f"error: {str(error).splitlines()[0]}; give key=value, or a file of them (configs/pretrain/full.yaml), "
                 "with the keys of Recipe in symbols/base/curriculum.py")
    main(chosen)
