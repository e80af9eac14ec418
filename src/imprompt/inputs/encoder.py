"""Frozen image encoders: pixels → image embedding, or a grid of features."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection, PreTrainedModel

from imprompt.errors import AdapterMismatch, UnknownModel
from imprompt.inputs.choices import CropName, Input, NoImage
from imprompt.inputs.crop import Crop, encoder_pixels
from imprompt.runtime.files import find_name_fault, shorten
from imprompt.runtime.foreign_models import explain_failure, parse_source
from imprompt.runtime.hub import fetch_existing_files

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of the RGB channels that CLIP was trained with (openai/CLIP, clip/clip.py)."""

SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
"""Mean and deviation of the RGB channels that SigLIP was trained with (google/siglip-so400m-patch14-384)."""

_PREPROCESSOR = "preprocessor_config.json"
_FILES = ("config.json", _PREPROCESSOR, "model.safetensors")
"""Files of an image encoder; a repository of the hub may lack some."""

RGB = tuple[float, float, float]


def describe_unconditional(takes: Collection[Input], no_image: NoImage = "blank") -> str:
    """Return the sentence of adapter files that says what "no image" is for a projection of these inputs.

    Training replaces a dropped image by it, and so does the negative branch of guidance.
    """
    if no_image != "blank":
        return f"{', '.join(sorted(takes))}: {no_image}"
    # Part of the file format, so its spelling stays.
    forms = {"image_features": "the features of a picture in the mean colour"}
    return ", ".join(f"{name}: {forms.get(name, 'zeros')}" for name in sorted(takes))


def is_vision_model(model: object) -> bool:
    """Whether a model is one that an `ImageEncoder` is made of."""
    return isinstance(model, CLIPVisionModelWithProjection) or (
        isinstance(model, PreTrainedModel) and model.config.model_type == "siglip_vision_model"
    )


