"""Commands to type next: how a run continues, and how to generate with its adapter."""

import shlex

from imprompt.training.watching.history import History


def resume_command(history: History) -> str:
    """Return the command that continues the run, with the configuration file named at the start."""
    command = str(history.environment.get("command", ""))
    if not command.startswith("imprompt train"):
        command = "imprompt train CONFIG.toml"
    return command if "--resume" in command else f"{command} --resume latest"


def generate_command(history: History) -> str:
    """Return the command that uses the newest adapter; empty if there is none, or no command for it."""
    words = ["imprompt", "generate", "REFERENCE.png", *model_options(history)]
    return shlex.join(words) if history.newest_adapter and is_decoupled(history) else ""


def is_decoupled(history: History) -> bool:
    """Whether `imprompt generate` takes the run's adapter."""
    return history.mechanism == "decoupled"


def model_options(history: History) -> list[str]:
    """Return the options of `imprompt generate` for the run's base, image encoder, and adapter or LoRA."""
    base, encoder = history.setting("base.model", "mini"), history.setting("base.image_encoder", "known")
    options = [] if base == "mini" else ["--base", base]
    options += [] if encoder == "known" else ["--image-encoder", encoder]
    if history.newest_adapter is None:
        return options
    where = history.newest_adapter.relative_to(history.folder)
    file = f"{history.setting('output', history.name)}/{where.as_posix()}"
    return [*options, *few_step_options(history, file)] if history.distills else [*options, "--adapter", file]


def few_step_options(history: History, file: str) -> list[str]:
    """Return the options of `imprompt generate` for a LoRA for few steps."""
    if history.setting("distillation.method", "consistency") == "consistency":
        return ["--lora", file, "--speed", "lcm"]
    return ["--lora", file, "--speed", "hyper", "--steps", str(history.setting("distillation.solver_steps"))]
