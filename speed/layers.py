"""How decoder layers are run: compiled or not, and with or without keeping what their backward pass needs."""

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def prepare_layers(decoder: nn.Module, compiled: bool, recomputed: int) -> None:
    """Compile each decoder layer, or not; let the first `recomputed` keep no activations, but run twice.

    The layers are alike, so that one is compiled for all, for any number of tokens.
    """
    for place, layer in enumerate(decoder.layers):
        run = type(layer).forward.__get__(layer)
        run = torch.compile(run, dynamic=True) if compiled else run
        layer.forward = partial(
            checkpoint, run, use_reentrant=False, preserve_rng_state=False) if place < recomputed else run
