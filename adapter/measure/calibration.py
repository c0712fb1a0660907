"""Is a confidence worth its name? How calibrated it is, how well it puts right before wrong, and what a threshold does.

A confidence is the probability that the adapter's verdict is right. Below a threshold the API's answer stands, also where
the adapter gave none; at a threshold of 0 everything is as trained.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize_scalar

from adapter.confidence import COLDEST, HOTTEST, logit
from adapter.measure.accuracy import AgainstApi, Share, against_api, share
from adapter.measure.outcomes import Outcome
from grpo.run.files import brief
from grpo.types import UserError

BINS = 15
SHOWN = 10  # rows of a table of thresholds
DIGITS = 6  # of a threshold
RULE_OF_THREE = 3.0  # none of n seen: with 95 % probability the rate is below 3 / n


@dataclass(frozen=True)
class Bin:
    """Questions of similar confidence."""

    confidence: float  # the mean
    right: Share


@dataclass(frozen=True)
class Quality:
    """Of confidences, on questions whose answers are known. All but aurc see a temperature."""

    ece: float  # expected calibration error, of BINS bins
    nll: float  # mean negative log-likelihood, nats
    brier: float  # mean squared difference from right (1) or wrong (0)
    aurc: float  # area under the risk-coverage curve


@dataclass(frozen=True)
class Gate:
    """What becomes of the API's answers at a threshold."""

    threshold: float
    overrides: int  # the adapter's own answers that are let through
    made: AgainstApi


def fit_temperature(logps: Sequence[float], right: Sequence[bool]) -> tuple[float, str]:
    """The T at which sigmoid(logit(p) / T) makes `right` most probable, and what is wrong with it, in words, or ""

    It is 1 where nothing can be fitted: without answers, and where all are right or all are wrong.
    """
    if len(set(right)) < 2:
        which = f"all {len(right)} answers are {'right' if right[0] else 'wrong'}" if right else "there is no answer"
        return 1.0, f"it is not fitted: {which} on validation"
    signed = np.array([logit(logp) if r else -logit(logp) for logp, r in zip(logps, right, strict=True)])
    bounds = math.log(COLDEST), math.log(HOTTEST)
    found = minimize_scalar(lambda log_t: np.logaddexp(0, -signed * math.exp(-log_t)).sum(), bounds=bounds,
                            method="bounded", options={"xatol": 1e-9})
    far = min(found.x - bounds[0], bounds[1] - found.x) < 1e-3
    return math.exp(found.x), "none beyond it is tried: one temperature does not describe these answers" if far else ""


def quality(confidences: Sequence[float], right: Sequence[bool]) -> Quality:
    """Of at least one question's confidence."""
    c, r = np.asarray(confidences, float), np.asarray(right, float)
    nll = -np.log(np.where(r, np.maximum(c, 1e-15), 1 - c)).mean()
    return Quality(ece(reliability(confidences, right)), float(nll), float(((c - r) ** 2).mean()),
                   float(np.mean(risk_coverage(confidences, right))))


def reliability(confidences: Sequence[float], right: Sequence[bool], bins: int = BINS) -> list[Bin]:
    """Up to `bins` bins, of as equal numbers of questions as can be, the least sure first; equal confidences share one."""
    order = np.argsort(confidences, kind="stable")
    c, r = np.asarray(confidences, float)[order], np.asarray(right, bool)[order]
    places = np.searchsorted(c, c, "left") * bins // max(1, len(c))
    return [Bin(float(c[places == place].mean()), share(int(r[places == place].sum()), int((places == place).sum())))
            for place in np.unique(places)]


def ece(bins: Sequence[Bin]) -> float:
    """The mean of |confidence - share right| over the questions, by bin."""
    return sum(b.right.of * abs(b.confidence - b.right.value) for b in bins) / sum(b.right.of for b in bins)


