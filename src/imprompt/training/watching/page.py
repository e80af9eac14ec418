"""The page of a run: a single file to look at while it runs, to keep and to share.

It has no parts outside itself, works without its script, and is remade from the run's folder at any time,
also for a run that was stopped or failed.
"""

import datetime
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from imprompt.errors import ConfigError
from imprompt.report import (
    SMALL_BYTES,
    Code,
    Facts,
    KeyFigure,
    Markup,
    Report,
    Section,
    escape,
    format_short,
    format_value,
    render_page,
)
from imprompt.runtime.output import write_atomically
from imprompt.training.config import parse_config
from imprompt.training.watching.commands import generate_command, resume_command
from imprompt.training.watching.curves import build_charts
from imprompt.training.watching.grids import SampleGrid, describe_grid, embed_grids
from imprompt.training.watching.history import Event, History, format_duration, read_history
from imprompt.training.watching.verdict import GAP, Verdict, judge_run

PAGE_FILE = "index.html"
SMALL_PAGE_FILE = "index-small.html"
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
    words = len(build_page(history, []).encode())
    # In base64 a picture is a third larger.
    room = max(SMALL_BYTES - words, 0) * 3 // 4 if small else None
    whole = build_page(history, embed_grids(history.pictures, room))
    with write_atomically(path) as part:
        part.write_text(whole, encoding="utf-8")
    return path


def build_page(history: History, grids: list[SampleGrid]) -> str:
    """Return the page as HTML."""
    verdict, total = judge_run(history), history.total_steps
    sections = [
        _samples(grids, history),
        Section("Curves", blocks=build_charts(history)),
        _events(history.events),
        _commands(history),
        _configuration(history.config),
        Section("Environment", blocks=[Facts({"": history.environment})] if history.environment else []),
    ]
    report = Report(
        title=history.name,
        lead=verdict.sentence,
        sections=[section for section in sections if section.blocks],
        overline=_about(history),
        key_figures=[*_key_figures(history, verdict)],
        progress=min(history.step / total, 1.0) if total else 0.0,
        state=_state(history),
        author="imprompt train",
        source="log.jsonl",
    )
    return render_page(report)


def _about(history: History) -> str:
    """Return the line above the title: what is trained on what."""
    variant, model = history.setting("adapter.variant"), history.setting("base.model")
    if not variant or not model:
        return "Image-prompt adapter"
    if history.distills:
        return f"LoRA of rank {history.setting('distillation.rank')} for few steps, on {model}"
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


def _key_figures(history: History, verdict: Verdict) -> Iterable[KeyFigure]:
    """Yield the key figures, each with its unit and what to compare it with."""
    if verdict.share is not None and (gap := history.last(GAP)) is not None:
        comparison = f"of the held-out loss ({format_value(gap)})"
        yield KeyFigure(float(verdict.share), "gap to shuffled", comparison, percent=True)
    if (held := history.lowest("held-out loss")) is not None:
        now, comparison = history.last("held-out loss") or 0.0, f"lowest {held[1]:.4f}, at step {held[0]:,}"
        yield KeyFigure(now, "held-out loss", comparison, digits=4)
    if (like := history.last("similarity to reference")) is not None:
        other = history.last("similarity to a shuffled reference")
        comparison = "" if other is None else f"{other:.3f} to a shuffled one"
        yield KeyFigure(like, "similarity to reference", comparison)
    if batch := history.setting("training.batch_size"):
        yield KeyFigure(format_short(history.step * batch), "samples seen", f"in batches of {batch}")
    if (speed := history.last("samples/s")) is not None:
        waiting = history.last("waiting")
        comparison = "" if waiting is None else f"{100 * waiting:.1f} % of the time waiting for data"
        yield KeyFigure(format_value(speed), "samples", comparison, unit="/s")
    if skipped := history.last("skipped steps"):
        yield KeyFigure(f"{skipped:g}", "skipped steps", "their gradients were not finite")


