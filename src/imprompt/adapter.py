"""The adapter: an image projection, and a key and a value matrix for every cross-attention layer.

    c_i = projection(image_embedding)        K' = c_i W'_k        V' = c_i W'_v

Ye et al. 2023, https://arxiv.org/abs/2308.06721, section 3.2. These are the only trained weights: 22,319,616
for SD1.5 with a 1024-wide image embedding and four tokens.
"""

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from imprompt.attachment import (
    Attachment,
    Branches,
    Condition,
    Laying,
    Shown,
    guidance_branches,
)
from imprompt.attention import KeyValue, split_heads, text_projections
from imprompt.encoder import ImageEncoder
from imprompt.errors import AdapterMismatch, AmbiguousBatch, AttachmentError, InvalidReference
from imprompt.image import ImagePrompt, load_image
from imprompt.layers import cross_attention_layers, layer_shapes
from imprompt.projection import ImageProjection
from imprompt.reference import Reference

ReferenceLike = Reference | ImagePrompt | Tensor
"""A reference, or what it can be made of with λ = 1: a file, a picture, an array, image embeddings."""


class ImageKeyValue(nn.Module):
    """W'_k and W'_v of one cross-attention layer."""

    def __init__(self, context_dim: int, inner_dim: int) -> None:
        super().__init__()
        self.to_key = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_value = nn.Linear(context_dim, inner_dim, bias=False)

    def forward(
        self, image_tokens: Float[Tensor, "batch tokens context_dim"]
    ) -> tuple[Float[Tensor, "batch tokens inner_dim"], Float[Tensor, "batch tokens inner_dim"]]:
        """K' = c_i W'_k and V' = c_i W'_v."""
        return self.to_key(image_tokens), self.to_value(image_tokens)


