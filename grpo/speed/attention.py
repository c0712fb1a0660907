"""Attention over packed completions that share their prompts: no padding, and no copy of a prompt's keys and values.

    tokens_N   [ prompt 1 | prompt 2 | ... | completion | completion | ... ]

A prompt's token attends to its prompt, up to itself. A completion's attends to the whole of its prompt and to its own
tokens, up to itself: one softmax over two stretches of keys. Each stretch is an attention of its own, and they merge to

    lse = log sum_j exp(lse_j)    o = sum_j exp(lse_j - lse) o_j        with o_j = softmax(S_j) V_j, lse_j = log sum exp S_j

The backward pass of attention needs no more of the forward than o and lse (FlashAttention-2, arXiv 2307.08691, algorithm 2):

    P = exp(S - lse)    dV = P^T dO    dS = P * (dO V^T - rowsum(dO * o))    dQ = dS K    dK = dS^T Q

With the merged o and lse these are the whole softmax's gradients, one stretch of keys at a time; the merge itself needs
no backward pass. S is `scale` q k^T, causal where the keys are the token's own.

In a layer with a window of W a token sees itself and the W - 1 before it: of its prompt, a completion's token t, from 0,
sees the last W - 1 - t. Where the longest prompt and completion have at most W tokens together, that is no window. A soft
cap makes S cap tanh(S / cap). A sink s, a number of each head, is one more score, without a value: once all is merged

    lse' = log(exp(lse) + exp(s))    o' = exp(lse - lse') o

with which the formulas of the backward pass stay as they are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface

from grpo.speed.padded import Offsets, Sight, Stretches, blocks, padded, scores, slope, wide

NAME = "shared_prefix"  # transformers' attn_implementation


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


def _stretches(offsets: Offsets, sizes: torch.Tensor) -> tuple[int, Stretches, Stretches, Stretches]:
    """The prompts' tokens; prompts, groups, rows."""
    count, tokens, prompt, group, row = sizes.tolist()
    prompts, groups, rows = offsets.tensor_split([count + 1, 2 * count + 2])
    return tokens, Stretches(prompts, prompt), Stretches(groups, group), Stretches(rows, row)


def shared_prefix_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None,
    *, scaling: float, layout: Layout, sliding_window: int | None = None, softcap: float | None = None,
    s_aux: torch.Tensor | None = None, **_: object,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: query 1 x heads x N x D, key and value likewise, with fewer heads perhaps.

    sliding_window: how many tokens a token attends to, itself among them. softcap: the scores' soft cap. s_aux: a sink for
    each head, frozen: one more score in the softmax, which has no value.
    """
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return _attend(q, k, v, *layout, scaling, sliding_window or 0, softcap or 0.0, s_aux)[0][None], None


AttentionInterface.register(NAME, shared_prefix_attention)


@torch.library.custom_op("grpo::shared_prefix_attention", mutates_args=())
def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor, sizes: torch.Tensor, scale: float, window: int,
    cap: float, sinks: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(o, lse): N x heads x D as q, and heads x N in float32, or float64 where q is."""
    at, prompts, groups, rows = _stretches(offsets, sizes)
    own, shared = _sights(prompts, rows, window, cap)
    o, lse = _forward(q[:at], k[:at], v[:at], prompts, prompts, own, scale)
    o_own, lse_own = _forward(q[at:], k[at:], v[at:], rows, rows, own, scale)
    o_shared, lse_shared = _forward(q[at:], k[:at], v[:at], groups, prompts, shared, scale)
    share = torch.sigmoid(lse_shared - lse_own).T[..., None]
    merged = torch.lerp(o_own.to(share.dtype), o_shared.to(share.dtype), share).to(q.dtype)
    o, lse = torch.cat([o, merged]), torch.cat([lse, torch.logaddexp(lse_shared, lse_own)], 1)
    if sinks is not None:
        before, lse = lse, torch.logaddexp(lse, sinks.to(lse)[:, None])
        o = (o * torch.exp(before - lse).T[..., None]).to(q.dtype)
    return o, lse


@torch.library.custom_op("grpo::shared_prefix_attention_backward", mutates_args=())
def _attend_backward(
    do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, o: torch.Tensor, lse: torch.Tensor,
    offsets: torch.Tensor, sizes: torch.Tensor, scale: float, window: int, cap: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dq, dk, dv), of q's, k's and v's shapes."""
    at, prompts, groups, rows = _stretches(offsets, sizes)
    own, shared = _sights(prompts, rows, window, cap)
    do, of_prompts, of_rows = do.contiguous(), lse[:, :at].contiguous(), lse[:, at:].contiguous()
    dq, dk, dv = _backward(do[:at], q[:at], k[:at], v[:at], o[:at], of_prompts, prompts, prompts, own, scale)
    dq_own, dk_own, dv_own = _backward(do[at:], q[at:], k[at:], v[at:], o[at:], of_rows, rows, rows, own, scale)
    dq_shared, dk_shared, dv_shared = _backward(
        do[at:], q[at:], k[:at], v[:at], o[at:], of_rows, groups, prompts, shared, scale)
    return torch.cat([dq, dq_own + dq_shared]), torch.cat([dk + dk_shared, dk_own]), torch.cat([dv + dv_shared, dv_own])


