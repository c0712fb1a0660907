"""The two error rates of the drift alarms, by simulation: `python -m benchmarks.drift`.

False: nothing has changed, and an alarm rings. The reference is drawn from the same distribution as the stream, and is as
small as a validation split is. Missed, and how late: the API's accuracy falls, or its texts grow longer.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapter.measure.accuracy import share
from adapter.serve.drift import LOOKS, RINGS, WINDOW, Drift, Reference, p_value
from adapter.serve.exchange import Exchange

STREAMS, LONG = 100, 10_000  # streams of so many exchanges
AFTER = 2_000  # exchanges after a change


@dataclass(frozen=True)
class Case:
    """A quantity of which nothing changes."""

    name: str
    test: str
    draw: object  # (rng, count) -> values


def lengths(rng: np.random.Generator, count: int, mean: float = 4.5) -> np.ndarray:
    """Of texts, in characters: log-normal, as answers' lengths are, about."""
    return np.round(rng.lognormal(mean, 0.6, count))


def looks(rng: np.random.Generator, case: Case, reference: int, long: int) -> list[bool]:
    """Whether each look at one stream is below the bound; the reference is drawn anew."""
    of, stream = case.draw(rng, reference), case.draw(rng, long)
    windows, known = [stream[at - WINDOW : at] for at in range(WINDOW, long + 1, WINDOW // LOOKS)], {}
    if case.test == "rank":
        return [p_value("rank", window, of) < RINGS for window in windows]
    for window in windows:  # a share's p depends on the hits alone
        if (hits := window.sum()) not in known:
            known[hits] = p_value("share", window, of) < RINGS
    return [known[window.sum()] for window in windows]


def false_alarms() -> None:
    """Print how many looks, and how many streams, ring for nothing."""
    cases = [Case(f"share of {p:.0%}", "share", lambda rng, n, p=p: (rng.random(n) < p).astype(float))
             for p in (0.02, 0.3, 0.7)] + [Case("lengths", "rank", lengths)]
    print(f"nothing changed: {STREAMS} streams of {LONG:,} exchanges each, window {WINDOW}, p < {RINGS}")
    for reference in (200, 1000):
        for case in cases:
            rng = np.random.default_rng(reference)
            found = [looks(rng, case, reference, LONG) for _ in range(STREAMS)]
            of_looks = share(sum(map(sum, found)), sum(map(len, found)))
            of_streams = share(sum(map(any, found)), STREAMS)
            first = share(sum(flags[0] for flags in found), STREAMS)
            print(f"  reference {reference:>5}  {case.name:<13} looks {of_looks.value:.3%}   first {first.value:.2%} "
                  f"[{first.low:.2%}, {first.high:.2%}]   streams {of_streams.value:.1%} [{of_streams.low:.1%}, "
                  f"{of_streams.high:.1%}]")


def delays() -> None:
    """Print how soon a change is seen, through Drift itself."""
    print(f"a change, reference 400, window {WINDOW}: exchanges until the alarm, of 100 streams of {AFTER:,} after it")
    for told, before, after in (("accuracy 70 to 60 %", 0.7, 0.6), ("accuracy 70 to 50 %", 0.7, 0.5),
                                ("accuracy 70 to 30 %", 0.7, 0.3)):
        rng, late = np.random.default_rng(1), []
        for _ in range(100):
            drift = Drift(Reference(api_right=list((rng.random(400) < before).astype(float))))
            for right in rng.random(WINDOW) < before:
                drift(_exchange(), "both right" if right else "both wrong")
            judged = ["both right" if right else "both wrong" for right in rng.random(AFTER) < after]
            late.append(next((at for at, one in enumerate(judged, 1)
                              if any(change.rings for change in drift(_exchange(), one))), None))
        _say(told, late)
    rng, late = np.random.default_rng(1), []
    for _ in range(100):
        drift = Drift(Reference(length=list(lengths(rng, 400))))
        for count in lengths(rng, WINDOW):
            drift(_exchange(int(count)))
        late.append(next((at for at, count in enumerate(lengths(rng, AFTER, 4.5 + np.log(1.3)), 1)
                          if any(change.rings for change in drift(_exchange(int(count))))), None))
    _say("texts 30 % longer", late)


def _say(told: str, late: Sequence[int | None]) -> None:
    seen = sorted(at for at in late if at is not None)
    median = f"median {seen[len(seen) // 2]}, latest {seen[-1]}" if seen else "never"
    print(f"  {told:<20} seen in {len(seen)} of {len(late)}: {median}")


def _exchange(characters: int = 9) -> Exchange:
    return Exchange("x", 0.0, "anthropic", "m", False, "on", "agreed", "", 200, question="?", api_text="x" * characters,
                    api_extracted="x")


if __name__ == "__main__":
    logging.disable()
    false_alarms()
    delays()
    sys.exit(0)
