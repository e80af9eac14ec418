"""The curves on a run's page, the most informative first."""

import re

from imprompt.report import Chart, Line, Tone, smooth_points, thin_points
from imprompt.training.watching.history import History

_LEVEL = re.compile(r"held-out loss at (\d+)")


_KNOWN = (
    "gap to shuffled",
    "gap to none",
    "similarity to reference",
    "similarity to a shuffled reference",
    "similarity to prompt",
    "loss",
    "held-out loss",
    "gradient norm",
    "gradient norm of the projection",
    "gradient norm of the layers",
    "learning rate",
    "samples/s",
    "waiting",
    "skipped steps",
)


def build_charts(history: History) -> list[Chart]:
    """Return the charts of a run that have points; figures without a chart of their own come last."""
    chosen = [
        _gap(history),
        _similarity(history),
        _loss(history),
        _levels(history),
        _norms(history),
        _rate(history),
        _speed(history),
        _waiting(history),
    ]
    others = [Chart(name, "", (_line(history, name, ""),)) for name in history.series if not _is_known(name)]
    return [chart for chart in (*chosen, *others) if any(_has_points(line) for line in chart.lines)]


def _is_known(name: str) -> bool:
    return name in _KNOWN or _LEVEL.fullmatch(name) is not None


def _has_points(line: Line) -> bool:
    return any(value is not None for _, value in line.points)


def _line(history: History, name: str, label: str, tone: Tone = "accent", filled: bool = False) -> Line:
    return Line(label, history.series.get(name, []), tone, filled=filled)


def _gap(history: History) -> Chart:
    return Chart(
        "Gap in held-out loss",
        "Loss with a shuffled reference, or none, minus that with the true one, without text. Zero: unread.",
        (
            _line(history, "gap to none", "none", "ink"),
            _line(history, "gap to shuffled", "shuffled", filled=True),
        ),
        zero=True,
    )


def _similarity(history: History) -> Chart:
    return Chart(
        "Similarity of the samples",
        "Cosine similarity of samples to their reference, to another one, and to their prompt.",
        (
            _line(history, "similarity to prompt", "prompt", "ink"),
            _line(history, "similarity to a shuffled reference", "shuffled", "ink"),
            _line(history, "similarity to reference", "reference"),
        ),
    )


def _loss(history: History) -> Chart:
    training = history.series.get("loss", [])
    return Chart(
        "Loss",
        "Mean squared error. Training: as logged, and smoothed; held-out: always the same noise.",
        (
            Line("", training, "faint"),
            Line("training", smooth_points(thin_points(training)), "ink"),
            _line(history, "held-out loss", "held-out"),
        ),
    )


def _levels(history: History) -> Chart:
    found = {int(match[1]): name for name in history.series if (match := _LEVEL.fullmatch(name))}
    levels = sorted(found)
    strengths = [0.35 + 0.65 * index / max(len(levels) - 1, 1) for index in range(len(levels))]
    return Chart(
        "Held-out loss by noise level",
        "At timesteps from 0, almost no noise, to 999, only noise.",
        tuple(
            Line(f"t = {level}", history.series[found[level]], strength=strength)
            for level, strength in zip(levels, strengths, strict=True)
        ),
    )


def _norms(history: History) -> Chart:
    return Chart(
        "Gradient norm",
        "Before clipping, of projection and of the layers’ keys and values; a jump is a sign of instability.",
        (
            _line(history, "gradient norm of the layers", "layers", "ink"),
            _line(history, "gradient norm of the projection", "projection"),
        )
        if "gradient norm of the projection" in history.series
        else (_line(history, "gradient norm", ""),),
    )


def _rate(history: History) -> Chart:
    return Chart(
        "Learning rate", "The learning rate of AdamW.", (_line(history, "learning rate", ""),), zero=True
    )


def _speed(history: History) -> Chart:
    return Chart(
        "Speed, samples/s",
        "Samples of all processes together.",
        (_line(history, "samples/s", ""),),
        zero=True,
    )


def _waiting(history: History) -> Chart:
    return Chart(
        "Waiting for data",
        "Share of the time in which the model waited for data.",
        (_line(history, "waiting", ""),),
        zero=True,
        percent=True,
    )
