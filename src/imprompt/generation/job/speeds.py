"""What `--speed` stands for: settings that fill in what a job leaves out, so any of them can still be given.

exact, balanced and fast are for every base; bench/speed_quality.py measures them. The others are for bases
and LoRAs that were distilled for few steps without guidance. Sources: the model cards of LCM-LoRA, Hyper-SD,
SDXL-Lightning and SD-Turbo as quoted in diffusers' documentation.
"""

from collections.abc import Mapping
from typing import Any

from imprompt.generation.job.limits import FEWEST_CACHED_STEPS

FEW_STEP_SPEEDS: Mapping[str, Mapping[str, Any]] = {
    "lcm": {"scheduler": "lcm", "steps": 4, "guidance_scale": 1.0},
    "hyper": {"scheduler": "ddim_trailing", "steps": 4, "guidance_scale": 1.0},
    "lightning": {"scheduler": "euler_trailing", "steps": 4, "guidance_scale": 1.0},
    "turbo": {"scheduler": "euler_a_trailing", "steps": 2, "guidance_scale": 1.0},
}
"""Kind of distilled base or LoRA → settings of a job."""

GENERAL_SPEEDS: Mapping[str, Mapping[str, Any]] = {
    "exact": {},
    "balanced": {"scheduler": "dpm++_2m", "steps": 15},
    "fast": {"scheduler": "dpm++_2m", "steps": 10, "guidance_interval": (0.0, 0.5), "feature_cache": 2},
}
"""Speed for every base → settings of a job."""

SPEEDS: Mapping[str, Mapping[str, Any]] = {**GENERAL_SPEEDS, **FEW_STEP_SPEEDS}
"""Name → settings of a job."""


def list_speed_settings(speed: str) -> set[str]:
    """Return the settings of an earlier job that a speed replaces: its own, and those of general speeds."""
    return {name for settings in (*GENERAL_SPEEDS.values(), SPEEDS.get(speed, {})) for name in settings}


def apply_speed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's settings with those of its speed filled in, where nobody gave others.

    What cannot go with a given setting is left out: a guidance interval without guidance, and a feature cache
    with another sampler, with few steps or with a ControlNet.

    Args:
        values: the settings of a job as they are read

    Raises:
        ValueError: an unknown speed
    """
    rest = {name: value for name, value in values.items() if name != "speed"}
    speed = values.get("speed")
    if speed is None:
        return rest
    if speed not in SPEEDS:
        raise ValueError(f"speed must be {', '.join(SPEEDS)}, not {speed!r}")
    settings = dict(SPEEDS[speed])
    if _is_at_most(rest.get("guidance_scale"), 1):
        settings.pop("guidance_interval", None)
    if "scheduler" in rest or rest.get("controls") or _is_at_most(rest.get("steps"), FEWEST_CACHED_STEPS - 1):
        settings.pop("feature_cache", None)
    return settings | rest


def _is_at_most(value: object, most: int) -> bool:
    """Whether a value that is not checked yet is a number of at most this."""
    return isinstance(value, int | float) and value <= most
