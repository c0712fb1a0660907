"""Groups to micro-batches: the one place where completions are packed, shifted, padded and masked, and tokens are counted.

A worked example. A prompt of tokens [p q r] has two completions, [a b c <eos>] and [d <eos>]. Their micro-batch is

    tokens_N     p  q  r  a  b  c  d   what the model reads: prompts first, then completions without their last tokens
    positions_N  0  1  2  3  4  5  3   a completion's go on from its prompt's
    predicts_M   2  3  4  5  2  6      the places in tokens_N whose hidden states predict a b c <eos> d <eos>
    targets_BT   a  b  c  <eos>        the sampled tokens, padded on the right with 0
                 d  <eos> 0  0
    mask_BT      1  1  1  1            <eos> is inside: when to stop is part of the policy
                 1  1  0  0

The prompt's last hidden state, at r, predicts the first token of both. grpo/speed/attention.py lets a completion see its
prompt and itself, so that the prompt is computed once, and nothing that is padded is computed at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch

from grpo.config import Algorithm
from grpo.speed.attention import Layout
from grpo.types import Completion, Group, Row


@dataclass(frozen=True)
class Denominators:
    """What the step's loss is divided by, counted over the whole step before it is cut into micro-batches.

    tokens: T, all completion tokens of the step, those of groups without a signal included; not those of completions that
        `overlong: masked` leaves out.
    completions: B = P G.
    max_tokens: L_max, the constant of Dr. GRPO.
    """

    tokens: int
    completions: int
    max_tokens: int

    @staticmethod
    def of(groups: Sequence[Group], algorithm: Algorithm, max_tokens: int) -> "Denominators":
        """Of a step's groups, whose completions have at most max_tokens tokens."""
        completions = [c for g in groups for c in g.completions]
        return Denominators(sum(len(c.sample.token_ids) for c in completions if in_loss(c, algorithm)), len(completions),
                            max_tokens)


def in_loss(completion: Completion, algorithm: Algorithm) -> bool:
    """False for a truncated completion under `overlong: masked` (DAPO, arXiv 2503.14476, section 3.4)."""
    return algorithm.overlong != "masked" or completion.sample.finish_reason != "length"


def trained_rows(groups: Sequence[Group], advantages_PG: torch.Tensor, algorithm: Algorithm) -> list[Row]:
    """The completions whose gradient is not exactly 0: those of groups with a signal, or of all where there is a KL."""
    return [(p, row) for p, group in enumerate(groups) if algorithm.beta > 0 or advantages_PG[p].any()
            for row, completion in enumerate(group.completions) if in_loss(completion, algorithm)]


@dataclass(frozen=True)
class MicroBatch:
    """Completions of one or several prompts, ready for a forward pass."""

    rows: tuple[Row, ...]
    tokens_N: torch.Tensor  # int64
    positions_N: torch.Tensor  # int64
    layout: Layout
    predicts_M: torch.Tensor  # int64, M = the number of sampled tokens
    targets_BT: torch.Tensor  # int64
    mask_BT: torch.Tensor  # bool

    @staticmethod
    def of(groups: Sequence[Group], rows: Sequence[Row], device: torch.device) -> "MicroBatch":
        """The named rows of the step's groups; those of one group stand together."""
        prompts = {p: groups[p].prompt.token_ids for p, _ in rows}
        targets = [groups[p].completions[row].sample.token_ids for p, row in rows]
        inputs = [ids[: max(1, len(ids) - 1)] for ids in targets]  # a single token is read too: no stretch is empty
        starts = dict(zip(prompts, accumulate(map(len, prompts.values()), initial=0), strict=False))
        tokens = [token for ids in (*prompts.values(), *inputs) for token in ids]
        positions = [at for ids in prompts.values() for at in range(len(ids))]
        predicts = []
        for (p, _), read, ids in zip(rows, inputs, targets, strict=True):
            first, length = len(positions), len(prompts[p])
            predicts += [starts[p] + length - 1, *range(first, first + len(ids) - 1)]
            positions += range(length, length + len(read))
        read_of = [sum(len(ids) for (p, _), ids in zip(rows, inputs, strict=True) if p == q) for q in prompts]
        targets_BT = pad(targets, torch.int64)
        mask_BT = torch.arange(targets_BT.shape[1]) < torch.tensor([[len(ids)] for ids in targets])
        tensors = (torch.tensor(tokens), torch.tensor(positions), torch.tensor(predicts), targets_BT, mask_BT)
        tokens_N, positions_N, predicts_M, targets_BT, mask_BT = (t.to(device) for t in tensors)
        layout = Layout.of([len(ids) for ids in prompts.values()], read_of, [len(ids) for ids in inputs], device)
        return MicroBatch(tuple(rows), tokens_N, positions_N, layout, predicts_M, targets_BT, mask_BT)


def pad(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> torch.Tensor:
    """Ragged rows as one tensor BT, padded on the right with 0."""
    padded_BT = torch.zeros(len(rows), max(len(row) for row in rows), dtype=dtype)
    for b, row in enumerate(rows):
        padded_BT[b, : len(row)] = torch.tensor(row, dtype=dtype)
    return padded_BT


def token_weights(
    mask_BT: torch.Tensor, aggregation: Literal["token_mean", "sequence_mean", "constant"], denominators: Denominators
) -> torch.Tensor:
    """weights_BT such that the step's loss is the plain sum of weight * token loss over all of its micro-batches.

    token_mean     1 / T              every token of the step alike (DAPO, arXiv 2503.14476, equation 8)
    sequence_mean  1 / (B |o_i|)      every completion alike, so a long one's tokens weigh less (GRPO, 2402.03300)
    constant       1 / (B L_max)      no length in it at all (Dr. GRPO, 2503.20783)
    """
    counted_BT = mask_BT.float()
    match aggregation:
        case "token_mean":
            return counted_BT / denominators.tokens
        case "sequence_mean":
            return counted_BT / (denominators.completions * counted_BT.sum(1, keepdim=True))
        case "constant":
            return counted_BT / (denominators.completions * denominators.max_tokens)
