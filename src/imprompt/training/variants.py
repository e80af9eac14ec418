"""The mechanisms and the variants of adapters that can be trained, and what each reads of a reference."""

from typing import Literal

from imprompt.attention.choices import Injection
from imprompt.inputs.choices import Input

MechanismName = Literal[
    "decoupled",
    "concatenated",
    "replaced",
    "unclip",
    "two-stream",
    "style-adapter",
    "shuffled-control",
    "prior-decoder",
]

Variant = Literal[
    "base",
    "plus",
    "full-face",
    "faceid",
    "faceid-plus",
    "faceid-plusv2",
    "flux-xlabs",
    "flux-instantx",
    "sd35",
]

FACES = ("faceid", "faceid-plus", "faceid-plusv2")

TAKES: dict[Variant, tuple[Input, ...]] = {
    "base": ("image_embedding",),
    "plus": ("image_features",),
    "full-face": ("image_features",),
    "faceid": ("face_embedding",),
    "faceid-plus": ("face_embedding", "image_features"),
    "faceid-plusv2": ("face_embedding", "image_features"),
    "flux-xlabs": ("image_embedding",),
    "flux-instantx": ("image_embedding",),
    "sd35": ("image_features",),
}
"""The inputs of each variant's projection."""


TRANSFORMER_VARIANTS: dict[Variant, Injection] = {
    "flux-xlabs": "flux-xlabs",
    "flux-instantx": "flux-instantx",
    "sd35": "sd35",
}
"""The variants for transformers; all others are for a U-Net."""