def _samples(grids: list[SampleGrid], history: History) -> Section:
    if not grids:
        return Section("Samples")
    first, last = grids[0], grids[-1]
    wide = " wide" if last.width > 1.5 * last.height else ""
    pair = [_grid(first, "")] if len(grids) == 1 else [_grid(first, ""), _grid(last, " now")]
    count = len(history.pictures)
    remark = f" {len(grids)} of {count} grids are here." if len(grids) < count else ""
    html = f'<div class="pair{wide}">{"".join(pair)}</div>{_slider(grids)}'
    return Section("Samples", f"{describe_grid(history)}{remark}", [Markup(html)])


def _grid(grid: SampleGrid, kind: str) -> str:
    name = f' class="{kind.strip()}-step"' if kind else ""
    return (
        f"<figure><figcaption><b{name}>step {grid.step:,}</b></figcaption>"
        f'<div class="scroll"><img class="grid{kind}" data-step="{grid.step}" src="{grid.source}" '
        f'width="{grid.width}" height="{grid.height}" alt="Sample grid at step {grid.step:,}"></div></figure>'
    )


def _slider(grids: list[SampleGrid]) -> str:
    """Write the slider through all grids; without the script the grids between both ends are listed."""
    if len(grids) < 3:
        return ""
    between = "".join(_grid(grid, "") for grid in grids[1:-1])
    return (
        f'<label class="slide"><span>step {grids[0].step:,}</span><input type="range" min="0" '
        f'aria-label="Step of the second grid"><span>step {grids[-1].step:,}</span></label>'
        f'<div class="rest">{between}</div>'
    )


def _events(events: list[Event]) -> Section:
    if not events:
        return Section("Events")
    earlier = len(events) - MOST_EVENTS
    note = "Times are UTC." + (f" {earlier:,} earlier ones are in log.jsonl." if earlier > 0 else "")
    lines = "".join(
        f"<li><b>step {event.step:,}</b><span>{_when(event.time)}</span>"
        f"<p>{escape(_capitalize(event.sentence))}</p></li>"
        for event in events[-MOST_EVENTS:]
    )
    return Section("Events", note, [Markup(f'<ol class="events">{lines}</ol>')])


def _commands(history: History) -> Section:
    blocks = []
    if not history.is_finished:
        blocks.append(Code(resume_command(history), "Continue the run."))
    if command := generate_command(history):
        blocks.append(Code(command, "Generate with it."))
    return Section("Commands", blocks=blocks)


def _configuration(config: Mapping[str, Any]) -> Section:
    """List the settings that differ from the preset; all others are folded away."""
    if not config:
        return Section("Configuration")
    changed = _list_changed_keys(config)
    settings = {key: value for key, value in _flat(config).items() if key in changed}
    alone = {key: value for key, value in config.items() if not isinstance(value, dict)}
    groups = {"run": alone} | {key: value for key, value in config.items() if isinstance(value, dict)}
    everything = {name: _flat(group) for name, group in groups.items()}
    return Section(
        "Configuration",
        "The settings of this run that differ from its preset.",
        [Facts({"": settings}), Facts(everything, "All settings")],
    )


def _flat(group: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of a group, those of its inner groups under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in group.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _list_changed_keys(config: Mapping[str, Any]) -> set[str]:
    """Return the dotted keys whose values differ from the preset's; none if the preset is not known."""
    named = {key: config[key] for key in ("preset", "output") if key in config}
    try:
        usual = _flat(parse_config(named, "config.json").model_dump(mode="json"))
    except ConfigError:
        return set()
    return {key for key, value in _flat(config).items() if usual.get(key) != value} | set(named)


def _when(time: float | int, *, year: bool = False) -> str:
    moment = datetime.datetime.fromtimestamp(time, datetime.UTC)
    return f"{moment.day} {moment:%b %Y, %H:%M} UTC" if year else f"{moment.day} {moment:%b, %H:%M}"


def _capitalize(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
