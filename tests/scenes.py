"""A tiny pipeline with an adapter that fits it, and its pictures: of the base, of imprompt, and by hand."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import tiny
from by_hand import ByHand, Term
from imprompt.inputs.encoder import ImageEncoder
from imprompt.reference import Reference
from test_parity import official
from tiny_pipelines import Case

TOLERANCE = 1e-5
SCALE = 0.7


class Scene:
    """See above; what several tests look at is made once."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.pipe = case.build()
        self.adapter = tiny.adapter(self.pipe.unet)
        self.adapter.image_encoder = ImageEncoder(tiny.vision_model(seed=3))
        self.picture = tiny.picture(seed=1)

    @functools.cached_property
    def embedding(self) -> Tensor:
        """The picture's."""
        assert self.adapter.image_encoder is not None
        return self.adapter.image_encoder.encode(self.adapter.image_encoder.pixels([self.picture]))

    @functools.cached_property
    def base(self) -> Tensor:
        """Without an image prompt."""
        return self.case.latents(self.pipe)

    @functools.cached_property
    def ours(self) -> Tensor:
        """With the picture."""
        return self.draw_attached(self.reference)

    @property
    def reference(self) -> Reference:
        """The picture's embedding, at λ = 0.7."""
        return Reference(self.embedding, scale=SCALE)

    @property
    def term(self) -> Term:
        """What it amounts to."""
        return Term(self.adapter, self.embedding[None], SCALE)

    def draw_attached(self, *references: Any, unguided: bool = False, **arguments: Any) -> Tensor:
        """Attach, make pictures of references, detach."""
        told = self.case.unguided if unguided else self.case.guided
        arguments |= {"guidance_scale": 1.0} if unguided else {}
        branches = None if self.case.tells else told
        with self.adapter.attach(self.pipe), self.adapter.references(*references, branches=branches):
            return self.case.latents(self.pipe, **arguments)

    def by_hand(self, *terms: Term, **arguments: Any) -> Tensor:
        """The same without imprompt; `branches` is how the batch is stacked at each step."""
        branches = arguments.pop("branches", [self.case.guided])
        rows = arguments.get("each", 1) * self.case.frames
        with ByHand(self.pipe.unet, terms, branches, rows).install():
            return self.case.latents(self.pipe, **arguments)

    @contextmanager
    def theirs(self, scale: float) -> Iterator[None]:
        """Diffusers' own adapter with the same weights."""
        weights = official(self.adapter)
        self.pipe.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
        try:
            self.pipe.set_ip_adapter_scale(scale)
            yield
        finally:
            self.pipe.unload_ip_adapter()
            # diffusers leaves a None of this name, and forgets Kolors's own projection the next time.
            if hasattr(self.pipe.unet, "text_encoder_hid_proj"):
                del self.pipe.unet.text_encoder_hid_proj


@functools.cache
def scene(case: Case) -> Scene:
    return Scene(case)


def assert_same(ours: Tensor, expected: Tensor, base: Tensor) -> None:
    """Equal, and to something that is not the base's picture."""
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= TOLERANCE
    assert not torch.allclose(ours, base, rtol=0, atol=1000 * TOLERANCE)
