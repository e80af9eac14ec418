"""References → what the encoders make of them, for the image prompt and for the negative branch.

"No image" is a zero embedding before the projection (Ye et al. 2023, section 3.2.2), for features those of a
grey picture, as in the official code (tencent-ailab/IP-Adapter, ip_adapter/ip_adapter.py).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from imprompt.errors import AdapterMismatch, AmbiguousBatch, InvalidReference
from imprompt.inputs.crop import Crop, encoder_view, noise_image, split_into_tiles
from imprompt.inputs.embeddings import ImageEmbeddings, combine_embeddings
from imprompt.inputs.encoder import ImageEncoder, Input
from imprompt.inputs.faces import Face, FaceEmbedder
from imprompt.inputs.image import ImagePrompt, load_image
from imprompt.reference import Reference, as_pictures, check_no_pixels

_SIGNATURE = "encoder_signature"

Inputs = Mapping[Input, Tensor]
"""What a projection takes, each "images ..."."""


ReferenceLike = Reference | ImagePrompt | Tensor | ImageEmbeddings
"""A reference, or what it can be made of with λ = 1: a file, a picture, an array, image embeddings."""


class Encoded(NamedTuple):
    """A reference after encoding: for the image prompt, and for the negative branch."""

    positive: Inputs
    negative: Inputs


@dataclass(frozen=True)
class ReferenceEncoder:
    """Makes of references what a projection takes.

    Args:
        takes: the projection's inputs and their widths
        encoder: None: references must hold embeddings
        face_embedder: None: references must hold the face embeddings that the projection takes
        target: the pipeline, whose text tower embeds the words of `Reference.without`
    """

    takes: Mapping[Input, int]
    encoder: ImageEncoder | None
    face_embedder: FaceEmbedder | None
    target: object = None

    @property
    def metadata(self) -> dict[str, str]:
        """What embeddings say of the image encoder, so that another one's are not taken for its own."""
        if self.encoder is None or set(self.takes) == {"face_embedding"}:
            return {}
        return {"encoder": self.encoder.name, _SIGNATURE: json.dumps(self.encoder.signature)}

    def encode(self, references: Sequence[Reference]) -> list[Encoded]:
        """Encode references; all pictures go through the encoder at once.

        Raises:
            AdapterMismatch: an encoder is missing, or embeddings are of other kinds or widths
            InvalidReference: a setting that this adapter cannot honour
            ImageError: a picture that cannot be read, or without a face where one is needed
        """
        for reference in references:
            _check_sense(reference, self.takes)
        pictures = [picture for reference in references for picture in self._pictures(reference)]
        rows = iter(self._rows(pictures))
        return [self._encoded(reference, rows) for reference in references]

    def views(self, reference: Reference) -> list[Image.Image]:
        """Return exactly what the image encoder sees of a reference's pictures.

        Raises:
            AdapterMismatch: no image encoder
        """
        size = self._encoder().image_size
        parts = [part for one in split_tiles(reference) for part in self._pictures(one)]
        return [encoder_view(part.picture, size, part.crop) for part in parts]

    def _pictures(self, reference: Reference) -> "list[_Part]":
        """All pictures of a reference, those of its negative last."""
        both = [(reference.pictures, reference.face), (as_pictures(reference.negative), None)]
        parts = [
            self._part(load_image(picture), reference, None if face is None else face[index])
            for pictures, face in both
            for index, picture in enumerate(pictures)
        ]
        if reference.noise is None:
            return parts
        kind, amount = reference.noise
        size = self._encoder().image_size
        spoiled = [
            noise_image(part.picture, kind, amount, seed, size=size) for seed, part in enumerate(parts)
        ]
        return [*parts, *(_Part(picture, reference.crop, None) for picture in spoiled)]

    def _part(self, picture: Image.Image, reference: Reference, face: Tensor | None) -> "_Part":
        if "face_embedding" not in self.takes or face is not None:
            return _Part(picture, reference.crop, face)
        if self.face_embedder is None:
            raise AdapterMismatch(
                "this adapter takes face embeddings; set adapter.face_embedder, or give Reference(face=...)"
            )
        found = self.face_embedder(picture)
        if isinstance(found, Face):
            return _Part(found.crop, "stretch", found.embedding)
        return _Part(picture, reference.crop, found)

    def _rows(self, parts: "Sequence[_Part]") -> list[dict[Input, Tensor]]:
        """What the encoders make of each picture, in the order that the projection takes it."""
        if not parts:
            return []
        names: list[Input] = [name for name in self.takes if name != "face_embedding"]
        seen: dict[Input, Tensor] = {}
        if names:
            encoder = self._encoder()
            pixels = torch.cat([encoder.pixels([part.picture], part.crop) for part in parts])
            seen = encoder.inputs(pixels, names)
        if "face_embedding" in self.takes:
            seen["face_embedding"] = torch.stack([part.face for part in parts if part.face is not None])
        return [{name: seen[name][row] for name in self.takes} for row in range(len(parts))]

    def _encoded(self, reference: Reference, rows: Iterator[dict[Input, Tensor]]) -> Encoded:
        given = self._given(reference.images, reference.face)
        if given is None:
            given = _stacked([next(rows) for _ in reference.pictures])
        negative = self._given(reference.negative, None)
        others = reference.pictures if reference.noise else as_pictures(reference.negative)
        if others:
            negative = _stacked([next(rows) for _ in others])
        positive: dict[Input, Tensor] = {
            name: combine_embeddings(value, reference.combine, reference.weights)
            for name, value in given.items()
        }
        if reference.without:
            words = self._text_embedding(reference.without)
            positive["image_embedding"] = positive["image_embedding"] - words.to(positive["image_embedding"])
        return Encoded(positive, negative or self._blank(reference, positive))

    def _given(self, images: object, face: Tensor | None) -> Inputs | None:
        """Embeddings that the reference holds already; None where it holds pictures."""
        if isinstance(images, ImageEmbeddings):
            images.check_fits(self.takes)
            self._check_encoder(images.metadata)
            self._check_patches(images.inputs)
            return {name: images.inputs[name] for name in self.takes}
        if not isinstance(images, Tensor):
            return None
        check_no_pixels(images, self.takes.get("image_features"))
        named = self._named(images, face)
        zeros: dict[Input, Tensor] = {name: value.new_zeros(value.shape[1:]) for name, value in named.items()}
        ImageEmbeddings(named, zeros).check_fits(self.takes)
        self._check_patches(named)
        return named

    def _check_patches(self, inputs: Inputs) -> None:
        """Refuse features of another number of patches than this adapter's image encoder makes."""
        if self.encoder is None or "image_features" not in inputs:
            return
        found, made = inputs["image_features"].shape[1], self.encoder.patches
        if found != made:
            perhaps = "; the class token is left out" if found == made - 1 else ""
            raise AdapterMismatch(
                f"image_features have {found} patches in these image embeddings; this adapter's image "
                f"encoder makes {made}{perhaps}: make them with this adapter (adapter.encode)"
            )

    def _check_encoder(self, metadata: Mapping[str, str]) -> None:
        mine = json.loads(self.metadata.get(_SIGNATURE, "[]"))
        theirs = json.loads(metadata.get(_SIGNATURE, "[]"))
        # Number formats differ by less than a hundredth, encoders by far more.
        if mine and theirs and not np.allclose(mine, theirs, rtol=0.01, atol=1e-5):
            raise AdapterMismatch(
                f"these image embeddings were made by another image encoder ({metadata.get('encoder')}) than "
                f"this adapter's ({self.metadata['encoder']}); make them with this adapter"
            )

    def _named(self, images: Tensor, face: Tensor | None) -> Inputs:
        if face is not None:
            return {"face_embedding": face, "image_features": images}
        if images.ndim == 3:
            return {"image_features": images}
        pooled: list[Input] = [name for name in self.takes if name != "image_features"]
        return {pooled[0] if pooled else "image_embedding": images}

    def _blank(self, reference: Reference, positive: Inputs) -> Inputs:
        """ "No image", as many times as there are images."""
        given = reference.images.blank if isinstance(reference.images, ImageEmbeddings) else {}
        blank: dict[Input, Tensor] = {}
        for name, value in positive.items():
            if name in given:
                one = given[name]
            elif name == "image_features":
                one = self._encoder().blank(name)
            else:
                one = value.new_zeros(value.shape[1:])
            blank[name] = one.to(value).expand_as(value)
        return blank

    def _encoder(self) -> ImageEncoder:
        if self.encoder is None:
            raise AdapterMismatch(
                "this adapter has no image encoder; set adapter.image_encoder, or give embeddings"
                + (" with a negative" if "image_features" in self.takes else "")
            )
        return self.encoder

    def _text_embedding(self, words: str) -> Float[Tensor, " embedding_dim"]:
        if "image_embedding" not in self.takes:
            raise InvalidReference("`without` needs an adapter that takes the pooled image embedding")
        return text_embedding(self.target, words, self.takes["image_embedding"])


