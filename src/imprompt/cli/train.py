"""`imprompt train`: train an image-prompt adapter."""

from pathlib import Path
from typing import Annotated

import typer

from imprompt.cli.terminal import import_with_extra, print_rows, quiet_libraries
from imprompt.errors import ConfigError


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(train)


def train(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file: what to train, on which data.", show_default=False)
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="'latest' resumes from the last checkpoint, if there is one.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting of the file: key=value. May be repeated."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check the data and estimate memory and time, without training.")
    ] = False,
    cache_only: Annotated[
        bool, typer.Option("--cache-only", help="Encode the data with the frozen models, without training.")
    ] = False,
    presets: Annotated[bool, typer.Option("--presets", help="List the presets and exit.")] = False,
) -> None:
    r"""Train an image-prompt adapter on a frozen base model.

    The smallest configuration names a preset, the pictures, and a folder for the run:

        preset = "sd15"
        output = "runs/cats"
        \[data]
        source = "pictures"      # a folder of cat.png, cat.txt, ...

    A source may also be a table (.json, .jsonl, .csv, .tsv, .parquet), tar files
    ("shards/*.tar") or a Hugging Face data set ("hf:owner/name").

    The folder of the run holds everything: index.html shows the progress,
    each checkpoint holds an adapter that can generate at once, and a run
    that was interrupted (Ctrl-C or a crash) can be resumed.

    [bold]Examples[/bold]

    imprompt train cats.toml --check

    imprompt train cats.toml --set training.steps=5000

    imprompt train cats.toml --resume latest

    torchrun --nproc-per-node 8 -m imprompt train cats.toml

    imprompt generate cat.png --base mini --adapter runs/cats/adapter.safetensors
    """
    if presets:
        print_presets()
        return
    if config is None:
        raise typer.BadParameter(
            "name a configuration file; imprompt train --presets lists the presets that it may start from"
        )
    if resume not in (None, "latest"):
        raise ConfigError(f"--resume takes latest, not {resume!r}")
    run_config = import_with_extra("imprompt.training.config", "train").load_config(config, settings or ())
    quiet_libraries()
    if check:
        survey = import_with_extra("imprompt.training.survey", "train")
        survey.print_survey(survey.survey_data(run_config))
    elif cache_only:
        typer.echo(import_with_extra("imprompt.training.adapters", "train").build_cache_only(run_config))
    else:
        folder = import_with_extra("imprompt.training.adapters", "train").train_adapter(
            run_config, resume=resume == "latest"
        )
        typer.echo(f"wrote {folder}: {folder / 'index.html'} shows its progress")


def print_presets() -> None:
    """Print every preset with the settings in which they differ."""
    presets = import_with_extra("imprompt.training.presets", "train").PRESETS
    config = import_with_extra("imprompt.training.config", "train")
    rows, bases = [], {}
    for name in presets:
        full = config.parse_config({"preset": name, "output": "-"}, name)
        size = f"{full.data.size} px{', buckets' if full.data.buckets else ''}"
        steps = f"{full.training.steps:,} × {full.training.batch_size}"
        rows.append((name, full.adapter.variant, str(full.adapter.tokens), size, steps))
        bases[name.partition("-")[0]] = full.base.model
    print_rows(("preset", "variant", "tokens", "pictures", "steps × batch"), rows)
    print("Base models:")
    for family, base in bases.items():
        print(f"  {family}: {base}")
