"""What a success weighs under each advantage, where it is rare and where it is not: draws docs/advantages.png.

    python -m benchmarks.advantages

The figures are those of grpo/advantage.py's functions on two groups of 64 completions with rewards of 0 and 1.
"""

from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from adapter.measure.plots import BLUE, GREY, STYLE, VERMILLION
from grpo.advantage import ADVANTAGES

PICTURE = Path(__file__).parents[1] / "docs" / "advantages.png"
G = 64
RARE, EVEN = 1, 32  # successes of 64
SHOWN = {"maxrl": "MaxRL\n(R − m) / m", "grpo": "std (GRPO)\n(R − m) / s", "rloo": "RLOO\nR − m of the others",
         "centred": "centring\nR − m"}
TITLE = "What a success weighs where it is rare, and where it is not"
Weights = dict[str, tuple[float, float]]  # by advantage: of the rare group, of the even one


def advantages_of(name: str, right: int) -> torch.Tensor:
    """The advantages of a group with so many successes, first."""
    return ADVANTAGES[name](torch.tensor([[1.0] * right + [0.0] * (G - right)]))[0]


def of_a_success() -> Weights:
    """The advantage of one right completion."""
    return {name: (advantages_of(name, RARE)[0].item(), advantages_of(name, EVEN)[0].item()) for name in SHOWN}


def of_a_group() -> Weights:
    """The sum of a group's positive advantages; its negative ones add up to as much."""
    return {name: (advantages_of(name, RARE).clamp(min=0).sum().item(), advantages_of(name, EVEN).clamp(min=0).sum().item())
            for name in SHOWN}


def draw(path: Path) -> None:
    """Two panels of dumbbells: one success, and the whole group."""
    with rc_context(STYLE | {"axes.grid.axis": "x", "font.size": 15}):
        figure = Figure(figsize=(12.8, 5.4), dpi=125)
        left, right = figure.subplots(1, 2, sharey=True)
        figure.subplots_adjust(left=0.165, right=0.975, top=0.70, bottom=0.13, wspace=0.08)
        figure.text(0.02, 0.925, TITLE, fontsize=21, fontweight="bold", color="#222222")
        figure.text(0.02, 0.862, "Groups of 64 completions, rewards 0 and 1; logarithmic", fontsize=14, color=GREY)
        _panel(left, "the advantage of one right completion", of_a_success())
        _panel(right, "the whole group: sum of its positive advantages", of_a_group())
        left.set_yticks(range(len(SHOWN)), [*SHOWN.values()], color="#222222", fontsize=14)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles[:2], labels[:2], loc="upper right", bbox_to_anchor=(0.98, 0.985), frameon=False, fontsize=15)
        figure.savefig(path)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)  # a quarter of the bytes


def _panel(axes: Axes, title: str, weights: Weights) -> None:
    axes.set_title(title, loc="left", fontsize=15, color=GREY, pad=14)
    axes.set_xscale("log")
    axes.set_xlim(0.19, 130)
    axes.set_ylim(-0.55, len(SHOWN) - 0.45)
    axes.set_xticks([0.5, 1, 2, 4, 8, 16, 32, 64], ["½", "1", "2", "4", "8", "16", "32", "64"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(length=0, which="both", pad=8)
    for y, (rare, even) in enumerate(weights.values()):
        axes.plot([rare, even], [y, y], color="#B0B0B0", linewidth=3, zorder=2, linestyle="-")
        for value, colour, marker, label in ((rare, VERMILLION, "o", f"{RARE} of {G} right"),
                                             (even, BLUE, "D", f"{EVEN} of {G} right")):
            axes.plot(value, y, marker, color=colour, markersize=12, markeredgewidth=2.5, zorder=3,
                      markerfacecolor=colour if marker == "o" else "white", label=label if y == 0 else None)
            outside = "right" if value >= max(rare, even) else "left"
            axes.annotate(f"{value:.2g}" if value < 10 else f"{value:.0f}", (value, y), textcoords="offset points",
                          xytext=(14 if outside == "right" else -14, 0), va="center", color=colour, fontweight="bold",
                          ha="left" if outside == "right" else "right")


if __name__ == "__main__":
    draw(PICTURE)
    for name in SHOWN:
        print(name, "one success", of_a_success()[name], "the group", of_a_group()[name])
