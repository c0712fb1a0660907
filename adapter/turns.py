"""Calls from any number of threads, made one at a time: what arrives meanwhile is the next call's, all of it together."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import RLock
from typing import Generic, TypeVar

from grpo.types import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Asked = tuple[Sequence[Item], Future]  # a caller's items, and what becomes of them


class Turns(Generic[Item, Result]):
    """A function from a list to a list of the same length, called from many threads."""

    lock = RLock()  # held while one runs: one for the process, as engines of vLLM share state; a chain may ask another

    def __init__(self, function: Callable[[Sequence[Item]], list[Result]]):
        self._function, self._waiting = function, []

    def __call__(self, items: Sequence[Item]) -> list[Result]:
        """The function's results for `items`. Raises UserError for these alone: one caller's mistake is no other's."""
        mine: Asked = (items, Future())
        self._waiting.append(mine)
        try:
            with self.lock:
                if not mine[1].done():
                    self._serve([asked for asked in self._waiting if not asked[1].done()])
        finally:
            self._waiting.remove(mine)
        return mine[1].result()

    def _serve(self, waiting: list[Asked]) -> None:
        try:
            results = iter(self._function([item for items, _ in waiting for item in items]))
        except UserError as error:
            if len(waiting) > 1:
                for asked in waiting:
                    self._serve([asked])
            else:
                waiting[0][1].set_exception(error)
            return
        for items, future in waiting:
            future.set_result([next(results) for _ in items])
