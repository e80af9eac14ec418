"""Commands about files and models: `inspect`, `convert`, `variants`, `layers`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imprompt.cli.outputs import keep_existing
from imprompt.cli.terminal import exit_on_interrupt, print_facts, print_rows, print_written
from imprompt.errors import CheckpointError, OutputError
from imprompt.runtime.output import check_output

if TYPE_CHECKING:
    from imprompt.cli.inspection import Inspection


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (inspect, convert, variants, layers):
        app.command()(command)


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            help="An adapter, a picture, a job, embeddings, or any other file.", show_default=False
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Report what a file is: what an adapter needs, what is wrong with it, how a picture was made.

    For a picture of another program, show its format and what A1111's web UI or ComfyUI wrote into it.

    [bold]Examples[/bold]

    imprompt inspect ip-adapter_sd15.safetensors

    imprompt inspect out.png --json

    The exit code is 1 for a file that is no image prompt, and for an adapter with a problem.
    """
    with exit_on_interrupt():
        from imprompt.cli.inspection import inspect_file

    inspection: Inspection = inspect_file(file)
    print_facts(inspection.facts, as_json=as_json)
    if problems := inspection.problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(f"{file}: {problems[0]}{more}")


def convert(
    source: Annotated[Path, typer.Argument(help="Adapter file to read.", show_default=False)],
    destination: Annotated[
        Path, typer.Argument(help="File to write: .safetensors or .bin.", show_default=False)
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write an adapter file in the official layout; repair training checkpoints.

    [bold]Example[/bold]

    imprompt convert ip-adapter_sd15.bin ip-adapter_sd15.safetensors
    """
    check_output(destination, ".safetensors", ".bin")
    if destination.exists() and not overwrite:
        raise OutputError(f"{destination} exists; choose another name, or give --overwrite to replace it")

    with exit_on_interrupt():
        from imprompt.checkpoint import convert_adapter

    convert_adapter(source, destination)
    print_written(destination)


def variants(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with repositories and files.")] = False,
) -> None:
    """List every published adapter by its short name, for --adapter.

    [bold]Example[/bold]

    imprompt variants
    """
    with exit_on_interrupt():
        from imprompt.checkpoint.published import PUBLISHED

    if as_json:
        table = [{"name": name, **adapter._asdict()} for name, adapter in PUBLISHED.items()]
        typer.echo(json.dumps(table, indent=1))
        return
    rows = [
        (name, adapter.variant, adapter.base_family, adapter.license, adapter.note)
        for name, adapter in PUBLISHED.items()
    ]
    print_rows(("short name", "variant", "base", "license", "note"), rows)


def layers(
    mode: Annotated[
        str, typer.Argument(help='Mode to draw: "style", "composition", "ease in", ...', show_default=False)
    ],
    base: Annotated[
        str, typer.Option(help="Base model: mini, sd15, sdxl, or a folder in diffusers' format.")
    ] = "mini",
    convention: Annotated[
        str, typer.Option(help="Convention that defines the mode: comfy, invoke or instantstyle.")
    ] = "comfy",
    output: Annotated[
        Path,
        typer.Option(
            help="File to write: .png, .jpg or .webp. If it is there, the next free number is taken."
        ),
    ] = Path("layers.png"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file, instead of taking a free name.")
    ] = False,
) -> None:
    """Draw the U-Net layers on which a mode lets a reference act.

    [bold]Example[/bold]

    imprompt layers "strong style" --base sdxl
    """
    with exit_on_interrupt():
        from imprompt.runtime.picture_files import FORMATS, save_picture

        check_output(output, *FORMATS)
        from imprompt.cli.layer_plot import plot_mode

    output = keep_existing(output, overwrite=overwrite)
    save_picture(plot_mode(mode, base, convention), output)
    print_written(output)