def risk_coverage(confidences: Sequence[float], right: Sequence[bool]) -> list[float]:
    """The share of wrong answers among the surest 1, 2, ... questions; of equal confidences, the mean over their orders."""
    order = np.argsort(-np.asarray(confidences, float), kind="stable")
    c, wrong = np.asarray(confidences, float)[order], 1.0 - np.asarray(right, float)[order]
    _, block = np.unique(-c, return_inverse=True)
    expected = (np.bincount(block, wrong) / np.bincount(block))[block]
    return (np.cumsum(expected) / np.arange(1, len(c) + 1)).tolist()


def gated(outcomes: Sequence[Outcome], threshold: float) -> list[Outcome]:
    """The outcomes as they are with a threshold: the API's answers instead of what is below it."""
    return [replace(o, answer=o.api_extracted, right=o.api_right) if o.confidence < threshold else o for o in outcomes]


def gate(outcomes: Sequence[Outcome], threshold: float) -> Gate:
    """What becomes of the API's answers at a threshold."""
    through = sum(o.verdict == "override" and o.confidence >= threshold for o in outcomes)
    return Gate(threshold, through, against_api(gated(outcomes, threshold)))


def gates(outcomes: Sequence[Outcome]) -> list[Gate]:
    """At up to SHOWN thresholds: 0, as trained; those that let evenly spaced shares of the overrides through; 1, none."""
    steps = [t for t in _steps(outcomes) if 0 < t < 1]
    chosen = [steps[at * len(steps) // (SHOWN - 2)] for at in range(SHOWN - 2)] if steps else []
    return [gate(outcomes, threshold) for threshold in dict.fromkeys((0.0, *chosen, 1.0))]


def choose(outcomes: Sequence[Outcome], most_harm: float) -> float:
    """Of the thresholds that harm at most that share of the API's right answers the one of most net lift; the smallest."""
    allowed, best = most_harm * sum(o.api_right for o in outcomes), (-math.inf, 1.0)
    for threshold in dict.fromkeys(_steps(outcomes)):
        kept = [o for o in outcomes if o.confidence >= threshold]
        fixes, harms = sum(o.right and not o.api_right for o in kept), sum(o.api_right and not o.right for o in kept)
        if harms <= allowed + 1e-9 and fixes - harms > best[0]:
            best = fixes - harms, threshold
    return best[1]


def too_few(of: int, most_harm: float) -> str:
    """Why `of` right answers of the API on validation cannot tell whether the harm is below a share; "" where they can."""
    if of * most_harm >= RULE_OF_THREE:
        return ""
    if of == 0:
        return "validation has no right answer of the API, so that it says nothing of harm"
    enough = f"it takes {math.ceil(RULE_OF_THREE / most_harm):,}" if most_harm else "no number shows that there is no harm"
    return (f"validation has {of:,} right answers of the API: no harm to any of them leaves a harm rate of up to "
            f"{100 * min(1.0, RULE_OF_THREE / of):.1f} % (95 %, rule of three); {enough}")


def read_share(text: str) -> float:
    """A share as typed: 1% or 0.01. Raises UserError."""
    if found := re.fullmatch(r"(\d{1,2}(?:\.\d{1,6})?)%|(0(?:\.\d{1,9})?)", text.strip(), re.ASCII):
        return float(found[1]) / 100 if found[1] else float(found[2])
    raise UserError(f"--harm-below {brief(text, 40)}: expected a share of the API's right answers, below 1, such as 1% or "
                    "0.01")


def _steps(outcomes: Sequence[Outcome]) -> list[float]:
    """Thresholds at which something changes, ascending, from 0 to 1: each override's confidence, rounded down."""
    return sorted([0.0, 1.0, *(_down(o.confidence) for o in outcomes if o.verdict == "override")])


def _down(value: float) -> float:
    rounded = round(value, DIGITS)
    return rounded if rounded <= value else round(rounded - 10.0**-DIGITS, DIGITS)