def as_arguments(references: Sequence[ReferenceLike | Sequence[ReferenceLike]]) -> list[list[Reference]]:
    """What acts together, each with a reference for every prompt or one for all; tiles act on their own.

    Raises:
        InvalidReference: nothing given
        AmbiguousBatch: lists of different lengths
    """
    arguments = [part for argument in references for part in _arguments(argument)]
    _check_arguments(arguments)
    return arguments


def as_reference(one: ReferenceLike) -> Reference:
    """The reference itself, or one made of a picture or of embeddings."""
    return one if isinstance(one, Reference) else Reference(one)


def _arguments(argument: ReferenceLike | Sequence[ReferenceLike]) -> list[list[Reference]]:
    """An argument with a reference per prompt; several of these where pictures are cut into tiles."""
    several = (
        argument if isinstance(argument, Sequence) and not isinstance(argument, str | bytes) else [argument]
    )
    parts = [split_tiles(as_reference(one)) for one in several]
    if len({len(tiles) for tiles in parts}) > 1:
        raise AmbiguousBatch(
            f"the pictures in one list have {', '.join(str(len(tiles)) for tiles in parts)} tiles; "
            "use pictures of like proportions, or give them in separate generations"
        )
    return [list(one) for one in zip(*parts, strict=True)] if parts else [[]]


