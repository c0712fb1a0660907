"""Several processes, one run: what `torchrun` starts, each with an engine and a copy of the base of its own.

A rank samples its share of a step's prompts and trains on its share of the tokens; what it finds goes to all others, so that
advantages, denominators, metrics and alarms are the whole step's everywhere. Messages go over gloo, gradients over NCCL
where each rank has a GPU.

vLLM takes the default process group for its own, and makes one of a single process. Ours is therefore no default group but
an object, made from a store that torchrun.py finds. A process that waits for others hears no signal: it learns that
one is gone when the connection closes.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from grpo.ranks.ahead import first_ahead
from grpo.types import Metrics, UserError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup, Store, Work

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # how long a rank waits for the slowest: an engine's start, or a rollout
SUMMING = timedelta(seconds=45)  # and for a sum over NCCL, for which all are ready
HEARD = timedelta(seconds=5)  # how long a rank waits for what the first says of its end


class RankLostError(Exception):
    """Another rank has ended. The message is one line."""


class Ranks:
    """This process among `size`. The `first`, rank 0, is the one that writes and prints."""

    rank, size = 0, 1
    turn, turns = 0, 0  # among those on one GPU; 0 turns where each has its own

    def __init__(self, restarts: bool = False):
        """restarts: whether torchrun starts ranks anew when one is lost."""
        self.restarts = restarts

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's share: every size-th."""
        return items[self.rank :: self.size]

    def whole(self, shares: Sequence[Sequence[T]]) -> list[T]:
        """What every rank's share was made into, in the order of `items`."""
        together: list[T] = [None] * sum(map(len, shares))
        for rank, share in enumerate(shares):
            together[rank :: self.size] = share
        return together

    def gather(self, value: T, kind: Any) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank. kind: its type, as msgspec decodes it.

        Raises RankLostError where a rank has ended.
        """
        return [value]

    def meet(self) -> None:
        """Wait until all ranks are here. Raises RankLostError where one has ended."""
        self.gather(None, None)

    def add_up(self, numbers_X: "torch.Tensor") -> "torch.Tensor":
        """The sum over ranks, equal to the last bit on all. Raises RankLostError where a rank has ended."""
        return numbers_X

    def first_ahead(self) -> AbstractContextManager[None]:
        """The first does what is within it, then the others: what one leaves on disk, they find. It may take a day."""
        return nullcontext()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Where ranks share GPUs, one after the other does what is within: vLLM's start counts what others take or free."""
        for _ in range(self.turn):
            self.meet()
        yield
        for _ in range(self.turn, self.turns):
            self.meet()

    def sharing(self, device: str) -> int:
        """How many ranks share the memory of this one's device, "cuda" or "cpu"."""
        return 1

    def need(self, prompts: int) -> None:
        """Raises UserError where a step's prompts are too few for all to have one."""
        if prompts < self.size:
            raise UserError(f"rollout.prompts_per_step = {prompts}: {self.size} ranks need as many; raise it or start fewer")

    def agree(self, what: str, value: str, cure: str) -> None:
        """Raises UserError where a rank has another value than the first."""
        for rank, theirs in enumerate(values := self.gather(value, str)):
            if theirs != (ours := values[0]):
                at = next(n for n, (a, b) in enumerate(zip_longest(theirs, ours)) if a != b)
                near = slice(max(0, at - 30), at + 50)
                raise UserError(f"rank {rank} has another {what} than rank 0 ({theirs[near]!r}, not {ours[near]!r}); {cure}")

    def about(self, device: str) -> str:
        """In words: how many, and how gradients travel between them."""
        return "one rank"

    def taken(self) -> Metrics:
        """Seconds since the last call: this rank's wait for others, and the sum of gradients. Empty for a rank alone."""
        return {}

    def close(self) -> None:
        """At the end of a run that went well: end NCCL, which complains otherwise."""

    def last_word(self, message: str) -> str:
        """What of a last message this rank should print: "" where the first says the same."""
        return message


ALONE = Ranks()


