"""`imprompt train`: make an image-prompt adapter."""

from pathlib import Path
from typing import Annotated

import typer

from imprompt.cli.terminal import optional, print_rows, silence_loading
from imprompt.errors import ConfigError


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(train)


def train(
    config: Annotated[
        Path | None, typer.Argument(help="What to train, on what: a TOML file.", show_default=False)
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="latest: go on from the last checkpoint, if there is one.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value in place of what the file says.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Look at the data and estimate memory and time; train nothing.")
    ] = False,
    cache_only: Annotated[
        bool, typer.Option("--cache-only", help="Compute what frozen models make of the data; train nothing.")
    ] = False,
    presets: Annotated[bool, typer.Option("--presets", help="List the presets.")] = False,
) -> None:
    r"""Train an image-prompt adapter on a frozen base model.

    The smallest configuration names a preset, the pictures, and a folder for the run:

        preset = "sd15"
        output = "runs/cats"
        \[data]
        source = "pictures"      # a folder: cat.png beside cat.txt

    A source may also be a table (.json, .jsonl, .csv, .tsv, .parquet), tar files
    ("shards/*.tar") or a Hugging Face data set ("hf:owner/name").

    The run's folder has everything: index.html shows how it goes,
    checkpoints hold adapters that generate at once, and Ctrl-C (or a crash)
    loses nothing.

    [bold]Examples[/bold]

    imprompt train cats.toml --check

    imprompt train cats.toml --set training.steps=5000

    imprompt train cats.toml --resume latest

    torchrun --nproc-per-node 8 -m imprompt.cli train cats.toml

    imprompt generate cat.png --base mini --adapter runs/cats/adapter.safetensors
    """
    if presets:
        print_presets()
        return
    if config is None:
        raise typer.BadParameter(
            "name a configuration; imprompt train --presets shows what it may start from"
        )
    if resume not in (None, "latest"):
        raise ConfigError(f"--resume takes latest, not {resume!r}")
    asked = optional("imprompt.training.config", "train").load_config(config, settings or ())
    silence_loading()
    if check:
        survey = optional("imprompt.training.survey", "train")
        survey.print_survey(survey.survey(asked))
    elif cache_only:
        typer.echo(optional("imprompt.training.adapters", "train").build_cache_only(asked))
    else:
        folder = optional("imprompt.training.adapters", "train").train_adapter(
            asked, resume=resume == "latest"
        )
        typer.echo(f"wrote {folder}: {folder / 'index.html'} shows how it went")


def print_presets() -> None:
    """Print every preset and where it differs from the others."""
    named = optional("imprompt.training.presets", "train").PRESETS
    config = optional("imprompt.training.config", "train")
    rows = []
    for name in named:
        full = config.parse_config({"preset": name, "output": "-"}, name)
        size = f"{full.data.size} px{', buckets' if full.data.buckets else ''}"
        steps = f"{full.training.steps:,} × {full.training.batch_size}"
        rows.append((name, full.adapter.variant, str(full.adapter.tokens), size, steps, full.base.model))
    print_rows(("preset", "variant", "tokens", "pictures", "steps × batch", "base"), rows)
