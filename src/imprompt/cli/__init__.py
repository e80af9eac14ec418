"""The command line: a thin shell over the library.

An error that we know is one line on standard error and exit code 1; wrong usage one line and 2; Ctrl-C, 130.
Nothing heavy is imported before a command needs it, so that `imprompt --help` is quick.
"""

import os
import sys
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from imprompt.cli import files, generating, measuring, mini, training
from imprompt.cli.terminal import WrongUsage, one_line
from imprompt.errors import ImpromptError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Image prompts for diffusion models.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for part in (generating, files, training, measuring):
    part.add_to(app)
app.add_typer(mini.app, name="mini")


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
        command = _command(error)
        message = error.format_message()  # empty where the help has been shown
        return _fail(f"{message} (see {command} --help)", error.exit_code) if message else error.exit_code
    except ImpromptError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return 130


def _command(error: TyperException) -> str:
    if isinstance(error, WrongUsage):
        return "imprompt generate"
    return getattr(getattr(error, "ctx", None), "command_path", "imprompt")


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"imprompt: {one_line(message)}\n")
    return code
