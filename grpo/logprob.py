"""Log-probabilities of the sampled tokens, with the prompt computed once for all completions of its group.

A padded batch runs the prompt G times: G (L + C) tokens for a prompt of L and completions of C. Packed behind their
prompt they are L + G C (grpo/batch.py, grpo/speed/attention.py), and all but attention is a function of single tokens:
autograd needs no help.

What is left out: models that do more to their logits than multiply them by a number, or cap them softly:
grpo/policy.py refuses them.
"""

from dataclasses import dataclass

import torch
from torch import nn

from grpo.batch import MicroBatch
from grpo.speed.head import head_logp


@dataclass(frozen=True)
class Scored:
    """Per sampled token, float32, 0 outside the mask. Only logp carries a gradient."""

    logp_BT: torch.Tensor
    entropy_BT: torch.Tensor  # nats, of the distribution the token was drawn from


def score(decoder: nn.Module, head: nn.Linear, batch: MicroBatch, temperature: float, chunk: int,
          cap: float = 0.0) -> Scored:
    """log pi(o_t) and the entropy of pi at t, for the completions of a micro-batch.

    temperature: the logits are divided by it; the model's own factor, if it has one, is part of it. cap: their soft cap.
    """
    embedded_1NH = decoder.get_input_embeddings()(batch.tokens_N[None])
    if torch.is_grad_enabled():  # or else the first layer would be compiled apart from the others
        embedded_1NH.requires_grad_()
    hidden_1NH = decoder(inputs_embeds=embedded_1NH, position_ids=batch.positions_N[None], layout=batch.layout,
                         use_cache=False).last_hidden_state
    # A prompt's last state predicts G first tokens. The gradients of what is looked up in a table add up in one order,
    # run for run; those of an index do not on a CPU, where threads add as they come.
    hidden_MH = nn.functional.embedding(batch.predicts_M, hidden_1NH[0])
    logp_M, entropy_M = head_logp(
        hidden_MH, head.weight, head.bias, batch.targets_BT[batch.mask_BT], temperature, chunk, cap)
    zeros_BT = torch.zeros(batch.mask_BT.shape, device=hidden_1NH.device)
    return Scored(zeros_BT.masked_scatter(batch.mask_BT, logp_M), zeros_BT.masked_scatter(batch.mask_BT, entropy_M))
