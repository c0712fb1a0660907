"""Curves and heat maps of a run, as Plotly figures in JSON; the browser draws each when it comes into view.

Colours are of middle lightness, so that they read on white and on black; lines also differ by dash and marker.
"""

import html
import json
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from grpo.report.records import Comparison, Run

BLUE, ORANGE, TEAL, PURPLE, GREY, OLIVE = "#3b84c4", "#d9731a", "#1f9488", "#a367b1", "#8b8b87", "#8f8a2e"
PALETTE = [BLUE, ORANGE, TEAL, PURPLE, GREY, OLIVE]
DASHES = ["solid", "dash", "dot", "dashdot", "longdash"]  # fewer than colours and markers: no two lines are alike soon
MARKERS = ["circle", "diamond", "square", "triangle-up", "x", "cross", "star"]
FONT = "-apple-system, 'Segoe UI', Inter, Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"
INK = {"light": ("#24292e", "#5a6068", "#e3e3de", "#fdfdfb"), "dark": ("#e6e6e1", "#a7adb5", "#34383e", "#15171a")}

Chart = dict[str, Any]  # {"title", "note", "height", "figure"}
Series = tuple[str, str]  # key of metrics.jsonl, what the legend says


def templates() -> dict[str, Any]:
    """Plotly's template for light and for dark pages."""
    found = {}
    for theme, (ink, muted, grid, paper) in INK.items():
        axis = {"gridcolor": grid, "zerolinecolor": grid, "linecolor": muted, "tickcolor": muted,
                "tickfont": {"color": muted}, "title": {"font": {"color": muted, "size": 12}}, "automargin": True,
                "zeroline": False}
        layout = go.Layout(
            paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"family": FONT, "size": 12, "color": ink},
            colorway=PALETTE, xaxis=axis, yaxis=axis, margin={"l": 44, "r": 10, "t": 8, "b": 36},
            legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"color": ink}},
            hoverlabel={"bgcolor": paper, "bordercolor": muted, "font": {"color": ink, "family": FONT}},
            coloraxis={"colorbar": {"tickfont": {"color": muted}, "outlinewidth": 0, "thickness": 10}})
        found[theme] = {"layout": layout.to_plotly_json()}
    return found


def run_charts(run: Run) -> dict[str, Chart]:
    """The charts by their places in page.html; a chart without data is left out."""
    charts = {
        "reward": _lines(run, _by_kind(run), "Reward", "Mean reward of the sampled completions, by kind of problem.",
                         unit=True),
        "accuracy": _accuracy(run),
        "groups": _composition(run),
        "replaced": _lines(run, [("groups/replaced", "replaced")], "Replaced groups", "Groups of equal rewards for which "
                           "others were sampled, per group of the step.") if run.config.algorithm.refills else None,
        "loss": _lines(run, [("loss", "loss")], "Loss", "L, of the step. Its value says little; its gradient trains."),
        "entropy": _lines(run, [("policy/entropy", "entropy")], "Entropy", "Nats a token, mean over trained tokens."),
        "clip": _lines(run, [("policy/clip_fraction", "clipped")], "Clipped tokens", "Share of the trained tokens."),
        "grad": _lines(run, [("policy/grad_norm", "norm")], "Gradient norm", "Before it is clipped."),
        "lr": _lines(run, [("policy/lr", "learning rate")], "Learning rate", "Of the step."),
        "kl": _lines(run, [("policy/kl_ref", "KL")], "KL to the base", "Nats a token, mean over trained tokens."),
        "length": _lines(run, [("completion/mean_tokens", "tokens")], "Length", "Mean tokens of a completion."),
        "faults": _lines(run, [("completion/truncated_fraction", "cut off"), ("completion/unparsed_fraction", "no answer"),
                               ("completion/several_answers_fraction", "several answers"),
                               ("completion/same_answer_fraction", "commonest answer")],
                         "Answers", "Shares of the step's completions.", unit=True),
        "parity": _lines(run, [("parity/logp_max_abs_diff", "largest |difference|"),
                               ("parity/logp_mean_abs_diff", "mean |difference|"), ("parity/kl", "KL")],
                         "Sampler against trainer", "Log-probs of the same tokens, in nats; logarithmic.", log=True),
        "correction": _lines(run, [("policy/correction", "factor")], "Correction of the mismatch",
                             "What the surrogate is multiplied by, mean over trained tokens."),
        "lora-size": _lines(run, [("lora/relative_norm", "size")], "Size of the update",
                            "Norm of all modules' updates over the norm of all their weights."),
        "time": _time(run)}
    return {name: chart for name, chart in charts.items() if chart}


