"""The first rank does alone what may take a day, such as asking an API; the others wait for it, as long as it lives.

Ranks that wait for a message give up after a while. So the first sends one now and then, from a thread of its own: not yet.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo.ranks.ranks import Ranks


@contextmanager
def first_ahead(ranks: "Ranks", every: float) -> Iterator[None]:
    """The first does what is within it, with a message every so many seconds, then the others do.

    Raises RankLostError where a rank has ended: in the others at once, in the first when it is done.
    """
    if not ranks.first:
        while not ranks.gather(False, bool)[0]:
            pass
        yield
        return
    done = Event()

    def say_not_yet() -> None:
        while not done.wait(every):
            ranks.gather(False, bool)

    with ThreadPoolExecutor(1) as pool:
        saying = pool.submit(say_not_yet)
        try:
            yield
        finally:
            done.set()
    saying.result()  # raises what it raised
    ranks.gather(True, bool)
