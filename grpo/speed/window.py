"""What a config says of its layers' attention: kinds, and the window of those that have one."""

from transformers import PretrainedConfig

COMPUTED = {"full_attention", "sliding_attention"}  # the kinds that grpo/speed/attention.py computes, as configs name them


def window_of(config: PretrainedConfig) -> int | None:
    """How many tokens a token attends to in a layer with a window, itself among them; None where no layer has one.

    config: of a language model alone.
    """
    kinds = getattr(config, "layer_types", None)  # without, all layers have the window that the config has
    uses = getattr(config, "use_sliding_window", True) if kinds is None else "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) if uses else None
