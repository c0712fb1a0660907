"""Two pictures of confidence, made for a slide: is it calibrated, and how wrong is the adapter where it is surest?"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context

from adapter.measure.accuracy import OVERALL, Entry
from adapter.measure.calibration import BINS, Bin, risk_coverage
from adapter.measure.confidence_report import Confidence, reliabilities
from adapter.measure.plots import BLUE, GREY, LONGEST_SUBTITLE, STYLE, VERMILLION, Label, canvas, finish
from adapter.measure.tables import cut

ROOM = 1.15  # above the highest risk


def draw_confidence(found: Confidence, api: Entry, folder: Path, subtitle: str) -> None:
    """Both pictures, into a folder."""
    bins, right = reliabilities(found), [o.right for o in found.test]
    sure, threshold = [o.confidence for o in found.test], found.calibration.threshold
    reliability_plot(folder / "reliability.png", bins["before"], bins["after"], found.calibration.temperature, subtitle)
    kept = None if threshold is None else sum(c >= threshold for c in sure) / len(sure)
    risk_coverage_plot(folder / "risk_coverage.png", risk_coverage(sure, right), 1 - api.accuracy[OVERALL].value,
                       api.label.removesuffix(" alone"), kept, subtitle)


def reliability_plot(path: Path, before: Sequence[Bin], after: Sequence[Bin], temperature: float, subtitle: str) -> None:
    """The share right over the confidence, by bin: filled, with 95 % intervals, after the temperature, hollow before it."""
    with rc_context(STYLE):
        of = f"{BINS} bins of as many test questions each; 95 % intervals"
        figure, axes = canvas("Confidence and accuracy", _below(subtitle, of), "confidence, %")
        axes.plot([0, 100], [0, 100], color=GREY, linewidth=2, linestyle=(0, (4, 3)))
        x, y = ([100 * v for v in values] for values in ([b.confidence for b in before], [b.right.value for b in before]))
        axes.plot(x, y, color=VERMILLION, linestyle="", marker="o", markersize=11, markerfacecolor="white",
                  markeredgewidth=2.5, clip_on=False, zorder=3)
        ends = [[100 * (b.right.value - b.right.low) for b in after], [100 * (b.right.high - b.right.value) for b in after]]
        axes.errorbar([100 * b.confidence for b in after], [100 * b.right.value for b in after], ends, color=BLUE, fmt="o",
                      markersize=11, elinewidth=2, capsize=5, clip_on=False, zorder=4)
        labels = [Label("calibrated", 1.0, GREY, bold=False), Label("before", before[-1].right.value, VERMILLION),
                  Label(f"after,\nT = {temperature:.3g}", after[-1].right.value, BLUE)]
        finish(figure, axes, labels, path)


def risk_coverage_plot(path: Path, risks: Sequence[float], api: float, name: str, kept: float | None, subtitle: str) -> None:
    """The share of wrong verdicts among the surest questions, over how many these are.

    api: the share that the API alone gets wrong, of all questions; name: the API's. kept: the share of the questions whose
    confidence reaches the chosen threshold, if one was.
    """
    top = min(1.0, ROOM * max(*risks, 0.01))
    with rc_context(STYLE):
        of = "wrong of the surest test questions"
        figure, axes = canvas("Risk and coverage", _below(subtitle, of), "coverage: share of the questions, surest first, %")
        axes.set_ylim(0, 100 * top)
        axes.yaxis.set_major_formatter("{x:g} %")
        axes.plot([100 * (at + 1) / len(risks) for at in range(len(risks))], [100 * risk for risk in risks], color=BLUE,
                  linewidth=3.5, clip_on=False)
        labels = [Label(f"adapter,\n{100 * risks[-1]:.1f} % of all", risks[-1] / top, BLUE)]
        if api <= top:
            axes.axhline(100 * api, color=GREY, linewidth=2, linestyle=(0, (4, 3)))
            labels.append(Label(f"{cut(name, 16)},\n{100 * api:.1f} % of all", api / top, GREY, bold=False))
        if kept is not None and 0 < kept < 1:
            axes.axvline(100 * kept, color=GREY, linewidth=1.5, linestyle=(0, (1, 3)))
            side = 1 if kept < 0.5 else -1
            axes.annotate("threshold", xy=(100 * kept, 98 * top), xytext=(6 * side, 0), textcoords="offset points",
                          color=GREY, fontsize=15, rotation=90, va="top", ha="left" if side > 0 else "right")
        finish(figure, axes, labels, path)


def _below(subtitle: str, of: str) -> str:
    return f"{cut(subtitle, LONGEST_SUBTITLE - len(of))}; {of}"
