"""`imprompt mini`: remake the embedded model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from imprompt.cli.terminal import optional
from imprompt.errors import ConfigError

app = typer.Typer(help="Remake the embedded model from public packages.", no_args_is_help=True)


@app.command()
def build_data(
    output: Annotated[
        str, typer.Option(help="A folder; a bare name is in the cache, as in recipes.")
    ] = "emoji-64",
    size: Annotated[int, typer.Option(min=8, help="Width and height of a picture.")] = 64,
) -> None:
    """Render the public icon sets to a captioned data set, split by concept."""
    emoji, recipe = (optional(f"imprompt.training.{name}", "mini") for name in ("emoji", "recipe"))
    folder = recipe.in_cache(output)
    typer.echo(f"wrote {emoji.build_data(folder, size=size):,} pictures to {folder}")


@app.command()
def export(
    output: Annotated[
        Path, typer.Argument(help="A folder that is not there yet, for the training pictures.")
    ],
    data: Annotated[
        str, typer.Option(help="The data set, as build-data wrote it; a bare name is in the cache.")
    ] = "emoji-64",
    layout: Annotated[
        Literal["folder", "official", "webdataset"], typer.Option(help="How the files are laid out.")
    ] = "folder",
    variants: Annotated[int, typer.Option(min=1, help="How often each drawing comes, each time anew.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the order and of what is drawn around.")] = 0,
) -> None:
    """Write the data set as pictures with captions, for `imprompt train`; held-out ones to OUTPUT-held-out.

    [bold]Example[/bold]

    imprompt mini export emoji-pictures
    """
    exporting, recipe = (optional(f"imprompt.training.{name}", "mini") for name in ("exporting", "recipe"))
    count = exporting.export_pictures(
        recipe.in_cache(data), output, layout=layout, variants=variants, seed=seed
    )
    typer.echo(f"wrote {count:,} pictures to {output}")


@app.command()
def train(
    stage: Annotated[
        str, typer.Argument(help="pair, base, judge, ...; or a recipe's file.", show_default=False)
    ],
    resume: Annotated[str | None, typer.Option(help="latest: go on where the last run stopped.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value of the recipe.")] = None,
) -> None:
    """Train one stage of the embedded model, by recipes/mini-STAGE.toml.

    [bold]Examples[/bold]

    imprompt mini train base --resume latest

    imprompt mini train judge --set steps=500 --set batch_size=64
    """
    if resume not in (None, "latest"):
        raise ConfigError(f"--resume takes latest, not {resume!r}")
    stages, recipe = (optional(f"imprompt.training.{name}", "mini") for name in ("stages", "recipe"))
    path = Path(stage) if stage.endswith(".toml") else Path("recipes", f"mini-{stage}.toml")
    folder = stages.train_stage(recipe.load_recipe(path, settings or ()), resume=resume == "latest")
    typer.echo(f"wrote {folder}")


@app.command()
def ship(
    model: Annotated[str, typer.Option(help="Folder of the trained model, as in recipes.")] = "mini-64",
    adapter: Annotated[
        Path | None,
        typer.Option(help="An adapter for it, as `imprompt train` wrote it; others stay as they are."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where they go.")] = Path("src/imprompt/mini/weights"),
) -> None:
    """Copy a trained model's parts into the package, in float16.

    [bold]Example[/bold]

    imprompt mini ship --adapter runs/emoji-adapter/adapter.safetensors
    """
    shipping, recipe = (optional(f"imprompt.training.{name}", "mini") for name in ("shipping", "recipe"))
    written = shipping.ship(recipe.in_cache(model), output, adapter=adapter)
    typer.echo(f"wrote {written / 1e6:.1f} MB to {output}")
