"""Log-probabilities of the sampled tokens, with the prompt computed once for all completions of its group.

A padded batch runs the prompt G times: G (L + C) tokens for a prompt of L and completions of C. Here it runs once,
L + G C tokens, and the gradient is exact:

    1. `Prefix` runs the prompt and keeps its graph; its keys, values and last hidden state are cut off as leaves;
    2. each micro-batch of completions reads those leaves and calls backward: gradients add up in the LoRA and the leaves;
    3. `Prefix.backward` sends the leaves' gradients through the prompt's graph, once.

The logits of a step would be its largest tensor (N x V). `head_logp` makes them a chunk at a time and keeps none.
What is left out: models that change the logits after lm_head (soft caps, scales); grpo/parity.py stops them.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import DynamicCache

from grpo.batch import MicroBatch


class Prefix:
    """A prompt's pass through the decoder: what every completion of its group attends to."""

    def __init__(self, decoder: nn.Module, prompt_ids: tuple[int, ...], device: torch.device):
        """Run the prompt. Gradients are kept if they are enabled here."""
        ids_1L = torch.tensor([prompt_ids], device=device)
        out = decoder(input_ids=ids_1L, past_key_values=DynamicCache(), use_cache=True)
        kept = [out.last_hidden_state[:, -1:]]
        for layer in out.past_key_values.layers:
            kept += [layer.keys, layer.values]
        self._kept = kept
        self.length = len(prompt_ids)
        self.leaves = [t.detach().requires_grad_(t.requires_grad) for t in kept]

    @property
    def last_hidden_11H(self) -> torch.Tensor:
        """The hidden state that predicts every completion's first token."""
        return self.leaves[0]

    def cache(self, rows: int) -> DynamicCache:
        """The prompt's keys and values for a micro-batch of `rows`, as views."""
        cache = DynamicCache()
        for layer, (k, v) in enumerate(zip(self.leaves[1::2], self.leaves[2::2], strict=True)):
            cache.update(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1), layer)
        return cache

    def backward(self) -> None:
        """Send what the micro-batches left in the leaves' gradients through the prompt."""
        pairs = [(t, leaf.grad) for t, leaf in zip(self._kept, self.leaves, strict=True) if leaf.grad is not None]
        torch.autograd.backward([t for t, _ in pairs], [grad for _, grad in pairs])


@dataclass(frozen=True)
class Scored:
    """Per sampled token, float32, 0 outside the mask. Only logp carries a gradient."""

    logp_BT: torch.Tensor
    entropy_BT: torch.Tensor  # nats, of the distribution the token was drawn from


def score(
    decoder: nn.Module, head: nn.Linear, prefix: Prefix, batch: MicroBatch, temperature: float, chunk: int
) -> Scored:
    """log pi(o_t) and the entropy of pi at t, for the completions of a micro-batch."""
    rows = len(batch.rows)
    hidden_BTH = prefix.last_hidden_11H.expand(rows, 1, -1)
    if batch.inputs_BS.shape[1]:
        positions_1S = torch.arange(prefix.length, prefix.length + batch.inputs_BS.shape[1], device=hidden_BTH.device)[None]
        out = decoder(input_ids=batch.inputs_BS, position_ids=positions_1S.expand(rows, -1),
                      past_key_values=prefix.cache(rows), use_cache=True)
        hidden_BTH = torch.cat([hidden_BTH, out.last_hidden_state], dim=1)
    logp_N, entropy_N = head_logp(
        hidden_BTH[batch.mask_BT], head.weight, head.bias, batch.targets_BT[batch.mask_BT], temperature, chunk)
    zeros_BT = torch.zeros(batch.mask_BT.shape, device=hidden_BTH.device)
    return Scored(zeros_BT.masked_scatter(batch.mask_BT, logp_N), zeros_BT.masked_scatter(batch.mask_BT, entropy_N))


def head_logp(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, targets_N: torch.Tensor,
    temperature: float, chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p(target), entropy of p) for p = softmax((hidden W^T + b) / temperature), `chunk` tokens at a time."""
    return _HeadLogp.apply(hidden_NH, weight_VH, bias_V, targets_N, temperature, chunk)


class _HeadLogp(torch.autograd.Function):
    """The frozen LM head, its softmax, and the pick of one log-probability a token.

    One number comes out per token, so its derivative with respect to the hidden state is one vector:

        d log p_y / d h = (W_y - sum_v p_v W_v) / temperature

    The forward pass computes that vector while the chunk's logits are there, and keeps it (N x H) instead of them
    (N x V); the backward pass only multiplies. The head is run once, where recomputing it would run it twice.
    """

    @staticmethod
    def forward(ctx, hidden_NH, weight_VH, bias_V, targets_N, temperature, chunk):
        """Per chunk of C tokens: logits_CV, their softmax, and what is kept of it."""
        logp_N = torch.empty(len(targets_N), device=hidden_NH.device)
        entropy_N, slope_NH = torch.empty_like(logp_N), torch.empty_like(hidden_NH)
        for at in range(0, len(targets_N), chunk):
            part, target_C1 = slice(at, at + chunk), targets_N[at : at + chunk, None]
            logits_CV = nn.functional.linear(hidden_NH[part], weight_VH, bias_V).float() / temperature
            logp_CV = logits_CV.log_softmax(-1)
            p_CV = logp_CV.exp()
            logp_N[part] = logp_CV.gather(1, target_C1).squeeze(1)
            entropy_N[part] = -(p_CV * logp_CV).sum(-1)
            if ctx.needs_input_grad[0]:
                direction_CV = (-p_CV).scatter_add_(1, target_C1, torch.ones_like(logp_CV[:, :1]))
                slope_NH[part] = direction_CV.to(weight_VH.dtype) @ weight_VH / temperature
        ctx.save_for_backward(slope_NH)
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx, grad_logp_N, _grad_entropy_N):
        """Each token's slope, scaled by its gradient."""
        (slope_NH,) = ctx.saved_tensors
        return (grad_logp_N[:, None] * slope_NH.float()).to(slope_NH.dtype), None, None, None, None, None
