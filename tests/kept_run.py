"""A run directory with LoRAs that can be told apart."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from grpo.policy import Policy
from grpo.run.files import new_directory
from tests.conftest import randomize

WEIGHTS = "adapter_model.safetensors"


@dataclass
class Run:
    """A run directory, and a policy whose LoRA is another one at each step."""

    folder: Path
    policy: Policy

    def at(self, step: int) -> Policy:
        randomize(self.policy, 0.05, seed=step)
        return self.policy

    def checkpoint(self, step: int) -> None:
        with new_directory(self.folder / "checkpoints" / f"step-{step:05d}") as part:
            self.at(step).save(part)
            for other in ("optimizer.safetensors", "state.json"):
                (part / other).touch()

    def best(self) -> list[int]:
        return sorted(int(p.name.removeprefix("step-")) for p in self.folder.glob("best/step-*"))

    def holds(self, place: str, step: int) -> bool:
        """Whether the LoRA there is that step's."""
        lora = self.at(step).lora()
        return all(torch.equal(t, lora[name]) for name, t in load_file(self.folder / place / WEIGHTS).items())


def damage(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1] + b"x")
