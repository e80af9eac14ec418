"""What the study draws of every run."""

from dataclasses import dataclass

from imprompt.evaluation.asking import THINGS_ON_RED, Asking


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
        asking: the texts, where there is text
        scales: what else is given as `scale` with the texts, for the curve of text against image
        style: of the fine-tuned base
    """

    concepts: int = 104
    others: int = 52
    steps: int = 15
    guidance_scale: float = 7.5
    scale: float = 1.0
    batch_size: int = 52
    asking: Asking = THINGS_ON_RED
    scales: tuple[float, ...] = (0.5, 0.75, 1.5)
    style: str = "blueprint"

    @property
    def text_conditions(self) -> dict[str, float]:
        """The conditions with text, and the scale of each, from the smallest."""
        scales = sorted({self.scale, *self.scales})
        return {TEXT if scale == self.scale else at_scale(scale): scale for scale in scales}


SMALL = Settings(concepts=24, others=12, steps=8, batch_size=24)
"""For a first look."""

IMAGE, TEXT, STYLE, CONTROL = "image prompt alone", "with text", "fine-tuned base", "with control"
CONDITIONS = (IMAGE, TEXT, STYLE, CONTROL)
"""What each run is asked; one that reads text also under `TEXT` at other scales."""


def at_scale(scale: float | int) -> str:
    """The condition with text at another scale."""
    return f"{TEXT}, scale {scale:g}"
