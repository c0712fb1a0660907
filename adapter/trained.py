"""A finished run, ready to answer: its base and its LoRA in vLLM, and nothing that could train them."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from adapter.settings import Settings
from grpo import checkpoint
from grpo.config import Config, load, validated
from grpo.policy import SETTINGS, WEIGHTS, Chat, pick_device
from grpo.preflight import missing
from grpo.types import Problem, Prompt, UserError

if TYPE_CHECKING:
    from grpo.sampler import Sampler

TASK = "adapter.task:SymbolTask"
LONGEST_CONTEXT = 4096  # tokens of prompt and completion; a longer one is refused


@dataclass(frozen=True)
class Completion:
    """What the adapter wrote."""

    text: str
    truncated: bool


class TrainedAdapter(Chat):
    """Answers greedily, as in the run's evaluations. `config` and `settings` are the run's."""

    def __init__(self, run: Path):
        """Read a run directory. vLLM starts when the first completion is asked for.

        Raises UserError where it is none, holds no LoRA, is the run of another task, or its LoRA is of another base.
        """
        if not (run / "config.yaml").is_file():
            raise UserError(f"{run}: no run directory (no config.yaml); name one that train.py wrote, such as runs/tiny")
        self.config: Config = load(run / "config.yaml")
        if self.config.task.target != TASK:
            raise UserError(f"{run}: its task is {self.config.task.target}; this command knows {TASK} alone")
        self.settings = validated(Settings, self.config.task.model_dump(exclude={"target"}), "task.")
        if lacking := missing(self.config):
            raise UserError(f"{run}: missing here: {'; '.join(lacking)}")
        super().__init__(self.config.model, pick_device(self.config.model))
        self.folder, self.step = _newest_lora(run, self.config.run.steps)
        self._lora = _read_lora(self.folder, self.path)
        self.scale = self.config.lora.alpha / self.config.lora.rank
        positions = AutoConfig.from_pretrained(self.path).get_text_config().max_position_embeddings
        self._context = min(positions, LONGEST_CONTEXT)

    def lora(self) -> dict[str, torch.Tensor]:
        """See Served of grpo.sampler."""
        return self._lora

    def save(self, folder: Path) -> None:
        """See Served of grpo.sampler."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, SETTINGS):
            shutil.copy(self.folder / name, folder / name)

    def complete(self, problems: Sequence[Problem]) -> list[Completion]:
        """The most probable completion of each problem's prompt. Raises UserError where a prompt is too long."""
        prompts = [self._encoded(problem) for problem in problems]
        return [Completion(self.decode(sample.token_ids), sample.finish_reason == "length")
                for sample in self._engine.greedy(prompts)]

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Within it, the LoRA is zero: the base answers."""
        self._engine.swap_lora({name: torch.zeros_like(tensor) for name, tensor in self._lora.items()})
        try:
            yield
        finally:
            self._engine.swap_lora(self._lora)

    def close(self) -> None:
        """Stop vLLM."""
        if "_engine" in vars(self):
            self._engine.close()

    @cached_property
    def _engine(self) -> "Sampler":
        from grpo.sampler import Sampler

        return Sampler(self, self.config, self._context)

    def _encoded(self, problem: Problem) -> Prompt:
        prompt, room = self.encode(problem), self._context - self.config.rollout.max_new_tokens
        if len(prompt.token_ids) > room:
            raise UserError(f"{problem.name[:40]}...: its prompt has {len(prompt.token_ids)} tokens; at most {room} leave "
                            "the adapter room to answer")
        return prompt


def _newest_lora(run: Path, steps: int) -> tuple[Path, int]:
    """The folder of the finished run's LoRA, or of its newest checkpoint's while it is unfinished, and its step."""
    finished, checkpoints = (run / "adapter" / WEIGHTS).is_file(), run / "checkpoints"
    if checkpoints.is_dir() and any(checkpoints.glob("step-*")):
        newest, _ = checkpoint.newest(checkpoints)
        step = int(newest.name.removeprefix("step-"))
        if step < steps:  # a finished run that is being extended has an older LoRA in adapter/
            return newest, step
    if not finished:
        raise UserError(f"{run}: holds no LoRA yet, neither adapter/ nor checkpoints/")
    return run / "adapter", steps


def _read_lora(folder: Path, base: str) -> dict[str, torch.Tensor]:
    """The LoRA's tensors. Raises UserError where they do not fit the base's layers."""
    try:
        lora = load_file(folder / WEIGHTS)
        rank = json.loads((folder / SETTINGS).read_text())["r"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no LoRA that can be read ({' '.join(str(error).split())[:100]})") from None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    layers = {name: module.weight.shape for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for name, tensor in lora.items():
        layer, which = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        size_out, size_in = layers.get(layer, (0, 0))
        if tensor.shape != {"lora_A": (rank, size_in), "lora_B": (size_out, rank)}.get(which):
            raise UserError(f"{folder / WEIGHTS}: the LoRA of another base than {base}: {name} is "
                            f"{' x '.join(map(str, tensor.shape))}, and does not fit the layer {layer}")
    return lora
