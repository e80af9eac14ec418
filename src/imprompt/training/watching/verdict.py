"""Whether the adapter reads its reference, in words, by the gap to a shuffled reference.

The gap is the held-out loss with another sample's reference minus that with the true one, without text. An
adapter that ignores its reference has no gap, however low its loss; so the gap is the first figure to look
at. On few samples it ranks no adapters: a visibly worse one may have the larger gap. So the verdict names
their number, the 95 % interval (1.96 standard errors), and how similar the pictures are to their references.
"""

from dataclasses import dataclass
from typing import Literal

from imprompt.report import format_value
from imprompt.training.watching.history import History

GAP = "gap to shuffled"

_NOTHING = 0.005
"""A gap below this share of the held-out loss counts as none."""

_CHANGE = 0.05
"""The gap moves if its last quarter differs from the quarter before by this share of the larger of them."""

FEW = 10
"""Fewer held-out samples than these give no interval, and the gap compares no adapters."""

_LOOKS = 4
"""Least number of evaluations that show a trend."""

Trend = Literal["unknown", "none", "early", "rising", "level", "falling"]


@dataclass(frozen=True)
class Verdict:
    """The verdict: `trend` for programs, sentences for people; `share` is gap over held-out loss."""

    trend: Trend
    sentence: str
    share: float | None = None


def judge_run(history: History) -> Verdict:
    """Judge an adapter by its gap; of a LoRA for few steps only the pictures tell."""
    if not history.distills:
        return judge_adapter(history)
    return Verdict(
        "unknown", "A LoRA for few steps: compare the rows of its sample grid with the base's own."
    )


def judge_adapter(history: History) -> Verdict:
    """Judge the run by the present gap to a shuffled reference and the similarity of its pictures."""
    gaps = [value for _, value in history.finite(GAP)]
    loss = history.last("held-out loss")
    if not gaps or not loss:
        return Verdict("unknown", "There is no verdict yet: the held-out samples have not been evaluated.")
    share = gaps[-1] / loss
    certainty = _describe_certainty(history)
    change = f"a shuffled reference {_changes(gaps[-1])} ({_percent(share)} of the held-out loss{certainty})"
    more = _describe_similarity(history) + _warn_of_few(history)
    if share < _NOTHING:
        return Verdict("none", f"The adapter does not read its reference: {change}.{more}", share)
    trend = _trend(gaps)
    ending = (_AT_THE_END if history.is_finished else _SO_FAR)[trend]
    return Verdict(trend, f"The adapter reads its reference: {change}{ending}{more}", share)


def _describe_certainty(history: History) -> str:
    """Return the number of held-out samples and, unless they are few, half the 95 % interval of the gap."""
    count, error = history.last("held-out samples"), history.last("gap's standard error")
    if count is None:
        return ""  # a run of an earlier version
    interval = f", ± {format_value(1.96 * error)}" if error is not None and count >= FEW else ""
    return f"; {count:,.0f} held-out samples{interval}"


def _describe_similarity(history: History) -> str:
    like, other = (history.last(f"similarity to {what}") for what in ("reference", "a shuffled reference"))
    if like is None or other is None:
        return ""
    return f" Its pictures have a similarity of {like:.2f} to their reference and {other:.2f} to another one."


def _warn_of_few(history: History) -> str:
    count = history.last("held-out samples")
    if count is None or count >= FEW:
        return ""
    return " So few held-out samples do not rank adapters: compare the pictures."


_SO_FAR: dict[Trend, str] = {
    "early": "; it is too early for a trend.",
    "rising": ", and this gap is rising.",
    "level": ", and this gap no longer rises.",
    "falling": ", but this gap is falling: look at earlier checkpoints.",
}

_AT_THE_END: dict[Trend, str] = {
    "early": ".",
    "rising": ", and this gap was still rising at the end: a longer run may improve it.",
    "level": ", and this gap no longer rose at the end.",
    "falling": ", but this gap was falling at the end: look at earlier checkpoints.",
}


def _changes(gap: float | int) -> str:
    return f"{'raises' if gap > 0 else 'lowers'} the loss by {format_value(abs(gap))}"


def _percent(share: float | int) -> str:
    return f"{abs(share):.1%}".replace("%", " %")


def _trend(gaps: list[float | int]) -> Trend:
    """Compare the mean of the last quarter of the evaluations with that of the quarter before."""
    if len(gaps) < _LOOKS:
        return "early"
    quarter = len(gaps) // 4
    late = sum(gaps[-quarter:]) / quarter
    before = sum(gaps[-2 * quarter : -quarter]) / quarter
    change = (late - before) / max(abs(late), abs(before))
    return "rising" if change > _CHANGE else "falling" if change < -_CHANGE else "level"
