"""Image projections: what an encoder saw of a picture, as tokens that stand beside the text's."""

from imprompt.projection.base import ImageProjection, Input
from imprompt.projection.linear import LinearProjection

__all__ = ["ImageProjection", "Input", "LinearProjection"]