def compare_charts(comparison: Comparison) -> dict[str, Chart]:
    """Of variants on one batch: which way their gradients point, and what a success weighs."""
    names = [_plain(v.name) for v in comparison.variants]
    cosines = go.Heatmap(
        z=comparison.cosine, x=names, y=names, zmin=-1, zmax=1,
        colorscale=[[0, "#eda05c"], [0.5, "#f7f7f3"], [1, "#7fb2e0"]],
        text=[["" if v is None else f"{v:.2f}" for v in row] for row in comparison.cosine], texttemplate="%{text}",
        textfont={"color": "#1a1a1a"}, xgap=1, ygap=1, hovertemplate="%{y} and %{x}: %{z:.4f}<extra></extra>",
        colorbar={"thickness": 10, "outlinewidth": 0, "tickvals": [-1, 0, 1]})
    angle = go.Figure(cosines, go.Layout(yaxis={"autorange": "reversed", "showgrid": False},
                                       xaxis={"showgrid": False, "tickangle": -35}))
    weights = go.Figure(layout=go.Layout(xaxis={"title": {"text": "right completions of the group"}, "tickformat": ".0%"},
                                         yaxis={"title": {"text": "weight of a success's token"}}))
    for n, variant in enumerate(comparison.variants):
        points = sorted((g.right / g.of, g.success, g.problem) for g in variant.groups
                        if 0 < g.right < g.of and g.success is not None and g.success > 0)
        weights.add_scatter(
            x=[p[0] for p in points], y=[p[1] for p in points], text=[_plain(p[2]) for p in points],
            name=_plain(variant.name), mode="lines+markers", hovertemplate="%{x:.1%} right: %{y:.3g} (%{text})",
            **_style(n, 1))
    weights.update_yaxes(type="log", nticks=8, exponentformat="power")
    return {"cosine": _chart(angle, "Cosines of the gradients", "1: the same direction. 0: nothing in common.", 340),
            "weights": _chart(weights, "What a success weighs",
                              "T × mean contribution of a token of a right completion, by the share of right ones in its "
                              "mixed group, KL included. Logarithmic: weights of 0 and below are left out.", 340)}


def lora_chart() -> Chart:
    """An empty heat map, modules by steps; its numbers come compressed, and the browser fills it."""
    figure = go.Figure(
        go.Heatmap(z=[[None]], colorscale="Cividis", hovertemplate="%{y}<br>step %{x}: %{z:.4g}<extra></extra>",
                   hoverongaps=False, colorbar={"thickness": 10, "outlinewidth": 0, "exponentformat": "power"}),
        go.Layout(xaxis={"title": {"text": "step"}, "showgrid": False},
                  yaxis={"autorange": "reversed", "showgrid": False, "type": "category"}))
    return _chart(figure, "", "Rows are layers, first to last, gathered by projection; columns are steps.", 460)


def _chart(figure: go.Figure, title: str, note: str, height: int = 230) -> Chart:
    return {"title": title, "note": note, "height": height, "figure": json.loads(figure.to_json())}


def _lines(run: Run, series: Sequence[Series], title: str, note: str, unit: bool = False, log: bool = False) -> Chart | None:
    steps, figure = _steps(run), go.Figure()
    for n, (key, name) in enumerate(series):
        values = [line.get(key) for line in run.metrics]
        if any(value is not None for value in values):
            figure.add_scatter(x=steps, y=values, name=_plain(name), mode="lines+markers", **_style(n, len(steps)),
                               hovertemplate="%{y:.4g}", cliponaxis=False)
    if not figure.data:
        return None
    figure.update_layout(hovermode="x unified", showlegend=len(figure.data) > 1, xaxis_title_text="step")
    figure.update_yaxes(exponentformat="power", rangemode="tozero")
    if unit:
        figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    if log:
        figure.update_yaxes(type="log", nticks=6)
    return _chart(figure, title, note)


