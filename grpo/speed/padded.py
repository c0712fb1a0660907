"""Attention written out: stretches of queries and keys in padded tensors, a block at a time.

For CPUs, for float32, and for windows; elsewhere FlashAttention's kernels take packed tokens as they are.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

SCORES = 2**23  # at once
Offsets = torch.Tensor  # int32, from 0: where each stretch begins, and the end of the last


class Stretches(NamedTuple):
    """Neighbouring stretches of packed tokens."""

    offsets: Offsets
    longest: int


class Sight(NamedTuple):
    """Which of its stretch of keys a query sees, and how loud."""

    causal: bool  # the keys are the query's own: those up to itself
    window: int = 0  # and of these as many as it has tokens, itself among them; 0: all
    after_N: torch.Tensor | None = None  # int64; not causal: how many tokens a query is behind the first after the keys
    cap: float = 0.0  # of scores, softly: S is cap tanh(S / cap); 0: none


class Block(NamedTuple):
    """Neighbouring stretches, whole; or some of one's queries, with the keys that they may see."""

    first_query: int  # its place among the packed tokens
    queries: list[int]  # of each stretch, how many
    first_key: int
    keys: list[int]


def blocks(of_q: Sequence[int], of_k: Sequence[int], heads: int, causal: bool) -> Iterator[Block]:
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
            yield Block(query, queries, key, keys)
        else:
            step = max(1, SCORES // (heads * keys[0]))
            for at in range(0, queries[0], step):
                end = min(at + step, queries[0])
                yield Block(query + at, [end - at], key, [end if causal else keys[0]])
        first, query, key = last, query + sum(queries), key + sum(keys)


def padded(
    of_q: Stretches, of_k: Stretches, heads: int, causal: bool, device: torch.device
) -> Iterator[tuple["Padding", "Padding"]]:
    """The queries and the keys of each block."""
    for block in blocks(of_q.offsets.diff().tolist(), of_k.offsets.diff().tolist(), heads, causal):
        yield Padding(block.first_query, block.queries, device), Padding(block.first_key, block.keys, device)


def wide(x: torch.Tensor) -> torch.dtype:
    """What scores are written in: float32, or float64 where x is."""
    return torch.promote_types(x.dtype, torch.float32)


def scores(
    q_SHTD: torch.Tensor, k_SHTD: torch.Tensor, queries: "Padding", keys: "Padding", sight: Sight, scale: float
) -> torch.Tensor:
    """S, -inf where a query does not see a key."""
    scores_SHTT = (q_SHTD @ k_SHTD.mT).to(wide(q_SHTD)).mul_(scale)
    if sight.cap:
        scores_SHTT.div_(sight.cap).tanh_().mul_(sight.cap)
    several = queries.inside_ST.shape[1]
    scores_SHTT.unflatten(2, (-1, several)).masked_fill_(~_seen_STT(queries, keys, sight)[:, None, None], float("-inf"))
    return scores_SHTT


def slope(scores_SHTT: torch.Tensor, sight: Sight) -> torch.Tensor:
    """d S / d (scale q k^T), given S with its soft cap; anything where a key is not seen."""
    return 1 - (scores_SHTT.clamp(min=-sight.cap) / sight.cap).square()


def _seen_STT(queries: "Padding", keys: "Padding", sight: Sight) -> torch.Tensor:
    seen_STT, several, last = keys.inside_ST[:, None], queries.inside_ST.shape[1], keys.inside_ST.shape[1]
    if not sight.causal and not sight.window:
        return seen_STT
    key_T = torch.arange(last, device=seen_STT.device)
    if sight.causal:  # the last query of a block sees its last key
        at_ST1 = torch.arange(last - several, last, device=seen_STT.device)[None, :, None]
        seen_STT = seen_STT & (key_T <= at_ST1)
    else:
        at_ST1 = (keys.inside_ST.sum(1, keepdim=True) + queries.pad_flat(sight.after_N))[..., None]
    return seen_STT & (at_ST1 - key_T < sight.window) if sight.window else seen_STT


class Padding:
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

    def pad_flat(self, x_N: torch.Tensor) -> torch.Tensor:
        """A number for each token, S x T."""
        x_ST = x_N.new_zeros(self.inside_ST.shape)
        x_ST[self.inside_ST] = x_N[self.tokens]
        return x_ST
