"""Encode references to the inputs of the projection, for the image prompt and for the negative branch.

"No image" is a zero embedding before the projection (Ye et al. 2023, section 3.2.2). For features it is those
of a gray picture, as in the official code (tencent-ailab/IP-Adapter, ip_adapter/ip_adapter.py). Adapters for
transformers were trained with others, see `NoImage`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from imprompt.errors import AdapterMismatch, AmbiguousBatch, InvalidReference
from imprompt.inputs.choices import Input, NoImage
from imprompt.inputs.crop import Crop, encoder_view, noise_image, split_into_tiles
from imprompt.inputs.embeddings import ImageEmbeddings, combine_embeddings
from imprompt.inputs.encoder import ImageEncoder
from imprompt.inputs.faces import Face, FaceEmbedder
from imprompt.inputs.image import ImagePrompt, load_image
from imprompt.reference import Reference, check_no_pixels, list_pictures

_SIGNATURE = "encoder_signature"

ProjectionInputs = Mapping[Input, Tensor]
"""The inputs of a projection, each "images ..."."""

ReferenceLike = Reference | ImagePrompt | Tensor | ImageEmbeddings
"""A reference, or a file, a picture, an array or image embeddings that stand for one with λ = 1."""


NegativeKind = Literal["inputs", "nothing", "unknown"]


class EncodedReference(NamedTuple):
    """The inputs of a projection for one reference: for the image prompt, and for the negative branch."""

    positive: ProjectionInputs
    negative: ProjectionInputs
    negative_kind: NegativeKind = "inputs"
    """What the negative branch has: these inputs; no image prompt at all; or what no encoder could make."""


@dataclass(frozen=True)
class ReferenceEncoder:
    """The encoders of an adapter, which turn references into the inputs of its projection.

    Args:
        takes: the projection's inputs and their widths
        encoder: the image encoder; None: references must contain embeddings
        face_embedder: None: references must contain the face embeddings that the projection takes
        no_image: what stands for "no image"
        target: the pipeline whose text tower embeds the words of `Reference.without`
    """

    takes: Mapping[Input, int]
    encoder: ImageEncoder | None
    face_embedder: FaceEmbedder | None
    no_image: NoImage = "blank"
    target: object = None

    @property
    def metadata(self) -> dict[str, str]:
        """Describe the image encoder, so that the embeddings of another one are recognized and refused."""
        if self.encoder is None or set(self.takes) == {"face_embedding"}:
            return {}
        return {"encoder": self.encoder.name, _SIGNATURE: json.dumps(self.encoder.signature)}

    def encode(self, references: Sequence[Reference]) -> list[EncodedReference]:
        """Encode references; all pictures go through the encoder at once.

        Raises:
            AdapterMismatch: an encoder is missing, or embeddings are of other kinds or widths
            InvalidReference: a setting that this adapter cannot honor
            ImageError: a picture that cannot be read, or without a face where one is needed
        """
        for reference in references:
            _check_effects(reference, self.takes)
        pictures = [picture for reference in references for picture in self._pictures(reference)]
        rows = iter(self._rows(pictures))
        return [self._encode_one(reference, rows) for reference in references]

    def views(self, reference: Reference) -> list[Image.Image]:
        """Return the exact images that the image encoder receives for a reference.

        Raises:
            AdapterMismatch: no image encoder
        """
        encoder = self._require_encoder()
        parts = [part for tile in split_tiles(reference) for part in self._pictures(tile)]
        crops = [encoder.native_crop if part.crop == "native" else part.crop for part in parts]
        return [
            encoder_view(part.picture, encoder.image_size, crop)
            for part, crop in zip(parts, crops, strict=True)
        ]

    def _pictures(self, reference: Reference) -> "list[_EncoderPicture]":
        """Return all pictures of a reference, those of its negative last."""
        both = [(reference.pictures, reference.face), (list_pictures(reference.negative), None)]
        parts = [
            self._part(load_image(picture), reference, None if face is None else face[index])
            for pictures, face in both
            for index, picture in enumerate(pictures)
        ]
        if reference.noise is None:
            return parts
        kind, amount = reference.noise
        size = self._require_encoder().image_size
        noised = [noise_image(part.picture, kind, amount, seed, size=size) for seed, part in enumerate(parts)]
        return [*parts, *(_EncoderPicture(picture, reference.crop, None) for picture in noised)]

    def _part(self, picture: Image.Image, reference: Reference, face: Tensor | None) -> "_EncoderPicture":
        if "face_embedding" not in self.takes or face is not None:
            return _EncoderPicture(picture, reference.crop, face)
        if self.face_embedder is None:
            raise AdapterMismatch(
                "this adapter takes face embeddings; set adapter.face_embedder, or give Reference(face=...)"
            )
        result = self.face_embedder(picture)
        if isinstance(result, Face):
            return _EncoderPicture(result.crop, "stretch", result.embedding)
        return _EncoderPicture(picture, reference.crop, result)

    def _rows(self, parts: "Sequence[_EncoderPicture]") -> list[dict[Input, Tensor]]:
        """Return the projection's inputs for each picture, in the order of `takes`."""
        if not parts:
            return []
        names: list[Input] = [name for name in self.takes if name != "face_embedding"]
        outputs: dict[Input, Tensor] = {}
        if names:
            encoder = self._require_encoder()
            pixels = torch.cat([encoder.pixels([part.picture], part.crop) for part in parts])
            outputs = encoder.inputs(pixels, names)
        if "face_embedding" in self.takes:
            outputs["face_embedding"] = torch.stack([part.face for part in parts if part.face is not None])
        return [{name: outputs[name][row] for name in self.takes} for row in range(len(parts))]

    def _encode_one(self, reference: Reference, rows: Iterator[dict[Input, Tensor]]) -> EncodedReference:
        inputs = self._read_embeddings(reference.images, reference.face)
        if inputs is None:
            inputs = _stack([next(rows) for _ in reference.pictures])
        negative = self._read_embeddings(reference.negative, None)
        others = reference.pictures if reference.noise else list_pictures(reference.negative)
        if others:
            negative = _stack([next(rows) for _ in others])
        positive: dict[Input, Tensor] = {
            name: combine_embeddings(value, reference.combine, reference.weights)
            for name, value in inputs.items()
        }
        if reference.without:
            words = self._embed_text(reference.without)
            positive["image_embedding"] = positive["image_embedding"] - words.to(positive["image_embedding"])
        if negative is not None:
            return EncodedReference(positive, negative)
        return self._encode_no_image(reference, positive)

    def _read_embeddings(self, images: object, face: Tensor | None) -> ProjectionInputs | None:
        """Return the embeddings that a reference contains; None if it contains pictures."""
        if isinstance(images, ImageEmbeddings):
            images.check_fits(self.takes)
            self._check_encoder(images.metadata)
            self._check_patches(images.inputs)
            return {name: images.inputs[name] for name in self.takes}
        if not isinstance(images, Tensor):
            return None
        check_no_pixels(images, self.takes.get("image_features", self.takes.get("last_image_features")))
        named = self._name_inputs(images, face)
        zeros: dict[Input, Tensor] = {name: value.new_zeros(value.shape[1:]) for name, value in named.items()}
        ImageEmbeddings(named, zeros).check_fits(self.takes)
        self._check_patches(named)
        return named

    def _check_patches(self, inputs: ProjectionInputs) -> None:
        """Refuse features with another number of patches than this adapter's image encoder makes."""
        if self.encoder is None or "image_features" not in inputs:
            return
        patches, expected = inputs["image_features"].shape[1], self.encoder.patches
        if patches != expected:
            hint = "; the class token is missing" if patches == expected - 1 else ""
            raise AdapterMismatch(
                f"image_features have {patches} patches in these image embeddings; this adapter's image "
                f"encoder makes {expected}{hint}: make them with this adapter (adapter.encode)"
            )

    def _check_encoder(self, metadata: Mapping[str, str]) -> None:
        expected = json.loads(self.metadata.get(_SIGNATURE, "[]"))
        signature = json.loads(metadata.get(_SIGNATURE, "[]"))
        # Number formats differ by less than a hundredth, encoders by far more.
        if expected and signature and not np.allclose(expected, signature, rtol=0.01, atol=1e-5):
            raise AdapterMismatch(
                f"these image embeddings were made by another image encoder ({metadata.get('encoder')}) than "
                f"this adapter's ({self.metadata['encoder']}); make them with this adapter"
            )

    def _name_inputs(self, images: Tensor, face: Tensor | None) -> ProjectionInputs:
        if face is not None:
            return {"face_embedding": face, "image_features": images}
        grids: list[Input] = [name for name in self.takes if name.endswith("image_features")]
        if images.ndim == 3:
            return {grids[0] if grids else "image_features": images}
        pooled: list[Input] = [name for name in self.takes if name not in grids]
        return {pooled[0] if pooled else "image_embedding": images}

    def _encode_no_image(self, reference: Reference, positive: ProjectionInputs) -> EncodedReference:
        """Encode "no image" as the negative, as many times as there are images."""
        saved = reference.images.blank if isinstance(reference.images, ImageEmbeddings) else {}
        if self.no_image == "black picture" and not saved and self.encoder is None:
            return EncodedReference(positive, positive, "unknown")
        blank: dict[Input, Tensor] = {
            name: (saved[name] if name in saved else self._blank(name, value)).to(value).expand_as(value)
            for name, value in positive.items()
        }
        return EncodedReference(positive, blank, "nothing" if self.no_image == "nothing" else "inputs")

    def _blank(self, name: Input, value: Tensor) -> Tensor:
        """Return one input of a projection for "no image", in the shape of one image's `value`."""
        if self.no_image == "black picture":
            return self._require_encoder().black(name)
        if self.no_image == "blank" and name == "image_features":
            return self._require_encoder().blank(name)
        return value.new_zeros(value.shape[1:])

    def _require_encoder(self) -> ImageEncoder:
        if self.encoder is None:
            raise AdapterMismatch(
                "this adapter has no image encoder; set adapter.image_encoder, or give embeddings"
                + (" with a negative" if "image_features" in self.takes else "")
            )
        return self.encoder

    def _embed_text(self, words: str) -> Float[Tensor, " embedding_dim"]:
        if "image_embedding" not in self.takes:
            raise InvalidReference("`without` needs an adapter that takes the pooled image embedding")
        return embed_text(self.target, words, self.takes["image_embedding"])


