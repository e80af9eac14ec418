"""The adapter: its weights with its encoders, attached to a denoiser, and used with references."""

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from imprompt.adapter.condition import (
    check_alike,
    check_settings,
    compute_conditioning,
    compute_timed_conditioning,
    count_images,
    find_lora_scale,
)
from imprompt.adapter.encode import (
    EncodedReference,
    ProjectionInputs,
    ReferenceEncoder,
    ReferenceLike,
    group_references,
    to_reference,
)
from imprompt.adapter.initial_weights import initialize_layer, list_layer_shapes
from imprompt.adapter.weights import AdapterWeights
from imprompt.attention.attachment import ActiveReferences, Attachment
from imprompt.attention.batch import BatchPlan
from imprompt.attention.choices import NO_IMAGE, Injection, LoraShapes
from imprompt.attention.conditioning import Conditioning, LayerInputs, TimedRows
from imprompt.attention.diffusers_internals import Branches
from imprompt.attention.layers import UNet, find_cross_attention_layers, read_layer_shapes
from imprompt.attention.pipeline_state import Clock
from imprompt.attention.processor import get_text_projections
from imprompt.attention.terms import ImageTerm, split_heads
from imprompt.attention.weights import list_lora_shapes, read_weight
from imprompt.errors import AdapterMismatch, AttachmentError
from imprompt.inputs.choices import Input
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.inputs.encoder import ImageEncoder, is_vision_model
from imprompt.inputs.faces import FaceEmbedder
from imprompt.projection import FacePlusProjection, ImageProjection
from imprompt.reference import Reference


