"""`imprompt mini`: remake the embedded model."""

import random
from pathlib import Path
from typing import Annotated, Literal

import typer

from imprompt.cli.terminal import optional
from imprompt.errors import ConfigError
from imprompt.runtime.output import check_output, save_picture
from imprompt.runtime.settings import resolve_in_cache

app = typer.Typer(help="Remake the embedded model from public packages.", no_args_is_help=True)


@app.command()
def draw(
    output: Annotated[Path, typer.Argument(help="The picture to write; its name ends in .png.")],
    style: Annotated[
        str | None,
        typer.Option(help="adventurer, pixel-art, ...; lorelei and notionists are never trained on."),
    ] = None,
    hair: Annotated[str | None, typer.Option(help="The hair's color: pink, black, ...")] = None,
    hairdo: Annotated[
        str | None, typer.Option(help="long, short, bob, curly, mohawk, bald, hat, ...")
    ] = None,
    skin: Annotated[str | None, typer.Option(help="pale, light, tan, brown or dark.")] = None,
    clothes: Annotated[str | None, typer.Option(help="The clothes' color.")] = None,
    expression: Annotated[str | None, typer.Option(help="smiling, laughing, sad, surprised, ...")] = None,
    ground: Annotated[str | None, typer.Option(help="The background's color.")] = None,
    robot: Annotated[str | None, typer.Option(help="Draw a robot of this color.")] = None,
    glasses: Annotated[bool, typer.Option("--glasses", help="With glasses.")] = False,
    sunglasses: Annotated[bool, typer.Option("--sunglasses", help="With sunglasses.")] = False,
    beard: Annotated[bool, typer.Option("--beard", help="With a beard.")] = False,
    moustache: Annotated[bool, typer.Option("--moustache", help="With a moustache.")] = False,
    size: Annotated[int, typer.Option(min=8, max=4096, help="Width and height in pixels.")] = 128,
    seed: Annotated[
        int | None, typer.Option(help="The same seed, the same picture; random if left out.")
    ] = None,
) -> None:
    """Draw a character that no model has seen: a reference to try image prompts with.

    What is not asked for is random. The picture keeps its attributes: imprompt inspect FILE shows them.

    [bold]Examples[/bold]

    imprompt mini draw reference.png

    imprompt mini draw reference.png --style pixel-art --hair pink --glasses --seed 7
    """
    wanted = {"hair": hair, "hairdo": hairdo, "skin": skin, "clothes": clothes, "expression": expression}
    wanted |= {"ground": ground, "robot": robot}
    wanted |= {"glasses": one_of(glasses=glasses, sunglasses=sunglasses)}
    wanted |= {"beard": one_of(beard=beard, moustache=moustache)}
    characters, drawing = (
        optional(f"imprompt.lab.making.{name}", "draw") for name in ("characters", "drawing")
    )
    check_output(output, ".png")
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    words = {attribute: word for attribute, word in wanted.items() if word is not None}
    character = characters.find_character(words, random.Random(seed), style)
    picture = drawing.draw(character, size)
    settings = {"kind": "a character drawn by imprompt mini draw", **character.to_json(), "draw_seed": seed}
    save_picture(picture, output, settings)
    described = ", ".join(f"{attribute} {word}" for attribute, word in character.attributes.items())
    typer.echo(f"wrote {output}: {character.style}, {described} (seed {seed})")


def one_of(**flags: bool) -> str | None:
    """The word whose flag is set.

    Raises:
        ConfigError: more than one is
    """
    words = [word for word, is_set in flags.items() if is_set]
    if len(words) > 1:
        raise ConfigError(f"--{' and --'.join(words)} cannot both be drawn; give one of them")
    return words[0] if words else None


@app.command()
def build_data(
    output: Annotated[
        str, typer.Option(help="A folder; a bare name is in the cache, as in recipes.")
    ] = "characters-128",
    count: Annotated[
        int, typer.Option(min=1, help="Drawings to train on; 2,000 more of each held-out split.")
    ] = 100_000,
    size: Annotated[int, typer.Option(min=8, help="Width and height of a picture.")] = 128,
) -> None:
    """Draw the characters that the embedded model is trained on: five minutes on two cores."""
    dataset = optional("imprompt.lab.making.dataset", "mini")
    folder = resolve_in_cache(output)
    held_out = min(count, 2_000)
    counts = {"training": count, "combinations": held_out, "parts": held_out, "styles": held_out}
    dataset.build_data(folder, counts, size=size)
    typer.echo(f"wrote {sum(counts.values()):,} drawings to {folder}")


@app.command()
def export(
    output: Annotated[
        Path, typer.Argument(help="A folder that is not there yet, for the training pictures.")
    ],
    layout: Annotated[
        Literal["folder", "official", "webdataset"], typer.Option(help="How the files are laid out.")
    ] = "webdataset",
    count: Annotated[int, typer.Option(min=1, help="Samples to train on.")] = 60_000,
    held_out: Annotated[
        int, typer.Option(min=1, help="Samples of combinations that no model has seen.")
    ] = 500,
    seed: Annotated[int, typer.Option(help="The same seed, the same samples.")] = 0,
) -> None:
    """Draw characters with captions and references for `imprompt train`; held-out ones to OUTPUT-held-out.

    [bold]Example[/bold]

    imprompt mini export characters
    """
    exporting = optional("imprompt.lab.making.exporting", "mini")
    exporting.export_samples(output, layout=layout, count=count, held_out=held_out, seed=seed)
    typer.echo(f"wrote {count:,} samples to {output}, {held_out:,} to {output}-held-out")


@app.command()
def train(
    stage: Annotated[
        str,
        typer.Argument(
            help="codec, decoder, base, encoder, judge, control or style; or a recipe's file.",
            show_default=False,
        ),
    ],
    resume: Annotated[str | None, typer.Option(help="latest: go on where the last run stopped.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value of the recipe.")] = None,
) -> None:
    """Train one part of the embedded model, by recipes/mini-STAGE.toml.

    [bold]Examples[/bold]

    imprompt mini train base --resume latest

    imprompt mini train judge --set steps=500 --set batch_size=64
    """
    if resume not in (None, "latest"):
        raise ConfigError(f"--resume takes latest, not {resume!r}")
    stages, recipe = (optional(f"imprompt.lab.making.{name}", "mini") for name in ("stages", "recipe"))
    path = Path(stage) if stage.endswith(".toml") else Path("recipes", f"mini-{stage}.toml")
    folder = stages.train_stage(recipe.load_recipe(path, settings or ()), resume=resume == "latest")
    typer.echo(f"wrote {folder}")


@app.command()
def ship(
    model: Annotated[str, typer.Option(help="Folder of the trained model, as in recipes.")] = "mini-128",
    adapter: Annotated[
        Path | None,
        typer.Option(help="An adapter for it, as `imprompt train` wrote it; others stay as they are."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where they go.")] = Path("src/imprompt/mini/weights"),
) -> None:
    """Copy a trained model's parts into the package, in float16.

    [bold]Example[/bold]

    imprompt mini ship --adapter runs/mini-adapter/adapter.safetensors
    """
    shipping = optional("imprompt.lab.making.shipping", "mini")
    written = shipping.ship(resolve_in_cache(model), output, adapter=adapter)
    typer.echo(f"wrote {written / 1e6:.1f} MB to {output}")