def _check_arguments(arguments: Sequence[Sequence[Reference]]) -> None:
    if not arguments or not all(arguments):
        raise InvalidReference("give at least one reference")
    counts = sorted({len(argument) for argument in arguments} - {1})
    if len(counts) > 1:
        raise AmbiguousBatch(f"the lists of references have different lengths: {', '.join(map(str, counts))}")


class _Part(NamedTuple):
    picture: Image.Image
    crop: Crop | str
    face: Tensor | None


def text_embedding(pipeline: object, words: str, width: int) -> Float[Tensor, " {width}"]:
    """Embed words with the text tower of the image encoder's own pair, which SDXL carries.

    Args:
        pipeline: a diffusers pipeline
        words: what to embed
        width: of the image embedding

    Raises:
        InvalidReference: the pipeline has no text tower whose projected embedding is so wide
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
        "and this base has none; give an image embedding that you have subtracted from"
    )


def split_tiles(reference: Reference) -> list[Reference]:
    """Return a reference for each tile, acting on that tile's own part; the reference itself without tiles.

    Raises:
        InvalidReference: tiles of several pictures, or of embeddings
    """
    if reference.crop != "tiles":
        return [reference]
    if len(reference.pictures) != 1:
        raise InvalidReference('crop="tiles" takes one picture; use a reference for each')
    parts = split_into_tiles(load_image(reference.pictures[0]))
    return [
        replace(reference, images=part.picture, crop="center", mask=_part_of(reference.area, part.area))
        for part in parts
    ]


def _part_of(mask: Tensor | None, area: tuple[float, float, float, float]) -> Tensor:
    """A mask, or all of the picture, inside an area (left, top, right, bottom, from 0 to 1)."""
    mask = torch.ones(512, 512) if mask is None else mask
    height, width = mask.shape
    left, top, right, bottom = (
        round(side * size) for side, size in zip(area, (width, height) * 2, strict=True)
    )
    inside = torch.zeros_like(mask)
    inside[top:bottom, left:right] = mask[top:bottom, left:right]
    return inside


def _stacked(rows: Sequence[Mapping[Input, Tensor]]) -> dict[Input, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _check_sense(reference: Reference, takes: Mapping[Input, int]) -> None:
    """Refuse settings that would have no effect."""
    if not reference.pictures and reference.crop != "center":
        raise InvalidReference(f"crop={reference.crop!r} has no effect on embeddings")
    if reference.noise is not None and "face_embedding" in takes:
        raise InvalidReference(f"noise={reference.noise}: there is no face in noise; give a negative")
    if reference.face is not None and "face_embedding" not in takes:
        raise InvalidReference("face has no effect: this adapter takes no face embeddings")
    if reference.face is not None and reference.pictures and len(reference.face) != len(reference.pictures):
        raise InvalidReference(
            f"there are {len(reference.face)} face embeddings for {len(reference.pictures)} pictures"
        )
