"""What `--speed` stands for: settings that fill in what a job leaves out, so any of them can still be given.

exact, balanced and fast are for every base; bench/speed_quality.py measures them. The others are for bases
and LoRAs that were distilled for few steps without guidance. Sources: the model cards of LCM-LoRA, Hyper-SD,
SDXL-Lightning and SD-Turbo as quoted in diffusers' documentation.
"""

from collections.abc import Mapping
from typing import Any

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
    "fast": {"scheduler": "dpm++_2m", "steps": 8},
}
"""Speed for every base → settings of a job."""

SPEEDS: Mapping[str, Mapping[str, Any]] = {**GENERAL_SPEEDS, **FEW_STEP_SPEEDS}
"""Name → settings of a job."""


def list_speed_settings(speed: str) -> set[str]:
    """Return the settings of an earlier job that a speed replaces: its own, and those of general speeds."""
    return {name for settings in (*GENERAL_SPEEDS.values(), SPEEDS.get(speed, {})) for name in settings}


def apply_speed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's settings with those of its speed filled in, where nobody gave others.

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
    return {**SPEEDS[speed], **rest}