class ImageEncoder:
    """A frozen image encoder: of CLIP, or of SigLIP.

    It is no `nn.Module`, so an adapter's parameters and files never include it. SigLIP's image embedding is
    what its pooling head returns, and its features have no class token.

    Args:
        model: a `CLIPVisionModelWithProjection` or a `SiglipVisionModel`; it is put into evaluation mode and
            frozen, in place
        mean: subtracted from the RGB channels (0–1); by default CLIP's or SigLIP's
        std: divides the RGB channels after that
        name: its name in messages and embedding files; by default the source that transformers loaded it
            from, or its shape

    Attributes:
        is_siglip: whether the model is SigLIP's
        image_size: side of the square picture that the model takes, in pixels
        embedding_dim: width of the projected embedding
        feature_dim: width of a hidden state
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        mean: RGB | None = None,
        std: RGB | None = None,
        name: str | None = None,
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        config: Any = model.config
        self.is_siglip = config.model_type == "siglip_vision_model"
        self.mean = mean or (SIGLIP_MEAN if self.is_siglip else CLIP_MEAN)
        self.std = std or (SIGLIP_STD if self.is_siglip else CLIP_STD)
        self.image_size = int(config.image_size)
        self.feature_dim = int(config.hidden_size)
        self.embedding_dim = self.feature_dim if self.is_siglip else int(config.projection_dim)
        self.name = name or strip_folders(model.name_or_path or "") or _describe_shape(model)
        self._blanks: dict[tuple[Input, torch.device, torch.dtype], Tensor] = {}

    @property
    def native_crop(self) -> CropName:
        """How the encoder's own preprocessing makes a picture square."""
        return "stretch" if self.is_siglip else "center"

    @property
    def signature(self) -> tuple[float, ...]:
        """A few of the model's weights, which tell encoders apart and are equal in every number format."""
        inside = getattr(self.model, "vision_model", self.model).embeddings
        weights = inside.position_embedding.weight if self.is_siglip else inside.class_embedding
        return tuple(weights.flatten()[:8].double().tolist())

    @property
    def patches(self) -> int:
        """The number of features of a picture: one for each patch, and with CLIP the class token's."""
        side = self.image_size // int(self.model.config.patch_size)
        return side**2 + (0 if self.is_siglip else 1)

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
        self.model.to(*args)
        self._blanks.clear()  # after a narrow type and back, the weights differ though device and type do not
        return self

    def pixels(
        self, pictures: Sequence[Image.Image], crop: Crop | str = "native"
    ) -> Float[Tensor, "batch 3 size size"]:
        """Crop and normalize upright RGB pictures on the CPU; "native" is the encoder's own preprocessing.

        Raises:
            InvalidReference: `crop` is no `Crop`, or is "tiles" for pictures that are not square
        """
        normalization = {"mean": self.mean, "std": self.std}
        crop = self.native_crop if crop == "native" else crop
        return torch.stack(
            [encoder_pixels(picture, self.image_size, **normalization, crop=crop) for picture in pictures]
        )

    @torch.no_grad()
    def encode(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch {self.embedding_dim}"]:
        """Return the image embedding, not normalized: `image_embeds` of CLIP, `pooler_output` of SigLIP."""
        return self._embedding(self.model(pixels.to(self.device, self.dtype)))

    def _embedding(self, output: Any) -> Tensor:
        return output.pooler_output if self.is_siglip else output.image_embeds

    @torch.no_grad()
    def features(
        self, pixels: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch patches {self.feature_dim}"]:
        """Return the penultimate hidden states, transformers' `hidden_states[-2]`, CLIP's class first."""
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
            "image_embedding": lambda: self._embedding(output),
            "image_features": lambda: output.hidden_states[-2],
            "last_image_features": lambda: output.last_hidden_state,
            "image_pixels": lambda: pixels.to(self.device, self.dtype),
        }
        return {name: outputs[name]() for name in names}

    def blank(self, name: Input) -> Float[Tensor, "..."]:
        """Return "no image", which stands for a dropped image and is the negative branch of guidance.

        For image_embedding these are zeros, "d", and for image_pixels zeros, "3 size size". For both kinds of
        features these are the features "patches d" of normalized pixels that are all zero: a picture in
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
        pixels = self.pixels([Image.new("RGB", (self.image_size, self.image_size))], "center")
        return self.inputs(pixels, [name])[name][0]

    def _compute_blank(self, name: Input) -> Tensor:
        if name == "image_embedding":
            return torch.zeros(self.embedding_dim, device=self.device, dtype=self.dtype)
        if name == "image_pixels":
            return torch.zeros(3, self.image_size, self.image_size, device=self.device, dtype=self.dtype)
        with torch.inference_mode(False):  # training uses the cached tensor later
            return self.inputs(torch.zeros(1, 3, self.image_size, self.image_size), [name])[name][0]


def _check_supported(name: Input) -> None:
    if name == "face_embedding":
        raise AdapterMismatch(
            "an image encoder computes no face embedding; set adapter.face_embedder, or pass "
            "Reference(face=...)"
        )


def _describe_shape(model: PreTrainedModel) -> str:
    config: Any = model.config
    if config.model_type == "siglip_vision_model":
        return (
            f"SigLIP ViT/{config.patch_size} for {config.image_size} px, {config.num_hidden_layers} layers "
            f"{config.hidden_size} wide"
        )
    return (
        f"CLIP ViT/{config.patch_size} for {config.image_size} px, {config.num_hidden_layers} layers "
        f"{config.hidden_size} wide, embedding {config.projection_dim} wide"
    )


def load_image_encoder(source: PreTrainedModel | str | Path) -> ImageEncoder:
    """Load an image encoder.

    Mean and deviation are those of `preprocessor_config.json` in the folder of the weights, or else CLIP's or
    SigLIP's.

    Args:
        source: a model, a folder written by transformers, or "owner/name[:subfolder]" on the hub

    Raises:
        UnknownModel: there is no such folder or repository, or it holds no vision model of CLIP or SigLIP
    """
    if isinstance(source, PreTrainedModel):
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
        model = _find_class(files).from_pretrained(place.name, **place.options)
        mean, std = _read_normalization(files)
    return ImageEncoder(model, mean=mean, std=std, name=strip_folders(str(source)))


def strip_folders(source: str) -> str:
    """Return the last part of a local folder's path, so that no result shows the path; a hub id stays."""
    return Path(source).resolve().name if source and Path(source).is_dir() else source


def _find_class(files: Sequence[Path]) -> Any:
    """Return the class of the model whose configuration is among these files; CLIP's without one."""
    path = next((file for file in files if file.name == "config.json" and file.is_file()), None)
    kind = str(json.loads(path.read_text()).get("model_type", "")) if path else ""
    if not kind.startswith("siglip"):
        return CLIPVisionModelWithProjection
    from transformers import SiglipVisionModel  # imported late, as few adapters need it

    return SiglipVisionModel


def _read_normalization(files: Sequence[Path]) -> tuple[RGB | None, RGB | None]:
    """Return the mean and deviation that the preprocessor's file states; None without such a file."""
    path = next((file for file in files if file.name == _PREPROCESSOR and file.is_file()), None)
    config = json.loads(path.read_text()) if path else {}
    mean, std = config.get("image_mean"), config.get("image_std")
    return mean and tuple(mean), std and tuple(std)