def group_references(references: Sequence[ReferenceLike | Sequence[ReferenceLike]]) -> list[list[Reference]]:
    """Return groups that act together, each with a reference for every prompt or one for all.

    A picture that is cut into tiles becomes a group for each tile.

    Raises:
        InvalidReference: there is no reference
        AmbiguousBatch: lists of different lengths
    """
    groups = [group for argument in references for group in _group_argument(argument)]
    if not groups or not all(groups):
        raise InvalidReference("give at least one reference")
    counts = sorted({len(group) for group in groups} - {1})
    if len(counts) > 1:
        raise AmbiguousBatch(f"the lists of references have different lengths: {', '.join(map(str, counts))}")
    return groups


def to_reference(one: ReferenceLike) -> Reference:
    """Return the reference itself, or a new one for a picture or embeddings."""
    return one if isinstance(one, Reference) else Reference(one)


def _group_argument(argument: ReferenceLike | Sequence[ReferenceLike]) -> list[list[Reference]]:
    """Return an argument as a group, or as a group for each tile."""
    several = (
        argument if isinstance(argument, Sequence) and not isinstance(argument, str | bytes) else [argument]
    )
    parts = [split_tiles(to_reference(one)) for one in several]
    if len({len(tiles) for tiles in parts}) > 1:
        raise AmbiguousBatch(
            f"the pictures in one list have {', '.join(str(len(tiles)) for tiles in parts)} tiles; "
            "use pictures of like proportions, or give them in separate generations"
        )
    return [list(one) for one in zip(*parts, strict=True)] if parts else [[]]


