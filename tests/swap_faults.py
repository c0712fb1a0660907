"""Ways in which an engine can fail to serve the policy it is given. `loop` has a policy, a sampler and a config."""

import grpo.sampler
from grpo.sampler import Sampler


def stale_cache(loop, monkeypatch):
    monkeypatch.setattr(Sampler, "_salt", lambda self: "always the same")
    monkeypatch.setattr(loop.sampler._llm, "reset_prefix_cache", lambda: True)


def unswapped(loop, monkeypatch):
    monkeypatch.setattr(loop.sampler, "swap_lora", lambda lora: None)


def change_pairs(monkeypatch, change):
    """`change` takes (name, A, B) of every layer and returns what vLLM gets."""
    pairs = grpo.sampler._pairs

    def changed(lora, scale):
        layers = (change(name, a, b) for name, (a, b) in pairs(lora, scale).items())
        return {name: (a, b) for name, a, b in layers}

    monkeypatch.setattr(grpo.sampler, "_pairs", changed)


def wrong_keys(loop, monkeypatch):
    change_pairs(monkeypatch, lambda name, a, b: (f"model.{name}", a, b))


def wrong_scale(loop, monkeypatch):
    change_pairs(monkeypatch, lambda name, a, b: (name, a, 2 * b))


def a_hair(loop, monkeypatch):
    """More than bfloat16 rounds, and less than a comparison of what is computed may show."""
    change_pairs(monkeypatch, lambda name, a, b: (name, a, 1.01 * b))


def transposed(loop, monkeypatch):
    change_pairs(monkeypatch, lambda name, a, b: (name, a.T.reshape(a.shape), b))


def some_modules(loop, monkeypatch, these):
    """vLLM says that it took them, and does not."""
    for name, layer in loop.sampler._llm.apply_model(lambda model: dict(model.lora_manager.modules))[0].items():
        if these(name):
            monkeypatch.setattr(layer, "set_lora", lambda *_: None)


def half_the_modules(loop, monkeypatch):
    some_modules(loop, monkeypatch, lambda name: "mlp" in name)


def one_module(loop, monkeypatch):
    some_modules(loop, monkeypatch, lambda name: name.endswith("layers.2.self_attn.o_proj"))


def exchanged(loop, monkeypatch):
    """A and B of two layers change places."""
    pairs = grpo.sampler._pairs
    places = {"layers.0.mlp.down_proj": "layers.1.mlp.down_proj", "layers.1.mlp.down_proj": "layers.0.mlp.down_proj"}

    def changed(lora, scale):
        found = pairs(lora, scale)
        return {name: found[name.replace(at := name.removeprefix("model."), places.get(at, at))] for name in found}

    monkeypatch.setattr(grpo.sampler, "_pairs", changed)


def one_module_ignores_its_lora(loop, monkeypatch):
    """It holds the LoRA, and computes the base."""
    (layers,) = loop.sampler._llm.apply_model(lambda model: dict(model.lora_manager.modules))
    layer = next(layer for name, layer in layers.items() if name.endswith("layers.2.self_attn.o_proj"))
    monkeypatch.setattr(layer, "forward", layer.base_layer.forward)


def temperature(loop, monkeypatch):
    monkeypatch.setattr(loop.sampler, "_rollout", loop.config.rollout.model_copy(update={"temperature": 2.0}))