class ImagePromptAdapter(AdapterWeights):
    """An image-prompt adapter for one kind of base model: its weights, its encoders, its attachment.

    Args:
        projection: see `AdapterWeights`
        layers: see `AdapterWeights`
        lora: see `AdapterWeights`
        injection: see `AdapterWeights`
        head_dim: see `AdapterWeights`

    Attributes:
        image_encoder: computes image embeddings of pictures; it is not part of the adapter's weights. A
            vision model of CLIP or SigLIP assigned here is wrapped. None: references must be embeddings
        face_embedder: finds the face in a picture, for adapters that take face embeddings

    Raises:
        AdapterMismatch: the context of a layer has another width than the projection's tokens
    """

    image_encoder: ImageEncoder | None
    face_embedder: FaceEmbedder | None

    def __init__(
        self,
        projection: ImageProjection,
        layers: Mapping[int, tuple[int, int]],
        lora: Mapping[int, LoraShapes] | None = None,
        *,
        injection: Injection = "unet",
        head_dim: int | None = None,
    ) -> None:
        super().__init__(projection, layers, lora, injection=injection, head_dim=head_dim)
        self.image_encoder = None
        self.face_embedder = None
        self._attachment: Attachment | None = None

    @classmethod
    def for_unet(
        cls,
        unet: UNet,
        projection: ImageProjection,
        *,
        lora_rank: int = 0,
    ) -> "ImagePromptAdapter":
        """Create an adapter for training: W'_k and W'_v start as copies of the U-Net's W_k and W_v.

        The adapter is float32, on the U-Net's device (the meta device too).

        Args:
            unet: the base model; it is only read
            projection: a new or a trained one
            lora_rank: the rank of a LoRA for every attention layer, which is zero at first; 0 for none

        Raises:
            AdapterMismatch: the U-Net has no cross-attention, or one with tokens of another width, or is
                quantized
        """
        layers = find_cross_attention_layers(unet)
        if not layers:
            raise AdapterMismatch("this U-Net has no cross-attention that an image prompt could act on")
        with torch.device(unet.device):
            loras = list_lora_shapes(unet, lora_rank) if lora_rank else {}
            adapter = cls(projection, read_layer_shapes(layers), loras).float().to(unet.device)
        with torch.no_grad():
            for number, (_, attn) in layers.items():
                made = adapter.key_value(number)
                own = zip((made.to_key.weight, made.to_value.weight), get_text_projections(attn), strict=True)
                for weight, linear in own:
                    weight.copy_(read_weight(linear, weight.shape))
        return adapter

    @classmethod
    def for_transformer(
        cls, transformer: Any, projection: ImageProjection, injection: Injection
    ) -> "ImagePromptAdapter":
        """Create an adapter of a published kind for training on FLUX.1 or Stable Diffusion 3.5.

        On FLUX.1 W'_v is zero at first, so that training begins at the base; XLabs' W'_k is zero too (x-flux,
        src/flux/modules/layers.py), InstantX' is random, as its rows are normalized. On Stable Diffusion 3.5
        the latents stand among the keys, so no weights are the base; W'_k and W'_v begin as the base's.

        Args:
            transformer: the base model; it is only read
            projection: a new or a trained one
            injection: "flux-xlabs", "flux-instantx" or "sd35"

        Raises:
            AdapterMismatch: the transformer is of another kind than the adapter, or quantized, or its tokens
                have another width
        """
        shapes = list_layer_shapes(transformer, injection)
        head_dim = int(transformer.config["attention_head_dim"])
        with torch.device(transformer.device):
            adapter = cls(projection, shapes, injection=injection, head_dim=head_dim).float()
        with torch.no_grad():
            for number in shapes:
                initialize_layer(adapter.key_value(number), transformer, number, injection)
        return adapter.to(transformer.device)

    def __setattr__(self, name: str, value: object) -> None:
        # A bare vision model would become a submodule, and its weights part of the adapter's state_dict.
        if name == "image_encoder" and isinstance(value, nn.Module) and is_vision_model(value):
            value = ImageEncoder(value)  # pyright: ignore[reportArgumentType]
        super().__setattr__(name, value)  # pyright: ignore[reportArgumentType]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle contains: everything except the attachment."""
        return self.__dict__ | {"_attachment": None}

    # Attaching

    @property
    def is_attached(self) -> bool:
        """Whether the adapter is attached to a denoiser."""
        return self._attachment is not None and self._attachment.is_attached

    def attach(self, target: object) -> Attachment:
        """Attach to a denoiser, at once; the returned context detaches at its end.

        Without references the pictures stay those of the base model, bit for bit. The adapter is detached
        when it, and what `attach` and `use` returned, are no longer referenced. Several adapters on one U-Net
        add up; a warning is given if the image prompts of another one are active that no `with` will end.

        Args:
            target: a diffusers pipeline, or a bare U-Net or transformer; compiled or not. The adapter acts in
                all pipelines that share the denoiser. Compile a bare one first, then attach to what that
                returned

        Raises:
            AttachmentError: attached already, no denoiser, or an attention processor that is not supported
            AdapterMismatch: this adapter is for another kind of base
        """
        if self.is_attached:
            raise AttachmentError("the adapter is attached already; detach it first")
        lora_layers = [int(number) for number in self.lora]
        attachment = Attachment(target, self.shapes, lora_layers, self.injection)
        self._check_heads(attachment)
        self._attachment = attachment
        attachment.on_detach = functools.partial(_forget_attachment, weakref.ref(self))
        return attachment

    def _check_heads(self, attachment: Attachment) -> None:
        """Refuse a base with heads of another width than those that the adapter normalizes."""
        if self.injection not in ("flux-instantx", "sd35"):
            return
        for number, (_, inner_dim) in self.shapes.items():
            if (width := inner_dim // attachment.heads(number)) != self.head_dim:
                attachment.detach()
                raise AdapterMismatch(
                    f"this adapter normalizes heads {self.head_dim} wide; those of this base are {width} wide"
                )

    def detach(self) -> None:
        """Remove the adapter and its hooks; the denoiser has its very own processors again.

        Raises:
            AttachmentError: not attached
        """
        self._require_attachment().detach()

    def _require_attachment(self) -> Attachment:
        attachment = self._attachment
        if attachment is None or not attachment.is_attached:
            raise AttachmentError("the adapter is not attached; call adapter.attach(pipeline) first")
        return attachment

    # Inference

    @torch.no_grad()
    def use(
        self, *references: ReferenceLike | Sequence[ReferenceLike], branches: Branches | None = None
    ) -> ActiveReferences:
        """Use image prompts from now on; the returned context ends this.

        They act for the caller that sets them: the thread, or the task of asyncio. Another caller sets its
        own, or is refused while any act.

        Encoder, projection, K' and λV' are computed here, once. Each argument acts on every prompt. An
        argument that is a list has one reference for each prompt (or for each picture, if one prompt makes
        several; or for each frame of a video). Several arguments act together: their attentions add up.

        In a list, the pictures of references with fewer of them are repeated until all have equally many
        tokens, which changes nothing except rounding. `references` is another name of this method.

        Args:
            *references: see above; a picture, path, array or embedding stands for `Reference(it)`
            branches: the branches of guidance in a batch, e.g. ("negative", "positive"). By default a
                pipeline of docs/pipelines.md is asked at every step, and a bare U-Net has positive rows only

        Raises:
            AttachmentError: not attached, or the U-Net was changed since
            InvalidReference: no reference, an object that is none, or a setting without effect
            AdapterMismatch: no image encoder, or embeddings of another width
            AmbiguousBatch: lists of different lengths. The generation raises it later if its batch does not
                fit the references
        """
        attachment = self._require_attachment()
        attachment.check_in_place()
        groups = group_references(references)
        clock = None if isinstance(attachment.target, nn.Module) else Clock(attachment.target)
        has_face_scale = isinstance(self.projection, FacePlusProjection)
        check_settings(
            groups,
            injection=self.injection,
            has_clock=clock is not None,
            has_face_scale=has_face_scale,
            has_lora=bool(self.lora),
        )
        if self.injection == "flux-redux":
            check_alike(groups)
        encoder = self._make_encoder(attachment.target)
        encoded = iter(encoder.encode([reference for group in groups for reference in group]))
        conditionings = [
            self._condition(group, [next(encoded) for _ in group], attachment) for group in groups
        ]
        plan = BatchPlan(
            conditionings,
            attachment.layers,
            attachment.denoiser,
            attachment.target,
            branches=branches,
            clock=clock,
            loras=self.lora_terms(find_lora_scale(groups)) if self.lora else {},
            is_static=attachment.needs_static_terms,
        )
        return attachment.activate(plan)

    references = use

    def _condition(
        self, group: Sequence[Reference], encoded: Sequence[EncodedReference], attachment: Attachment
    ) -> Conditioning:
        """Compute what one group of references contributes."""
        weight = next(self.projection.parameters())
        if self.injection != "sd35":
            # K' and V' are computed once, so float32 costs nothing. Inside a perceiver float16 overflows.
            base: Any = attachment.denoiser
            dtype = torch.promote_types(torch.promote_types(weight.dtype, base.dtype), torch.float32)
            like = torch.empty(0, device=weight.device, dtype=dtype)
            return compute_conditioning(group, encoded, attachment, self.compute_keys_values, like)
        # At every step, so the adapter's own number format is kept where it has float32's range.
        dtype = torch.float32 if weight.dtype == torch.float16 else weight.dtype
        weights = self.convert(dtype)
        compute = functools.partial(weights.compute_joint_terms, heads=attachment.heads(0))
        like = torch.empty(0, device=weight.device, dtype=dtype)
        return compute_timed_conditioning(group, encoded, attachment, compute, like)

    def encode(self, reference: ReferenceLike) -> ImageEmbeddings:
        """Return the embeddings of a reference, which can be saved and used in its place.

        Raises:
            AdapterMismatch, InvalidReference, ImageError: as `use`
        """
        encoder = self._make_encoder(None)
        (encoded,) = encoder.encode([to_reference(reference)])
        blank: dict[Input, Tensor] = {name: value[0] for name, value in encoded.negative.items()}
        return ImageEmbeddings(encoded.positive, blank, encoder.metadata)

    def views(self, reference: ReferenceLike) -> list[Image.Image]:
        """Return the exact images that the image encoder receives for a reference.

        Raises:
            AdapterMismatch: no image encoder
        """
        return self._make_encoder(None).views(to_reference(reference))

    def _make_encoder(self, target: object) -> ReferenceEncoder:
        no_image = NO_IMAGE[self.injection]
        return ReferenceEncoder(
            self.projection.takes, self.image_encoder, self.face_embedder, no_image, target
        )

    # Training

    def condition_on(
        self, inputs: ProjectionInputs | Float[Tensor, "batch images ..."], scale: float | int | Tensor = 1.0
    ) -> ActiveReferences:
        """Use image embeddings, a row per sample of the batch, with gradients to the adapter's weights.

        For training: there is no guidance and no repetition, and a LoRA has strength 1. A zero row is a
        dropped image (paper, section 3.2.2). On Stable Diffusion 3.5 the time steps are those of each call.
        With gradient checkpointing, call `backward` inside the context too, where the layers are run again.

        Args:
            inputs: the encoders' outputs for every sample of the next forward pass; a tensor for a projection
                with one input
            scale: λ, one number or one per sample (shape ` batch`)

        Raises:
            AttachmentError: not attached, or the U-Net was changed since
            AdapterMismatch: inputs of another kind or width
            AmbiguousBatch: raised by the forward pass, if its batch has another size than the inputs
        """
        attachment = self._require_attachment()
        if isinstance(inputs, Tensor):
            inputs = {next(iter(self.projection.takes)): inputs}
        if self.injection == "sd35":
            return attachment.activate(TimedRows(self._compute_rows(inputs, scale, attachment)))
        weight = scale.reshape(-1, 1, 1) if isinstance(scale, Tensor) else scale
        terms = {
            number: (ImageTerm(*(split_heads(x, attachment.heads(number)) for x in (key, weight * value))),)
            for number, (key, value) in self(inputs).items()
        }
        loras = self.lora_terms(torch.ones(count_images(inputs), 1, 1, device=next(self.parameters()).device))
        return attachment.activate(
            {number: LayerInputs(terms.get(number, ()), loras.get(number)) for number in {*terms, *loras}}
        )

    def _compute_rows(
        self, inputs: ProjectionInputs, scale: float | int | Tensor, attachment: Attachment
    ) -> Callable[[Tensor], dict[int, LayerInputs]]:
        """Return what computes the inputs of the layers at time steps, with gradients."""
        weight = scale.reshape(-1, 1, 1, 1) if isinstance(scale, Tensor) else scale

        def compute(timestep: Tensor) -> dict[int, LayerInputs]:
            terms = self.compute_joint_terms(inputs, timestep, [*self.shapes], attachment.heads(0))
            return {
                number: LayerInputs((term._replace(weight=weight * term.weight),))
                for number, term in terms.items()
            }

        return compute


def _forget_attachment(adapter: "weakref.ref[ImagePromptAdapter]") -> None:
    """Drop the attachment, so that a detached adapter keeps no base model alive."""
    if (detached := adapter()) is not None:
        detached._attachment = None
