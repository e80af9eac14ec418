"""Frozen image encoders: pixels → image embedding, or a grid of features."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from imprompt.errors import AdapterMismatch, UnknownModel
from imprompt.inputs.crop import Crop, encoder_pixels
from imprompt.runtime.files import name_fault, shorten
from imprompt.runtime.hub import fetch_existing_files

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of the RGB channels that CLIP was trained with (openai/CLIP, clip/clip.py)."""

_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
"""Of an image encoder on the hub, those that there are."""

RGB = tuple[float, float, float]

Input = Literal["image_embedding", "image_features", "face_embedding"]
"""What a projection takes of a picture: its projected embedding "d", its features "patches d" (hidden states,
class token first), or the embedding "d" of the face in it, which a face model makes."""


def describe_unconditional(takes: Collection[Input]) -> str:
    """Say what "no image" is for a projection that takes these inputs: adapter files hold this sentence.

    Training drops images by it, and the negative branch of guidance stands on it.
    """
    forms = {"image_features": "the features of a picture in the mean colour"}
    return ", ".join(f"{name}: {forms.get(name, 'zeros')}" for name in sorted(takes))


class ImageEncoder:
    """A CLIP image encoder, frozen.

    It is no `nn.Module`, so it can never slip into an adapter's parameters or files.

    Args:
        model: put into evaluation mode and frozen, in place
        mean: subtracted from the RGB channels (0–1)
        std: what they are divided by then
        name: what messages and embedding files call it; by default what transformers loaded it from, or its
            shape

    Attributes:
        image_size: side of the square picture that the model takes, in pixels
        embedding_dim: width of the projected embedding
        feature_dim: width of a hidden state
    """

    def __init__(
        self,
        model: CLIPVisionModelWithProjection,
        *,
        mean: RGB = CLIP_MEAN,
        std: RGB = CLIP_STD,
        name: str | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.mean, self.std = mean, std
        self.image_size = int(model.config.image_size)  # pyright: ignore[reportArgumentType]
        self.embedding_dim = model.config.projection_dim
        self.feature_dim = model.config.hidden_size
        self.name = name or strip_folders(model.name_or_path or "") or _shape(model)
        self._blanks: dict[tuple[Input, torch.device, torch.dtype], Tensor] = {}

    @property
    def signature(self) -> tuple[float, ...]:
        """Some of the model's weights: another encoder's are others, the same one's alike in every format."""
        weights = self.model.vision_model.embeddings.class_embedding
        return tuple(weights.flatten()[:8].double().tolist())

    @property
    def patches(self) -> int:
        """How many features a picture has: one for each patch, and the class token's."""
        side = self.image_size // int(self.model.config.patch_size)  # pyright: ignore[reportArgumentType]
        return side**2 + 1

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model computes in."""
        return self.model.dtype

    def to(self, *args: torch.device | str | torch.dtype) -> "ImageEncoder":
        """Move or convert the model, in place, as `nn.Module.to` does."""
        self.model.to(*args)  # pyright: ignore[reportArgumentType]
        self._blanks.clear()  # a narrow type and back: device and type are the old ones, the weights not
        return self

    def pixels(
        self, pictures: Sequence[Image.Image], crop: Crop | str = "center"
    ) -> Float[Tensor, "batch 3 size size"]:
        """Crop and normalize upright RGB pictures, on the CPU; "center" is CLIP's own preprocessing.

        Raises:
            InvalidReference: no `Crop`, or "tiles" for pictures that are not square
        """
        normalisation = {"mean": self.mean, "std": self.std}
        return torch.stack(
            [encoder_pixels(picture, self.image_size, **normalisation, crop=crop) for picture in pictures]
        )

    @torch.no_grad()
    def encode(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch {self.embedding_dim}"]:
        """Return the projected image embedding, not normalised (`image_embeds` of transformers)."""
        return self.model(pixels.to(self.device, self.dtype)).image_embeds

    @torch.no_grad()
    def features(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch patches {self.feature_dim}"]:
        """Return the penultimate hidden states, class token first (`hidden_states[-2]` of transformers)."""
        pixels = pixels.to(self.device, self.dtype)
        return self.model(pixels, output_hidden_states=True).hidden_states[-2]

    @torch.no_grad()
    def inputs(
        self, pixels: Float[Tensor, "batch 3 size size"], names: Collection[Input]
    ) -> dict[Input, Float[Tensor, "batch ..."]]:
        """Return what `encode` and `features` do, under the names asked for; the model runs once.

        Raises:
            AdapterMismatch: a face embedding, which no image encoder makes
        """
        for name in names:
            _check_made_here(name)
        seen = self.model(pixels.to(self.device, self.dtype), output_hidden_states="image_features" in names)
        made = {
            "image_embedding": lambda: seen.image_embeds,
            "image_features": lambda: seen.hidden_states[-2],
        }
        return {name: made[name]() for name in names}

    def blank(self, name: Input) -> Float[Tensor, "..."]:
        """Return what "no image" is, on the negative branch and for a dropped image.

        image_embedding: zeros, "d". image_features: the features of normalised pixels that are all zero (a
        picture in CLIP's mean colour, not black), "patches d". The official code's rule, and diffusers'.

        Raises:
            AdapterMismatch: a face embedding, which no image encoder makes
        """
        _check_made_here(name)
        key = name, self.device, self.dtype
        if key not in self._blanks:
            self._blanks[key] = self._blank(name)
        return self._blanks[key]

    def _blank(self, name: Input) -> Tensor:
        if name == "image_embedding":
            return torch.zeros(self.embedding_dim, device=self.device, dtype=self.dtype)
        with torch.inference_mode(False):  # what is kept must serve training later
            return self.features(torch.zeros(1, 3, self.image_size, self.image_size))[0]


def _check_made_here(name: Input) -> None:
    if name == "face_embedding":
        raise AdapterMismatch(
            "an image encoder makes no face embedding; set adapter.face_embedder, or give Reference(face=...)"
        )


def _shape(model: CLIPVisionModelWithProjection) -> str:
    config = model.config
    return (
        f"CLIP ViT/{config.patch_size} for {config.image_size} px, {config.num_hidden_layers} layers "
        f"{config.hidden_size} wide, embedding {config.projection_dim} wide"
    )


def load_image_encoder(source: CLIPVisionModelWithProjection | str | Path) -> ImageEncoder:
    """Load an image encoder.

    Mean and deviation come from `preprocessor_config.json` beside the weights, if there is one; else CLIP's.

    Args:
        source: a model, a folder written by transformers, or "owner/name[:subfolder]" on the hub

    Raises:
        UnknownModel: no such folder or repository, or no CLIP vision model in it
    """
    if isinstance(source, CLIPVisionModelWithProjection):
        return ImageEncoder(source)
    if fault := name_fault(source):
        raise UnknownModel(f"no image encoder at {shorten(str(source))!r}: {fault}")
    repository, _, subfolder = ("", "", "") if Path(source).is_dir() else str(source).partition(":")
    try:
        if repository:  # within a stated time, and checked; transformers finds them in the cache
            fetch_existing_files(repository, [f"{subfolder}/{name}".lstrip("/") for name in _FILES])
        if not repository:
            model = CLIPVisionModelWithProjection.from_pretrained(source)
        else:
            model = CLIPVisionModelWithProjection.from_pretrained(repository, subfolder=subfolder)
        mean, std = _normalisation(Path(source) if not repository else None, repository, subfolder)
    except Exception as error:  # foreign files and a network: this may fail in any way
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UnknownModel(f"no image encoder at {source}: {reason}") from error
    return ImageEncoder(model, mean=mean, std=std, name=strip_folders(str(source)))


def strip_folders(source: str) -> str:
    """Return a hub id as it is, of a local folder its last name: where it lies is nobody's business."""
    return Path(source).resolve().name if source and Path(source).is_dir() else source


def _normalisation(folder: Path | None, repository: str, subfolder: str) -> tuple[RGB, RGB]:
    path = folder / "preprocessor_config.json" if folder else _fetched(repository, subfolder)
    if path is None or not path.is_file():
        return CLIP_MEAN, CLIP_STD
    config = json.loads(path.read_text())
    return tuple(config.get("image_mean", CLIP_MEAN)), tuple(config.get("image_std", CLIP_STD))


def _fetched(repository: str, subfolder: str) -> Path | None:
    try:
        return Path(hf_hub_download(repository, "preprocessor_config.json", subfolder=subfolder or None))
    except EntryNotFoundError:
        return None