def _accuracy(run: Run) -> Chart | None:
    if run.evaluation is None or not run.evaluation.steps + run.evaluation.validation:
        return None
    figure, found = go.Figure(), run.evaluation
    both = found.steps + found.validation
    kinds = sorted({kind for table in both for kind in table} - {"step", "overall"}) or ["overall"]
    last = max(table.get("step") or 0 for table in both)
    for n, kind in enumerate(kinds):
        for split, tables in (("validation", found.validation), ("test", found.steps)):
            if tables:
                points = split == "test" and bool(found.validation)
                figure.add_scatter(x=[t.get("step") for t in tables], y=[t.get(kind) for t in tables],
                                   name=_plain(f"{kind}: {split}"), hovertemplate="%{y:.1%}",
                                   **(_points(n) if points else {"mode": "lines+markers", **_style(n, 1)}))
        for name, table in found.references().items():
            if kind in table:
                figure.add_scatter(x=[0, last], y=[table[kind]] * 2, name=_plain(f"{kind}: {name}"), mode="lines",
                                   line={"color": PALETTE[n % 6], "dash": "2px,3px", "width": 1}, hovertemplate="%{y:.1%}")
    if found.kept is not None and found.kept <= last:
        figure.add_scatter(x=[found.kept] * 2, y=[0, 1], name=f"kept: step {found.kept}", mode="lines", hoverinfo="skip",
                           line={"color": GREY, "width": 1.5, "dash": "dot"})  # no shape: the page marks its step by one
    figure.update_layout(hovermode="x unified", xaxis_title_text="step")
    figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    of = ("Lines: on the validation problems, which choose the LoRA that is kept. Diamonds: on the test problems."
          if found.validation else "On the test problems.")
    return _chart(figure, "Greedy accuracy", f"{of} Thin dotted lines: what the run is compared with.", 270)


def _composition(run: Run) -> Chart:
    figure, steps = go.Figure(), _steps(run)
    for key, name, colour, pattern in (("groups/all_right", "all right", BLUE, ""), ("groups/mixed", "mixed", GREY, "/"),
                                       ("groups/all_wrong", "all wrong", ORANGE, "x")):
        figure.add_scatter(x=steps, y=[line.get(key) or 0.0 for line in run.metrics], name=name, stackgroup="all",
                           mode="lines", line={"color": colour, "width": 0, "shape": "hvh"}, hovertemplate="%{y:.1%}",
                           fillpattern={"shape": pattern, "fgcolor": colour, "bgcolor": "rgba(0,0,0,0)", "size": 6,
                                        "solidity": 0.35} if pattern else None)
    figure.update_layout(hovermode="x unified", xaxis_title_text="step")
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    return _chart(figure, "Groups", "Equal rewards have no advantage: without KL or length penalty only mixed ones train.",
                  260)


def _time(run: Run) -> Chart | None:
    stages = [key for key in run.metrics[-1] if key.startswith("time/") and key != "time/step_s"]
    figure, steps = go.Figure(), _steps(run)
    for n, key in enumerate(stages):
        name = key.removeprefix("time/").removesuffix("_s")
        figure.add_scatter(x=steps, y=[line.get(key) for line in run.metrics], name=_plain(name), stackgroup="all",
                           mode="lines", line={"color": PALETTE[n % 6], "width": 1, "dash": DASHES[n % 5]},
                           hovertemplate="%{y:.3g} s")
    figure.update_layout(hovermode="x unified", xaxis_title_text="step", yaxis_ticksuffix=" s")
    return _chart(figure, "Time", "Seconds of a step's stages.") if stages else None


def _by_kind(run: Run) -> list[Series]:
    keys = {key for line in run.metrics for key in line if key.startswith("reward/")}
    kinds = sorted(keys - {"reward/mean"})
    return [(key, key.removeprefix("reward/")) for key in (*kinds, *({"reward/mean"} & keys))]


def _steps(run: Run) -> list[float | None]:
    return [line["step"] for line in run.metrics]


def _style(n: int, points: int) -> dict[str, Any]:
    size = 6 if points <= 80 else 3
    return {"line": {"color": PALETTE[n % 6], "dash": DASHES[n % 5], "width": 1.6},
            "marker": {"symbol": MARKERS[n % 7], "size": size, "color": PALETTE[n % 6]}}


def _points(n: int) -> dict[str, Any]:
    return {"mode": "markers",
            "marker": {"symbol": "diamond-open", "size": 11, "color": PALETTE[n % 6], "line": {"width": 2}}}


def _plain(text: str) -> str:
    """Text of a stranger's, for Plotly, which reads some HTML in labels."""
    return html.escape(text[:80], quote=False)
