"""Image encoders without text as the judge: DINO ViT-S/16 (DreamBooth's DINO-I), DINOv2, SigLIP, ...

Features are each model's output for the whole picture: the class token after the last normalization (DINO,
DINOv2, ViT), or the projected or pooled embedding (SigLIP, CLIP, ConvNeXt).
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel

from imprompt.errors import UnknownModel
from imprompt.evaluation.judges.judge import Judge, load_complete_model, load_config, load_part
from imprompt.inputs.encoder import strip_folders

DINO = "facebook/dino-vits16"
"""The model of DreamBooth's DINO metric (arXiv 2208.12242, section 4.1)."""

WITH_POOLER = ("vit", "deit", "beit", "data2vec-vision")
"""Model types whose pooling layer is a head of the pretraining, which DINO's files do not have."""


class ImageJudge(Judge):
    """Any image encoder of transformers, with its own image processor.

    Args:
        network: a model that `AutoModel` loads
        processor: resizes, crops and normalizes a picture
        name: the judge's name in tables
    """

    def __init__(self, network: nn.Module, processor: Any, *, name: str) -> None:
        super().__init__(network, name=name)
        self.processor = processor

    def pixels(self, picture: Image.Image) -> Float[Tensor, "3 height width"]:
        """Return the picture as the image processor prepares it."""
        return self.processor(images=picture.convert("RGB"), return_tensors="pt")["pixel_values"][0]

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Return the features of the whole picture."""
        return embed_picture(self.network, pixels)


def embed_picture(network: Any, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
    """Return one vector a picture: the image embedding, else the pooled output, else the class token."""
    if hasattr(network, "get_image_features"):
        found = network.get_image_features(pixel_values=pixels)
        return found if isinstance(found, Tensor) else found.pooler_output
    output = network(pixel_values=pixels)
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def load_image_judge(source: str | Path = DINO) -> ImageJudge:
    """Load an image encoder as the judge, in float32.

    Args:
        source: a folder with model and `preprocessor_config.json`, or "owner/name[:subfolder]" on the hub

    Raises:
        UnknownModel: it cannot be found, has no image processor, or is no image encoder
    """
    config = load_config("image encoder", source)
    if not hasattr(config, "image_size") and not hasattr(config, "vision_config"):
        raise UnknownModel(f"no image encoder at {source}: a {config.model_type} model takes no pictures")
    options: dict[str, Any] = {"add_pooling_layer": False} if config.model_type in WITH_POOLER else {}
    network = load_complete_model("image encoder", source, AutoModel.from_pretrained, **options)
    processor = load_part("image processor", source, AutoImageProcessor.from_pretrained, backend="pil")
    return ImageJudge(network, processor, name=strip_folders(str(source)))
