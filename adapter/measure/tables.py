"""The tables of an evaluation in plain text, at most WIDTH columns."""

import json
import math
from collections.abc import Sequence

from adapter.measure.accuracy import OVERALL, AgainstApi, Entry, Lift, Share, kinds_of
from adapter.measure.outcomes import Outcome
from grpo.run.files import printable

WIDTH = 100
BESIDE = 2  # kinds, up to which they stand beside each other
LABEL, CELL = 30, 23  # columns
EXAMPLES = 3  # of each class of failure
NONE = Share(None, 0)


def accuracy_table(entries: Sequence[Entry]) -> list[str]:
    """Accuracies by kind, where the kinds are few and more than one, and overall; a row a policy."""
    kinds = kinds_of(entries[0].accuracy)
    columns = [*(kinds if 1 < len(kinds) <= BESIDE else []), OVERALL]
    label = min(max(len(entry.label) for entry in entries), WIDTH - 24 * len(columns))
    head = " " * label + "".join(f"{cut(kind, 23):>10}".ljust(24) for kind in columns)
    return [head.rstrip(), *(f"{cut(entry.label, label):<{label}}" + "".join(
        _interval(entry.accuracy.get(kind, NONE)) for kind in columns).rstrip() for entry in entries)]


def api_table(entries: Sequence[Entry]) -> list[str]:
    """What each chain makes of the API's answers, overall."""
    chains = [entry for entry in entries if entry.against_api]
    made = [entry.against_api[OVERALL] for entry in chains]
    rows = [("", [cut(entry.label, CELL - 1) for entry in chains]),
            ("repair rate (wrong -> right)", [counts(m.repair_rate) for m in made]),
            ("harm rate (right -> wrong)", [counts(m.harm_rate) for m in made]),
            ("fixes / harms", [ratio(m) for m in made]),
            ("net lift, points", [lift(m.net_lift) for m in made]),
            ("exact McNemar p", [f"{m.mcnemar_p:.2g}" for m in made]),
            ("precision of CORRECT", [counts(m.correct_precision) for m in made]),
            ("recall of CORRECT", [counts(m.correct_recall) for m in made])]
    return [f"{name:<{LABEL}}" + "".join(f"{cell:>{CELL}}" for cell in cells) for name, cells in rows]


def kind_table(api: Entry, adapter: Entry) -> list[str]:
    """The chain against the API by kind: a row a kind; of one kind alone there is none."""
    kinds = kinds_of(adapter.accuracy)
    if len(kinds) < 2:
        return []
    label = min(28, max(len(kind) for kind in [*kinds, OVERALL]))
    lines = [f"{'':<{label}}{'of':>7}{'API':>9}{'adapter':>9}{'net lift, points':>{CELL}}{'fixes':>8}{'harms':>7}{'p':>9}"]
    for kind in [*kinds, OVERALL]:
        made, share = adapter.against_api[kind], adapter.accuracy[kind]
        lines.append(f"{cut(kind, label):<{label}}{share.of:>7}{percent(api.accuracy[kind].value):>9}"
                     f"{percent(share.value):>9}{lift(made.net_lift):>{CELL}}{made.fixes:>8}{made.harms:>7}"
                     f"{made.mcnemar_p:>9.2g}")
    return lines


def failure_table(who: str, outcomes: Sequence[Outcome], classes: Sequence[str]) -> list[str]:
    """How many completions failed in each way, with examples."""
    lines = [f"failures of the {who}: {sum(not o.right for o in outcomes)} of {len(outcomes)}"]
    width = max(16, *(len(failure) + 1 for failure in classes))
    for failure in classes:
        failed = [o for o in outcomes if o.failure == failure]
        lines.append(f"  {failure:<{width}}{len(failed):>5}")
        lines += [f"      {_example(o)}" for o in failed[:EXAMPLES]]
    return lines


def percent(value: float | None) -> str:
    """A share in [0, 1]."""
    return "-" if value is None else f"{100 * value:.1f} %"


def counts(share: Share) -> str:
    """A share and what it is of."""
    return percent(share.value) + (f" ({share.hits}/{share.of})" if share.of and share.hits is not None else "")


def ratio(made: AgainstApi) -> str:
    """Fixes over harms, and both."""
    shown = "-" if made.ratio is None else "infinite" if math.isinf(made.ratio) else f"{made.ratio:.1f}" \
        if made.ratio >= 10 else f"{made.ratio:.2f}"
    return f"{shown} ({made.fixes}/{made.harms})"


def lift(found: Lift) -> str:
    """Points, and their interval."""
    return "-" if found.points is None else f"{found.points:+.1f} [{found.low:.1f}, {found.high:.1f}]"


def plain(value: object) -> str:
    """An answer of a data set: a text as it is, else JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def cut(value: object, most: int) -> str:
    """A text on one line, printable, cut after `most` characters."""
    text = printable(" ".join(str(value)[: 4 * most + 100].split()))
    return text if len(text) <= most else text[: max(0, most - 3)] + "..."


def _example(outcome: Outcome) -> str:
    """Question, answers and completion on one line. Of a long completion its start and its end, where the answer is."""
    known = (f"{cut(outcome.row.question, 34)} | true: {cut(plain(outcome.row.answer), 14)} | "
             f"API: {cut(outcome.api_extracted or 'none', 14)} | ")
    room, text = WIDTH - 6 - len(known), outcome.completion
    wrote = cut(text, len(text) * 10 + room) if len(text) <= 2 * room else None
    if wrote is None or len(wrote) > room:
        start = printable(" ".join(text[: 2 * room].split()))[: room // 3].rstrip()
        end = printable(" ".join(text[-2 * room :].split()))
        wrote = f"{start} ... {end[len(start) + 5 - room :].lstrip()}"
    return known + wrote


def _interval(share: Share) -> str:
    bounds = "" if share.low is None else f"[{100 * share.low:.1f}, {100 * share.high:.1f}]"
    return f"{percent(share.value):>10} {bounds:<13}"
