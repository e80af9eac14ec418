"""The page of a run: a single file to look at while it runs, to keep and to share.

It has no parts outside itself, works without its script, and is remade from the run's folder at any time,
also for a run that was stopped or failed.
"""

import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from imprompt.errors import ConfigError
from imprompt.report.axes import short
from imprompt.report.skeleton import chart_figure, facts_table, page, safe, tile, tiles
from imprompt.runtime.output import write_atomically
from imprompt.training.config import parse_config
from imprompt.training.watching.commands import generate_command, resume_command
from imprompt.training.watching.curves import run_charts
from imprompt.training.watching.grids import SampleGrid, describe_grid, embed_grids
from imprompt.training.watching.history import Event, History, format_duration, read_history
from imprompt.training.watching.look import SCRIPT, STYLE
from imprompt.training.watching.verdict import GAP, Verdict, judge_adapter

PAGE_FILE = "index.html"
SMALL_PAGE_FILE = "index-small.html"
SMALL_BYTES = 580_000
MOST_EVENTS = 100


def write_page(folder: Path, *, small: bool = False) -> Path:
    """Write the page of the run in `folder` and return its path.

    Args:
        folder: a run's folder; what is not in it yet is left out of the page
        small: write `index-small.html`, of less than 600 kB, with few grids as JPEG, to be kept in a
            repository; otherwise `index.html`

    Raises:
        OutputError: the page cannot be written
    """
    history = read_history(folder)
    path = folder / (SMALL_PAGE_FILE if small else PAGE_FILE)
    words = len(page_of(history, []).encode())
    # In base64 a picture is a third larger.
    room = max(SMALL_BYTES - words, 0) * 3 // 4 if small else None
    whole = page_of(history, embed_grids(history.pictures, room))
    with write_atomically(path) as part:
        part.write_text(whole, encoding="utf-8")
    return path


def page_of(history: History, grids: list[SampleGrid]) -> str:
    """Return the page as HTML."""
    verdict = judge_adapter(history)
    sections = [
        _header(history, verdict),
        _samples(grids, history),
        _curves(history),
        _events(history.events),
        _commands(history),
        _configuration(history.config),
        _environment(history.environment),
    ]
    footer = (
        "Written by <code>imprompt train</code>. The figures are in <code>log.jsonl</code>, beside this page."
    )
    return page(history.name, "".join(sections), footer=footer, style=STYLE, script=SCRIPT)


def _header(history: History, verdict: Verdict) -> str:
    total = history.total_steps
    share = min(history.step / total, 1.0) if total else 0.0
    return (
        f'<header><p class="over">{safe(_about(history))}</p><h1>{safe(history.name)}</h1>'
        f'<p class="verdict">{safe(verdict.sentence)}</p>'
        f'<div class="bar"><i style="width:{share:.1%}"></i></div>'
        f'<p class="state">{safe(_state(history))}</p>{tiles(_tiles(history, verdict))}</header>'
    )


def _about(history: History) -> str:
    """Return the line above the title: what is trained on what."""
    variant, model = history.setting("adapter.variant"), history.setting("base.model")
    if not variant or not model:
        return "Image-prompt adapter"
    tokens = history.setting("adapter.tokens")
    return f"Image-prompt adapter “{variant}”, {tokens} tokens, on {model}"


def _state(history: History) -> str:
    """Return how far the run is, how long it took, and on which device."""
    said = [f"{'Finished: step' if history.is_finished else 'Step'} {history.step:,}"]
    if total := history.total_steps:
        said[0] += f" of {total:,}"
    if history.seconds:
        said.append(format_duration(history.seconds))
    if device := history.environment.get("device"):
        processes = history.environment.get("processes", 1)
        said.append(f"{processes} × {device}" if processes > 1 else str(device))
    if history.written is not None:
        said.append(_when(history.written, year=True))
    return " · ".join(said)


def _tiles(history: History, verdict: Verdict) -> Iterable[str]:
    """Yield the key figures, each with its unit and a value to compare it with."""
    if verdict.share is not None and (gap := history.last(GAP)) is not None:
        percent = f"{100 * verdict.share:.1f}<small>%</small>".replace("-", "−")
        yield tile(percent, "gap to shuffled", f"of the held-out loss ({short(_three(gap))})", first=True)
    if (held := history.lowest("held-out loss")) is not None:
        now = history.last("held-out loss") or 0.0
        yield tile(f"{now:.4f}", "held-out loss", f"lowest {held[1]:.4f}, at step {held[0]:,}")
    if (like := history.last("similarity to reference")) is not None:
        other = history.last("similarity to a shuffled reference")
        beside = "" if other is None else f"{other:.3f} to a shuffled one"
        yield tile(f"{like:.3f}", "similarity to reference", beside)
    if batch := history.setting("training.batch_size"):
        yield tile(short(history.step * batch), "samples seen", f"in batches of {batch}")
    if (speed := history.last("samples/s")) is not None:
        waiting = history.last("waiting")
        beside = "" if waiting is None else f"{100 * waiting:.1f} % of the time waiting for data"
        yield tile(f"{short(_three(speed))}<small>/s</small>", "samples", beside)
    if skipped := history.last("skipped steps"):
        yield tile(f"{skipped:g}", "skipped steps", "their gradients were not finite")