@_attend.register_fake
def _(q, k, v, offsets, sizes, scale, window, cap, sinks):
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=wide(q))


@_attend_backward.register_fake
def _(do, q, k, v, o, lse, offsets, sizes, scale, window, cap):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3], *output, *inputs[3:5])
    ctx.form = inputs[5:8]


def _gradients(ctx, do, _dlse):
    return *_attend_backward(do, *ctx.saved_tensors, *ctx.form), None, None, None, None, None, None


_attend.register_autograd(_gradients, setup_context=_keep)


def _sights(prompts: Stretches, rows: Stretches, window: int, cap: float) -> tuple[Sight, Sight]:
    """Of own tokens, and of a completion's tokens on their prompt. Without a window where all fits into it."""
    if not window or prompts.longest + rows.longest <= window:
        return Sight(True, cap=cap), Sight(False, cap=cap)
    starts, tokens = rows.offsets[:-1].long(), torch.arange(int(rows.offsets[-1]), device=rows.offsets.device)
    return Sight(True, window, None, cap), Sight(
        False, window, tokens - starts.repeat_interleave(rows.offsets.diff()), cap)


def _forward(q, k, v, of_q: Stretches, of_k: Stretches, sight: Sight, scale: float):
    """(o, lse) of each stretch of queries over its stretch of keys alone."""
    if _flash(q) and not (sight.window or sight.cap):
        return torch.ops.aten._flash_attention_forward(
            q, k, v, of_q.offsets, of_k.offsets, of_q.longest, of_k.longest, 0.0, sight.causal, False, scale=scale)[:2]
    o, lse = torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=wide(q))
    for queries, keys in padded(of_q, of_k, q.shape[1], sight.causal, q.device):
        heads = k.shape[1]
        scores_SHTT = scores(queries.pad(q, heads), keys.pad(k, heads), queries, keys, sight, scale)
        lse_SHT1 = scores_SHTT.logsumexp(-1, keepdim=True).clamp_(min=torch.finfo(lse.dtype).min)  # who sees none has o = 0
        o_SHTD = torch.exp(scores_SHTT.sub_(lse_SHT1)).to(v.dtype) @ keys.pad(v, heads)
        o[queries.tokens], lse[:, queries.tokens] = queries.unpad(o_SHTD), queries.unpad(lse_SHT1)[..., 0].T
    return o, lse


def _backward(do, q, k, v, o, lse, of_q: Stretches, of_k: Stretches, sight: Sight, scale: float):
    """(dq, dk, dv), where o and lse are those of all stretches of keys together."""
    if _flash(q) and not (sight.window or sight.cap):
        no_dropout = torch.empty(0, dtype=torch.uint64, device=q.device)
        return torch.ops.aten._flash_attention_backward(
            do, q, k, v, o, lse, of_q.offsets, of_k.offsets, of_q.longest, of_k.longest, 0.0, sight.causal,
            no_dropout, no_dropout, scale=scale)
    heads, dtype, inner = k.shape[1], wide(q), (do.to(lse) * o.to(lse)).sum(-1, keepdim=True)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=dtype), torch.zeros_like(v, dtype=dtype)
    for queries, keys in padded(of_q, of_k, q.shape[1], sight.causal, q.device):
        q_SHTD, do_SHTD = queries.pad(q, heads), queries.pad(do, heads)
        k_SHTD, v_SHTD = keys.pad(k, heads), keys.pad(v, heads)
        lse_SHT1 = queries.pad(lse.T[..., None], heads, fill=float("inf"))  # padded queries have P = 0
        s_SHTT = scores(q_SHTD, k_SHTD, queries, keys, sight, scale)
        p_SHTT = torch.exp(s_SHTT - lse_SHT1 if sight.cap else s_SHTT.sub_(lse_SHT1))
        ds_SHTT = (do_SHTD @ v_SHTD.mT).to(dtype).sub_(queries.pad(inner, heads)).mul_(p_SHTT).mul_(scale)
        ds_SHTT = (ds_SHTT * slope(s_SHTT, sight) if sight.cap else ds_SHTT).to(q.dtype)
        dq[queries.tokens] = queries.unpad(ds_SHTT @ k_SHTD)
        dk[keys.tokens] += keys.unpad(ds_SHTT.mT @ q_SHTD)
        dv[keys.tokens] += keys.unpad(p_SHTT.to(q.dtype).mT @ do_SHTD)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _flash(q: torch.Tensor) -> bool:
    """Whether FlashAttention's kernels take it; elsewhere the same formulas run on padded stretches, a block at a time."""
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)


def scores_bytes(prompts: Sequence[int], groups: Sequence[int], rows: Sequence[int], heads: int, like: torch.Tensor,
                 window: int = 0, capped: bool = False) -> int:
    """The most that scores take at once, for the lengths that make a Layout and queries `like` this. 0 in FlashAttention."""
    if _flash(like) and not capped and not 0 < window < max(prompts) + max(rows):
        return 0
    most = max(heads * len(block.queries) * max(block.queries) * max(block.keys)
               for of_q, of_k in ((prompts, prompts), (rows, rows), (groups, prompts))
               for block in blocks(of_q, of_k, heads, causal=of_q is of_k))
    return 3 * wide(like).itemsize * most  # S; its exponential, or P; a buffer of softmax, or dS
