"""What the study draws of every run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How pictures are made; the same for every mechanism.

    Args:
        concepts: held-out concepts that are drawn from the image prompt alone, one picture each
        others: of these so many also with text, on the fine-tuned base, and with a control
        steps: denoising steps
        guidance_scale: w
        scale: what every mechanism is given as `scale`; 1 is as it was trained
        batch_size: pictures in one call of the pipeline
        text: what the text asks for where there is text, and
        ground: the ground that it names
        style: of the fine-tuned base
    """

    concepts: int = 104
    others: int = 52
    steps: int = 15
    guidance_scale: float = 7.5
    scale: float = 1.0
    batch_size: int = 52
    text: str = "face, on a red background"
    ground: str = "red"
    style: str = "blueprint"


SMALL = Settings(concepts=24, others=12, steps=8, batch_size=24)
"""For a first look."""

IMAGE, TEXT, STYLE, CONTROL = "image prompt alone", "with text", "fine-tuned base", "with control"
CONDITIONS = (IMAGE, TEXT, STYLE, CONTROL)
"""What each run is asked."""
