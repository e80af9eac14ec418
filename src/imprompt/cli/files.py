"""Commands about files and models: `inspect`, `convert`, `variants`, `layers`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imprompt.cli.terminal import interrupted_at_once, one_line, print_facts, print_rows
from imprompt.errors import CheckpointError
from imprompt.runtime.output import check_output

if TYPE_CHECKING:
    from imprompt.cli.inspecting import Findings


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (inspect, convert, variants, layers):
        app.command()(command)


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            help="An adapter, a picture or job of ours, embeddings, or anything else.", show_default=False
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what a file is: what an adapter needs and what is wrong with it, or how a picture was made.

    Of a picture that is not ours: what it is, and what A1111's web UI or ComfyUI wrote into it.

    [bold]Examples[/bold]

    imprompt inspect ip-adapter_sd15.safetensors

    imprompt inspect out.png --json

    A file that is no use as an image prompt, and an adapter with something wrong in it, give exit code 1.
    """
    with interrupted_at_once():
        from imprompt.cli.inspecting import findings

    found: Findings = findings(file)
    print_facts(found.facts, as_json=as_json)
    if found.problems:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise CheckpointError(f"{file}: {found.problems[0]}{more}")


def convert(
    source: Annotated[Path, typer.Argument(help="An adapter file.", show_default=False)],
    destination: Annotated[
        Path, typer.Argument(help="Its new name: .safetensors or .bin.", show_default=False)
    ],
) -> None:
    """Write an adapter file in another layout; repairs training checkpoints.

    [bold]Example[/bold]

    imprompt convert ip-adapter_sd15.bin ip-adapter_sd15.safetensors
    """
    check_output(destination, ".safetensors", ".bin")

    with interrupted_at_once():
        from imprompt.checkpoint import convert_adapter

    convert_adapter(source, destination)
    typer.echo(f"wrote {one_line(str(destination))}")


def variants(
    page: Annotated[
        bool, typer.Option("--page", help="With files, sizes and all tensor names, as Markdown.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same, for programs.")] = False,
) -> None:
    """List every published adapter by its short name, for --adapter.

    [bold]Examples[/bold]

    imprompt variants

    imprompt variants --page > variants.md
    """
    with interrupted_at_once():
        from imprompt.checkpoint import published, variants

    if page or as_json:
        typer.echo(variants.variants_json() if as_json else variants.variants_markdown())
        return
    rows = [
        (name, one.variant, one.base_family, one.licence, one.note)
        for name, one in published.PUBLISHED.items()
    ]
    print_rows(("short name", "variant", "base", "licence", "note"), rows)


def layers(
    mode: Annotated[str, typer.Argument(help='"style", "composition", "ease in", ...', show_default=False)],
    base: Annotated[str, typer.Option(help="mini, sd15 or sdxl.")] = "mini",
    convention: Annotated[str, typer.Option(help="Whose sets: comfy, invoke or instantstyle.")] = "comfy",
    output: Annotated[Path, typer.Option(help="A PNG.")] = Path("layers.png"),
) -> None:
    """Draw where in the U-Net a mode lets a reference act.

    [bold]Example[/bold]

    imprompt layers "strong style" --base sdxl
    """
    check_output(output, ".png")

    with interrupted_at_once():
        from imprompt.cli.drawing import drawn_layers
        from imprompt.runtime.output import write_atomically

    picture = drawn_layers(mode, base, convention)
    with write_atomically(output) as part:
        picture.save(part, format="PNG")
    typer.echo(f"wrote {one_line(str(output))}")
