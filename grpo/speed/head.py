"""The LM head a chunk of tokens at a time: a step's logits would be its largest tensor (M x V), and none is kept."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


def head_logp(
    hidden_MH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, targets_M: torch.Tensor,
    temperature: float, chunk: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p(target), entropy of p) for p = softmax((hidden W^T + b) / temperature), `chunk` tokens at a time."""
    return _HeadLogp.apply(hidden_MH, weight_VH, bias_V, targets_M, temperature, chunk)


def logit_scale(model: PreTrainedModel) -> float | None:
    """The number a causal LM multiplies its head's logits by: 1 for most, 1/16 for Cohere.

    None where it does anything else to them, such as a soft cap, or to the decoder's states before the head. Weights are
    not looked at: the model's own forward pass runs on a decoder and a head that only pass numbers on.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if head is None:
        return None
    at_V = torch.arange(head.weight.shape[0])
    given_V = 2.0 ** (at_V % 13 - 6) * (1 - 2 * (at_V // 13 % 2))  # powers of two: a product is rounded alike for all
    decoder.forward = lambda *_, **__: _States(last_hidden_state=given_V[None, None])
    head.forward = lambda states: states
    try:
        logits_V = model(input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=False).logits[0, 0]
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return None  # something between the two expects states of the decoder's own shape
    finally:
        for module in (decoder, head):
            vars(module).pop("forward", None)
    scale = (logits_V[0] / given_V[0]).item()
    return scale if scale > 0 and torch.equal(logits_V.float(), given_V * scale) else None


class _States(BaseModelOutput):
    """A decoder's output that has nothing but the last hidden states."""

    def __getattr__(self, name: str) -> None:
        """Whatever else a model passes on, such as a router's logits."""


class _HeadLogp(torch.autograd.Function):
    """The frozen LM head, its softmax, and the pick of one log-probability a token.

    One number comes out per token, so its derivative with respect to the hidden state is one vector:

        d log p_y / d h = (W_y - sum_v p_v W_v) / temperature

    The forward pass computes that vector while the chunk's logits are there, and keeps it (M x H) instead of them
    (M x V); the backward pass only multiplies. The head is run once, where recomputing it would run it twice.
    """

    @staticmethod
    def forward(ctx, hidden_MH, weight_VH, bias_V, targets_M, temperature, chunk):
        """Per chunk of C tokens: logits_CV, their softmax, and what is kept of it."""
        logp_M = torch.empty(len(targets_M), device=hidden_MH.device)
        entropy_M, slope_MH = torch.empty_like(logp_M), torch.empty_like(hidden_MH)
        for at in range(0, len(targets_M), chunk):
            part, target_C1 = slice(at, at + chunk), targets_M[at : at + chunk, None]
            logits_CV = nn.functional.linear(hidden_MH[part], weight_VH, bias_V).float() / temperature
            logp_CV = logits_CV.log_softmax(-1)
            p_CV = logp_CV.exp()
            logp_M[part] = logp_CV.gather(1, target_C1).squeeze(1)
            entropy_M[part] = -(p_CV * logp_CV).sum(-1)
            if ctx.needs_input_grad[0]:
                direction_CV = (-p_CV).scatter_add_(1, target_C1, torch.ones_like(logp_CV[:, :1]))
                slope_MH[part] = direction_CV.to(weight_VH.dtype) @ weight_VH / temperature
        ctx.save_for_backward(slope_MH)
        ctx.mark_non_differentiable(entropy_M)
        return logp_M, entropy_M

    @staticmethod
    def backward(ctx, grad_logp_M, _grad_entropy_M):
        """Each token's slope, scaled by its gradient."""
        (slope_MH,) = ctx.saved_tensors
        return (grad_logp_M[:, None] * slope_MH.float()).to(slope_MH.dtype), None, None, None, None, None
