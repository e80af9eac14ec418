"""Frozen image encoders: pixels → image embedding, or a grid of features."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from imprompt.errors import AdapterMismatch, UnknownModel
from imprompt.inputs.choices import Input
from imprompt.inputs.crop import Crop, encoder_pixels
from imprompt.runtime.files import find_name_fault, shorten
from imprompt.runtime.foreign_models import explain_failure, parse_source
from imprompt.runtime.hub import fetch_existing_files

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of the RGB channels that CLIP was trained with (openai/CLIP, clip/clip.py)."""

_PREPROCESSOR = "preprocessor_config.json"
_FILES = ("config.json", _PREPROCESSOR, "model.safetensors")
"""Files of an image encoder; a repository of the hub may lack some."""

RGB = tuple[float, float, float]


def describe_unconditional(takes: Collection[Input]) -> str:
    """Return the sentence of adapter files that says what "no image" is for a projection of these inputs.

    Training replaces a dropped image by it, and so does the negative branch of guidance.
    """
    # Part of the file format, so its spelling stays.
    forms = {"image_features": "the features of a picture in the mean colour"}
    return ", ".join(f"{name}: {forms.get(name, 'zeros')}" for name in sorted(takes))


class ImageEncoder:
    """A frozen CLIP image encoder.

    It is no `nn.Module`, so an adapter's parameters and files never include it.

    Args:
        model: put into evaluation mode and frozen, in place
        mean: subtracted from the RGB channels (0–1)
        std: divides the RGB channels after that
        name: its name in messages and embedding files; by default the source that transformers loaded it
            from, or its shape

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
        self.name = name or strip_folders(model.name_or_path or "") or _describe_shape(model)
        self._blanks: dict[tuple[Input, torch.device, torch.dtype], Tensor] = {}

    @property
    def signature(self) -> tuple[float, ...]:
        """A few of the model's weights, which tell encoders apart and are equal in every number format."""
        weights = self.model.vision_model.embeddings.class_embedding
        return tuple(weights.flatten()[:8].double().tolist())

    @property
    def patches(self) -> int:
        """The number of features of a picture: one for each patch, and the class token's."""
        side = self.image_size // int(self.model.config.patch_size)  # pyright: ignore[reportArgumentType]
        return side**2 + 1

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the model."""
        return self.model.dtype

    def to(self, *args: torch.device | str | torch.dtype) -> "ImageEncoder":
        """Move or convert the model in place, as `nn.Module.to` does."""
        self.model.to(*args)  # pyright: ignore[reportArgumentType]
        self._blanks.clear()  # after a narrow type and back, the weights differ though device and type do not
        return self

    def pixels(
        self, pictures: Sequence[Image.Image], crop: Crop | str = "center"
    ) -> Float[Tensor, "batch 3 size size"]:
        """Crop and normalize upright RGB pictures on the CPU; "center" is CLIP's own preprocessing.

        Raises:
            InvalidReference: `crop` is no `Crop`, or is "tiles" for pictures that are not square
        """
        normalization = {"mean": self.mean, "std": self.std}
        return torch.stack(
            [encoder_pixels(picture, self.image_size, **normalization, crop=crop) for picture in pictures]
        )

    @torch.no_grad()
    def encode(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch {self.embedding_dim}"]:
        """Return the projected image embedding, not normalized (`image_embeds` of transformers)."""
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
        """Return the outputs of `encode` and `features` by name; the model runs once.

        Raises:
            AdapterMismatch: a name is that of a face embedding, which no image encoder computes
        """
        for name in names:
            _check_supported(name)
        output = self.model(
            pixels.to(self.device, self.dtype), output_hidden_states="image_features" in names
        )
        outputs = {
            "image_embedding": lambda: output.image_embeds,
            "image_features": lambda: output.hidden_states[-2],
            "image_pixels": lambda: pixels.to(self.device, self.dtype),
        }
        return {name: outputs[name]() for name in names}

    def blank(self, name: Input) -> Float[Tensor, "..."]:
        """Return "no image", which stands for a dropped image and is the negative branch of guidance.

        For image_embedding these are zeros, "d", and for image_pixels zeros, "3 size size". For
        image_features these are the features "patches d" of normalized pixels that are all zero: a picture in
        CLIP's mean color, not black. The official code and diffusers have the same rule.

        Raises:
            AdapterMismatch: the name is that of a face embedding, which no image encoder computes
        """
        _check_supported(name)
        key = name, self.device, self.dtype
        if key not in self._blanks:
            self._blanks[key] = self._compute_blank(name)
        return self._blanks[key]

    def black(self, name: Input) -> Float[Tensor, "..."]:
        """Return what a black picture becomes, the "no image" of XLabs' adapters: "d", or "patches d"."""
        pixels = self.pixels([Image.new("RGB", (self.image_size, self.image_size))])
        return self.inputs(pixels, [name])[name][0]

    def _compute_blank(self, name: Input) -> Tensor:
        if name == "image_embedding":
            return torch.zeros(self.embedding_dim, device=self.device, dtype=self.dtype)
        if name == "image_pixels":
            return torch.zeros(3, self.image_size, self.image_size, device=self.device, dtype=self.dtype)
        with torch.inference_mode(False):  # training uses the cached tensor later
            return self.features(torch.zeros(1, 3, self.image_size, self.image_size))[0]


