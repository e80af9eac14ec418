"""How large a job may be: whatever is larger is refused before any work, by name."""

MAX_SIDE = 8192
"""Pixels of the longer side of a picture that is made."""

MAX_MADE_PIXELS = 4096 * 4096
"""Pixels of a picture that is made, in all: 4,096 × 4,096, or a panorama of as many."""

MAX_STEPS = 10_000
"""Denoising steps; schedulers know 1,000 noise levels, and say themselves what is too many for them."""

MAX_PICTURES = 10_000
"""Pictures of one job: prompts times count."""

MAX_REFERENCES = 256
"""Image prompts of one job; each is computed in every layer at every step."""

MAX_PROMPT_CHARACTERS = 20_000
"""Characters of a text; a text encoder reads the first 75 words or so."""


def text_fault(text: str) -> str | None:
    """Say why a text cannot be a prompt.

    Returns:
        a sentence that names what is wrong; None for a text that can
    """
    if len(text) > MAX_PROMPT_CHARACTERS:
        return (
            f"a text of {len(text):,} characters is too long; a text encoder reads some hundred, and it may "
            f"have {MAX_PROMPT_CHARACTERS:,}"
        )
    lone = next((character for character in text if "\ud800" <= character <= "\udfff"), None)
    return lone and f"{lone!r} is half of a surrogate pair and no character; leave it out"
