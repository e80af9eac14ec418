"""The command line: a thin shell over the library.

A known error is one line on standard error and exit code 1. Wrong usage gives 2, and Ctrl-C gives 130.
Scripts depend on these codes: docs/command-line.md states them.
Nothing heavy is imported before a command needs it, so that `imprompt --help` is quick.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from imprompt.cli import evaluate, files, generate, mini, serve, train
from imprompt.cli.terminal import WrongUsage, join_lines
from imprompt.errors import ImpromptError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Image prompts for diffusion models.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for part in (generate, files, train, evaluate, serve):
    part.add_to(app)
app.add_typer(mini.app, name="mini")


def print_versions(wanted: bool) -> bool:
    """Print versions, device and precision and exit, if that is wanted; return `wanted` otherwise."""
    if wanted:
        from imprompt.runtime.machine import describe_installation

        for name, value in describe_installation().items():
            typer.echo(f"{name}{':' if name in ('device', 'precision') else ''} {value}")
        raise typer.Exit
    return wanted


@app.callback()
def accept_version(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=print_versions,
            is_eager=True,
            help="Print the versions of imprompt and its libraries, the device and the precision, and exit.",
        ),
    ] = False,
) -> None:
    """Image prompts for diffusion models."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: the words after `imprompt`; by default those of this process
    """
    # At every import transformers warns that torchvision is missing, which imprompt does not use.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return app(arguments, prog_name="imprompt", standalone_mode=False) or 0
    except TyperException as error:
        message = error.format_message()  # empty if the help has been printed
        usage = f"{message} (see {_command_path(error)} --help)"
        return _fail(usage, error.exit_code) if message else error.exit_code
    except ImpromptError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return 130


def _command_path(error: TyperException) -> str:
    if isinstance(error, WrongUsage):
        return "imprompt generate"
    return getattr(getattr(error, "ctx", None), "command_path", "imprompt")


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"imprompt: {join_lines(message)}\n")
    return code
