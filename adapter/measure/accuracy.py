"""How good the chain is: accuracies with intervals, and what the adapter changes about the API's answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from scipy.stats import binomtest

from grpo.types import Table
from symbols.dataset import Row
from symbols.expression import Notation
from symbols.failures import Outcome, api_right, chance

T = TypeVar("T")
KINDS = ("custom", "standard", "overall")


@dataclass(frozen=True)
class Share:
    """A share in [0, 1] of `of` cases; None of none. `low`, `high`: its 95 % Wilson interval, None for an expectation."""

    value: float | None
    of: int
    hits: int | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class AgainstApi:
    """What a chain makes of the API's answers."""

    fix_rate: Share  # of the API's wrong answers, those that end right
    harm_rate: Share  # of the API's right answers, those that end wrong
    correct_precision: Share  # P(API right | said CORRECT)
    correct_recall: Share  # P(said CORRECT | API right)
    mcnemar_p: float  # exact, two-sided: the chain against the API alone


@dataclass(frozen=True)
class Entry:
    """A row of the tables."""

    label: str
    accuracy: dict[str, Share]  # by kind, and overall
    against_api: AgainstApi | None = None


def share(hits: int, of: int) -> Share:
    """`hits` of `of`, with the Wilson interval."""
    if of == 0:
        return Share(None, 0, 0)
    interval = binomtest(hits, of).proportion_ci(confidence_level=0.95, method="wilson")
    return Share(hits / of, of, hits, float(interval.low), float(interval.high))


def api_alone(label: str, rows: Sequence[Row]) -> Entry:
    """The API without an adapter."""
    return Entry(label, _counted(rows, [api_right(row) for row in rows]))


def random_mapping(label: str, rows: Sequence[Row], notation: Notation) -> Entry:
    """Reading the symbols at random and computing exactly (`chance`): its expected accuracy."""
    scores = _by_kind(rows, [chance(row, notation) for row in rows])
    return Entry(label, {kind: Share(float(sum(of) / len(of)) if of else None, len(of)) for kind, of in scores.items()})


def recorded(label: str, table: Table, rows: Sequence[Row]) -> Entry:
    """Accuracies that were measured on these rows before, as counts. Raises ValueError where they cannot be those."""
    accuracy = {}
    for kind, of in ((kind, len(chosen)) for kind, chosen in _by_kind(rows, rows).items()):
        hits = table.get(kind, 0.0) * of
        if (kind in table) != (of > 0) or abs(hits - round(hits)) > 1e-6:
            raise ValueError(f"{kind}: {table.get(kind, 'nothing')} is no share of {of} problems")
        accuracy[kind] = share(round(hits), of)
    return Entry(label, accuracy)


def chain(label: str, outcomes: Sequence[Outcome]) -> Entry:
    """An adapter behind the API."""
    was_right = [o for o in outcomes if api_right(o.row)]
    was_wrong = [o for o in outcomes if not api_right(o.row)]
    agreed = [o for o in outcomes if o.verdict == "correct"]
    kept = sum(api_right(o.row) for o in agreed)
    fixed, harmed = sum(o.right for o in was_wrong), sum(not o.right for o in was_right)
    return Entry(label, _counted([o.row for o in outcomes], [o.right for o in outcomes]), AgainstApi(
        share(fixed, len(was_wrong)), share(harmed, len(was_right)), share(kept, len(agreed)), share(kept, len(was_right)),
        mcnemar_p(fixed, harmed)))


def mcnemar_p(fixed: int, harmed: int) -> float:
    """Exact McNemar test: the probability of a split of the changed answers at least as uneven, by a fair coin."""
    return float(binomtest(fixed, fixed + harmed, 0.5).pvalue) if fixed + harmed else 1.0


def _counted(rows: Sequence[Row], right: Sequence[bool]) -> dict[str, Share]:
    return {kind: share(sum(hits), len(hits)) for kind, hits in _by_kind(rows, right).items()}


def _by_kind(rows: Sequence[Row], values: Sequence[T]) -> dict[str, list[T]]:
    """The rows' values: the custom ones, the standard ones, all."""
    return {kind: [value for row, value in zip(rows, values, strict=True) if kind in (row.kind, "overall")]
            for kind in KINDS}
