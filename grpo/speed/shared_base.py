"""The frozen base in memory once: the trainer's model is made of views of vLLM's weights.

vLLM fuses what reads the same input: the rows of q, k and v lie one after another in `qkv_proj`, gate and up in
`gate_up_proj`. A slice of rows is a view, and Hugging Face's modules take views as they take tensors of their own. The
model is first built without memory, then given the views.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from grpo.speed import attention


class CannotShareError(Exception):
    """The engine's weights are not the model's in any layout known here. The message says what is missing."""


class EngineWeights(NamedTuple):
    """vLLM's parameters by its own names, and which of its modules are fused from which, in order."""

    tensors: Mapping[str, torch.Tensor]
    fused: Mapping[str, Sequence[str]]  # {"qkv_proj": ["q_proj", "k_proj", "v_proj"], ...}


def shared_base(path: str, dtype: torch.dtype, engine: EngineWeights) -> PreTrainedModel:
    """The causal LM of `path`, every parameter a view of the engine's. Raises CannotShareError."""
    model = empty_model(path, dtype)
    views = base_views({name: p.shape for name, p in model.named_parameters()}, engine)
    model.load_state_dict(views, strict=False, assign=True)
    model.tie_weights()
    addresses = {t.untyped_storage().data_ptr() for t in engine.tensors.values()}
    for name, p in model.named_parameters():
        if p.is_meta or p.dtype != dtype or p.untyped_storage().data_ptr() not in addresses:
            raise CannotShareError(f"vLLM does not hold {name} in {dtype}")
    return model.to(next(iter(views.values())).device).eval()  # buffers alone are left to move


def empty_model(path: str, dtype: torch.dtype) -> PreTrainedModel:
    """The causal LM of `path` without memory for its parameters. What is tied has one name. Raises OSError, ValueError."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(path, trust_remote_code=False), dtype=dtype, attn_implementation=attention.NAME,
            trust_remote_code=False)
    model.tie_weights()
    return model


def base_views(shapes: Mapping[str, torch.Size], engine: EngineWeights) -> dict[str, torch.Tensor]:
    """Views of the engine's tensors by Hugging Face's names. Raises CannotShareError where a shape does not fit."""
    tensors = {name.replace(".base_layer.", "."): t.detach() for name, t in engine.tensors.items()}
    views = {}
    for name, shape in shapes.items():
        module, kind = name.rsplit(".", 1)
        parent, _, own = module.rpartition(".")
        first, source = 0, name
        for fused, parts in engine.fused.items():
            if own in parts:
                source = f"{parent}.{fused}.{kind}"
                before = [shapes.get(f"{parent}.{part}.{kind}", [0]) for part in parts[: parts.index(own)]]
                first = sum(rows for rows, *_ in before)
        view = tensors[source][first : first + shape[0]] if source in tensors else None
        if view is None or view.shape != shape:
            raise CannotShareError(f"vLLM has no {name} of shape {list(shape)}")
        views[name] = view
    return views
