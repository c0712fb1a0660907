"""Work on exchanges that no answer waits for: a bounded queue, and a thread."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from adapter.serve.exchange import Exchange
from adapter.verifiers.worker import Caught

MOST_WAITING = 4096  # exchanges
PAUSE_S = 0.1  # for more to come: a thread that wakes for each exchange stops the event loop each time
MOST_CHARACTERS = 32 * 2**20  # of texts that wait

log = logging.getLogger(__name__)


class Background:
    """Calls a function with each exchange, in order, in a thread of its own. It may be called from any thread.

    `lost` exchanges found the queue full. `broken` ones made the function raise, which is logged, and ends nothing.
    """

    def __init__(self, work: Callable[[Exchange], None], name: str, at_end: Callable[[], None] = lambda: None):
        """Start the thread. name: in the log. at_end: called in the thread, after the last exchange."""
        self.lost = self.broken = 0
        self._work, self._name, self._at_end = work, name, at_end
        self._waiting: deque[Exchange] = deque()
        self._characters, self._closed, self._changed = 0, False, threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __call__(self, exchange: Exchange) -> None:
        """Put an exchange into the queue, and return. Raises nothing."""
        size = sum(len(text or "") for text in (exchange.question, exchange.api_text, exchange.completion))
        with self._changed:
            if self._closed or len(self._waiting) >= MOST_WAITING or self._characters + size > MOST_CHARACTERS:
                self.lost += 1
                return
            self._waiting.append(exchange)
            self._characters += size
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """How many exchanges are in the queue."""
        return len(self._waiting)

    def close(self, seconds: float = 10.0) -> None:
        """Work off what waits. Returns after `seconds` at the latest; what still waits is lost. Blocks: not for a loop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            self.lost += len(self._waiting)
            self._waiting.clear()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._closed:
                time.sleep(PAUSE_S)
            with self._changed:
                some, self._characters = list(self._waiting), 0
                self._waiting.clear()
            if not some:
                break
            for exchange in some:
                with Caught() as caught:
                    self._work(exchange)
                if caught.fault:
                    self.broken += 1
                    log.error("%s: %s", self._name, caught.fault)
        self._at_end()