class Joined(Ranks):
    """One of several."""

    def __init__(self, store: "Store", rank: int, size: int, local_rank: int = 0, local_size: int = 1, gpus: int = 0,
                 restarts: bool = False):
        """Meet the others. local: among the ranks of this machine, which has so many GPUs, dealt out in turn."""
        from torch.distributed import PrefixStore, ProcessGroupGloo

        super().__init__(restarts)
        self.rank, self.size, self._store = rank, size, store
        self._seconds = {"wait": 0.0, "allreduce": 0.0}
        try:
            self._talk: ProcessGroup | None = ProcessGroupGloo(PrefixStore("talk", store), rank, size, PATIENCE)
        except RuntimeError as error:
            raise lost(error) from None
        self._sums: ProcessGroup | None = None  # NCCL's, once there is a gradient
        self._local_size, self._gpus = local_size, gpus
        self.turn = local_rank // gpus if gpus else 0
        last = max(self.gather(self.turn, int))
        self.turns = last + 1 if last else 0
        self._nccl = all(self.gather(gpus > 0, bool)) and not last

    def first_ahead(self) -> AbstractContextManager[None]:
        """See Ranks."""
        return first_ahead(self, PATIENCE.total_seconds() / 10)

    def sharing(self, device: str) -> int:
        """See Ranks."""
        return -(-self._local_size // self._gpus) if device == "cuda" else self._local_size

    def about(self, device: str) -> str:
        """See Ranks."""
        way = "NCCL" if self._nccl and device == "cuda" else "gloo, through the hosts' memory"
        return f"{self.size} ranks, gradients over {way}"

    def gather(self, value: T, kind: Any) -> list[T]:
        """See Ranks."""
        import torch

        mine = torch.frombuffer(bytearray(msgspec.msgpack.encode(value, enc_hook=float)), dtype=torch.uint8)  # NumPy's
        started = time.perf_counter()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        self._run(lambda: self._talk.allgather([sizes], [torch.tensor([len(mine)])]))
        self._seconds["wait"] += time.perf_counter() - started
        longest = max(int(n) for n in sizes)
        padded = torch.cat([mine, mine.new_zeros(longest - len(mine))])
        theirs = [torch.empty_like(padded) for _ in range(self.size)]
        self._run(lambda: self._talk.allgather([theirs], [padded]))
        decoder = msgspec.msgpack.Decoder(kind)
        return [decoder.decode(t[: int(n)].numpy().tobytes()) for t, n in zip(theirs, sizes, strict=True)]

    def add_up(self, numbers_X: "torch.Tensor") -> "torch.Tensor":
        """See Ranks."""
        from torch import cuda

        if numbers_X.is_cuda:
            cuda.synchronize()
        self.meet()  # who comes last is not the sum's fault
        started = time.perf_counter()
        if self._nccl and numbers_X.is_cuda:
            total_X, over_nccl = numbers_X.clone(), self._over_nccl()
            self._run(lambda: over_nccl.allreduce([total_X]))
            cuda.synchronize()
        else:
            total_X = numbers_X.detach().to("cpu", copy=True)
            self._run(lambda: self._talk.allreduce([total_X]))
            total_X = total_X.to(numbers_X.device)
        self._seconds["allreduce"] += time.perf_counter() - started
        return total_X

    def taken(self) -> Metrics:
        """See Ranks."""
        taken = {f"time/{name}_s": seconds for name, seconds in self._seconds.items()}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return taken

    def close(self) -> None:
        """See Ranks."""
        if self._sums is not None:
            with suppress(RuntimeError):  # the run is done, and saved
                self._sums.shutdown()

    def last_word(self, message: str) -> str:
        """See Ranks."""
        try:
            if self.first:
                self._store.set("last word", message)
                return message
            self._talk = None  # which tells the first that this one has ended, if it waits
            self._store.wait(["last word"], HEARD)
            if self._store.get("last word").decode() == message:
                return ""
        except RuntimeError:  # the first lives, or torchrun's store does not
            pass
        return f"rank {self.rank}: {message}"

    def _over_nccl(self) -> "ProcessGroup":
        if self._sums is None:
            from torch.distributed import PrefixStore, ProcessGroupNCCL

            os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # wait() then raises where a rank is lost, and does not hang
            options = ProcessGroupNCCL.Options()
            options._timeout = SUMMING
            self._sums = ProcessGroupNCCL(PrefixStore("sums", self._store), self.rank, self.size, options)
        return self._sums

    @staticmethod
    def _run(start: "Callable[[], Work]") -> None:
        from torch import OutOfMemoryError

        try:
            start().wait()
        except OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise lost(error) from None


def lost(error: RuntimeError) -> RankLostError:
    """What a process group says when another rank does not answer."""
    return RankLostError(f"another rank has ended, or was not heard of for too long ({' '.join(str(error).split())[-200:]})")
