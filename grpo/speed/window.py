"""Layers that attend to a window: a token sees itself and the W - 1 tokens before it (Gemma 3, OLMo 3, Mistral, Cohere 2).

Where a prompt and its completion have at most W tokens together, such a layer is one that attends to all tokens before, and
is computed as one. Longer ones are refused: Chat.max_tokens is at most W, and prompts are measured by it before anything
starts.
"""

from transformers import PretrainedConfig

from grpo.types import UserError

COMPUTED = {"full_attention", "sliding_attention"}  # kinds of layers, as configs name them


def window_of(config: PretrainedConfig) -> int | None:
    """W, in tokens; None where every layer attends to all tokens before. config: of a language model alone."""
    kinds = getattr(config, "layer_types", None)  # without, all layers have the window that the config has
    uses = getattr(config, "use_sliding_window", True) if kinds is None else "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) if uses else None


def check_fits(config: PretrainedConfig, longest: int) -> None:
    """Raises UserError where a prompt and its completion have more tokens than the window."""
    window = window_of(config)
    if window is not None and longest > window:
        raise UserError(f"model.path: its layers attend to a window of {window} tokens, and a prompt with its completion "
                        f"has {longest}, which the training pass does not compute; shorten prompts, or "
                        "rollout.max_new_tokens")