class _EncoderPicture(NamedTuple):
    """A picture for the image encoder, with its crop and, for face adapters, its face embedding."""

    picture: Image.Image
    crop: Crop | str
    face: Tensor | None


def embed_text(pipeline: object, words: str, width: int) -> Float[Tensor, " {width}"]:
    """Embed words with the text tower of the image encoder's own pair, which SDXL carries.

    Args:
        pipeline: a diffusers pipeline
        words: the text to embed
        width: the width of the image embedding

    Raises:
        InvalidReference: the pipeline has no text tower whose projected embedding has this width
    """
    components = pipeline.components if isinstance(pipeline, DiffusionPipeline) else {}
    for name, tower in components.items():
        if isinstance(tower, CLIPTextModelWithProjection) and tower.config.projection_dim == width:
            tokenizer = components[name.replace("text_encoder", "tokenizer")]
            ids = tokenizer(words, truncation=True, return_tensors="pt").input_ids
            with torch.no_grad():
                return tower(ids.to(tower.device)).text_embeds[0]
    raise InvalidReference(
        f"without={words!r} needs the image encoder's text tower, with projected embeddings {width} wide, "
        "and this base has none; subtract from an image embedding yourself, and give that"
    )


def split_tiles(reference: Reference) -> list[Reference]:
    """Return a reference for each tile, masked to the tile's part; without tiles, the reference itself.

    Raises:
        InvalidReference: tiles of several pictures, or of embeddings
    """
    if reference.crop != "tiles":
        return [reference]
    if len(reference.pictures) != 1:
        raise InvalidReference('crop="tiles" takes one picture; use a reference for each')
    parts = split_into_tiles(load_image(reference.pictures[0]))
    return [
        replace(reference, images=part.picture, crop="center", mask=_mask_area(reference.area, part.area))
        for part in parts
    ]


def _mask_area(mask: Tensor | None, area: tuple[float, float, float, float]) -> Tensor:
    """Restrict a mask, by default all of the picture, to an area (left, top, right, bottom, from 0 to 1)."""
    mask = torch.ones(512, 512) if mask is None else mask
    height, width = mask.shape
    left, top, right, bottom = (
        round(side * size) for side, size in zip(area, (width, height) * 2, strict=True)
    )
    inside = torch.zeros_like(mask)
    inside[top:bottom, left:right] = mask[top:bottom, left:right]
    return inside


def _stack(rows: Sequence[Mapping[Input, Tensor]]) -> dict[Input, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _check_effects(reference: Reference, takes: Mapping[Input, int]) -> None:
    """Refuse settings that would have no effect on this adapter."""
    if not reference.pictures and reference.crop not in ("center", "native"):
        raise InvalidReference(f"crop={reference.crop!r} has no effect on embeddings")
    if reference.noise is not None and "face_embedding" in takes:
        raise InvalidReference(f"noise={reference.noise}: there is no face in noise; give a negative")
    if reference.face is not None and "face_embedding" not in takes:
        raise InvalidReference("face has no effect: this adapter takes no face embeddings")
    if reference.face is not None and reference.pictures and len(reference.face) != len(reference.pictures):
        raise InvalidReference(
            f"there are {len(reference.face)} face embeddings for {len(reference.pictures)} pictures"
        )
