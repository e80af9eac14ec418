"""`imprompt mini`: draw characters; rebuild the embedded model."""

import random
from pathlib import Path
from typing import Annotated, Literal

import typer

from imprompt.cli.outputs import keep_existing
from imprompt.cli.terminal import import_with_extra
from imprompt.errors import ConfigError
from imprompt.runtime.files import resolve_in_cache
from imprompt.runtime.output import check_output

app = typer.Typer(
    help="Draw reference characters, or rebuild the embedded model from public packages.",
    no_args_is_help=True,
)


@app.command()
def draw(
    output: Annotated[
        Path,
        typer.Argument(
            help="File to write: .png, .jpg or .webp. If it is there, the next free number is taken."
        ),
    ],
    style: Annotated[
        str | None,
        typer.Option(
            help="Style: adventurer, pixel-art, ...; lorelei and notionists are held out of training."
        ),
    ] = None,
    hair: Annotated[str | None, typer.Option(help="Color of the hair: pink, black, ...")] = None,
    hairdo: Annotated[
        str | None, typer.Option(help="Hairdo: long, short, bob, curly, mohawk, bald, hat, ...")
    ] = None,
    skin: Annotated[str | None, typer.Option(help="Skin: pale, light, tan, brown or dark.")] = None,
    clothes: Annotated[str | None, typer.Option(help="Color of the clothes.")] = None,
    expression: Annotated[
        str | None, typer.Option(help="Expression: smiling, laughing, sad, surprised, ...")
    ] = None,
    ground: Annotated[str | None, typer.Option(help="Color of the background.")] = None,
    robot: Annotated[str | None, typer.Option(help="Draw a robot of this color.")] = None,
    glasses: Annotated[bool, typer.Option("--glasses", help="Draw glasses.")] = False,
    sunglasses: Annotated[bool, typer.Option("--sunglasses", help="Draw sunglasses.")] = False,
    beard: Annotated[bool, typer.Option("--beard", help="Draw a beard.")] = False,
    moustache: Annotated[bool, typer.Option("--moustache", help="Draw a moustache.")] = False,
    size: Annotated[int, typer.Option(min=8, max=4096, help="Width and height in pixels.")] = 128,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same picture. Default: a random one.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file, instead of taking a free name.")
    ] = False,
) -> None:
    """Draw a character that no model was trained on, as a reference to try.

    Attributes that are not set are random. `imprompt inspect FILE` shows those of a picture.

    [bold]Examples[/bold]

    imprompt mini draw reference.png

    imprompt mini draw reference.png --style pixel-art --hair pink --glasses --seed 7
    """
    attributes = {"hair": hair, "hairdo": hairdo, "skin": skin, "clothes": clothes, "expression": expression}
    attributes |= {"ground": ground, "robot": robot}
    attributes |= {"glasses": choose_flag(glasses=glasses, sunglasses=sunglasses)}
    attributes |= {"beard": choose_flag(beard=beard, moustache=moustache)}
    characters, drawing = (
        import_with_extra(f"imprompt.lab.making.{name}", "draw") for name in ("characters", "drawing")
    )
    from imprompt.runtime.picture_files import FORMATS, save_picture

    check_output(output, *FORMATS)
    output = keep_existing(output, overwrite=overwrite)
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    words = {attribute: word for attribute, word in attributes.items() if word is not None}
    character = characters.find_character(words, random.Random(seed), style)
    picture = drawing.draw(character, size)
    settings = {"kind": "a character drawn by imprompt mini draw", **character.to_json(), "draw_seed": seed}
    save_picture(picture, output, settings)
    summary = ", ".join(f"{attribute} {word}" for attribute, word in character.attributes.items())
    typer.echo(f"wrote {output}: {character.style}, {summary} (seed {seed})")


def choose_flag(**flags: bool) -> str | None:
    """Return the word whose flag is set.

    Raises:
        ConfigError: more than one flag is set
    """
    words = [word for word, is_set in flags.items() if is_set]
    if len(words) > 1:
        raise ConfigError(f"--{' and --'.join(words)} cannot both be drawn; give one of them")
    return words[0] if words else None


