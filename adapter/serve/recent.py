"""What the page at / shows: the last exchanges, and sums over all of them."""

import math
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapter.serve.exchange import Exchange
from adapter.serve.truths import Judgement

SHOWN = 100  # exchanges on the page
TIMED = 1000  # of which the latency is told
LONGEST = 4000  # characters of a text that are kept for the page
TEXTS = ("question", "api_text", "api_extracted", "completion", "final")


@dataclass(frozen=True)
class Totals:
    """Since the gateway started."""

    actions: dict[str, int]  # requests by what was done
    whys: dict[str, int]  # kept and passed ones by why, the commonest first
    judged: dict[str, int]  # by what the caller got: "fix", "harm", "both right", "both wrong"
    proposed: dict[str, int]  # the same by what the adapter wrote
    api_seconds: Sequence[float]  # of the last TIMED, sorted
    added_seconds: Sequence[float]  # what the gateway took beside the API, of the last TIMED, sorted
    tokens: int
    cost: float  # US dollars, of the requests whose price is known
    unpriced: int  # requests that were answered, and have no known price


@dataclass(frozen=True)
class Shown:
    """An exchange, and what the truths say of it."""

    exchange: Exchange
    judged: Judgement | None
    proposed: Judgement | None


class Recent:
    """Counts exchanges. It may be called from any thread."""

    def __init__(self) -> None:
        self._lock, self._last = threading.Lock(), deque(maxlen=SHOWN)
        self._actions, self._whys, self._judged, self._proposed = (Counter() for _ in range(4))
        self._api, self._added = (deque(maxlen=TIMED) for _ in range(2))
        self._tokens, self._cost, self._unpriced = 0, 0.0, 0

    def __call__(self, exchange: Exchange, judged: Judgement | None = None, proposed: Judgement | None = None) -> None:
        """Count an exchange; judged and proposed: of Truths, where it knows the question."""
        with self._lock:
            self._last.appendleft(Shown(_short(exchange), judged, proposed))
            self._actions[exchange.action] += 1
            if exchange.why:
                self._whys[exchange.why] += 1
            for counter, judgement in ((self._judged, judged), (self._proposed, proposed)):
                if judgement is not None:
                    counter[judgement] += 1
            if exchange.api_seconds is not None:
                self._api.append(exchange.api_seconds)
                self._added.append(max(0.0, exchange.seconds - exchange.api_seconds))
            self._tokens += (exchange.input_tokens or 0) + (exchange.output_tokens or 0)
            self._cost += exchange.cost or 0.0
            self._unpriced += exchange.cost is None and exchange.status < 400

    @property
    def last(self) -> list[Shown]:
        """The last SHOWN, the newest first."""
        with self._lock:
            return list(self._last)

    @property
    def totals(self) -> Totals:
        """Sums over all."""
        with self._lock:
            return Totals(dict(self._actions), dict(self._whys.most_common()), dict(self._judged), dict(self._proposed),
                          sorted(self._api), sorted(self._added), self._tokens, self._cost, self._unpriced)


def _short(exchange: Exchange) -> Exchange:
    """With the beginnings of its texts."""
    long = {name: text for name in TEXTS if len(text := getattr(exchange, name) or "") > LONGEST}
    return replace(exchange, **{name: text[:LONGEST] + " ..." for name, text in long.items()}) if long else exchange


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest of sorted values that at least a share of them do not exceed. None where there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
