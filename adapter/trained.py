"""A finished run, ready to answer: its base and its LoRA in vLLM, and nothing that could train them.

A run may be a stranger's. Of its LoRA only numbers are taken, in tensors whose names and shapes the run's own settings and
the base foretell; what vLLM reads is written anew.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from adapter.commands import task_of
from adapter.measure.records import EVALUATION, read_kept
from grpo.chat import Chat, pick_device
from grpo.config import Config, Lora, load
from grpo.guards import checkpoint
from grpo.guards.best import FOLDER
from grpo.policy import SETTINGS, WEIGHTS, check_base
from grpo.run.files import MANIFEST, read_object, sha256, steps_in
from grpo.run.model_files import portable_name
from grpo.run.preflight import missing
from grpo.run.tasks import load_class
from grpo.types import Problem, UserError

if TYPE_CHECKING:
    from grpo.sampler import Sampler

LONGEST_PROMPT = 4096  # tokens; vLLM's KV cache must hold one of these and its completion
LONGEST_SETTINGS = 2**20  # bytes of adapter_config.json; PEFT writes 1,000


@dataclass(frozen=True)
class Completion:
    """What the adapter wrote."""

    text: str
    truncated: bool


class TrainedAdapter(Chat):
    """Answers greedily, as in the run's evaluations. `config`, `task_class` and `settings` are the run's.

    `folder` holds its LoRA, which is that of `step`; the run was trained up to step `until`.
    """

    def __init__(self, run: Path):
        """Read a run directory. vLLM starts when the first completion is asked for.

        Raises UserError where it is none, holds no LoRA, is the run of another task, or its LoRA is of another base.
        """
        if not (run / "config.yaml").is_file():
            raise UserError(f"{run}: no run directory (no config.yaml); name one that train.py wrote, such as runs/tiny")
        self.config: Config = load(run / "config.yaml")
        self.task_class, self.settings = task_of(self.config, load_class(self.config.task.target, named=False), run)
        if lacking := missing(self.config.model.path, self.config.model.device):
            raise UserError(f"{run}: missing here: {'; '.join(lacking)}")
        super().__init__(self.config.model, pick_device(self.config.model))
        self.folder, self.step, self.until = _kept_lora(run, self.config)
        base = check_base(self, self.config.model, self.config.lora)
        self._lora = _read_lora(self.folder, self.config.lora, base, self.path)
        self.scale = self.config.lora.alpha / self.config.lora.rank
        self._wanted = self._lora
        self._served: dict[str, torch.Tensor] | None = self._lora
        self._longest = LONGEST_PROMPT  # tokens of a prompt, as the engine has room for

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
        return [Completion(self.decode(sample.token_ids), sample.finish_reason == "length")
                for sample in self._engine.greedy(prompts)]

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Within it, the LoRA is zero: the base answers.

        What is asked next swaps it, before and after: after an error within, vLLM may refuse, which would hide that error.
        """
        self._wanted = {name: torch.zeros_like(tensor) for name, tensor in self._lora.items()}
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


def _kept_lora(run: Path, config: Config) -> tuple[Path, int, int]:
    """The folder of the LoRA that the run keeps, its step, and up to which step the run was trained.

    adapter/, where the run is finished: evaluation.json says so, by its step. A run that is not, or that is being extended,
    and has an older adapter/ until it ends, keeps the best one so far; without one (eval.keep = last, a run of before there
    was a validation split), its newest checkpoint's. Raises UserError where there is none.
    """
    finished, checkpoints, best = (run / "adapter" / WEIGHTS).is_file(), run / "checkpoints", steps_in(run / FOLDER)
    saved = max(steps_in(checkpoints), default=None)
    until = config.run.steps if saved is None else saved
    if finished and until >= config.run.steps and (kept := read_kept(run)) is not None:
        if kept > until:
            raise UserError(f"{run / EVALUATION}: kept is {kept}, and the run has {until} steps; delete the file to go on "
                            "without it")
        return run / "adapter", kept, until
    if best and config.eval.keep == "best":
        step, folder = best.popitem()
        return folder, step, step if saved is None else max(step, saved)
    if saved is not None:
        newest, _ = checkpoint.newest(checkpoints)
        step = int(newest.name.removeprefix("step-"))
        if step < config.run.steps or not finished or _recorded_sum(newest) != _recorded_sum(run / "adapter"):
            return newest, step, step
    if not finished:
        raise UserError(f"{run}: holds no LoRA yet, neither adapter/ nor best/ nor checkpoints/")
    return run / "adapter", until, until


def _recorded_sum(folder: Path) -> object:
    """The SHA-256 of the LoRA in a folder, as its manifest has it."""
    try:
        return read_object(folder / MANIFEST, LONGEST_SETTINGS).get(WEIGHTS)
    except (OSError, ValueError):
        return None


def _read_lora(folder: Path, lora: Lora, base: PreTrainedModel, path: str) -> dict[str, torch.Tensor]:
    """The LoRA's tensors, float32. Raises UserError where they are not those of `lora` on the base in `path`, or damaged.

    Names, shapes and sizes are checked before a number is read.
    """
    expected, cure = _shapes(lora, base), "restore what train.py wrote there"
    try:
        _check_settings(read_object(folder / SETTINGS, LONGEST_SETTINGS), lora)
        most = 8 * sum(map(math.prod, expected.values())) + 2**20  # float64, and the names
        if (folder / WEIGHTS).stat().st_size > most:
            raise ValueError(f"{WEIGHTS} has more than {most} bytes, the most that a LoRA of {path} has")
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
            for name in sorted(found.keys() | expected.keys()):
                if found.get(name) != expected.get(name):
                    raise UserError(f"{folder / WEIGHTS}: the LoRA of another base than {path}, or of another rank or other "
                                    f"targets: {name[:100]!r} is {_size(found.get(name))}, expected "
                                    f"{_size(expected.get(name))}; {cure}")
            if _recorded_sum(folder) not in (None, sha256(folder / WEIGHTS)):
                raise ValueError(f"{WEIGHTS} is damaged: its SHA-256 is not that of {MANIFEST}")
            return {name: file.get_tensor(name).float() for name in found}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{folder}: no LoRA that can be read ({' '.join(str(error).split())[:150]}); {cure}") from None


def _shapes(lora: Lora, base: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The LoRA's tensors by PEFT's names: A is rank x in, B is out x rank."""
    layers = {f"base_model.model.{name}": module for name, module in base.named_modules()
              if isinstance(module, torch.nn.Linear) and name.rsplit(".", 1)[-1] in lora.targets}
    return ({f"{name}.lora_A.weight": (lora.rank, layer.in_features) for name, layer in layers.items()}
            | {f"{name}.lora_B.weight": (layer.out_features, lora.rank) for name, layer in layers.items()})


def _check_settings(settings: dict[str, object], lora: Lora) -> None:
    """Raises ValueError where the tensors mean something else than `lora` says."""
    plain = {"r": lora.rank, "lora_alpha": lora.alpha, "use_rslora": False, "use_dora": False, "rank_pattern": {},
             "alpha_pattern": {}}
    for name, value in plain.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{SETTINGS}: {name} is {str(settings[name])[:40]!r}, expected {value}")


def _size(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))[:40] or "one number"
