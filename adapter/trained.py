"""A finished run, ready to answer: its base and its LoRA in vLLM, and nothing that could train them.

A run may be a stranger's. Of its LoRA only numbers are taken, in tensors whose names and shapes the run's own settings and
the base foretell; what vLLM reads is written anew.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from adapter.commands import task_of
from adapter.measure.records import EVALUATION, read_kept
from adapter.model import Model
from grpo.config import Config, Lora, load
from grpo.guards import checkpoint
from grpo.guards.best import FOLDER
from grpo.policy import SETTINGS, WEIGHTS
from grpo.run.files import MANIFEST, read_object, sha256, steps_in
from grpo.run.preflight import missing
from grpo.run.tasks import load_class
from grpo.types import UserError

LONGEST_SETTINGS = 2**20  # bytes of adapter_config.json; PEFT writes 1,000


class TrainedAdapter(Model):
    """Answers greedily, as in the run's evaluations. `config`, `task_class` and `settings` are the run's.

    `folder` holds its LoRA, which is that of `step`; the run was trained up to step `until`.
    """

    def __init__(self, run: Path):
        """Read a run directory. vLLM starts when the first completion is asked for.

        Raises UserError where it is none, holds no LoRA, is the run of another task, or its LoRA is of another base.
        """
        if not (run / "config.yaml").is_file():
            raise UserError(f"{run}: no run directory (no config.yaml); name one that train.py wrote, such as runs/tiny")
        config = load(run / "config.yaml")
        self.task_class, self.settings = task_of(config, load_class(config.task.target, named=False), run)
        if lacking := missing(config.model.path, config.model.device):
            raise UserError(f"{run}: missing here: {'; '.join(lacking)}")
        self.folder, self.step, self.until = _kept_lora(run, config)
        super().__init__(config)
        self.hold(_read_lora(self.folder, config.lora, self.shapes, self.path))


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


def _read_lora(folder: Path, lora: Lora, expected: Mapping[str, tuple[int, ...]], path: str) -> dict[str, torch.Tensor]:
    """The LoRA's tensors, float32. Raises UserError where they are not those that are expected on the base in `path`, or
    damaged.

    Names, shapes and sizes are checked before a number is read.
    """
    cure = "restore what train.py wrote there"
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


def _check_settings(settings: dict[str, object], lora: Lora) -> None:
    """Raises ValueError where the tensors mean something else than `lora` says."""
    plain = {"r": lora.rank, "lora_alpha": lora.alpha, "use_rslora": False, "use_dora": False, "rank_pattern": {},
             "alpha_pattern": {}}
    for name, value in plain.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{SETTINGS}: {name} is {str(settings[name])[:40]!r}, expected {value}")


def _size(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))[:40] or "one number"
