"""The comparison in words and numbers."""

from typing import Any


def table(comparison: dict[str, Any]) -> str:
    """A line a variant: what a token counts in the hardest and in the easiest mixed group, and what comes of the whole."""
    variants = comparison["variants"]
    groups = variants[0]["groups"]
    mixed = [g for g, group in enumerate(groups) if 0 < group["right"] < group["of"]]
    mixed.sort(key=lambda g: groups[g]["right"])
    shown = [mixed[0], mixed[-1]] if len(mixed) > 1 else mixed
    about = [groups[g] for g in shown]
    heads = [f"right of {g['right']}/{g['of']}" for g in about] + [f"wrong of {g['right']}/{g['of']}" for g in about]
    width = max(len(v["name"]) for v in variants)
    lines = [" " * width + "".join(f"{head:>16}" for head in [*heads, "tokens", "clipped", "gradient norm", "cosine"])]
    for v, cosine in zip(variants, comparison["cosine"], strict=True):
        cells = [_number(v["groups"][g][kind], "+.3f") for kind in ("success", "failure") for g in shown]
        cells += [f"{v['tokens']:.0f}", _number(v["clipped"], ".2%"), _number(v["grad_norm"], ".3g"),
                  _number(cosine[0], "+.4f")]
        lines.append(f"{v['name']:<{width}}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
