"""What `--speed` stands for: exact, balanced or fast. Measured by bench/speed_quality.py.

The settings of a speed fill in what a job leaves out, so any of them can still be given. A new kind of
setting, such as a number format, needs its field in `Job` and its value here.
"""

from collections.abc import Mapping
from typing import Any

from imprompt.generation.job.limits import FEWEST_CACHED_STEPS

SPEEDS: Mapping[str, Mapping[str, Any]] = {
    "exact": {},
    "balanced": {"scheduler": "dpm++_2m", "steps": 15},
    "fast": {"scheduler": "dpm++_2m", "steps": 10, "guidance_interval": (0.0, 0.5), "feature_cache": 2},
}
"""Name → settings of a job."""

SPEED_SETTINGS = sorted({name for settings in SPEEDS.values() for name in settings})
"""The settings that some speed sets."""


def apply_speed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's settings with those of its speed filled in, where nobody gave others.

    What cannot go with a given setting is left out: a guidance interval without guidance, and a feature cache
    with another sampler, with few steps or with a ControlNet.

    Args:
        values: the settings of a job as they are read

    Raises:
        ValueError: an unknown speed, or one together with `fast`
    """
    rest = {name: value for name, value in values.items() if name != "speed"}
    speed = values.get("speed")
    if speed is None:
        return rest
    if speed not in SPEEDS:
        raise ValueError(f"speed must be {', '.join(SPEEDS)}, not {speed!r}")
    settings = dict(SPEEDS[speed])
    if settings and rest.get("fast") is not None:
        raise ValueError(f"speed = {speed!r} and fast = {rest['fast']!r} both choose the sampler; give one")
    if _is_at_most(rest.get("guidance_scale"), 1):
        settings.pop("guidance_interval", None)
    if "scheduler" in rest or rest.get("controls") or _is_at_most(rest.get("steps"), FEWEST_CACHED_STEPS - 1):
        settings.pop("feature_cache", None)
    return settings | rest


def _is_at_most(value: object, most: int) -> bool:
    """Whether a value that is not checked yet is a number of at most this."""
    return isinstance(value, int | float) and value <= most
