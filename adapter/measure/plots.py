"""Three pictures of a run, made for a slide: reward, accuracy and symbols over steps. PNG, 16:9.

Colours are Okabe and Ito's, which the colour-blind tell apart. A thin line is a step's own value, a bold one the mean of
the last steps, as many as the subtitle says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapter.measure.accuracy import Entry, Share
from symbols.expression import Notation
from symbols.learning import WINDOW, Curve, Learning, moving_mean

BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#595959"
COLOURS = {"custom": BLUE, "standard": VERMILLION}
STYLE = {"font.size": 17, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
         "xtick.color": GREY, "ytick.color": GREY, "axes.labelcolor": GREY, "axes.grid": True, "axes.grid.axis": "y",
         "grid.color": "#E6E6E6", "axes.axisbelow": True, "lines.solid_capstyle": "round",
         "text.parse_math": False}  # a model's name is no formula
INCHES, DPI = (12.8, 7.2), 150
CROWDED = 200  # values of a thin line, from which on it is fainter
APART, LINE = 0.068, 0.05  # the height of a label of one line, and of each line more; of the axes' height


@dataclass(frozen=True)
class Label:
    """A text at the right end of a line."""

    text: str
    y: float
    colour: str
    bold: bool = True


def reward_plot(path: Path, rewards: dict[str, Curve], subtitle: str) -> None:
    """Mean reward of the sampled completions, by kind of problem."""
    window = window_for(max(map(len, rewards.values())))
    with rc_context(STYLE):
        figure, axes = _canvas("Reward of sampled completions", f"{subtitle}; bold: mean of {window} steps")
        labels = [_curve(axes, kind, curve, window, COLOURS[kind]) for kind, curve in rewards.items() if curve]
        labels = [replace(label, text=f"{label.text} {100 * label.y:.0f} %") for label in labels]
        _finish(figure, axes, labels, path)


def accuracy_plot(path: Path, test: dict[int, Entry], validation: dict[int, Entry], kept: int,
                  references: Sequence[tuple[str, str, float]], subtitle: str) -> None:
    """Greedy accuracy by kind over steps, with 95 % intervals: a line on validation, and diamonds on the test problems.

    Without a validation split, as in an older run, the line is of the test problems. kept: the step whose LoRA is kept.
    references: (label, kind, accuracy): dashed lines in the kind's colour.
    """
    of = "lines: validation, diamonds: test" if validation else "test problems"
    with rc_context(STYLE):
        figure, axes = _canvas("Greedy accuracy", f"{subtitle}; {of}; 95 % intervals")
        labels = []
        for kind in ("standard", "custom"):
            shares, points = ({step: entry.accuracy[kind] for step, entry in entries.items() if entry.accuracy[kind].of}
                              for entries in (validation or test, test))
            if not shares:
                continue
            axes.fill_between(list(shares), [100 * s.low for s in shares.values()], [100 * s.high for s in shares.values()],
                              color=COLOURS[kind], alpha=0.15, linewidth=0)
            axes.plot(list(shares), [100 * s.value for s in shares.values()], color=COLOURS[kind], linewidth=3.5, marker="o",
                      markersize=8, clip_on=False)
            if validation:
                _diamonds(axes, points, COLOURS[kind])
            label = f"{kind} {100 * points[kept].value:.1f} %\non test" if validation and kept in points else None
            last = list(shares.values())[-1].value
            labels.append(Label(label or f"{kind} {100 * last:.1f} %", last, COLOURS[kind]))
        if validation:
            axes.axvline(kept, color=GREY, linewidth=1.5, linestyle=(0, (1, 3)), zorder=1)
            side = -1 if 2 * kept > max(validation) else 1  # within the axes
            axes.annotate("kept", xy=(kept, 2), xytext=(6 * side, 0), textcoords="offset points", color=GREY, fontsize=15,
                          rotation=90, ha="right" if side < 0 else "left", va="bottom")
        for text, kind, value in references:
            axes.axhline(100 * value, color=COLOURS[kind], linewidth=2, linestyle=(0, (4, 3)), clip_on=False)
            labels.append(Label(text, value, COLOURS[kind], bold=False))
        _finish(figure, axes, labels, path)


def symbols_plot(path: Path, learning: Learning, notation: Notation, subtitle: str) -> None:
    """When each symbol was learned."""
    window = window_for(max(map(len, learning.curves.values())))
    title = {"readings": "Share of completions that read a symbol right",
             "reward": "Reward on problems with one symbol"}[learning.basis]
    with rc_context(STYLE):
        figure, axes = _canvas(title, f"{subtitle}; bold: mean of {window} steps")
        labels = []
        for (sign, op), colour in zip(notation.items(), (BLUE, VERMILLION, GREEN, PURPLE), strict=True):
            if learning.curves[sign]:
                labels.append(_curve(axes, f"{sign} is {op}", learning.curves[sign], window, colour))
        if learning.basis == "readings":
            axes.axhline(25, color=GREY, linewidth=2, linestyle=(0, (4, 3)))
            labels.append(Label("guessing 25 %", 0.25, GREY, bold=False))
        _finish(figure, axes, labels, path)


def conditions_plot(path: Path, rewards: dict[str, Curve], subtitle: str) -> None:
    """Mean reward on custom symbols under several conditions, by name."""
    window = window_for(max(map(len, rewards.values())))
    with rc_context(STYLE):
        figure, axes = _canvas("Reward on custom symbols, by condition", f"{subtitle}; bold: mean of {window} steps")
        labels = [_curve(axes, name, curve, window, colour)
                  for (name, curve), colour in zip(rewards.items(), (GREEN, PURPLE, VERMILLION, BLUE), strict=True)]
        _finish(figure, axes, labels, path)


def window_for(points: int) -> int:
    """How many values the bold line averages: WINDOW, and one in 25 of a long run."""
    return max(WINDOW, points // 25)


def spread(wanted: Sequence[float], heights: Sequence[float], top: float) -> list[float]:
    """Places for the middles of labels: near where they are wanted (ascending), apart by their heights, none above `top`.

    Neighbours that would overlap share the mean of what each wants (isotonic regression).
    """
    offsets = list(accumulate(((a + b) / 2 for a, b in pairwise(heights)), initial=0.0))
    blocks: list[tuple[float, int]] = []  # sum of wanted - offset, and of how many labels
    for y, offset in zip(wanted, offsets, strict=False):
        blocks.append((y - offset, 1))
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            (total, count), (more, others) = blocks.pop(-2), blocks.pop()
            blocks.append((total + more, count + others))
    means = [total / count for total, count in blocks for _ in range(count)]
    return [min(mean, top - offsets[-1]) + offset for mean, offset in zip(means, offsets, strict=False)]


def _canvas(title: str, subtitle: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=INCHES, dpi=DPI)
    axes = figure.add_axes((0.085, 0.12, 0.675, 0.70))
    figure.text(0.035, 0.93, title, fontsize=27, fontweight="bold", color="#222222")
    figure.text(0.035, 0.875, subtitle, fontsize=16, color=GREY)
    axes.set_ylim(0, 100)
    axes.yaxis.set_major_formatter("{x:.0f} %")
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(length=0, pad=8)
    return figure, axes


def _diamonds(axes: Axes, points: dict[int, Share], colour: str) -> None:
    below, above = zip(*((s.value - s.low, s.high - s.value) for s in points.values()), strict=True) if points else ((), ())
    axes.errorbar(list(points), [100 * s.value for s in points.values()], [[100 * x for x in way] for way in (below, above)],
                  color=colour, fmt="D", markersize=13, markerfacecolor="white", markeredgewidth=3, elinewidth=2, capsize=5,
                  clip_on=False, zorder=4)


def _curve(axes: Axes, name: str, curve: Curve, window: int, colour: str) -> Label:
    width, opacity = (1.2, 0.45) if len(curve) <= CROWDED else (0.7, 0.25)
    axes.plot(list(curve), [100 * y for y in curve.values()], color=colour, linewidth=width, alpha=opacity, zorder=2)
    means = moving_mean(curve, window) or curve
    axes.plot(list(means), [100 * y for y in means.values()], color=colour, linewidth=4, clip_on=False, zorder=3,
              marker="o" if len(means) == 1 else None)
    return Label(name, list(means.values())[-1], colour)


def _finish(figure: Figure, axes: Axes, labels: Sequence[Label], path: Path) -> None:
    """Set the limits of x, write the labels, save."""
    axes.set_xlim(0, max(1, axes.dataLim.x1))
    labels = sorted(labels, key=lambda label: label.y, reverse=True)[::-1]  # of equal ones, the first is highest
    heights = [APART + LINE * label.text.count("\n") for label in labels]
    for label, y in zip(labels, spread([label.y for label in labels], heights, 1.01), strict=True):
        axes.annotate(label.text, xy=(1.0, label.y), xytext=(1.04, y), xycoords="axes fraction", color=label.colour,
                      fontsize=18 if label.bold else 15, fontweight="bold" if label.bold else "normal", va="center",
                      annotation_clip=False, arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 1,
                                                         "relpos": (0, 0.5), "shrinkA": 3, "shrinkB": 4})
    figure.savefig(path)
