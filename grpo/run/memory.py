"""What memory there is, and what takes it."""

import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from grpo.types import Metrics

GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")  # a container's limit, where there is one


def memory_metrics(device: torch.device) -> Metrics:
    """The device's peak, which is the process's resident peak on a CPU, and what is resident on the host now; GiB."""
    peak = (torch.cuda.max_memory_reserved() if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {"memory/peak_gib": peak / GIB, "memory/host_rss_gib": psutil.Process().memory_info().rss / GIB}


def available(device: torch.device) -> int:
    """Bytes that can still be allocated on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    free = psutil.virtual_memory().available
    try:
        limit, used, kinds = ((_CGROUP / f"memory.{name}").read_text(encoding="utf-8").strip()
                              for name in ("max", "current", "stat"))
        of = dict(line.split() for line in kinds.splitlines())
        cached = int(of["active_file"]) + int(of["inactive_file"])  # of files that were read, and given back when asked
        return free if limit == "max" else min(free, int(limit) - int(used) + cached)
    except (OSError, ValueError, KeyError):
        return free


@contextmanager
def counting_saved(weights: Iterable[torch.Tensor]) -> Iterator[dict[int, int]]:
    """Within it, fills a dict with what autograd keeps for the backward pass: bytes by storage, `weights` left out."""
    known, saved = {w.untyped_storage().data_ptr() for w in weights}, {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def ran_out(error: RuntimeError | MemoryError) -> bool:
    """Whether an error says that memory could not be had, on a GPU or a CPU."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in text or "enough memory" in text
