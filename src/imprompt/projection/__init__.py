"""Image projections: from the outputs of an image encoder to image tokens."""

from imprompt.projection.base import ImageProjection
from imprompt.projection.face import FacePlusProjection, FaceProjection
from imprompt.projection.linear import HiddenProjection, LinearProjection
from imprompt.projection.patch import PatchProjection
from imprompt.projection.perceiver import PerceiverShape
from imprompt.projection.resampler import ResamplerProjection
from imprompt.projection.time_resampler import TimeResamplerProjection
from imprompt.projection.tokens import TokenProjection

__all__ = [
    "FacePlusProjection",
    "FaceProjection",
    "HiddenProjection",
    "ImageProjection",
    "LinearProjection",
    "PatchProjection",
    "PerceiverShape",
    "ResamplerProjection",
    "TimeResamplerProjection",
    "TokenProjection",
]
