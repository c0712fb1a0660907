"""Published algorithms by name: `algorithm: dapo` in a config, and single keys on top. Which keys go together.

grpo/config.py says what each key means; one that a preset leaves out has its default. What no key can say is said here.
"""

from collections.abc import Callable, Mapping
from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # DeepSeekMath, arXiv 2402.03300: equations 3 and 4, and beta of section 4.2
    "grpo": {"advantage": "grpo", "loss": "clip", "aggregation": "sequence_mean", "beta": 0.04, "kl": "k3"},
    # Understanding R1-Zero-Like Training, 2503.20783: neither length nor spread is divided by
    "dr_grpo": {"advantage": "centred", "loss": "clip", "aggregation": "constant"},
    # DAPO, 2503.14476: clip higher, token mean, overlong punishment (a fifth of the length, as 4,096 of 20,480), and dynamic
    # sampling, which the paper repeats until the batch is full. Its rewards are 1 and -1, so that its penalty of up
    # to 1 is half of what a right answer earns; with 1 and 0 it is all of it
    "dapo": {"advantage": "grpo", "loss": "clip", "eps_low": 0.2, "eps_high": 0.28, "aggregation": "token_mean",
             "overlong": "penalised", "overlong_buffer": 0.2, "refills": 3},
    # GSPO, 2507.18071: one ratio a completion, and the bounds of section 5.1
    "gspo": {"advantage": "grpo", "ratio": "sequence", "loss": "clip", "eps_low": 3e-4, "eps_high": 4e-4,
             "aggregation": "sequence_mean"},
    # MiniMax-M1, 2506.13585: no bound below; it gives none for above, and ScaleRL (2510.13786) has weights of up to 5
    "cispo": {"advantage": "grpo", "loss": "cispo", "eps_high": 4.0, "aggregation": "token_mean"},
    # Back to Basics, 2402.14740: REINFORCE on whole completions; its sum over tokens is `constant` times L_max. Its KL,
    # there a part of the reward, is left to beta
    "rloo": {"advantage": "rloo", "loss": "reinforce", "aggregation": "constant"},
    # Maximum Likelihood Reinforcement Learning, 2602.02710
    "maxrl": {"advantage": "maxrl", "loss": "reinforce", "aggregation": "token_mean"},
}

Keys = Mapping[str, Any]  # of `algorithm`
NEEDS: dict[str, tuple[str, Callable[[Keys], bool]]] = {  # a key that nothing reads without another: in words, and asked
    "eps_low": ("loss clip or dual_clip", lambda a: a["loss"] in ("clip", "dual_clip")),
    "eps_high": ("loss clip, dual_clip or cispo", lambda a: a["loss"] != "reinforce"),
    "dual_clip_at": ("loss dual_clip", lambda a: a["loss"] == "dual_clip"),
    "epochs": ("loss clip, dual_clip or cispo: reinforce has no ratio, which makes up for a policy that has moved",
               lambda a: a["epochs"] == 1 or a["loss"] != "reinforce"),
    "kl": ("beta above 0", lambda a: a["beta"] != 0),
    "correction_low": ("correction masked", lambda a: a["correction"] == "masked"),
    "correction_high": ("correction truncated or masked", lambda a: a["correction"] != "none"),
    "overlong_buffer": ("overlong penalised", lambda a: a["overlong"] == "penalised"),
}


def idle(keys: Keys) -> list[str]:
    """The keys that nothing reads beside the others."""
    return [key for key, (_, read) in NEEDS.items() if not read(keys)]


def refuse_idle(keys: Keys, defaults: Keys) -> None:
    """Raises ValueError where an idle key has another value than its default or its preset's: someone wanted it obeyed."""
    plain = {**defaults, **PRESETS.get(str(keys["preset"]), {})}
    for key in idle(keys):
        if keys[key] != plain[key]:
            raise ValueError(f"{key} {keys[key]} needs {NEEDS[key][0]}; choose that, or leave {key} out")
