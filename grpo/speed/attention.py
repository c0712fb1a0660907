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

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface

from grpo.types import UserError

NAME = "shared_prefix"  # transformers' attn_implementation
SCORES = 2**23  # at once, where they are written out
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
    if asked := [name for name in ("softcap", "s_aux") if more.get(name) is not None]:
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
    o, lse = torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=_wide(q))
    for queries, keys in _padded(of_q, of_k, q.shape[1], causal, q.device):
        heads = k.shape[1]
        scores_SHTT = _scores(queries.pad(q, heads), keys.pad(k, heads), queries, keys, causal, scale)
        lse_SHT1 = scores_SHTT.logsumexp(-1, keepdim=True)
        o_SHTD = torch.exp(scores_SHTT.sub_(lse_SHT1)).to(v.dtype) @ keys.pad(v, heads)
        o[queries.tokens], lse[:, queries.tokens] = queries.unpad(o_SHTD), queries.unpad(lse_SHT1)[..., 0].T
    return o, lse


def _backward(do, q, k, v, o, lse, of_q: _Stretches, of_k: _Stretches, causal: bool, scale: float):
    """(dq, dk, dv), where o and lse are those of all stretches of keys together."""
    if _flash(q):
        no_dropout = torch.empty(0, dtype=torch.uint64, device=q.device)
        return torch.ops.aten._flash_attention_backward(
            do, q, k, v, o, lse, of_q.offsets, of_k.offsets, of_q.longest, of_k.longest, 0.0, causal,
            no_dropout, no_dropout, scale=scale)
    heads, wide, inner = k.shape[1], _wide(q), (do.to(lse) * o.to(lse)).sum(-1, keepdim=True)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
    for queries, keys in _padded(of_q, of_k, q.shape[1], causal, q.device):
        q_SHTD, do_SHTD = queries.pad(q, heads), queries.pad(do, heads)
        k_SHTD, v_SHTD = keys.pad(k, heads), keys.pad(v, heads)
        lse_SHT1 = queries.pad(lse.T[..., None], heads, fill=float("inf"))  # padded queries have P = 0
        p_SHTT = torch.exp(_scores(q_SHTD, k_SHTD, queries, keys, causal, scale).sub_(lse_SHT1))
        ds_SHTT = (do_SHTD @ v_SHTD.mT).to(wide).sub_(queries.pad(inner, heads)).mul_(p_SHTT).mul_(scale).to(q.dtype)
        dq[queries.tokens] = queries.unpad(ds_SHTT @ k_SHTD)
        dk[keys.tokens] += keys.unpad(ds_SHTT.mT @ q_SHTD)
        dv[keys.tokens] += keys.unpad(p_SHTT.to(q.dtype).mT @ do_SHTD)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _flash(q: torch.Tensor) -> bool:
    """Whether FlashAttention's kernels take it; elsewhere the same formulas run on padded stretches, a block at a time."""
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)


def scores_bytes(prompts: Sequence[int], groups: Sequence[int], rows: Sequence[int], heads: int, like: torch.Tensor) -> int:
    """The most that scores take at once, for the lengths that make a Layout and queries `like` this. 0 in FlashAttention."""
    if _flash(like):
        return 0
    most = max(heads * len(block.queries) * max(block.queries) * max(block.keys)
               for of_q, of_k in ((prompts, prompts), (rows, rows), (groups, prompts))
               for block in _blocks(of_q, of_k, heads, causal=of_q is of_k))
    return 3 * _wide(like).itemsize * most  # S; its exponential, or P; a buffer of softmax, or dS


class _Block(NamedTuple):
    """Neighbouring stretches, whole; or some of one's queries, with the keys that they may see."""

    first_query: int  # its place among the packed tokens
    queries: list[int]  # of each stretch, how many
    first_key: int
    keys: list[int]


def _blocks(of_q: Sequence[int], of_k: Sequence[int], heads: int, causal: bool) -> Iterator[_Block]:
    """Stretches of these lengths in blocks of at most SCORES scores each, or of one query's."""
    first, query, key = 0, 0, 0
    while first < len(of_q):
        last, longest_q, longest_k = first, 0, 0
        while last < len(of_q):
            longest_q, longest_k = max(longest_q, of_q[last]), max(longest_k, of_k[last])
            if last > first and heads * (last + 1 - first) * longest_q * longest_k > SCORES:
                break
            last += 1
        queries, keys = list(of_q[first:last]), list(of_k[first:last])
        if last > first + 1:
            yield _Block(query, queries, key, keys)
        else:
            step = max(1, SCORES // (heads * keys[0]))
            for at in range(0, queries[0], step):
                end = min(at + step, queries[0])
                yield _Block(query + at, [end - at], key, [end if causal else keys[0]])
        first, query, key = last, query + sum(queries), key + sum(keys)


def _padded(
    of_q: _Stretches, of_k: _Stretches, heads: int, causal: bool, device: torch.device
) -> Iterator[tuple["_Padding", "_Padding"]]:
    """The queries and the keys of each block."""
    for block in _blocks(of_q.offsets.diff().tolist(), of_k.offsets.diff().tolist(), heads, causal):
        yield _Padding(block.first_query, block.queries, device), _Padding(block.first_key, block.keys, device)


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _scores(
    q_SHTD: torch.Tensor, k_SHTD: torch.Tensor, queries: "_Padding", keys: "_Padding", causal: bool, scale: float
) -> torch.Tensor:
    """S, -inf where a query does not see a key."""
    scores_SHTT = (q_SHTD @ k_SHTD.mT).to(_wide(q_SHTD)).mul_(scale)
    seen_STT = keys.inside_ST[:, None]
    if causal:  # the last query of a block sees its last key
        several, last = queries.inside_ST.shape[1], keys.inside_ST.shape[1]
        seen_STT = seen_STT & torch.ones(several, last, dtype=torch.bool, device=seen_STT.device).tril(last - several)
    scores_SHTT.unflatten(2, (-1, queries.inside_ST.shape[1])).masked_fill_(~seen_STT[:, None, None], float("-inf"))
    return scores_SHTT


class _Padding:
    """Packed neighbouring stretches to a padded tensor and back; S stretches of at most T tokens."""

    def __init__(self, first: int, lengths: list[int], device: torch.device):
        self.tokens = slice(first, first + sum(lengths))
        self.inside_ST = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]

    def pad(self, x_NHD: torch.Tensor, heads: int, fill: float = 0.0) -> torch.Tensor:
        """N x (several x heads) x D to S x heads x (several x T) x D: the queries that share keys lie in the same rows."""
        x_NHD = x_NHD[self.tokens]
        x_STHD = x_NHD.new_full((*self.inside_ST.shape, *x_NHD.shape[1:]), fill)
        x_STHD[self.inside_ST] = x_NHD
        return x_STHD.transpose(1, 2).unflatten(1, (heads, -1)).flatten(2, 3)

    def unpad(self, x_SHTD: torch.Tensor) -> torch.Tensor:
        """The way back."""
        return x_SHTD.unflatten(2, (-1, self.inside_ST.shape[1])).flatten(1, 2).transpose(1, 2)[self.inside_ST]
