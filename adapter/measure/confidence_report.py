"""What adapter.evaluate says of confidence: how calibrated, at which cost, and what a threshold would do."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from adapter.confidence import AUTO, Calibration, Token
from adapter.measure import calibration
from adapter.measure.answering import Cost
from adapter.measure.calibration import BINS, Gate, Quality
from adapter.measure.outcomes import Outcome
from adapter.measure.tables import CELL, LABEL, WIDTH, counts, cut, lift, percent, plain
from adapter.verdict import box_places

COMPLETION, BOX, AGREEMENT = "completion", "box", "agreement"  # estimators, in report.json; the first one is used
EXAMPLES = {  # verdict, right, and whether the surest of them is shown, or the least sure
    "surest wrong override": ("override", False, True), "least sure right override": ("override", True, False),
    "surest wrong agreement": ("correct", False, True), "least sure right agreement": ("correct", True, False)}


@dataclass(frozen=True)
class Estimate:
    """One way to be sure, on the test questions: with the temperature that was fitted on validation, and without."""

    label: str
    temperature: float
    note: str  # what is wrong with it; "" for nothing
    before: Quality
    after: Quality
    cost: Cost  # beside the greedy pass, of all questions


@dataclass(frozen=True)
class Confidence:
    """What was found. The outcomes have their confidence."""

    calibration: Calibration
    estimates: Mapping[str, Estimate]
    greedy: Cost  # of the greedy pass, of all questions
    validation: Sequence[Outcome]
    test: Sequence[Outcome]
    harm_below: float | None  # the share that was asked for

    @property
    def questions(self) -> int:
        """How many were asked."""
        return len(self.validation) + len(self.test)


Logps = Sequence[float | None]  # of each question, the log-probability that an estimator gives the answer


def measured(step: int, validation: Sequence[Outcome], test: Sequence[Outcome], greedy: Cost, harm_below: float | None,
             agreements: tuple[str, Logps, Logps, Cost] | None = None) -> Confidence:
    """Everything above. agreements: their label, theirs on validation, theirs on test, and what they cost."""
    ways = {COMPLETION: ("all tokens", [o.mean_logp for o in validation], [o.mean_logp for o in test], Cost()),
            BOX: ("the box", [o.box_logp for o in validation], [o.box_logp for o in test], Cost())}
    if agreements is not None:
        ways[AGREEMENT] = agreements
    estimates = {name: estimated(*way, validation, test) for name, way in ways.items()}
    fitted = Calibration(step, estimates[COMPLETION].temperature)
    validation, test = ([replace(o, confidence=fitted(o.mean_logp)) for o in of] for of in (validation, test))
    threshold = None if harm_below is None else calibration.choose(validation, harm_below)
    return Confidence(Calibration(step, fitted.temperature, threshold), estimates, greedy, validation, test, harm_below)


def estimated(label: str, on_validation: Logps, on_test: Logps, cost: Cost, validation: Sequence[Outcome],
              test: Sequence[Outcome]) -> Estimate:
    """The temperature of an estimator, fitted on validation, and what it is worth on test."""
    answers = [(logp, o.right) for logp, o in zip(on_validation, validation, strict=True) if logp is not None]
    temperature, note = calibration.fit_temperature([logp for logp, _ in answers], [right for _, right in answers])
    right, fitted = [o.right for o in test], Calibration(0, temperature)
    before, after = (calibration.quality([how(logp) for logp in on_test], right) for how in (Calibration(0), fitted))
    return Estimate(label, temperature, note, before, after, cost)


def lines(found: Confidence) -> list[str]:
    """The section of report.txt."""
    estimates, of, right = list(found.estimates.values()), found.questions, [o.right for o in found.test]
    answers = [o for o in found.validation if o.mean_logp is not None]
    rows = [("", [e.label for e in estimates]),
            ("temperature", [f"{e.temperature:.3g}" for e in estimates]),
            ("expected calibration error", [_change(e, "ece") for e in estimates]),
            ("negative log-likelihood", [_change(e, "nll") for e in estimates]),
            ("Brier score", [_change(e, "brier") for e in estimates]),
            ("AURC", [f"{e.after.aurc:.4f}" for e in estimates]),
            ("more tokens a question", [f"{e.cost.tokens / of:.1f}" for e in estimates]),
            ("more seconds a question", [f"{e.cost.seconds / of:.2g}" for e in estimates])]
    best, none = (sum(calibration.risk_coverage(order, right)) / len(right) for order in (right, [1.0] * len(right)))
    told = [f"fitted on {len(answers)} answers of validation, {sum(not o.right for o in answers)} of them wrong; errors "
            f"are on {len(right)} test questions, without -> with it, the first in {BINS} bins of as many questions each",
            f"AURC would be {best:.4f} in a perfect order, and is {none:.4f} in none",
            f"the greedy pass: {found.greedy.tokens / of:.1f} tokens and {found.greedy.seconds / of:.2g} seconds a question",
            *(f"note: of the temperature of {e.label}: {e.note}" for e in estimates if e.note)]
    return ["confidence: the probability that the adapter's verdict is right",
            *(f"{name:<{LABEL}}" + "".join(f"{cell:>{CELL}}" for cell in cells) for name, cells in rows),
            *(line for text in told for line in textwrap.wrap(text, WIDTH)), "",
            *_gate_table(calibration.gates(found.test)), *_harm_lines(found), *_token_view(found.test)]


def data(found: Confidence) -> dict[str, object]:
    """The same and more, for report.json."""
    risks = calibration.risk_coverage(_confidences(found.test), [o.right for o in found.test])
    chosen = None if found.harm_below is None else {
        "share": found.harm_below, "threshold": found.calibration.threshold,
        **{split: _gate(calibration.gate(of, found.calibration.threshold))
           for split, of in (("validation", found.validation), ("test", found.test))},
        "note": _too_few(found)}
    return {**asdict(found.calibration), "bins": BINS, "questions": found.questions, "greedy": asdict(found.greedy),
            "estimators": {name: asdict(estimate) for name, estimate in found.estimates.items()},
            "reliability": {name: [asdict(b) for b in bins] for name, bins in reliabilities(found).items()},
            "risk_coverage": [[(at + 1) / len(risks), risk] for at, risk in enumerate(risks)],
            "thresholds": [_gate(gate) for gate in calibration.gates(found.test)], "harm_below": chosen}


def reliabilities(found: Confidence) -> dict[str, list[calibration.Bin]]:
    """Bins of the test questions, before and after the temperature."""
    right, plainly = [o.right for o in found.test], Calibration(0)
    return {"before": calibration.reliability([plainly(o.mean_logp) for o in found.test], right),
            "after": calibration.reliability(_confidences(found.test), right)}


def token_line(outcome: Outcome) -> str:
    """The last box, token by token, each with its probability behind it: \\boxed{ 4 .98 2 .61 } .99; and the least sure."""
    whole, (start, _) = "".join(token.text for token in outcome.box), box_places(outcome.completion)[-1]
    begins = next((at for at in range(start, -1, -1) if outcome.completion.startswith(whole, at)), start)
    shown = " ".join([outcome.completion[start - len("\\boxed{") : begins], *map(_token, outcome.box)])
    return shown if outcome.doubt is None else f"{shown} | least sure of: {_token(outcome.doubt)}"


def _confidences(outcomes: Sequence[Outcome]) -> list[float]:
    return [outcome.confidence for outcome in outcomes]


def _change(estimate: Estimate, name: str) -> str:
    return f"{getattr(estimate.before, name):.4f} -> {getattr(estimate.after, name):.4f}"


def _gate_table(gates: Sequence[Gate]) -> list[str]:
    return ["on test: the API's answer stands below a threshold, above 0 also where the adapter has none",
            f"{'threshold':<14}{'overrides':>10}{'fixes':>8}{'harms':>8}{'harm rate':>22}{'net lift, points':>{CELL}}",
            *(f"{gate.threshold:<14.6g}{gate.overrides:>10}{gate.made.fixes:>8}{gate.made.harms:>8}"
              f"{counts(gate.made.harm_rate):>22}{lift(gate.made.net_lift):>{CELL}}" for gate in gates)]


def _harm_lines(found: Confidence) -> list[str]:
    if found.harm_below is None:
        return []
    on_validation, on_test = (calibration.gate(of, found.calibration.threshold) for of in (found.validation, found.test))
    told = [f"harm below {100 * found.harm_below:g} %: threshold {found.calibration.threshold:.6g}"
            + {0.0: ", which lets everything through", 1.0: ", which lets nothing through"}.get(on_test.threshold, "")
            + f" (--threshold {AUTO}), chosen on validation: {_made(on_validation)}", f"on test: {_made(on_test)}",
            *([f"note: {few}"] if (few := _too_few(found)) else [])]
    return ["", *(line for text in told for line in textwrap.wrap(text, WIDTH))]


def _too_few(found: Confidence) -> str:
    return calibration.too_few(sum(o.api_right for o in found.validation), found.harm_below)


def _made(gate: Gate) -> str:
    rate = gate.made.harm_rate
    within = "" if rate.low is None else f" [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    return (f"fixes {gate.made.fixes}, harms {gate.made.harms} of {rate.of} right answers ({percent(rate.value)}{within}), "
            f"net lift {lift(gate.made.net_lift)} points")


def _gate(gate: Gate) -> dict[str, object]:
    made = gate.made
    return {"threshold": gate.threshold, "overrides": gate.overrides, "fixes": made.fixes, "harms": made.harms,
            "harm_rate": asdict(made.harm_rate), "net_lift": asdict(made.net_lift), "mcnemar_p": made.mcnemar_p}


def _token_view(outcomes: Sequence[Outcome]) -> list[str]:
    shown = []
    for name, (verdict, right, surest) in EXAMPLES.items():
        of = [o for o in outcomes if o.verdict == verdict and o.right == right and o.box]
        if of:
            one = (max if surest else min)(of, key=lambda o: o.confidence)
            known = (f"{cut(one.row.question, 30)} | true: {cut(plain(one.row.answer), 12)} | "
                     f"API: {cut(one.api_extracted or 'none', 12)}")
            shown += [f"  {f'{name} {percent(one.confidence)}':<36}{known}", f"      {cut(token_line(one), WIDTH - 6)}"]
    return ["", "the tokens of a box, each with its probability behind it", *shown] if shown else []


def _token(token: Token) -> str:
    """Its spaces are part of it; the stop token has no text."""
    text = token.text.replace(" ", "\u2423").replace("\n", "\\n") or "(end)"
    return f"{text} {f'{math.exp(token.logp):.2f}'.removeprefix('0')}"
