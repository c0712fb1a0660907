"""How decoder layers are run: compiled or not, and with or without keeping what their backward pass needs."""

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

WORTH_COMPILING = 10**9  # parameters of the base: below, the host is what a step waits for (benchmarks/startup.md)


def prepare_layers(decoder: nn.Module, compiled: bool, recomputed: int) -> None:
    """Compile each decoder layer, or not; let the first `recomputed` keep no activations, but run twice.

    The layers are alike, so that one is compiled for all, for any number of tokens. Plain numbers of a layer, such as
    epsilon, stay constants in it: as inputs they would be tensors on the CPU, and a C++ compiler would be asked what the
    CPU can do, for 54 s.
    """
    if compiled:  # else what compiles is not even imported
        torch._dynamo.config.specialize_float = True
    for place, layer in enumerate(decoder.layers):
        run = type(layer).forward.__get__(layer)
        run = torch.compile(run, dynamic=True) if compiled else run
        layer.forward = partial(
            checkpoint, run, use_reentrant=False, preserve_rng_state=False) if place < recomputed else run
