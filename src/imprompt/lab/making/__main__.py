"""Make the embedded model of characters, part by part.

python -m imprompt.lab.making data                                  100,000 drawings into the cache
python -m imprompt.lab.making train recipes/characters-base.toml [--resume] [KEY=VALUE ...]
python -m imprompt.lab.making samples FOLDER                        training data for `imprompt train`
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from imprompt.lab.making.characters import Split
from imprompt.lab.making.dataset import build_data
from imprompt.lab.making.exporting import export_samples
from imprompt.lab.making.recipe import load_recipe
from imprompt.lab.making.stages import train_stage
from imprompt.settings import in_cache

COUNTS: dict[Split, int] = {"training": 100_000, "combinations": 2000, "parts": 2000, "styles": 2000}
"""Drawings of each split."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command."""
    options = parse(arguments)
    if options.command == "data":
        build_data(in_cache("characters-128"), COUNTS)
    elif options.command == "train":
        train_stage(load_recipe(options.recipe, options.settings), resume=options.resume)
    else:
        export_samples(options.folder, layout="webdataset", count=options.count, held_out=500, seed=0)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m imprompt.lab.making", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("data", help="draw the training data")
    train = commands.add_parser("train", help="train one part")
    train.add_argument("recipe", type=Path)
    train.add_argument("settings", nargs="*", help="KEY=VALUE in place of what the recipe says")
    train.add_argument("--resume", action="store_true", help="go on where the last run stopped")
    samples = commands.add_parser("samples", help="write training data for imprompt train")
    samples.add_argument("folder", type=Path)
    samples.add_argument("--count", type=int, default=60_000)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