@app.command()
def build_data(
    output: Annotated[
        str, typer.Option(help="Folder to write; a bare name is a folder in the cache, as in recipes.")
    ] = "characters-128",
    count: Annotated[
        int,
        typer.Option(
            min=1, help="Number of drawings to train on; each held-out split gets up to 2,000 more."
        ),
    ] = 100_000,
    people: Annotated[
        int,
        typer.Option(min=0, help="Number of people to draw in six views each, for the recognizer; 0: none."),
    ] = 0,
    size: Annotated[int, typer.Option(min=8, help="Width and height of a picture in pixels.")] = 128,
) -> None:
    """Draw the characters that the embedded model is trained on (five minutes on two cores)."""
    dataset = import_with_extra("imprompt.lab.making.dataset", "mini")
    folder = resolve_in_cache(output)
    held_out = min(count, 2_000)
    counts = {"training": count, "combinations": held_out, "parts": held_out, "styles": held_out}
    dataset.build_data(folder, counts, size=size)
    if people:
        dataset.build_people(folder, {"training": people, "combinations": 200}, size=size)
        typer.echo(f"wrote {people + 200:,} people in six views each to {folder / 'people'}")
    typer.echo(f"wrote {sum(counts.values()):,} drawings to {folder}")


@app.command()
def export(
    output: Annotated[Path, typer.Argument(help="Folder to create for the training pictures.")],
    layout: Annotated[
        Literal["folder", "official", "webdataset"], typer.Option(help="Layout of the files.")
    ] = "webdataset",
    count: Annotated[int, typer.Option(min=1, help="Number of samples to train on.")] = 60_000,
    held_out: Annotated[int, typer.Option(min=1, help="Number of samples of held-out combinations.")] = 500,
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.")] = 0,
    recognizer: Annotated[
        str | None,
        typer.Option(
            help="Folder of a model whose recognizer embeds faces, or a name in the cache. Then the "
            "references are other views of the same person, for the presets mini-face and mini-face-plus."
        ),
    ] = None,
) -> None:
    """Draw characters with captions and references for `imprompt train`.

    Held-out ones go to OUTPUT-held-out.

    [bold]Example[/bold]

    imprompt mini export characters

    imprompt mini export people --recognizer mini-128
    """
    exporting = import_with_extra("imprompt.lab.making.exporting", "mini")
    if recognizer is None:
        exporting.export_samples(output, layout=layout, count=count, held_out=held_out, seed=seed)
    else:
        folder = resolve_in_cache(recognizer)
        exporting.export_people(output, folder, layout=layout, count=count, held_out=held_out, seed=seed)
    typer.echo(f"wrote {count:,} samples to {output}, {held_out:,} to {output}-held-out")


@app.command()
def train(
    stage: Annotated[
        str,
        typer.Argument(
            help="Stage: codec, decoder, base, encoder, judge, recognizer, control, style, transformer; or a "
            "recipe.",
            show_default=False,
        ),
    ],
    resume: Annotated[
        str | None, typer.Option(help="'latest' resumes from the last checkpoint, if there is one.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting of the recipe: key=value.")
    ] = None,
) -> None:
    """Train one part of the embedded model with recipes/mini-STAGE.toml.

    [bold]Examples[/bold]

    imprompt mini train base --resume latest

    imprompt mini train judge --set steps=500 --set batch_size=64
    """
    if resume not in (None, "latest"):
        raise ConfigError(f"--resume takes latest, not {resume!r}")
    stages, recipe = (
        import_with_extra(f"imprompt.lab.making.{name}", "mini") for name in ("stages", "recipe")
    )
    path = Path(stage) if stage.endswith(".toml") else Path("recipes", f"mini-{stage}.toml")
    folder = stages.train_stage(recipe.load_recipe(path, settings or ()), resume=resume == "latest")
    if folder is not None:
        typer.echo(f"wrote {folder}")


@app.command()
def ship(
    model: Annotated[str, typer.Option(help="Folder of the trained model, as in the recipes.")] = "mini-128",
    adapter: Annotated[
        Path | None,
        typer.Option(help="Adapter for it, written by `imprompt train`; the other adapters are kept."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("src/imprompt/mini/weights"),
) -> None:
    """Copy a trained model's parts into the package, in float16.

    [bold]Example[/bold]

    imprompt mini ship --adapter runs/mini-adapter/adapter.safetensors
    """
    shipping = import_with_extra("imprompt.lab.making.shipping", "mini")
    size = shipping.ship(resolve_in_cache(model), output, adapter=adapter)
    typer.echo(f"wrote {size / 1e6:.1f} MB to {output}")
