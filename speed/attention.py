"""Attention over packed completions that share their prompts: no padding, and no copy of a prompt's keys and values.

    tokens_N   [ prompt 1 | prompt 2 | ... | completion | completion | ... ]

A prompt's token attends to its prompt, up to itself. A completion's attends to the whole of its prompt and to its own
tokens, up to itself: one softmax over two stretches of keys. Each stretch is an attention of its own, and they merge to

    lse = log sum_j exp(lse_j)    o = sum_j exp(lse_j - lse) o_j        with o_j = softmax(S_j) V_j, lse_j = log sum exp S_j

The backward pass of attention needs no more of the forward than o and lse (FlashAttention-2, arXiv 2307.08691, algorithm 2):

    P = exp(S - lse)    dV = P^T dO    dS = P * (dO V^T - rowsum(dO * o))    dQ = dS K    dK = dS^T Q

With the merged o and lse these are the whole softmax's gradients, one stretch of keys at a time; the merge itself needs
no backward pass. S is `scale` q k^T, causal where the keys are the token's own.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface

from grpo.types import UserError

NAME = "shared_prefix"  # transformers' attn_implementation
Offsets = torch.Tensor  # int32, from 0: where each stretch begins, and the end of the last


class Layout(NamedTuple):
    """Where prompts and completions lie among packed tokens. Two tensors, so that one compiled layer takes any layout."""

    offsets: Offsets  # of prompts; of each prompt's completions together, and of each completion, from the first's begin
    sizes: torch.Tensor  # int64, on the CPU: how many prompts, their tokens, the longest prompt, group and completion

    @staticmethod
    def of(prompts: list[int], groups: list[int], rows: list[int], device: torch.device) -> "Layout":
        """From lengths, all at least 1."""
        offsets = torch.cat([torch.tensor([0, *lengths]).cumsum(0).int() for lengths in (prompts, groups, rows)])
        return Layout(offsets.to(device), torch.tensor(
            [len(prompts), sum(prompts), max(prompts), max(groups), max(rows)]))


class _Stretches(NamedTuple):
    offsets: Offsets
    longest: int


def _stretches(offsets: Offsets, sizes: torch.Tensor) -> tuple[int, _Stretches, _Stretches, _Stretches]:
    """The prompts' tokens; prompts, groups, rows."""
    count, tokens, prompt, group, row = sizes.tolist()
    prompts, groups, rows = offsets.tensor_split([count + 1, 2 * count + 2])
    return tokens, _Stretches(prompts, prompt), _Stretches(groups, group), _Stretches(rows, row)


def shared_prefix_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None,
    *, scaling: float, layout: Layout, **more: object,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: query 1 x heads x N x D, key and value likewise, with fewer heads perhaps.

    Raises UserError where the model asks for more than attention to all tokens before.
    """
    if asked := [name for name in ("sliding_window", "softcap", "s_aux") if more.get(name) is not None]:
        raise UserError(f"model.path: its attention has {asked[0]}, which grpo's training pass has not; give another model")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return _attend(q, k, v, *layout, scaling)[0][None], None


AttentionInterface.register(NAME, shared_prefix_attention)


@torch.library.custom_op("grpo::shared_prefix_attention", mutates_args=())
def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, sizes: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o, lse): N x heads x D as q, and heads x N in float32, or float64 where q is."""
    at, prompts, groups, rows = _stretches(offsets, sizes)
    o, lse = _forward(q[:at], k[:at], v[:at], prompts, prompts, True, scale)
    o_own, lse_own = _forward(q[at:], k[at:], v[at:], rows, rows, True, scale)
    o_shared, lse_shared = _forward(q[at:], k[:at], v[:at], groups, prompts, False, scale)
    share = torch.sigmoid(lse_shared - lse_own).T[..., None]
    merged = torch.lerp(o_own.to(share.dtype), o_shared.to(share.dtype), share).to(q.dtype)
    return torch.cat([o, merged]), torch.cat([lse, torch.logaddexp(lse_shared, lse_own)], 1)


@torch.library.custom_op("grpo::shared_prefix_attention_backward", mutates_args=())
def _attend_backward(
    do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: torch.Tensor, lse: torch.Tensor,
    offsets: torch.Tensor, sizes: torch.Tensor, scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv), of q's, k's and v's shapes."""
    at, prompts, groups, rows = _stretches(offsets, sizes)
    do, of_prompts, of_rows = do.contiguous(), lse[:, :at].contiguous(), lse[:, at:].contiguous()
    dq, dk, dv = _backward(do[:at], q[:at], k[:at], v[:at], o[:at], of_prompts, prompts, prompts, True, scale)
    dq_own, dk_own, dv_own = _backward(do[at:], q[at:], k[at:], v[at:], o[at:], of_rows, rows, rows, True, scale)
    dq_shared, dk_shared, dv_shared = _backward(
        do[at:], q[at:], k[:at], v[:at], o[at:], of_rows, groups, prompts, False, scale)
    return torch.cat([dq, dq_own + dq_shared]), torch.cat([dk + dk_shared, dk_own]), torch.cat([dv + dv_shared, dv_own])


