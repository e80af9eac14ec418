"""The limits of a job, and which of its settings exclude each other; both are checked before any work."""

from typing import Any

DEFAULT_STEPS = 25
"""Enough for DDIM and similar samplers on every known base; the default of diffusers is 50."""

DEFAULT_GUIDANCE = 7.5
"""The guidance scale, as in diffusers' pipelines of Stable Diffusion 1.5."""

MAX_SIDE = 8192
"""The most pixels of a side of a generated picture."""

MAX_MADE_PIXELS = 4096 * 4096
"""The most pixels of a generated picture in all: 4,096 × 4,096, or a panorama of as many."""

MAX_STEPS = 10_000
"""The most denoising steps; most schedulers have 1,000 noise levels, and refuse more steps themselves."""

MAX_PICTURES = 10_000
"""The most pictures of one job: prompts times count."""

MAX_PICTURE_BYTES = 256 * 1024 * 1024
"""The most bytes that are read from standard input: those of the largest picture without compression."""

MAX_REFERENCES = 256
"""The most image prompts of one job; each is computed in every layer at every step."""

MAX_PROMPT_CHARACTERS = 20_000
"""The most characters of a text; a text encoder reads the first 75 words or so."""


MAX_FEATURE_CACHE = 10
"""The most steps for which deep features are used, the one that computes them included."""

FEWEST_CACHED_STEPS = 9
"""The fewest steps with a feature cache; with fewer, successive steps differ too much."""


def find_text_fault(text: str) -> str | None:
    """Return a sentence that says why a text cannot be a prompt; None for a text that can."""
    if len(text) > MAX_PROMPT_CHARACTERS:
        return (
            f"a text of {len(text):,} characters is too long; a text encoder reads some hundred, and it may "
            f"have {MAX_PROMPT_CHARACTERS:,}"
        )
    lone = next((character for character in text if "\ud800" <= character <= "\udfff"), None)
    return lone and f"{lone!r} is half of a surrogate pair and no character; leave it out"


def find_settings_fault(settings: Any) -> str | None:
    """Return a sentence that says which settings exclude each other; None if there are none.

    Args:
        settings: a `Job` or the `Settings` of a generation, which share these names
    """
    for name in ("strength", "inpaint"):
        if getattr(settings, name) is not None and settings.init_image is None:
            return f"{name} is about init_image, and there is none; give the picture to start from"
    start, end = settings.guidance_interval
    if not 0 <= start < end <= 1:
        return f"guidance_interval must be 0 ≤ start < end ≤ 1, not {start} and {end}"
    if (start, end) != (0, 1) and settings.guidance_scale <= 1:
        return f"guidance_interval needs a guidance_scale above 1, not {settings.guidance_scale}"
    return _find_cache_fault(settings)


def _find_cache_fault(settings: Any) -> str | None:
    every = settings.feature_cache
    if not 1 <= every <= MAX_FEATURE_CACHE:
        return f"feature_cache must be 1 (off) to {MAX_FEATURE_CACHE} steps, not {every}"
    if every > 1 and settings.controls:
        return "feature_cache cannot be used with a ControlNet, which changes the deep features at every step"
    if every > 1 and settings.steps < FEWEST_CACHED_STEPS:
        return (
            f"feature_cache needs {FEWEST_CACHED_STEPS} steps or more, not {settings.steps}: of few steps, "
            "successive ones differ too much"
        )
    return None


def find_size_fault(size: tuple[int, int] | None) -> str | None:
    """Return a sentence that says that a picture would have too many pixels; None for an allowed size."""
    if size is None or size[0] * size[1] <= MAX_MADE_PIXELS:
        return None
    return f"a picture may have {MAX_MADE_PIXELS:,} pixels in all, not {size[0]} × {size[1]}; make it smaller"
