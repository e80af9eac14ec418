"""Does the adapter read its reference, and does it learn to? One sentence, from the shuffled-reference gap.

The gap is the held-out loss with somebody else's reference minus that with the true one. An adapter that
ignores its reference has none, however well its loss falls; so it is the first thing to look at.
"""

from dataclasses import dataclass
from typing import Literal

from imprompt.training.watching.history import History

GAP = "gap to shuffled"

_NOTHING = 0.005
"""A gap below this share of the held-out loss is taken for none."""

_CHANGE = 0.05
"""The gap moves if its last quarter differs from the quarter before by this share of the larger of them."""

_LOOKS = 4
"""Fewer looks than this say nothing of a trend."""

Trend = Literal["unknown", "none", "early", "rising", "level", "falling"]


@dataclass(frozen=True)
class Verdict:
    """What the gap says: `trend` for programs, `sentence` for people; `share` is gap over held-out loss."""

    trend: Trend
    sentence: str
    share: float | None = None


def judge(history: History) -> Verdict:
    """Say what the shuffled-reference gap says so far."""
    gaps = [value for _, value in history.finite(GAP)]
    loss = history.last("held-out loss")
    if not gaps or not loss:
        return Verdict(
            "unknown", "Nothing can be said yet: the held-out samples have not been looked at so far."
        )
    share = gaps[-1] / loss
    if share < _NOTHING:
        return Verdict(
            "none",
            "The adapter does not read its reference: with another picture’s, the held-out loss "
            f"{_changes(share)}.",
            share,
        )
    reads = f"The adapter reads its reference: with another picture’s, the held-out loss {_changes(share)}"
    trend = _trend(gaps)
    return Verdict(trend, reads + _AND[trend], share)


_AND: dict[Trend, str] = {
    "early": "; it is too early to say where that goes.",
    "rising": ", and this gap is still rising.",
    "level": ", and this gap no longer rises.",
    "falling": ", but this gap is falling: look at earlier checkpoints.",
}


def _changes(share: float) -> str:
    if abs(share) < 0.0005:
        return "stays as it is"
    return f"is {abs(share):.1%} {'higher' if share > 0 else 'lower'}".replace("%", " %")


def _trend(gaps: list[float]) -> Trend:
    """Compare the mean of the last quarter of the looks with that of the quarter before."""
    if len(gaps) < _LOOKS:
        return "early"
    quarter = len(gaps) // 4
    late = sum(gaps[-quarter:]) / quarter
    before = sum(gaps[-2 * quarter : -quarter]) / quarter
    change = (late - before) / max(abs(late), abs(before))
    return "rising" if change > _CHANGE else "falling" if change < -_CHANGE else "level"