@_attend.register_fake
def _(q, k, v, offsets, sizes, scale):
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=_wide(q))


@_attend_backward.register_fake
def _(do, q, k, v, o, lse, offsets, sizes, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3], *output, *inputs[3:5])
    ctx.scale = inputs[5]


def _gradients(ctx, do, _dlse):
    return *_attend_backward(do, *ctx.saved_tensors, ctx.scale), None, None, None


_attend.register_autograd(_gradients, setup_context=_keep)


def _forward(q, k, v, of_q: _Stretches, of_k: _Stretches, causal: bool, scale: float):
    """(o, lse) of each stretch of queries over its stretch of keys alone."""
    if _flash(q):
        return torch.ops.aten._flash_attention_forward(
            q, k, v, of_q.offsets, of_k.offsets, of_q.longest, of_k.longest, 0.0, causal, False, scale=scale)[:2]
    queries, keys = _Padding(of_q), _Padding(of_k)
    heads = q.shape[1] // k.shape[1]
    scores_SHTT = _scores(queries.pad(q), keys.pad(k, heads), keys, causal, scale)
    lse_SHT1 = scores_SHTT.logsumexp(-1, keepdim=True)
    o_SHTD = torch.exp(scores_SHTT - lse_SHT1).to(v.dtype) @ keys.pad(v, heads)
    return queries.unpad(o_SHTD), queries.unpad(lse_SHT1)[..., 0].T


def _backward(do, q, k, v, o, lse, of_q: _Stretches, of_k: _Stretches, causal: bool, scale: float):
    """(dq, dk, dv), where o and lse are those of all stretches of keys together."""
    if _flash(q):
        no_dropout = torch.empty(0, dtype=torch.uint64, device=q.device)
        return torch.ops.aten._flash_attention_backward(
            do, q, k, v, o, lse, of_q.offsets, of_k.offsets, of_q.longest, of_k.longest, 0.0, causal,
            no_dropout, no_dropout, scale=scale)
    queries, keys = _Padding(of_q), _Padding(of_k)
    heads = q.shape[1] // k.shape[1]
    do_SHTD, q_SHTD, k_SHTD, v_SHTD = queries.pad(do), queries.pad(q), keys.pad(k, heads), keys.pad(v, heads)
    inner_SHT1 = queries.pad((do.to(lse) * o.to(lse)).sum(-1, keepdim=True))
    lse_SHT1 = queries.pad(lse.T[..., None], fill=float("inf"))  # padded queries have P = 0
    p_SHTT = torch.exp(_scores(q_SHTD, k_SHTD, keys, causal, scale) - lse_SHT1)
    ds_SHTT = (p_SHTT * ((do_SHTD @ v_SHTD.mT).to(p_SHTT.dtype) - inner_SHT1) * scale).to(q.dtype)
    return (queries.unpad(ds_SHTT @ k_SHTD), keys.unpad(ds_SHTT.mT @ q_SHTD, heads),
            keys.unpad(p_SHTT.to(q.dtype).mT @ do_SHTD, heads))


def _flash(q: torch.Tensor) -> bool:
    """Whether FlashAttention's kernels take it; elsewhere the same formulas run on padded stretches."""
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _scores(q_SHTD: torch.Tensor, k_SHTD: torch.Tensor, keys: "_Padding", causal: bool, scale: float) -> torch.Tensor:
    """S, -inf where a query does not see a key."""
    scores_SHTT = (q_SHTD @ k_SHTD.mT).to(_wide(q_SHTD)) * scale
    seen = keys.inside_ST[:, None, None]
    if causal:
        seen = seen & torch.ones(scores_SHTT.shape[-2:], dtype=torch.bool, device=seen.device).tril()
    return scores_SHTT.masked_fill(~seen, float("-inf"))


class _Padding:
    """Packed stretches to a padded tensor and back; S stretches of at most T tokens."""

    def __init__(self, stretches: _Stretches):
        offsets, longest = stretches
        places_ST = offsets[:-1, None] + torch.arange(longest, device=offsets.device)
        self.inside_ST = places_ST < offsets[1:, None]
        self.places_ST = places_ST.where(self.inside_ST, 0).long()

    def pad(self, x_NHD: torch.Tensor, times: int = 1, fill: float = 0.0) -> torch.Tensor:
        """N x heads x D to S x (times heads) x T x D: each head repeated, as many queries share it."""
        x_STHD = x_NHD[self.places_ST].masked_fill(~self.inside_ST[..., None, None], fill)
        return x_STHD.transpose(1, 2).repeat_interleave(times, dim=1)

    def unpad(self, x_SHTD: torch.Tensor, times: int = 1) -> torch.Tensor:
        """The way back: what `times` heads have is added up."""
        return x_SHTD.unflatten(1, (-1, times)).sum(2).transpose(1, 2)[self.inside_ST]
