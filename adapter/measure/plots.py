"""Two pictures of a run, made for a slide: reward and accuracy over steps; and what others are made with. PNG, 16:9.

Colours are Okabe and Ito's, which the colour-blind tell apart. A thin line is a step's own value, a bold one the mean of
the last steps, as many as the subtitle says.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adapter.measure.accuracy import OVERALL, Entry, Share
from adapter.measure.curves import Curve, moving_mean, window_for
from adapter.measure.tables import cut

BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#595959"
ORANGE, SKY, BLACK, YELLOW = "#E69F00", "#56B4E9", "#000000", "#F0E442"
COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, YELLOW)
TEXTS = {YELLOW: "#8A8000", SKY: "#2A8AC0", ORANGE: "#B87F00"}  # darker, as letters are thin
STYLE = {"font.size": 17, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
         "xtick.color": GREY, "ytick.color": GREY, "axes.labelcolor": GREY, "axes.grid": True, "axes.grid.axis": "y",
         "grid.color": "#E6E6E6", "axes.axisbelow": True, "lines.solid_capstyle": "round",
         "text.parse_math": False}  # a model's name is no formula
INCHES, DPI = (12.8, 7.2), 150
CROWDED = 200  # values of a thin line, from which on it is fainter
FEW = 3  # kinds, up to which there is room for intervals, and for labels of what they are compared with
APART, LINE = 0.068, 0.05  # the height of a label of one line, and of each line more; of the axes' height
TOP = 1.045  # of the axes' height: no label reaches above that
WIDEST = 17  # characters beside the axes
LONGEST_SUBTITLE = 112


@dataclass(frozen=True)
class Label:
    """A text at the right end of a line."""

    text: str
    y: float
    colour: str
    bold: bool = True


def drawn_kinds(counts: Mapping[str, int]) -> list[str]:
    """The kinds that a picture shows, of those with so many problems each: one alone is the whole, and of more than there
    are colours the largest are shown beside the whole."""
    kinds = [kind for kind in counts if kind != OVERALL]
    if len(kinds) <= 1:
        return [OVERALL]
    if len(kinds) <= len(COLOURS):
        return kinds
    largest = sorted(kinds, key=lambda kind: -counts[kind])[: len(COLOURS) - 1]
    return [OVERALL, *(kind for kind in kinds if kind in largest)]


def colours_of(kinds: Sequence[str]) -> dict[str, str]:
    """A colour for each kind that is drawn; the whole is black where it is drawn among kinds."""
    if OVERALL not in kinds or len(kinds) == 1:
        return dict(zip(kinds, COLOURS, strict=False))
    others = [colour for colour in COLOURS if colour != BLACK]
    return {OVERALL: BLACK, **dict(zip([kind for kind in kinds if kind != OVERALL], others, strict=False))}


def curves_plot(path: Path, title: str, lines: Sequence[tuple[str, Curve, str]], subtitle: str,
                guess: tuple[str, float] | None = None) -> None:
    """Shares in [0, 1] over steps. lines: name, curve and colour. guess: the name and the height of a dashed line."""
    lines = [line for line in lines if line[1]]
    window = window_for(max((len(curve) for _, curve, _ in lines), default=0))
    with rc_context(STYLE):
        figure, axes = canvas(title, f"{cut(subtitle, LONGEST_SUBTITLE - 25)}; bold: mean of {window} steps")
        labels = [_curve(axes, name, curve, window, colour) for name, curve, colour in lines]
        if guess is not None:
            axes.axhline(100 * guess[1], color=GREY, linewidth=2, linestyle=(0, (4, 3)))
            labels.append(Label(guess[0], guess[1], GREY, bold=False))
        finish(figure, axes, labels, path)


def reward_plot(path: Path, rewards: Mapping[str, Curve], colours: Mapping[str, str], subtitle: str) -> None:
    """Mean reward of the sampled completions, by kind of problem."""
    curves = {kind: rewards[kind] for kind in reversed(colours) if rewards.get(kind)}  # the first lies above the others
    window = window_for(max(map(len, curves.values()), default=0))
    ends = {kind: list((moving_mean(curve, window) or curve).values())[-1] for kind, curve in curves.items()}
    curves_plot(path, "Reward of sampled completions",
                [(with_value(kind, end, 0), curves[kind], colours[kind]) for kind, end in ends.items()], subtitle)


def accuracy_plot(path: Path, test: Mapping[int, Entry], validation: Mapping[int, Entry], kept: int,
                  references: Sequence[tuple[str, str, float]], colours: Mapping[str, str], subtitle: str) -> None:
    """Greedy accuracy by kind over steps, with 95 % intervals: a line on validation, and diamonds on the test problems.

    Without a validation split, as in an older run, the line is of the test problems. kept: the step whose LoRA is kept.
    references: (label, kind, accuracy): dashed lines in the kind's colour. More than FEW kinds are drawn without intervals,
    and with dashed lines that have no label: the references are then the API's.
    """
    few = len(colours) <= FEW
    of = f"lines: validation, diamonds{'' if few else ' and numbers'}: test" if validation else "test problems"
    of += "; 95 % intervals" if few else "; dashed: API alone"
    with rc_context(STYLE):
        figure, axes = canvas("Greedy accuracy", f"{cut(subtitle, LONGEST_SUBTITLE - 65)}; {of}")
        labels = []
        for kind in reversed(colours):  # the first lies above the others
            shares, points = ({step: entry.accuracy[kind] for step, entry in entries.items()
                               if kind in entry.accuracy and entry.accuracy[kind].of}
                              for entries in (validation or test, test))
            if shares:
                labels.append(_accuracy(axes, kind, shares, points, colours[kind], kept if validation else None, few))
        if validation:
            axes.axvline(kept, color=GREY, linewidth=1.5, linestyle=(0, (1, 3)), zorder=1)
            side = -1 if 2 * kept > max(validation) else 1  # within the axes
            axes.annotate("kept", xy=(kept, 2), xytext=(6 * side, 0), textcoords="offset points", color=GREY, fontsize=15,
                          rotation=90, ha="right" if side < 0 else "left", va="bottom")
        for text, kind, value in references:
            if kind in colours:
                axes.axhline(100 * value, color=colours[kind], linewidth=2, linestyle=(0, (4, 3)), clip_on=False)
                labels += [Label(text, value, colours[kind], bold=False)] if few else []
        finish(figure, axes, labels, path)


def with_value(kind: str, value: float, digits: int) -> str:
    """What a line is called: the kind, cut to the room there is, and a share of it in percent."""
    number = f"{100 * value:.{digits}f} %"
    name = cut(kind, WIDEST)
    return f"{name} {number}" if len(name) + 1 + len(number) <= WIDEST else f"{name}\n{number}"


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


def canvas(title: str, subtitle: str, x: str = "training step") -> tuple[Figure, Axes]:
    """An empty picture. y goes from 0 to 100 %; labels have room beside the axes."""
    figure = Figure(figsize=INCHES, dpi=DPI)
    axes = figure.add_axes((0.085, 0.12, 0.675, 0.70))
    figure.text(0.035, 0.93, title, fontsize=27, fontweight="bold", color="#222222")
    figure.text(0.035, 0.875, subtitle, fontsize=16, color=GREY)
    axes.set_ylim(0, 100)
    axes.yaxis.set_major_formatter("{x:.0f} %")
    axes.set_xlabel(x)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(length=0, pad=8)
    return figure, axes


def _accuracy(axes: Axes, kind: str, shares: Mapping[int, Share], points: Mapping[int, Share], colour: str,
              kept: int | None, few: bool) -> Label:
    """A kind's line, with its interval where it has one, and its diamonds where a LoRA is kept by validation."""
    known = {step: s for step, s in shares.items() if few and s.low is not None}
    axes.fill_between(list(known), [100 * s.low for s in known.values()], [100 * s.high for s in known.values()],
                      color=colour, alpha=0.15, linewidth=0)
    axes.plot(list(shares), [100 * s.value for s in shares.values()], color=colour, linewidth=3.5, marker="o",
              markersize=8, clip_on=False)
    last = list(shares.values())[-1].value
    if kept is None:
        return Label(with_value(kind, last, 1), last, colour)
    for step, s in points.items():
        ends = None if s.low is None or not few else [[100 * (s.value - s.low)], [100 * (s.high - s.value)]]
        axes.errorbar([step], [100 * s.value], ends, color=colour, fmt="D", markersize=13, markerfacecolor="white",
                      markeredgewidth=3, elinewidth=2, capsize=5, clip_on=False, zorder=4)
    if kept not in points:
        return Label(with_value(kind, last, 1), last, colour)
    return Label(with_value(kind, points[kept].value, 1) + ("\non test" if few else ""), last, colour)


