"""What memory there is, and what takes it."""

import resource
from collections import Counter
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


class Saved:
    """What autograd keeps: `now`, and the `most` at once, in bytes. A storage of several kept tensors counts once."""

    def __init__(self):
        self.now = self.most = 0
        self._holders: Counter[int] = Counter()  # by where a storage lies, which another has once this one is freed

    def take(self, storage: torch.UntypedStorage) -> None:
        """One more tensor of a storage is kept."""
        self._holders[storage.data_ptr()] += 1
        if self._holders[storage.data_ptr()] == 1:
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)

    def leave(self, storage: torch.UntypedStorage) -> None:
        """One fewer is."""
        self._holders[storage.data_ptr()] -= 1
        if not self._holders[storage.data_ptr()]:
            self.now -= storage.nbytes()


class _Kept:
    """A tensor that autograd keeps, for as long as it does."""

    def __init__(self, tensor: torch.Tensor, saved: Saved | None):
        self.tensor, self._saved = tensor, saved
        if saved is not None:
            saved.take(tensor.untyped_storage())

    def __del__(self):
        if self._saved is not None:
            self._saved.leave(self.tensor.untyped_storage())


@contextmanager
def counting_saved(weights: Iterable[torch.Tensor]) -> Iterator[Saved]:
    """Within it, counts what autograd keeps for the backward pass; `weights` are left out.

    A layer that runs twice keeps its inputs, and all of its own only while its turn in the backward pass lasts.
    """
    known, saved = {w.untyped_storage().data_ptr() for w in weights}, Saved()

    def pack(tensor: torch.Tensor) -> _Kept:
        return _Kept(tensor, None if tensor.untyped_storage().data_ptr() in known else saved)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        yield saved


def ran_out(error: RuntimeError | MemoryError) -> bool:
    """Whether an error says that memory could not be had, on a GPU or a CPU."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in text or "enough memory" in text
