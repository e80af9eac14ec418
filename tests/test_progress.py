"""A bar in a terminal, and nothing elsewhere."""

import io

import pytest
from rich.console import Console

from imprompt.runtime.progress import show_progress, show_running_total


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_how_much_is_done_and_a_file_says_nothing(terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80)
    with show_progress("pictures", 9, console) as advance:
        advance(2)
        advance(3)
    with show_running_total("caching", console) as tell:
        tell(3, 8)
    said = file.getvalue()
    assert all((word in said) == terminal for word in ("pictures", "5/9", "caching", "3/8"))
    assert terminal or not said