def _check_supported(name: Input) -> None:
    if name == "face_embedding":
        raise AdapterMismatch(
            "an image encoder computes no face embedding; set adapter.face_embedder, or pass "
            "Reference(face=...)"
        )


def _describe_shape(model: CLIPVisionModelWithProjection) -> str:
    config = model.config
    return (
        f"CLIP ViT/{config.patch_size} for {config.image_size} px, {config.num_hidden_layers} layers "
        f"{config.hidden_size} wide, embedding {config.projection_dim} wide"
    )


def load_image_encoder(source: CLIPVisionModelWithProjection | str | Path) -> ImageEncoder:
    """Load an image encoder.

    Mean and deviation are those of `preprocessor_config.json` in the folder of the weights, or else CLIP's.

    Args:
        source: a model, a folder written by transformers, or "owner/name[:subfolder]" on the hub

    Raises:
        UnknownModel: there is no such folder or repository, or it holds no CLIP vision model
    """
    if isinstance(source, CLIPVisionModelWithProjection):
        return ImageEncoder(source)
    if fault := find_name_fault(source):
        raise UnknownModel(f"no image encoder at {shorten(str(source))!r}: {fault}")
    place = parse_source(source)
    with explain_failure(f"no image encoder at {source}"):
        if place.is_local:
            files = [Path(place.name, name) for name in _FILES]
        else:  # fetched within a time limit and checked; transformers then finds the files in the cache
            names = [f"{place.subfolder}/{name}".lstrip("/") for name in _FILES]
            files = fetch_existing_files(place.name, names)
        model = CLIPVisionModelWithProjection.from_pretrained(place.name, **place.options)
        mean, std = _read_normalization(files)
    return ImageEncoder(model, mean=mean, std=std, name=strip_folders(str(source)))


def strip_folders(source: str) -> str:
    """Return the last part of a local folder's path, so that no result shows the path; a hub id stays."""
    return Path(source).resolve().name if source and Path(source).is_dir() else source


def _read_normalization(files: Sequence[Path]) -> tuple[RGB, RGB]:
    """Return the mean and deviation that the preprocessor's file states, or CLIP's without such a file."""
    path = next((file for file in files if file.name == _PREPROCESSOR and file.is_file()), None)
    config = json.loads(path.read_text()) if path else {}
    return tuple(config.get("image_mean", CLIP_MEAN)), tuple(config.get("image_std", CLIP_STD))
