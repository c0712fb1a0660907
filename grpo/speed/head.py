"""The LM head a chunk of tokens at a time: a step's logits would be its largest tensor (M x V), and none is kept."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


def head_logp(
    hidden_MH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, targets_M: torch.Tensor,
    temperature: float, chunk: int, cap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p(target), entropy of p) for p = softmax(z / temperature), `chunk` tokens at a time.

    z = hidden W^T + b, or cap tanh of that over cap, where there is a soft cap.
    """
    return _HeadLogp.apply(hidden_MH, weight_VH, bias_V, targets_M, temperature, chunk, cap)


def logit_form(model: PreTrainedModel) -> tuple[float, float] | None:
    """What a causal LM does to its head's logits: the number it multiplies them by, 1 for most, 1/16 for Cohere; and their
    soft cap, 0 for most, 30 for Gemma 2.

    None where it does anything else to them, or to the decoder's states before the head. Weights are not looked at: the
    model's own forward pass runs on a decoder and a head that only pass numbers on.
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
    scale, cap = (logits_V[0] / given_V[0]).item(), getattr(model.config, "final_logit_softcapping", None)
    if scale > 0 and torch.equal(logits_V.float(), given_V * scale):
        return scale, 0.0
    if cap and torch.allclose(logits_V.float(), cap * torch.tanh(given_V / cap), rtol=0.02):  # perhaps in bfloat16
        return 1.0, float(cap)
    return None


class _States(BaseModelOutput):
    """A decoder's output that has nothing but the last hidden states."""

    def __getattr__(self, name: str) -> None:
        """Whatever else a model passes on, such as a router's logits."""


class _HeadLogp(torch.autograd.Function):
    """The frozen LM head, its softmax, and the pick of one log-probability a token.

    One number comes out per token, so its derivative with respect to the hidden state is one vector:

        d log p_y / d h = (W_y - sum_v p_v W_v) / temperature        with a soft cap, W_v times 1 - (z_v / cap)^2

    The forward pass computes that vector while the chunk's logits are there, and keeps it (M x H) instead of them
    (M x V); the backward pass only multiplies. The head is run once, where recomputing it would run it twice.
    """

    @staticmethod
    def forward(ctx, hidden_MH, weight_VH, bias_V, targets_M, temperature, chunk, cap):
        """Per chunk of C tokens: logits_CV, their softmax, and what is kept of it."""
        logp_M = torch.empty(len(targets_M), device=hidden_MH.device)
        entropy_M, slope_MH = torch.empty_like(logp_M), torch.empty_like(hidden_MH)
        for at in range(0, len(targets_M), chunk):
            part, target_C1 = slice(at, at + chunk), targets_M[at : at + chunk, None]
            logits_CV = nn.functional.linear(hidden_MH[part], weight_VH, bias_V).float()
            capped_CV = torch.tanh(logits_CV / cap) if cap else None
            logp_CV = ((logits_CV if capped_CV is None else cap * capped_CV) / temperature).log_softmax(-1)
            p_CV = logp_CV.exp()
            logp_M[part] = logp_CV.gather(1, target_C1).squeeze(1)
            entropy_M[part] = -(p_CV * logp_CV).sum(-1)
            if ctx.needs_input_grad[0]:
                direction_CV = (-p_CV).scatter_add_(1, target_C1, torch.ones_like(logp_CV[:, :1]))
                if capped_CV is not None:
                    direction_CV *= 1 - capped_CV.square()
                slope_MH[part] = direction_CV.to(weight_VH.dtype) @ weight_VH / temperature
        ctx.save_for_backward(slope_MH)
        ctx.mark_non_differentiable(entropy_M)
        return logp_M, entropy_M

    @staticmethod
    def backward(ctx, grad_logp_M, _grad_entropy_M):
        """Each token's slope, scaled by its gradient."""
        (slope_MH,) = ctx.saved_tensors
        return (grad_logp_M[:, None] * slope_MH.float()).to(slope_MH.dtype), None, None, None, None, None, None