class ImagePromptAdapter(nn.Module):
    """An image-prompt adapter for one kind of base model.

    Args:
        projection: image embedding → image tokens
        layers: official layer number N → (context_dim, inner_dim) of that cross-attention layer

    Attributes:
        projection: the image projection
        layers: `ImageKeyValue` of every layer, under str(N)
        image_encoder: makes image embeddings from pictures; no part of the adapter's weights. A
            `CLIPVisionModelWithProjection` assigned here is wrapped. None: references must be embeddings

    Raises:
        AdapterMismatch: a layer whose context is not as wide as the projection's tokens
    """

    image_encoder: ImageEncoder | None

    def __init__(self, projection: ImageProjection, layers: Mapping[int, tuple[int, int]]) -> None:
        super().__init__()
        for number, (context_dim, _) in layers.items():
            if context_dim != projection.context_dim:
                raise AdapterMismatch(
                    f"layer {number} expects {context_dim}-wide tokens; the projection makes "
                    f"{projection.context_dim}-wide ones"
                )
        self.projection = projection
        self.layers = nn.ModuleDict({str(number): ImageKeyValue(*shape) for number, shape in layers.items()})
        self.image_encoder = None
        self._attachment: weakref.ref[Attachment] | None = None

    @classmethod
    def for_unet(
        cls,
        unet: UNet2DConditionModel,
        projection: ImageProjection,
    ) -> "ImagePromptAdapter":
        """Make a new adapter to be trained: W'_k and W'_v start as copies of the U-Net's W_k and W_v.

        The adapter is float32, on the U-Net's device (the meta device too).

        Args:
            unet: the base model; it is only read
            projection: a new one, or one already trained

        Raises:
            AdapterMismatch: no cross-attention, or one that expects tokens of another width
        """
        layers = cross_attention_layers(unet)
        if not layers:
            raise AdapterMismatch("this U-Net has no cross-attention that an image prompt could act on")
        with torch.device(unet.device):
            adapter = cls(projection, layer_shapes(layers)).float().to(unet.device)
        with torch.no_grad():
            for number, (_, attn) in layers.items():
                to_k, to_v = text_projections(attn)
                adapter.key_value(number).to_key.weight.copy_(to_k.weight)
                adapter.key_value(number).to_value.weight.copy_(to_v.weight)
        return adapter

    def __setattr__(self, name: str, value: object) -> None:
        # A bare vision model would become a submodule, and its weights part of our state_dict.
        if name == "image_encoder" and isinstance(value, CLIPVisionModelWithProjection):
            value = ImageEncoder(value)
        super().__setattr__(name, value)  # pyright: ignore[reportArgumentType]

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: everything but where the adapter is attached."""
        return self.__dict__ | {"_attachment": None}

    def key_value(self, number: int) -> ImageKeyValue:
        """Return W'_k and W'_v of the layer with official number N."""
        layer = self.layers[str(number)]
        assert isinstance(layer, ImageKeyValue)
        return layer

    @property
    def shapes(self) -> dict[int, tuple[int, int]]:
        """Official layer number N → (context_dim, inner_dim)."""
        weights = {int(number): self.key_value(int(number)).to_key for number in self.layers}
        return {number: (linear.in_features, linear.out_features) for number, linear in weights.items()}

    def forward(
        self, image_embeddings: Float[Tensor, "batch images embedding_dim"]
    ) -> dict[int, tuple[Float[Tensor, "batch tokens _"], Float[Tensor, "batch tokens _"]]]:
        """Return K' and V' of every layer, by official number."""
        image_tokens = self.image_tokens(image_embeddings)
        return {int(number): layer(image_tokens) for number, layer in self.layers.items()}

    def image_tokens(
        self, image_embeddings: Float[Tensor, "batch images embedding_dim"]
    ) -> Float[Tensor, "batch images*{self.projection.tokens} {self.projection.context_dim}"]:
        """Project image embeddings; the tokens of a sample's several images stand side by side.

        Raises:
            AdapterMismatch: embeddings of another width than the projection's
        """
        batch, _, width = image_embeddings.shape
        (wanted,) = self.projection.takes.values()
        if width != wanted:
            raise AdapterMismatch(
                f"the image embedding is {width} wide; this adapter was made for an encoder of width {wanted}"
            )
        tokens = self.projection(image_embeddings.flatten(0, 1))
        return tokens.reshape(batch, -1, tokens.shape[-1])

    # Attaching

    @property
    def is_attached(self) -> bool:
        """Whether the adapter sits on a denoiser now."""
        attachment = self._attachment and self._attachment()
        return attachment is not None and attachment.is_attached

    def attach(self, target: object) -> Attachment:
        """Attach to a denoiser, at once; the returned context detaches at its end.

        Without references the pictures stay those of the base model, bit for bit.

        Args:
            target: the diffusers pipeline that will be called, or a bare `UNet2DConditionModel`; compiled or
                not. A bare U-Net that is to be compiled is compiled first, and the compiled one attached to

        Raises:
            AttachmentError: attached already, no U-Net, or an attention processor that is not supported
            AdapterMismatch: this adapter belongs to another kind of base
        """
        if self.is_attached:
            raise AttachmentError("the adapter is attached already; detach it first")
        attachment = Attachment(target, self.shapes)
        self._attachment = weakref.ref(attachment)
        return attachment

    def detach(self) -> None:
        """Take the adapter off: the denoiser has its very own processors again, and no hooks of ours.

        Raises:
            AttachmentError: not attached
        """
        self._attached().detach()

    def _attached(self) -> Attachment:
        attachment = self._attachment and self._attachment()
        if attachment is None or not attachment.is_attached:
            raise AttachmentError("the adapter is not attached; call adapter.attach(pipeline) first")
        return attachment

    # Inference

    @torch.no_grad()
    def references(
        self, *references: ReferenceLike | Sequence[ReferenceLike], branches: Branches | None = None
    ) -> Shown:
        """Let image prompts act from now on; the returned context ends it.

        Encoder, projection, K' and λV' are computed here, once. Each argument acts on every prompt; an
        argument that is a list has one reference for each prompt (or for each picture, where one prompt makes
        several). Several arguments act together: their attentions add up.

        In a list, references with fewer pictures have theirs repeated until all have equally many tokens,
        which changes nothing but rounding.

        Args:
            *references: see above; a picture, path, array or embedding stands for `Reference(it)`
            branches: what the rows of a batch are, e.g. ("negative", "positive"); by default a pipeline is
                asked at every step, and a bare U-Net has positive rows only

        Raises:
            AttachmentError: not attached, or the U-Net was changed since
            InvalidReference: nothing given, or something that is no reference
            AdapterMismatch: no image encoder, or embeddings of another width
            AmbiguousBatch: lists of different lengths; also raised later, by the generation, if the batch
                does not fit the references
        """
        attachment = self._attached()
        attachment.check_in_place()
        arguments = [_per_prompt(argument) for argument in references]
        _check_arguments(arguments)
        embeddings = iter(self._embeddings([reference for argument in arguments for reference in argument]))
        conditions = [
            self._condition(
                [(next(embeddings), float(reference.scale)) for reference in argument], attachment
            )
            for argument in arguments
        ]
        return attachment.show(Laying(conditions, lambda: branches or _branches(attachment.target)))

    def _embeddings(self, references: Sequence[Reference]) -> list[Tensor]:
        """Image embeddings of each reference; all pictures go through the encoder at once."""
        weight = next(self.projection.parameters())
        pictures = [load_image(picture) for reference in references for picture in reference.pictures]
        rows = iter(self._encode(pictures)) if pictures else iter(())
        given = [
            reference.embedding
            if reference.embedding is not None
            else torch.stack([next(rows) for _ in reference.pictures])
            for reference in references
        ]
        return [embedding.to(weight) for embedding in given]

    def _encode(self, pictures: Sequence[object]) -> Tensor:
        if self.image_encoder is None:
            raise AdapterMismatch(
                "this adapter has no image encoder; set adapter.image_encoder, or give embeddings"
            )
        return self.image_encoder.encode(self.image_encoder.pixels(pictures))  # pyright: ignore[reportArgumentType]

    def _condition(self, prompts: Sequence[tuple[Tensor, float]], attachment: Attachment) -> Condition:
        """Finish one argument of `references`: for each of its prompts, image embeddings and λ."""
        images = math.lcm(*(embedding.shape[0] for embedding, _ in prompts))
        embeddings = torch.stack([embedding.repeat(images // len(embedding), 1) for embedding, _ in prompts])
        scale = embeddings.new_tensor([scale for _, scale in prompts])
        return Condition(
            positive=self._keys_values(embeddings, scale, attachment),
            negative=self._keys_values(torch.zeros_like(embeddings), scale, attachment),
        )

    def _keys_values(
        self, image_embeddings: Tensor, scale: Tensor | float | int, attachment: Attachment
    ) -> dict[int, KeyValue]:
        """K' and λV' of every layer, heads split."""
        weight = scale.reshape(-1, 1, 1) if isinstance(scale, Tensor) else scale
        return {
            number: KeyValue(
                split_heads(key, attachment.heads(number)),
                split_heads(weight * value, attachment.heads(number)),
            )
            for number, (key, value) in self(image_embeddings).items()
        }

    # Training

    def conditioned_on(
        self, image_embeddings: Float[Tensor, "batch images embedding_dim"], scale: float | int | Tensor = 1.0
    ) -> Shown:
        """Let image embeddings act, one row per sample of the batch, with gradients to the adapter's weights.

        For the trainer: no guidance, no repetition. A zero row is a dropped image (paper, section 3.2.2).
        With gradient checkpointing, call `backward` inside the context too: the layers are run again there.

        Args:
            image_embeddings: encoder's output for every sample of the next forward pass
            scale: λ, one number or one per sample (shape ` batch`)

        Raises:
            AttachmentError: not attached, or the U-Net was changed since
            AdapterMismatch: embeddings of another width
            AmbiguousBatch: raised by the forward pass, if its batch is not the embeddings'
        """
        attachment = self._attached()
        return attachment.show(self._keys_values(image_embeddings, scale, attachment))


def _per_prompt(argument: ReferenceLike | Sequence[ReferenceLike]) -> list[Reference]:
    several = argument if isinstance(argument, Sequence) and not isinstance(argument, str) else [argument]
    return [one if isinstance(one, Reference) else Reference(one) for one in several]


def _check_arguments(arguments: Sequence[Sequence[Reference]]) -> None:
    if not arguments or not all(arguments):
        raise InvalidReference("give at least one reference")
    counts = sorted({len(argument) for argument in arguments} - {1})
    if len(counts) > 1:
        raise AmbiguousBatch(f"the lists of references have different lengths: {', '.join(map(str, counts))}")


def _branches(target: object) -> Branches:
    return ("positive",) if isinstance(target, nn.Module) else guidance_branches(target)
