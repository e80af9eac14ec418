"""`imprompt generate`: options → a job → pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imprompt.cli.asking import asked_job, given_options
from imprompt.cli.terminal import (
    error_console,
    interrupted_at_once,
    number,
    one_line,
    progress_bar,
    silence_loading,
)
from imprompt.errors import OutputError
from imprompt.runtime.output import check_output, write_atomically

if TYPE_CHECKING:
    from imprompt.generation.job import Job
    from imprompt.generation.run import Inputs, Models

EACH = "Each reference (once: for all; or as often as there are references, in their order; - is nothing)"
START = "Start from a picture, or follow one"
MODELS = "Models"
JOBS = "Jobs"


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(generate)


def generate(
    reference: Annotated[
        list[str] | None,
        typer.Argument(help="Pictures, or embedding files; several act together.", show_default=False),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the text asks for.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the text asks to avoid.")] = None,
    guidance_scale: Annotated[
        float | None, number("Classifier-free guidance; 1 is none, 7.5 if left out.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; 25 if left out.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same picture; 0 if left out.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="How many, with the seeds from --seed on; 1 if left out.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=8, help="Width and height; if left out, the base's.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A PNG; out.png if left out; of several, out-0.png and so on.")
    ] = None,
    view: Annotated[
        bool, typer.Option("--view", help="Also write what the encoder saw: out-seen.png.")
    ] = False,
    scale: Annotated[
        list[float] | None, number("λ: 0 ignores the picture, 1 follows it fully; 1 if left out.", EACH)
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<mode>",
            help='Where it acts: full, style, composition, "strong style", ...; see imprompt layers.',
            rich_help_panel=EACH,
        ),
    ] = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            help="Where in the picture it acts: a picture, white where.",
            metavar="<file>",
            rich_help_panel=EACH,
        ),
    ] = None,
    from_: Annotated[
        list[float] | None, number("When it begins to act, of all steps: 0 to 1.", EACH, "--from")
    ] = None,
    until: Annotated[list[float] | None, number("When it stops acting: 0 to 1.", EACH)] = None,
    crop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<crop>",
            help="What the encoder sees: center, top, left, ..., pad, stretch, tiles, or a position x,y.",
            rich_help_panel=EACH,
        ),
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option(help="A picture of what it shall not be like.", metavar="<file>", rich_help_panel=EACH),
    ] = None,
    combine: Annotated[
        str | None,
        typer.Option(
            help="Make one reference of all: concat, average, add, subtract, ...", rich_help_panel=EACH
        ),
    ] = None,
    init_image: Annotated[
        str | None, typer.Option(help="The picture to start from.", metavar="<file>", rich_help_panel=START)
    ] = None,
    strength: Annotated[
        float | None, number("How much of it is painted over: 0.8; 1 with --inpaint.", START)
    ] = None,
    inpaint: Annotated[
        str | None,
        typer.Option(
            help="A mask over it: white is repainted, black stays.", metavar="<file>", rich_help_panel=START
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            help="A picture for a ControlNet to follow (mini: its edges); may be repeated.",
            metavar="<file>",
            rich_help_panel=START,
        ),
    ] = None,
    control_model: Annotated[
        list[str] | None,
        typer.Option(
            help="Its ControlNet: mini, a folder, or a hub id.", metavar="<model>", rich_help_panel=START
        ),
    ] = None,
    control_scale: Annotated[list[float] | None, number("How strongly it acts; 1.", START)] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="mini, mini:STYLE, a folder in diffusers' format, or a hub id; mini if left out.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="mini, mini-plus, a short name (imprompt variants), a file, or owner/name:file; mini if "
            "left out.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    image_encoder: Annotated[
        str | None,
        typer.Option(
            help="A folder or a hub id; if left out, the one known for the adapter.", rich_help_panel=MODELS
        ),
    ] = None,
    job: Annotated[
        Path | None,
        typer.Option(
            help="Everything from a TOML file; beside it only --output, --seed and --count.",
            rich_help_panel=JOBS,
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Everything as for this picture of ours, but for what is given.", rich_help_panel=JOBS
        ),
    ] = None,
    save_job: Annotated[
        Path | None, typer.Option(help="Also write what was asked for as a TOML file.", rich_help_panel=JOBS)
    ] = None,
) -> None:
    """Make pictures from image prompts, with or without text.

    [bold]Examples[/bold]

    imprompt generate cat.png

    imprompt generate cat.png --prompt "on a blue background" --scale 0.6

    imprompt generate cat.png room.png --mode style --mode composition

    imprompt generate cat.png dog.png --mask left.png --mask right.png --scale 0.8 --scale 1

    imprompt generate cat.png --init-image photo.png --inpaint mask.png

    imprompt generate --like out.png --seed 1 --count 4 --output more.png

    Each picture carries its settings; [bold]imprompt inspect out.png[/bold] shows them.
    """
    given = given_options(locals())
    with interrupted_at_once():
        asked = asked_job(given)
        _check_outputs(asked, [*map(str, (like, job) if like or job else ())], view=view, save_job=save_job)
        from imprompt.generation import run

        inputs = run.read_inputs(asked)
    models = _loaded(asked)
    _make(asked, inputs, models)
    if view:
        _write_seen(inputs, models, _seen_path(asked))
    if save_job is not None:
        _write_job(asked, save_job)


def _check_outputs(job: "Job", made_from: Sequence[str], *, view: bool, save_job: Path | None) -> None:
    """Refuse, before any work, what cannot be written or would overwrite what the pictures are made from."""
    for path in [*job.outputs, *([_seen_path(job)] if view else [])]:
        check_output(path, ".png")
        _spare([*job.files, *made_from], path)
    if save_job is not None:
        check_output(save_job, ".toml")


def _spare(files: Sequence[str], path: Path) -> None:
    for file in files:
        if path.exists() and Path(file).exists() and path.samefile(file):
            raise OutputError(f"{path} is one of the files to be read; choose another name with --output")


def _seen_path(job: "Job") -> Path:
    output = Path(job.output)
    return output.with_stem(f"{output.stem}-seen")


def _loaded(job: "Job") -> "Models":
    from imprompt.generation.run import load_models

    silence_loading()
    with interrupted_at_once(), error_console().status("loading the models"):
        return load_models(job)


def _make(job: "Job", inputs: "Inputs", models: "Models") -> None:
    from imprompt.generation.job import picture_settings
    from imprompt.generation.run import run_job
    from imprompt.runtime.output import save_picture

    with progress_bar(inputs.steps_of(job)) as advance:
        made = run_job(job, inputs, models, on_step=advance)
        for path, (picture, alone) in zip(job.outputs, made, strict=True):
            save_picture(picture, path, picture_settings(alone, path))
            _say_written(path)


def _write_seen(inputs: "Inputs", models: "Models", path: Path) -> None:
    from imprompt.generation.run import what_is_seen

    seen = what_is_seen(inputs, models)
    with write_atomically(path) as part:
        seen.save(part, format="PNG")
    _say_written(path)


def _write_job(job: "Job", path: Path) -> None:
    from imprompt.generation.job import save_job

    save_job(job, path)
    _say_written(path)


def _say_written(path: Path) -> None:
    typer.echo(f"wrote {one_line(str(path))}")
