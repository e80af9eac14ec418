"""The command line: a thin shell over the library.

An error that we know is one line on standard error and exit code 1; wrong usage one line and 2; Ctrl-C, 130.
Nothing heavy is imported before a command needs it, so that `imprompt --help` is quick.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from imprompt.errors import CheckpointError, ConfigError, ImpromptError, MissingExtra, OutputError
from imprompt.output import check_output

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from rich.console import Console

    from imprompt.adapter import ImagePromptAdapter

app = typer.Typer(
    help="Image prompts for diffusion models.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)
mini_app = typer.Typer(help="Remake the embedded model from public packages.", no_args_is_help=True)
app.add_typer(mini_app, name="mini")


def _number(description: str) -> Any:
    """Return a number option whose error, unlike typer's own, says what was typed."""

    def parse(text: str | float) -> float:
        try:
            return float(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a number") from None

    return typer.Option(help=description, parser=parse, metavar="<number>")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: what stands after `imprompt`; those of this process if not given
    """
    # transformers says at every import that torchvision is missing; we do not use it.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return app(arguments, prog_name="imprompt", standalone_mode=False) or 0
    except TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "imprompt")
        message = error.format_message()  # empty where the help has been shown
        return _fail(f"{message} (see {command} --help)", error.exit_code) if message else error.exit_code
    except ImpromptError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return 130


@app.command()
def generate(
    reference: Annotated[
        list[str], typer.Argument(help="Pictures; several act together.", show_default=False)
    ],
    prompt: Annotated[str, typer.Option(help="What the text asks for.")] = "",
    negative_prompt: Annotated[str, typer.Option(help="What the text asks to avoid.")] = "",
    scale: Annotated[float, _number("λ: 0 ignores the pictures, 1 follows them fully.")] = 1.0,
    guidance_scale: Annotated[float, _number("Classifier-free guidance; 1 is none.")] = 7.5,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; 25 if left out.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same picture.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many, with the seeds from --seed on.")] = 1,
    size: Annotated[
        int | None, typer.Option(min=8, help="Width and height; if left out, the base's.")
    ] = None,
    base: Annotated[str, typer.Option(help="mini, a folder in diffusers' format, or a hub id.")] = "mini",
    adapter: Annotated[str, typer.Option(help="mini, a file, or one on the hub: owner/name:file.")] = "mini",
    image_encoder: Annotated[
        str | None, typer.Option(help="A folder or a hub id; if left out, the one known for the adapter.")
    ] = None,
    output: Annotated[Path, typer.Option(help="A PNG; of several, out-0.png and so on.")] = Path("out.png"),
) -> None:
    """Make pictures from image prompts, with or without text.

    [bold]Examples[/bold]

    imprompt generate cat.png

    imprompt generate cat.png --prompt "on a blue background" --scale 0.6

    imprompt generate cat.png hat.png --count 4 --output both.png

    Each picture carries its settings; [bold]imprompt inspect out.png[/bold] shows them.
    """
    paths = _output_paths(output, count)
    for path in paths:
        check_output(path, ".png")
        _spare(reference, path)

    with _interrupted_at_once():
        from imprompt.generation import DEFAULT_STEPS, generate_each, save_picture
        from imprompt.image import load_image
        from imprompt.reference import Reference

    settings: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "guidance_scale": guidance_scale,
        "steps": DEFAULT_STEPS if steps is None else steps,
    }
    told = {
        "references": [Path(name).name for name in reference],
        "scale": scale,
        "base": _without_folders(base),
        "adapter": _without_folders(adapter),
        "versions": _versions(),
    }
    references = [Reference(load_image(picture), scale=scale) for picture in reference]
    image_adapter, pipe = _loaded(adapter, image_encoder, base)
    seeds = range(seed, seed + count)
    with _progress_bar(count * settings["steps"]) as advance:
        pictures = generate_each(
            pipe, image_adapter, references, seeds=seeds, size=size, on_step=advance, **settings
        )
        for path, own_seed, picture in zip(paths, seeds, pictures, strict=True):
            save_picture(picture, path, {**settings, **told, "seed": own_seed, "size": picture.width})
            typer.echo(f"wrote {_one_line(str(path))}")


@app.command()
def inspect(
    file: Annotated[
        Path, typer.Argument(help="An adapter file, or a picture made by imprompt.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what an adapter file is, or what is wrong with it; or show the settings of one of our pictures.

    [bold]Examples[/bold]

    imprompt inspect ip-adapter_sd15.safetensors

    imprompt inspect out.png --json

    An adapter file with something wrong in it gives exit code 1.
    """
    facts, problems = _picture_facts(file) if _is_png(file) else _adapter_facts(file)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _print_table(facts)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(f"{file}: {problems[0]}{more}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="An adapter file.", show_default=False)],
    destination: Annotated[
        Path, typer.Argument(help="Its new name: .safetensors or .bin.", show_default=False)
    ],
) -> None:
    """Write an adapter file in another layout.

    [bold]Example[/bold]

    imprompt convert ip-adapter_sd15.bin ip-adapter_sd15.safetensors
    """
    check_output(destination, ".safetensors", ".bin")

    with _interrupted_at_once():
        from imprompt.checkpoint import convert_adapter

    convert_adapter(source, destination)
    typer.echo(f"wrote {_one_line(str(destination))}")


@app.command()
def evaluate(
    suite: Annotated[
        str, typer.Argument(help="mini: held-out concepts on the embedded model.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("evaluation"),
) -> None:
    """Measure how well image prompts are followed, and write a report.

    [bold]Example[/bold]

    imprompt evaluate mini --output report
    """
    if suite != "mini":
        raise ConfigError(f"there is no suite {suite!r}; the suites are: mini")
    _silence_loading()
    _optional("imprompt.evaluation.suites", "eval").evaluate_mini(output=output)


@mini_app.command()
def build_data(
    output: Annotated[
        str, typer.Option(help="A folder; a bare name is in the cache, as in recipes.")
    ] = "emoji-64",
    size: Annotated[int, typer.Option(min=8, help="Width and height of a picture.")] = 64,
) -> None:
    """Render the public icon sets to a captioned data set, split by concept."""
    emoji, recipe = (_optional(f"imprompt.training.{name}", "mini") for name in ("emoji", "recipe"))
    folder = recipe.in_cache(output)
    typer.echo(f"wrote {emoji.build_data(folder, size=size):,} pictures to {folder}")


@mini_app.command()
def train(
    stage: Annotated[
        str, typer.Argument(help="pair, base, adapter, ...; or a recipe's file.", show_default=False)
    ],
    resume: Annotated[str | None, typer.Option(help="latest: go on where the last run stopped.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value of the recipe.")] = None,
) -> None:
    """Train one stage of the embedded model, by recipes/mini-STAGE.toml.

    [bold]Examples[/bold]

    imprompt mini train base --resume latest

    imprompt mini train adapter --set steps=500 --set mixture.paired=0
    """
    if resume not in (None, "latest"):
        raise ConfigError(f"--resume takes latest, not {resume!r}")
    loop, recipe = (_optional(f"imprompt.training.{name}", "mini") for name in ("loop", "recipe"))
    path = Path(stage) if stage.endswith(".toml") else Path("recipes", f"mini-{stage}.toml")
    folder = loop.train(recipe.load_recipe(path, settings or ()), resume=resume == "latest")
    typer.echo(f"wrote {folder}")


@mini_app.command()
def ship(
    model: Annotated[str, typer.Option(help="Folder of the trained model, as in recipes.")] = "mini-64",
    output: Annotated[Path, typer.Option(help="Where they go.")] = Path("src/imprompt/mini/weights"),
) -> None:
    """Copy a trained model's parts into the package, in float16."""
    shipping, recipe = (_optional(f"imprompt.training.{name}", "mini") for name in ("shipping", "recipe"))
    typer.echo(f"wrote {shipping.ship(recipe.in_cache(model), output) / 1e6:.1f} MB to {output}")


def _output_paths(output: Path, count: int) -> list[Path]:
    return [output] if count == 1 else [output.with_stem(f"{output.stem}-{i}") for i in range(count)]


def _spare(references: Sequence[str], path: Path) -> None:
    """Refuse to write a picture over the very image prompt."""
    for reference in references:
        if path.exists() and os.path.exists(reference) and path.samefile(reference):
            raise OutputError(f"{path} is the image prompt itself; choose another name with --output")


def _loaded(
    adapter: str, image_encoder: str | None, base: str
) -> "tuple[ImagePromptAdapter, DiffusionPipeline]":
    from imprompt.checkpoint import load_adapter
    from imprompt.generation import load_base

    _silence_loading()
    with _interrupted_at_once(), _console().status("loading the models"):
        image_adapter = load_adapter(adapter, image_encoder=image_encoder or "known")
        pipe = load_base(base)
    pipe.set_progress_bar_config(disable=True)
    # K' and V' are made once, so full precision costs nothing.
    return image_adapter.to(pipe.device).float(), pipe


@contextlib.contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process then and there.

    An import may swallow a KeyboardInterrupt or turn it into another error; and nothing is written yet.
    """
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _silence_loading() -> None:
    """Leave standard error to us: diffusers and transformers draw a bar for every folder of weights."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


@contextlib.contextmanager
def _progress_bar(steps: int) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error, if that is a terminal; gives what advances it by one step."""
    from rich.progress import Progress

    console = _console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("generating", total=steps)
        yield lambda: progress.advance(task)


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


def _without_folders(name: str) -> str:
    return Path(name).resolve().name if Path(name).exists() else name


def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in ("imprompt", "torch", "diffusers")}


def _is_png(file: Path) -> bool:
    with contextlib.suppress(OSError, ValueError), file.open("rb") as content:
        return content.read(8) == b"\x89PNG\r\n\x1a\n"
    return False


def _picture_facts(file: Path) -> tuple[dict[str, Any], Sequence[str]]:
    with _interrupted_at_once():
        from imprompt.generation import read_settings

    return read_settings(file), ()


def _adapter_facts(file: Path) -> tuple[dict[str, Any], Sequence[str]]:
    with _interrupted_at_once():
        from imprompt.checkpoint import describe

    description = describe(file)
    return {**dataclasses.asdict(description), "limit": description.limit}, description.problems


def _print_table(facts: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    for name, value in facts.items():
        for line in _lines(name, value):
            table.add_row(name.replace("_", " "), Text(line))
            name = ""
    Console().print(table)


def _lines(name: str, value: Any) -> list[str]:
    """What a table shows of a fact; JSON's escapes keep a hostile file from sending codes to the terminal."""
    if name == "layers":
        return [f"{len(value)} cross-attention layers"]
    if name == "parameters":
        return [f"{value:,}"]
    if isinstance(value, dict):
        return [f"{key}: {json.dumps(inner)}" for key, inner in value.items()]
    if isinstance(value, list | tuple):
        return [_lines("", item)[0] for item in value]
    return [_one_line(value) if isinstance(value, str) else "" if value is None else str(value)]


def _optional(module: str, extra: str) -> ModuleType:
    """Import a module of ours whose dependencies an extra brings."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("imprompt"):
            raise
        raise MissingExtra(error.name, extra) from error


def _one_line(text: str) -> str:
    """Printable, on one line, whatever is in a file name."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"imprompt: {_one_line(message)}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
