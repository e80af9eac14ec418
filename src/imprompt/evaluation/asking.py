"""Texts beside an image prompt: what they ask for, and whether a picture shows it.

    asked gap = mean of s(picture, what the base alone draws from its text)
              - mean of s(picture, what the base alone draws from the other texts)

Pictures judge the text here, because no words that the embedded judge reads tell its concepts well apart, and
because what the base draws alone is the most that an adapter can leave of a text. The texts name one ground,
which all examples share, so that the ground cancels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.evaluation.judge import Judge
from imprompt.evaluation.metrics import cosine_similarity
from imprompt.evaluation.pictures import chance_of

THINGS = ("face", "clock", "tree", "fish", "cat", "moon", "button", "leaf")
"""What the embedded base draws recognisably, and unlike each other, from the text alone."""

EXAMPLES = 4
"""Pictures that the base draws of each text."""


@dataclass(frozen=True)
class Asking:
    """Which text stands beside which image prompt.

    Args:
        things: what texts ask for; a reference's is chosen by the hash of its concept
        ground: the ground that all texts name
    """

    things: tuple[str, ...] = THINGS
    ground: str = "red"

    def thing(self, concept: str) -> str:
        """What is asked for beside a reference of this concept."""
        return self.things[chance_of(f"text beside {concept}") % len(self.things)]

    def text(self, thing: str) -> str:
        """The text that asks for a thing."""
        return f"{thing}, on a {self.ground} background"

    def beside(self, concept: str) -> str:
        """The text beside a reference of this concept."""
        return self.text(self.thing(concept))

    def __str__(self) -> str:
        return self.text(self.things[0] if len(self.things) == 1 else f"[{' | '.join(self.things)}]")


THINGS_ON_RED = Asking()
"""What suites ask with, if nothing else is said."""


class Asked:
    """What each text's own pictures look like to the judge.

    Args:
        judge: who scores
        examples: what the base alone draws from each thing's text; of two things at least

    Raises:
        ValueError: a single thing, which nothing can be told from
    """

    def __init__(self, judge: Judge, examples: Mapping[str, Sequence[Image.Image]]) -> None:
        if len(examples) < 2:
            raise ValueError(
                f"whether a text is followed is told from other texts, and {[*examples]} are all"
            )
        self.features = {thing: judge.features(pictures) for thing, pictures in examples.items()}

    def gaps(self, features: Float[Tensor, "pictures dim"], thing: str) -> list[float]:
        """The asked gap of pictures that were asked for `thing`."""
        likeness = {
            name: cosine_similarity(features, those).mean(dim=1) for name, those in self.features.items()
        }
        own = likeness.pop(thing)
        return (own - torch.stack([*likeness.values()]).mean(dim=0)).tolist()


def draw_examples(
    pipe: Any, asking: Asking, *, steps: int, guidance_scale: float | int
) -> dict[str, list[Image.Image]]:
    """What a base alone draws from each thing's text, in one call; the same pictures every time.

    Args:
        pipe: the base's pipeline, with no adapter on it
        asking: the texts
        steps: denoising steps
        guidance_scale: w
    """
    names = [(thing, number) for thing in asking.things for number in range(EXAMPLES)]
    seeds = [chance_of(f"example {number} of {thing}") >> 1 for thing, number in names]
    pictures = pipe(
        [asking.text(thing) for thing, _ in names],
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
    ).images
    return {
        thing: pictures[place : place + EXAMPLES]
        for place, thing in zip(range(0, len(pictures), EXAMPLES), asking.things, strict=True)
    }
