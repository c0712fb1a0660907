"""What watches a gateway: truths judge, drift compares, the page counts. In a thread, as a verifier may be slow."""

from dataclasses import dataclass

from adapter.serve.background import Background
from adapter.serve.drift import Drift
from adapter.serve.exchange import Exchange
from adapter.serve.recent import Recent
from adapter.serve.truths import Truths


@dataclass
class Watch:
    """An observer of exchanges. Call it from anywhere; it returns at once. `queue.lost` were not looked at."""

    recent: Recent
    truths: Truths | None = None
    drift: Drift | None = None

    def __post_init__(self) -> None:
        self.queue = Background(self._look, "watch")

    def __call__(self, exchange: Exchange) -> None:
        """Have an exchange looked at, later. Raises nothing."""
        self.queue(exchange)

    def close(self, seconds: float = 10.0) -> None:
        """Look at what waits; for so long at most."""
        self.queue.close(seconds)

    @property
    def notes(self) -> list[str]:
        """What is wrong now, a line each, for the page."""
        lines = [] if self.drift is None else self.drift.ringing
        if self.truths is not None and self.truths.failed:
            lines.append(f"truths: the verifier failed on {self.truths.failed} answers, which are not judged")
        if self.queue.lost:
            lines.append(f"{self.queue.lost} requests came too fast to be counted here")
        return lines

    def _look(self, exchange: Exchange) -> None:
        judged = proposed = None
        if self.truths is not None:
            judged, proposed = self.truths.judged(exchange), self.truths.proposed(exchange)
        self.recent(exchange, judged, proposed)
        if self.drift is not None:
            self.drift(exchange, judged)