def _samples(grids: list[SampleGrid], history: History) -> str:
    if not grids:
        return ""
    first, last = grids[0], grids[-1]
    wide = " wide" if last.width > 1.5 * last.height else ""
    pair = [_grid(first, "")] if len(grids) == 1 else [_grid(first, ""), _grid(last, " now")]
    drawn = len(history.pictures)
    shown = f" {len(grids)} of {drawn} grids are here." if len(grids) < drawn else ""
    return (
        f"<h2>Samples</h2><p>{safe(describe_grid(history))}{shown}</p>"
        f'<div class="pair{wide}">{"".join(pair)}</div>{_slider(grids)}'
    )


def _grid(grid: SampleGrid, kind: str) -> str:
    name = f' class="{kind.strip()}-step"' if kind else ""
    return (
        f"<figure><figcaption><b{name}>step {grid.step:,}</b></figcaption>"
        f'<div class="scroll"><img class="grid{kind}" data-step="{grid.step}" src="{grid.source}" '
        f'width="{grid.width}" height="{grid.height}" alt="Sample grid at step {grid.step:,}"></div></figure>'
    )


def _slider(grids: list[SampleGrid]) -> str:
    """Return a slider through all grids; without the script, those between first and last are listed."""
    if len(grids) < 3:
        return ""
    between = "".join(_grid(grid, "") for grid in grids[1:-1])
    return (
        f'<label class="slide"><span>step {grids[0].step:,}</span><input type="range" min="0" '
        f'aria-label="Step of the second grid"><span>step {grids[-1].step:,}</span></label>'
        f'<div class="rest">{between}</div>'
    )


def _curves(history: History) -> str:
    drawn = "".join(chart_figure(chart) for chart in run_charts(history))
    return f'<h2>Curves</h2><div class="charts">{drawn}</div>' if drawn else ""


def _events(events: list[Event]) -> str:
    if not events:
        return ""
    earlier = len(events) - MOST_EVENTS
    note = "Times are UTC." + (f" {earlier:,} earlier ones are in log.jsonl." if earlier > 0 else "")
    lines = "".join(
        f"<li><b>step {event.step:,}</b><span>{_when(event.time)}</span>"
        f"<p>{safe(_capitalize(event.sentence))}</p></li>"
        for event in events[-MOST_EVENTS:]
    )
    return f'<h2>Events</h2><p>{note}</p><ol class="events">{lines}</ol>'


def _commands(history: History) -> str:
    parts = ["<h2>Commands</h2>"]
    if not history.is_finished:
        parts.append(f"<p>Go on where it stopped.</p><pre>{safe(resume_command(history))}</pre>")
    if command := generate_command(history):
        parts.append(f'<p class="note">Draw with it.</p><pre>{safe(command)}</pre>')
    return "".join(parts) if len(parts) > 1 else ""


def _configuration(config: Mapping[str, Any]) -> str:
    """Return the settings that differ from the preset, and all others folded."""
    if not config:
        return ""
    changed = _changed_settings(config)
    said = {key: value for key, value in _flat(config).items() if key in changed}
    alone = {key: value for key, value in config.items() if not isinstance(value, dict)}
    groups = {"run": alone} | {key: value for key, value in config.items() if isinstance(value, dict)}
    tables = "".join(facts_table(name, _flat(group)) for name, group in groups.items())
    return (
        "<h2>Configuration</h2><p>What this run was told; all else comes from its preset.</p>"
        f'<div class="columns">{facts_table("", said)}</div>'
        f'<details><summary>All settings</summary><div class="columns">{tables}</div></details>'
    )


def _environment(environment: Mapping[str, Any]) -> str:
    if not environment:
        return ""
    return f'<h2>Environment</h2><div class="columns">{facts_table("", environment)}</div>'


def _flat(group: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten groups of settings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in group.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _changed_settings(config: Mapping[str, Any]) -> set[str]:
    """Return the dotted keys that differ from the preset; none if the preset is unknown."""
    named = {key: config[key] for key in ("preset", "output") if key in config}
    try:
        usual = _flat(parse_config(named, "config.json").model_dump(mode="json"))
    except ConfigError:
        return set()
    return {key for key, value in _flat(config).items() if usual.get(key) != value} | set(named)


def _three(value: float | int) -> float | int:
    """Round to three significant digits."""
    return float(f"{value:.3g}")


def _when(time: float | int, *, year: bool = False) -> str:
    moment = datetime.datetime.fromtimestamp(time, datetime.UTC)
    return f"{moment.day} {moment:%b %Y, %H:%M} UTC" if year else f"{moment.day} {moment:%b, %H:%M}"


def _capitalize(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
