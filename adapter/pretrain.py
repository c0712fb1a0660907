"""Make the embedded base from nothing: `python -m adapter.pretrain [key=value ...]`, keys as in curriculum.Recipe.

The base is what an instruction-tuned model would be to the real experiment: it knows the prompt, the answer format
and the arithmetic, and it has no idea what the symbols mean. Its loss is on the completion only; its completions
are written by adapter/scratchpad.py, with a uniform guess for every symbol that the prompt does not define.

What is left out: everything a language model knows. It reads this prompt and nothing else.
"""

import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from adapter.curriculum import IGNORE, Recipe, corpus, make_samples
from adapter.pretrain_figures import measure
from adapter.tokenizer import build_tokenizer


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
    figures = {"recipe": asdict(recipe), "parameters": parameters, "steps": steps, "device": device,
               "torch": torch.__version__, **measure(recipe, model, tokenizer)}
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    try:
        chosen = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), OmegaConf.from_cli(sys.argv[1:])))
    except OmegaConfBaseException as error:
        sys.exit(f"error: {str(error).splitlines()[0]}; the keys are those of Recipe in adapter/curriculum.py")
    main(chosen)
