"""Values over the steps of a run, smoothed."""

from collections import deque

WINDOW = 5  # values
Curve = dict[int, float]  # step -> value, in order


def moving_mean(curve: Curve, window: int) -> Curve:
    """The mean of the last `window` values, from the step on at which there are as many."""
    last, means = deque(maxlen=window), {}
    for step, value in curve.items():
        last.append(value)
        if len(last) == window:
            means[step] = sum(last) / window
    return means


def reached(curve: Curve, level: float) -> int | None:
    """The first step at which the mean of the last WINDOW values is at least `level`; None: not yet."""
    return next((step for step, mean in moving_mean(curve, WINDOW).items() if mean >= level - 1e-12), None)


def window_for(points: int) -> int:
    """How many values a bold line averages: WINDOW, and one in 25 of a long run."""
    return max(WINDOW, points // 25)
