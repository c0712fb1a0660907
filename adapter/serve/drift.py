"""Is what the API answers still what the adapter was trained on? The last exchanges against the run's own data set.

Four quantities: the share of CORRECT among the adapter's verdicts, the API's accuracy where truths are known, the share of
its texts that hold no answer, and the length of its texts. A window of each is compared with the reference: shares by
Fisher's exact test, lengths by the test of Mann and Whitney, two-sided both, as the reference is a sample too. The window is
looked at each time that a tenth of it is new. An alarm rings once, where p < 0.001, and clears where p > 0.05. Of streams of
10,000 exchanges in which nothing changed, 1 to 9 % had an alarm of a quantity (benchmarks/gateway_risks.md).
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scipy.stats import fisher_exact, mannwhitneyu

from adapter.measure.records import Record
from adapter.serve.exchange import Exchange
from adapter.serve.truths import Judgement
from adapter.verdict import Verdict
from grpo.run.files import read_lines

NAMES = {"correct": "share of CORRECT", "api_right": "the API's accuracy",
         "no_answer": "share of API texts without an answer", "length": "median length of API texts"}
WINDOW = 500  # exchanges
LOOKS = 10  # a window
RINGS, CLEARS = 0.001, 0.05  # p
VALIDATION = Path("evaluate") / "validation.jsonl"  # in a run

log = logging.getLogger(__name__)


class _Answered(Record):
    """A line of validation.jsonl."""

    verdict: Verdict
    api_answer: str | None
    api_extracted: str | None
    api_right: bool


@dataclass(frozen=True)
class Reference:
    """What each quantity was: one number an answer, 0 or 1 for the shares. Empty: not known, and not watched."""

    correct: Sequence[float] = ()
    api_right: Sequence[float] = ()
    no_answer: Sequence[float] = ()
    length: Sequence[float] = ()  # characters


@dataclass(frozen=True)
class Change:
    """An alarm that rings, or one that clears."""

    name: str  # one of NAMES
    rings: bool
    line: str  # for the log


@dataclass
class _Watch:
    """One quantity."""

    test: Literal["share", "rank"]
    reference: Sequence[float]
    window: deque[float]
    new: int = 0  # since the last look
    rings: bool = False
    p: float | None = None  # at the last look
    said: str = ""  # when the alarm last rang or cleared


def reference(run: Path) -> Reference:
    """What a run's validation questions were, and were answered, as `python -m adapter.evaluate RUN` found; empty where that
    was not called. Raises UserError where validation.jsonl is damaged."""
    path = run / VALIDATION
    if not path.is_file():
        return Reference()
    lines = [line for _, line in read_lines(path, _Answered, f"python -m adapter.evaluate {run} writes it anew")]
    return Reference([float(line.verdict == "correct") for line in lines], [float(line.api_right) for line in lines],
                     [float(line.api_extracted is None) for line in lines],
                     [float(len(line.api_answer or "")) for line in lines])


class Drift:
    """Watches exchanges. It is called from one thread."""

    def __init__(self, reference: Reference, window: int = WINDOW):
        """window: how many of the last values are compared."""
        self._size, self._reference = window, None
        self.compare_with(reference)

    def compare_with(self, reference: Reference) -> None:
        """Begin anew where this is another reference than so far. From any thread."""
        if reference == self._reference:
            return
        self._reference = reference
        self._watched = {name: _Watch("rank" if name == "length" else "share", values, deque(maxlen=self._size))
                         for name in NAMES if (values := getattr(reference, name))}

    def __call__(self, exchange: Exchange, judgement: Judgement | None = None) -> list[Change]:
        """Count an exchange; judgement: of Truths, where it knows one. Returns the alarms that ring or clear now, and logs
        them."""
        watched = self._watched
        return [change for name, value in _values(exchange, judgement).items()
                if name in watched and (change := self._look(name, watched[name], value))]

    @property
    def rings(self) -> dict[str, bool]:
        """Each watched quantity, and whether its alarm rings."""
        return {name: watch.rings for name, watch in self._watched.items()}

    @property
    def ringing(self) -> list[str]:
        """The lines of the alarms that ring, as they were when they rang."""
        return [watch.said for watch in self._watched.values() if watch.rings]

    def values(self) -> dict[str, tuple[float, float]]:
        """Of each quantity whose window is full: what it is in the window, and what it was in the reference."""
        return {name: (_typical(watch, watch.window), _typical(watch, watch.reference))
                for name, watch in self._watched.items() if len(watch.window) == self._size}

    def _look(self, name: str, watch: _Watch, value: float) -> Change | None:
        watch.window.append(value)
        watch.new += 1
        if len(watch.window) < self._size or watch.new < max(1, self._size // LOOKS):
            return None
        watch.new, watch.p = 0, p_value(watch.test, watch.window, watch.reference)
        if watch.rings == (watch.p < RINGS) or (watch.rings and watch.p <= CLEARS):
            return None
        watch.rings = not watch.rings
        watch.said = _told(name, watch)
        change = Change(name, watch.rings, watch.said)
        (log.warning if change.rings else log.info)("drift: %s", change.line)
        return change


def p_value(test: Literal["share", "rank"], window: Sequence[float], reference: Sequence[float]) -> float:
    """How probable a difference as large as this is where nothing has changed, two-sided, in [0, 1]."""
    if test == "share":
        hits, of = (round(sum(values)) for values in (window, reference))
        return float(fisher_exact([[hits, len(window) - hits], [of, len(reference) - of]]).pvalue)
    if len({*window, *reference}) == 1:
        return 1.0  # all alike: ranks say nothing
    return float(mannwhitneyu(list(window), list(reference), method="asymptotic").pvalue)


def _values(exchange: Exchange, judgement: Judgement | None) -> dict[str, float]:
    """What an exchange says of each quantity."""
    if exchange.question is None or exchange.api_text is None:
        return {}  # not of the adapter's kind, or no answer of the API
    found = {"no_answer": float(exchange.api_extracted is None), "length": float(len(exchange.api_text))}
    if exchange.verdict is not None:
        found["correct"] = float(exchange.verdict == "correct")
    if judgement is not None:
        found["api_right"] = float(judgement in ("harm", "both right"))
    return found


def _typical(watch: _Watch, values: Sequence[float]) -> float:
    return sum(values) / len(values) if watch.test == "share" else sorted(values)[len(values) // 2]


def _told(name: str, watch: _Watch) -> str:
    now, before = (_typical(watch, values) for values in (watch.window, watch.reference))
    shown = [f"{value:.1%}" if watch.test == "share" else f"{value:.0f} characters" for value in (now, before)]
    what = "has left the reference" if watch.rings else "is back"
    return (f"{NAMES[name]} {what}: {shown[0]} of the last {len(watch.window)}, {shown[1]} of the reference's "
            f"{len(watch.reference)} (p = {watch.p:.1g})" + (
                "; the API, or what it is asked, has changed: measure again, and train on what was captured"
                if watch.rings else ""))
