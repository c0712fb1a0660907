"""How good the chain is: accuracies with intervals, and what the adapter changes about the API's answers.

Of n questions the API is wrong on some, and the chain mends (fixes) some of these; it is right on the others, and the chain
spoils (harms) some of those. Everything is by kind, in the order in which the kinds come in the data, and overall.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np
from scipy.stats import binomtest

from adapter.measure.outcomes import Outcome
from adapter.questions import Row
from grpo.types import Table

T = TypeVar("T")
OVERALL = "overall"
DRAWS, SEED = 10_000, 0  # of the bootstrap


@dataclass(frozen=True)
class Share:
    """A share in [0, 1] of `of` cases; None of none. `low`, `high`: its 95 % Wilson interval.

    An expectation, and a mean of rewards that are paid in part, have no hits and no interval.
    """

    value: float | None
    of: int
    hits: int | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Lift:
    """Accuracy of the chain minus the API's, in points (hundredths), and its 95 % interval; None of no questions."""

    points: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class AgainstApi:
    """What a chain makes of the API's answers."""

    repair_rate: Share  # fixes / API errors; also called fix rate
    harm_rate: Share  # harms / the API's right answers
    ratio: float | None  # fixes / harms, the improvement-to-degradation ratio; inf without harms, None without either
    net_lift: Lift
    mcnemar_p: float  # exact, two-sided: the chain against the API alone
    correct_precision: Share  # P(API right | said CORRECT)
    correct_recall: Share  # P(said CORRECT | API right)

    @property
    def fixes(self) -> int:
        """How many of the API's wrong answers end right."""
        return self.repair_rate.hits

    @property
    def harms(self) -> int:
        """How many of its right answers end wrong."""
        return self.harm_rate.hits


@dataclass(frozen=True)
class Entry:
    """A row of the tables: by kind, and overall."""

    label: str
    accuracy: dict[str, Share]
    against_api: dict[str, AgainstApi] | None = None  # of a chain whose answers are known


def share(hits: int, of: int) -> Share:
    """`hits` of `of`, with the Wilson interval."""
    if of == 0:
        return Share(None, 0, 0)
    interval = binomtest(hits, of).proportion_ci(confidence_level=0.95, method="wilson")
    return Share(hits / of, of, hits, float(interval.low), float(interval.high))


def api_alone(label: str, outcomes: Sequence[Outcome]) -> Entry:
    """The API without an adapter."""
    return Entry(label, {kind: share(sum(o.api_right for o in of), len(of)) for kind, of in split(outcomes).items()})


def chain(label: str, outcomes: Sequence[Outcome]) -> Entry:
    """An adapter behind the API."""
    by_kind = split(outcomes)
    return Entry(label, {kind: share(sum(o.right for o in of), len(of)) for kind, of in by_kind.items()},
                 {kind: against_api(of) for kind, of in by_kind.items()})


def expected(label: str, rows: Sequence[Row], values: Sequence[float | Fraction]) -> Entry:
    """Expected accuracies of a policy, from each row's probability that it is right."""
    return Entry(label, {kind: Share(float(sum(of) / len(of)) if of else None, len(of))
                         for kind, of in _by_kind(rows, values).items()})


def rewarded(label: str, outcomes: Sequence[Outcome]) -> Entry:
    """Mean rewards, as a run measures them: accuracies, unless the verifier pays for what is right in part."""
    by_kind = _by_kind([o.row for o in outcomes], [o.reward for o in outcomes])
    return recorded(label, {kind: sum(of) / len(of) for kind, of in by_kind.items() if of}, [o.row for o in outcomes], True)


def recorded(label: str, table: Table, rows: Sequence[Row], in_part: bool) -> Entry:
    """Accuracies that were measured on these rows before, as counts.

    in_part: the verifier may pay less than 1 for what is right in part; a mean that is no count stays a mean. Raises
    ValueError where they cannot be of these rows.
    """
    counts = {kind: len(of) for kind, of in _by_kind(rows, rows).items()}
    if others := sorted(set(table) - set(counts)):
        raise ValueError(f"{others[0]}: none of the problems is of that kind")
    accuracy = {}
    for kind, of in counts.items():
        hits = table.get(kind, 0.0) * of
        if (kind in table) != (of > 0) or not (in_part or _whole(hits)):
            raise ValueError(f"{kind}: {table.get(kind, 'nothing')} is no share of {of} problems")
        accuracy[kind] = share(round(hits), of) if _whole(hits) else Share(table[kind], of)
    return Entry(label, accuracy)


def against_api(outcomes: Sequence[Outcome]) -> AgainstApi:
    """What became of the API's answers to these questions."""
    was_right = [o for o in outcomes if o.api_right]
    was_wrong = [o for o in outcomes if not o.api_right]
    agreed = [o for o in outcomes if o.verdict == "correct"]
    kept = sum(o.api_right for o in agreed)
    fixes, harms = sum(o.right for o in was_wrong), sum(not o.right for o in was_right)
    ratio = fixes / harms if harms else math.inf if fixes else None
    return AgainstApi(share(fixes, len(was_wrong)), share(harms, len(was_right)), ratio,
                      net_lift(fixes, harms, len(outcomes)), mcnemar_p(fixes, harms), share(kept, len(agreed)),
                      share(kept, len(was_right)))


def mcnemar_p(fixes: int, harms: int) -> float:
    """Exact McNemar test: the probability of a split of the changed answers at least as uneven, by a fair coin."""
    return float(binomtest(fixes, fixes + harms, 0.5).pvalue) if fixes + harms else 1.0


def net_lift(fixes: int, harms: int, of: int) -> Lift:
    """100 (fixes - harms) / of, with the percentile interval of a paired bootstrap over the questions.

    A question counts 1, -1 or 0 for a fix, a harm, or neither. To draw `of` of them with replacement is to draw how many of
    each there are from a multinomial distribution, which takes the same time for any number of questions. Where all
    questions count alike the interval has no width: the bootstrap knows these questions alone.
    """
    if of == 0:
        return Lift(None)
    counts = np.random.default_rng(SEED).multinomial(of, [fixes / of, harms / of, (of - fixes - harms) / of], size=DRAWS)
    lifts = 100 * (counts[:, 0] - counts[:, 1]) / of
    low, high = np.quantile(lifts, (0.025, 0.975))
    return Lift(100 * (fixes - harms) / of, float(low), float(high))


def kinds_of(counts: Mapping[str, object]) -> list[str]:
    """The kinds of a table, without the whole."""
    return [kind for kind in counts if kind != OVERALL]


def split(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes by kind, in the order in which the kinds come, and overall."""
    return _by_kind([o.row for o in outcomes], outcomes)


def _by_kind(rows: Sequence[Row], values: Sequence[T]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = {}
    for row, value in zip(rows, values, strict=True):
        found.setdefault(row.kind, []).append(value)
    return found | {OVERALL: list(values)}


def _whole(hits: float) -> bool:
    return abs(hits - round(hits)) <= 1e-6