def _curve(axes: Axes, name: str, curve: Curve, window: int, colour: str) -> Label:
    width, opacity = (1.2, 0.45) if len(curve) <= CROWDED else (0.7, 0.25)
    axes.plot(list(curve), [100 * y for y in curve.values()], color=colour, linewidth=width, alpha=opacity, zorder=2)
    means = moving_mean(curve, window) or curve
    axes.plot(list(means), [100 * y for y in means.values()], color=colour, linewidth=4, clip_on=False, zorder=3,
              marker="o" if len(means) == 1 else None)
    return Label(name, list(means.values())[-1], colour)


def finish(figure: Figure, axes: Axes, labels: Sequence[Label], path: Path) -> None:
    """Set the limits of x, write the labels, save."""
    axes.set_xlim(0, max(1, axes.dataLim.x1))
    labels = sorted(labels, key=lambda label: label.y, reverse=True)[::-1]  # of equal ones, the first is highest
    heights = [APART + LINE * label.text.count("\n") for label in labels]
    size = min(1.0, 1 / sum(heights)) if heights else 1.0  # smaller where there is no room for so many
    heights = [size * height for height in heights]
    top = TOP - max(heights[-1:], default=0) / 2
    for label, y in zip(labels, spread([label.y for label in labels], heights, top), strict=True):
        axes.annotate(label.text, xy=(1.0, label.y), xytext=(1.04, y), xycoords="axes fraction",
                      color=TEXTS.get(label.colour, label.colour), fontsize=size * (18 if label.bold else 15),
                      fontweight="bold" if label.bold else "normal", va="center", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 1, "relpos": (0, 0.5), "shrinkA": 3,
                                  "shrinkB": 4})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter that the font lacks is a box
        figure.savefig(path)
