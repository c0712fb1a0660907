"""Groups to micro-batches: the one place where completions are shifted, padded and masked, and tokens are counted.

A worked example. A prompt of tokens [p q r] has two completions, [a b c <eos>] and [d <eos>]. Their micro-batch is

    targets_BT   a  b  c  <eos>        the sampled tokens, padded on the right with 0
                 d  <eos> 0  0
    mask_BT      1  1  1  1            <eos> is inside: when to stop is part of the policy
                 1  1  0  0
    inputs_BS    a  b  c               S = T-1: what the model reads after the prompt
                 d  <eos> 0

The hidden state that predicts targets[b, 0] is the prompt's last, at r; the one that predicts targets[b, t] is that
of inputs[b, t-1]. Padding sits to the right, where a causal model cannot see it from any counted position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from grpo.types import Sample


@dataclass(frozen=True)
class Denominators:
    """What the step's loss is divided by, counted over the whole step before it is cut into micro-batches.

    tokens: T, all completion tokens of the step, those of groups without a signal included.
    completions: B = P G.
    max_tokens: L_max, the constant of Dr. GRPO.
    """

    tokens: int
    completions: int
    max_tokens: int


@dataclass(frozen=True)
class MicroBatch:
    """Completions of one prompt, ready for a forward pass."""

    rows: tuple[int, ...]  # their places in the group
    targets_BT: torch.Tensor  # int64
    mask_BT: torch.Tensor  # bool
    inputs_BS: torch.Tensor  # int64, S = T-1

    @staticmethod
    def of(samples: Sequence[Sample], rows: Sequence[int]) -> "MicroBatch":
        """The named rows of a group's samples."""
        targets_BT = pad([samples[row].token_ids for row in rows], torch.int64)
        lengths_B1 = torch.tensor([[len(samples[row].token_ids)] for row in rows])
        mask_BT = torch.arange(targets_BT.shape[1]) < lengths_B1
        return MicroBatch(tuple(rows), targets_BT, mask_BT, targets_BT[:, :-1])

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on another device."""
        return MicroBatch(self.rows, self.targets_BT.to(device), self.mask_BT.to(device), self.inputs_BS.to(device))


def pad(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> torch.Tensor:
    """Ragged rows as one tensor BT, padded on the right with 0."""
    padded_BT = torch.zeros(len(rows), max(len(row) for row in rows), dtype=dtype)
    for b, row in enumerate(rows):
        padded_BT[b, : len(row)] = torch.tensor(row, dtype=dtype)
    return padded_BT


def split(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows sorted by length and cut into micro-batches of at most `budget` padded tokens each, at least one row.

    The split decides memory and speed only: the loss is divided by `Denominators`, which it does not enter.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


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
