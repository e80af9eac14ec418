"""What to type next: how a run goes on, and how to draw with what it made."""

import shlex

from imprompt.training.watching.history import History


def resume_command(history: History) -> str:
    """Go on where the run stopped; the configuration's file as it was named at the start."""
    command = str(history.environment.get("command", ""))
    if not command.startswith("imprompt train"):
        command = "imprompt train CONFIG.toml"
    return command if "--resume" in command else f"{command} --resume latest"


def generate_command(history: History) -> str:
    """Draw with the finished adapter, or the newest checkpoint; empty if there is neither, or no way to."""
    words = ["imprompt", "generate", "REFERENCE.png", *model_options(history)]
    return shlex.join(words) if history.newest_adapter and is_decoupled(history) else ""


def is_decoupled(history: History) -> bool:
    """Whether the run's adapter is of the kind that `imprompt generate` takes."""
    return history.mechanism == "decoupled"


def model_options(history: History) -> list[str]:
    """The options of `imprompt generate` that name the run's base, image encoder and adapter."""
    base, encoder = history.setting("base.model", "mini"), history.setting("base.image_encoder", "known")
    options = [] if base == "mini" else ["--base", base]
    options += [] if encoder == "known" else ["--image-encoder", encoder]
    if history.newest_adapter is None:
        return options
    where = history.newest_adapter.relative_to(history.folder)
    return [*options, "--adapter", f"{history.setting('output', history.name)}/{where.as_posix()}"]
