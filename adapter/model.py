"""A base with a LoRA in vLLM, ready to answer, and nothing that could train them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from grpo.chat import Chat, pick_device
from grpo.config import Config, Lora
from grpo.policy import SETTINGS, WEIGHTS, check_base
from grpo.run.model_files import portable_name
from grpo.types import Problem, Prompt, Sample, UserError

if TYPE_CHECKING:
    from grpo.sampler import Sampler

LONGEST_PROMPT = 4096  # tokens; vLLM's KV cache must hold one of these and its completion


@dataclass(frozen=True)
class Completion:
    """What the adapter wrote."""

    text: str
    truncated: bool
    sample: Sample  # its tokens; of a greedy one, their log-probs are the policy's own, at temperature 1


class Model(Chat):
    """The base that a config names, with the LoRA that it is told to `hold`. vLLM starts with the first question."""

    def __init__(self, config: Config):
        """Raises UserError where the base is none, or not one that such a LoRA fits."""
        super().__init__(config.model, pick_device(config.model))
        self.config, self.scale = config, config.lora.alpha / config.lora.rank
        self.shapes = lora_shapes(config.lora, check_base(self, config.model, config.lora))
        self._longest = LONGEST_PROMPT  # tokens of a prompt, as the engine has room for

    def no_lora(self) -> dict[str, torch.Tensor]:
        """A LoRA of zeros: the base alone."""
        return {name: torch.zeros(shape) for name, shape in self.shapes.items()}

    def hold(self, lora: dict[str, torch.Tensor]) -> None:
        """Answer with these tensors, by PEFT's names, float32, from now on."""
        self._lora = self._wanted = self._served = lora

    def lora(self) -> dict[str, torch.Tensor]:
        """See Served of grpo.sampler."""
        return self._lora

    def save(self, folder: Path) -> None:
        """See Served of grpo.sampler."""
        lora = self.config.lora
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._lora, folder / WEIGHTS)
        (folder / SETTINGS).write_text(json.dumps({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": portable_name(self.path),
            "r": lora.rank, "lora_alpha": lora.alpha, "target_modules": lora.targets, "bias": "none",
            "inference_mode": True}) + "\n", encoding="utf-8")

    def complete(self, problems: Sequence[Problem]) -> list[Completion]:
        """The most probable completion of each problem's prompt. Raises UserError where a prompt is too long.

        Completions may be as long as in training. Later prompts may be as long as the longest that is asked first, and
        LONGEST_PROMPT in any case where the model has the positions.
        """
        prompts = self._prompts(problems)
        return [self._completion(sample) for sample in self._engine.greedy(prompts)]

    def sample(self, problems: Sequence[Problem], group_size: int, seed: int) -> list[list[Completion]]:
        """So many completions of each prompt, as the config says they are sampled. Raises UserError as `complete` does."""
        prompts = self._prompts(problems)
        groups = self._engine.sample(prompts, [seed + 1000 * n for n in range(len(problems))], group_size)
        return [[self._completion(sample) for sample in samples] for samples in groups]

    def _completion(self, sample: Sample) -> Completion:
        return Completion(self.decode(sample.token_ids), sample.finish_reason == "length", sample)

    def _prompts(self, problems: Sequence[Problem]) -> list[Prompt]:
        """As tokens. vLLM is given room for them, if it has not started, and the LoRA that is wanted."""
        prompts = [self.encode(problem) for problem in problems]
        if "_engine" not in vars(self):
            room = self.max_tokens - self.config.rollout.max_new_tokens
            self._longest = min(room, max([LONGEST_PROMPT, *(len(prompt.token_ids) for prompt in prompts)]))
        for prompt in prompts:
            if len(prompt.token_ids) > self._longest:
                raise UserError(f"{prompt.problem.name[:40]}...: its prompt has {len(prompt.token_ids)} tokens; at most "
                                f"{self._longest} leave the adapter room to answer")
        if self._served is not self._wanted:
            self._served = None  # a swap that fails may leave either
            self._engine.swap_lora(self._wanted)
            self._served = self._wanted
        return prompts

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Within it, the LoRA is zero: the base answers.

        What is asked next swaps it, before and after: after an error within, vLLM may refuse, which would hide that error.
        """
        self._wanted = self.no_lora()
        try:
            yield
        finally:
            self._wanted = self._lora

    def close(self) -> None:
        """Stop vLLM."""
        if "_engine" in vars(self):
            self._engine.close()

    @cached_property
    def _engine(self) -> "Sampler":
        from grpo.sampler import Sampler

        engine = Sampler(self, self.config, self._longest + self.config.rollout.max_new_tokens)
        engine.serve(self)
        return engine


def lora_shapes(lora: Lora, base: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The LoRA's tensors by PEFT's names: A is rank x in, B is out x rank."""
    layers = {f"base_model.model.{name}": module for name, module in base.named_modules()
              if isinstance(module, torch.nn.Linear) and name.rsplit(".", 1)[-1] in lora.targets}
    return ({f"{name}.lora_A.weight": (lora.rank, layer.in_features) for name, layer in layers.items()}
            | {f"{name}.lora_B.weight": (layer.out_features, lora.rank) for name, layer in layers.items()})
