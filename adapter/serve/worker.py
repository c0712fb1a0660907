"""vLLM's worker, in the process that vLLM makes for its engine: it takes a LoRA out of a file, and says what it holds.

An answer in flight ends although the gateway is told to stop, so this process does not end by the signals that tell it,
which a terminal and a service manager send to both; it ends when it is let go, and when the gateway is no more.
"""

import os
import signal
import threading
import time
from pathlib import Path

from safetensors.torch import load_file
from vllm.platforms import current_platform

from grpo.speed.engine import (
    digest,
    held_lora,
    lora_pairs,
    place_lora,
    start_lightly,
    two_products_a_layer_cpu,
    two_products_a_layer_gpu,
)

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker
else:
    from vllm.v1.worker.gpu_worker import Worker


class LoraWorker(Worker):
    """One LoRA slot, filled in memory as grpo/sampler.py fills it."""

    def __init__(self, *arguments: object, **named: object):
        """As vLLM makes it, in its process's main thread."""
        self._handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        start_lightly()
        if not current_platform.is_cpu():
            two_products_a_layer_gpu()
        super().__init__(*arguments, **named)

    def load_model(self, *arguments: object, **named: object) -> None:
        """As vLLM's, with the two products a layer on a CPU too."""
        super().load_model(*arguments, **named)
        if current_platform.is_cpu():
            two_products_a_layer_cpu(self.get_model())

    def place(self, lora_id: int, file: str, scale: float) -> tuple[int, dict[str, str]]:
        """Fill the LoRA's slot from a file. Returns how many tensors found a place, and each one's digest there."""
        pairs = lora_pairs(load_file(Path(file)), scale)
        placed = place_lora(self.get_model(), lora_id, pairs)
        return placed, {name: digest(tensor) for name, tensor in held_lora(self.get_model(), lora_id, pairs).items()}

    def let_go(self) -> None:
        """From now on a signal ends this process."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


def _end_with(parent: int) -> None:
    """End where the gateway was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
