"""A run in the terminal: a progress bar, and lines for events and held-out figures.

    ━━━━━━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━  570/900  0:04:12 left  loss 0.1234  94 samples/s  waiting 2 %

Where nobody watches (a file, a pipe) there is no bar, and a plain line for every log.
"""

import datetime
import math
import time
from collections.abc import Iterator, Mapping
from types import TracebackType

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from imprompt.training.watching.log import Figures

_BAR_WIDTH = 12
"""Least number of columns of the bar; words that do not fit next to it are left out, the last ones first."""

_ABOUT_TRAINING = (
    "loss",
    "learning rate",
    "gradient norm",
    "gradient norm of the projection",
    "gradient norm of the layers",
    "samples/s",
    "waiting",
    "skipped steps",
)


class Display:
    """Shows a run on standard error.

    Args:
        total: the run's last step
        completed: the step it goes on from
        console: where to; by default standard error
    """

    def __init__(self, total: int, completed: int = 0, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.line = _Line(total, completed)
        self._live: Live | None = None

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self._live = Live(self.line, console=self.console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def advance(self, step: int) -> None:
        """Set the current step; cheap enough for every step."""
        self.line.completed = step

    def show_figures(self, step: int, figures: Figures) -> None:
        """Show figures: those of training next to the bar, all others on a line that stays."""
        self.advance(step)
        self.line.figures.update({name: figures[name] for name in _ABOUT_TRAINING if name in figures})
        others = {name: value for name, value in figures.items() if name not in _ABOUT_TRAINING}
        if others:
            words = (f"{name} {value:.4g}" for name, value in others.items())
            self._print(f"step {step:,}  {'  '.join(words)}")
        elif self._live is None:
            self._print("step " + "  ".join(self.line.words()))

    def show_event(self, step: int, sentence: str) -> None:
        """Show a sentence on a line that stays."""
        self._print(f"step {step:,}  {sentence}")

    def close(self) -> None:
        """Leave the bar as it is and release the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, words: str) -> None:
        # Text, not markup: a layer's name may have brackets. A file gets its lines whole.
        self.console.print(Text(words), soft_wrap=self._live is None)


class _Line:
    """The bar and as many words as fit into the terminal."""

    def __init__(self, total: int, completed: int) -> None:
        self.total, self.completed, self.begun_at = total, completed, completed
        self.figures: dict[str, float | int] = {}
        self.started = time.monotonic()

    def words(self) -> list[str]:
        """Return the words next to the bar, the most important first."""
        words = [f"{self.completed:,}/{self.total:,}"]
        if (left := self.seconds_left()) is not None:
            words.append(f"{datetime.timedelta(seconds=round(left))} left")
        return words + [word for name, word in self._describe_figures().items() if name in self.figures]

    def seconds_left(self) -> float | None:
        """Return the time to the last step at the present pace; None before the first step."""
        done = self.completed - self.begun_at
        if done <= 0:
            return None
        return (self.total - self.completed) * (time.monotonic() - self.started) / done

    def _describe_figures(self) -> Mapping[str, str]:
        value = {name: self.figures.get(name, math.nan) for name in _ABOUT_TRAINING}
        return {
            "loss": f"loss {value['loss']:.4f}",
            "samples/s": f"{value['samples/s']:.3g} samples/s",
            "waiting": f"waiting {value['waiting']:.0%}".replace("%", " %"),
        } | ({"skipped steps": f"{value['skipped steps']:g} skipped"} if value["skipped steps"] > 0 else {})

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        # One column stays free: some terminals break a line that fills them.
        words, room = self.words(), options.max_width - 1
        while len(words) > 1 and _BAR_WIDTH + sum(2 + len(word) for word in words) > room:
            words.pop()
        text = "  ".join(words)[: max(room, 0)]
        if (bar := room - len(text) - 2) >= _BAR_WIDTH:
            shown = ProgressBar(total=max(self.total, 1), completed=self.completed, width=bar)
            yield from (s for s in console.render(shown, options) if s.text != "\n")
            yield Segment("  ")
        yield Segment(text)
