"""Embeddings and masks of one adapter → K', λV', masks and LoRA of each layer, a row for each batch row."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.attachment import Attachment
from imprompt.attention.batch import check_finite, convert_lora
from imprompt.attention.conditioning import LayerInputs
from imprompt.attention.terms import ImageTerm, KeyValue, split_heads
from imprompt.compat.rows import RowLayout, fit_embeddings, fit_masks
from imprompt.compat.scales import Scale
from imprompt.errors import AdapterMismatch, InvalidReference
from imprompt.inputs.choices import Input


class DenoiserBatch(NamedTuple):
    """The batch of one call of a U-Net.

    Args:
        rows: the number of rows, a video counted as one
        frames: the number of frames of each video; 1 for pictures
        geometry: the sizes on which the layers' grids depend, see `DenoiserLayers.read_geometry`
        device: where it computes
        dtype: in which number format
    """

    rows: int
    frames: int
    geometry: Any
    device: torch.device
    dtype: torch.dtype


class AdapterPrompt(NamedTuple):
    """What one adapter gets in one call of a pipeline.

    Args:
        embeddings: "rows images ...", as the pipeline has prepared them
        features: image features "rows images patches feature_dim", for FaceID-Plus
        face_scale: their strength relative to the face, for FaceID-PlusV2
        masks: "rows images height width"; None: everywhere
        scales: layer → λ
        lora_scale: strength of the adapter's LoRA
    """

    embeddings: Tensor
    features: Tensor | None
    face_scale: float
    masks: Tensor | None
    scales: Mapping[int, Scale]
    lora_scale: float


def compute_inputs(
    adapter: ImagePromptAdapter,
    attachment: Attachment,
    prompt: AdapterPrompt,
    batch: DenoiserBatch,
    layout: RowLayout | None,
) -> dict[int, LayerInputs]:
    """Compute what an adapter gives to each layer.

    Args:
        adapter: the adapter
        attachment: its attachment to the U-Net
        prompt: the image prompt
        batch: the batch of the U-Net
        layout: how the pipeline stacks this batch; None for an unknown one

    Raises:
        AdapterMismatch: embeddings of another kind or width
        AmbiguousBatch: rows of embeddings or masks that fit the batch in no way
        InvalidReference: λ for each picture without masks, or other numbers of these
    """
    layers = {
        layer: one for layer, one in prompt.scales.items() if attachment.needs_static_terms or _acts(one)
    }
    inputs = name_inputs(adapter, prompt, batch, layout)
    images = next(iter(inputs.values())).shape[1]
    _check_images(layers.values(), images, prompt.masks)
    face_scale = torch.full((batch.rows,), prompt.face_scale)
    keys_values = adapter.compute_keys_values(inputs, [*layers], face_scale)
    masks = None if prompt.masks is None else fit_masks(prompt.masks, batch.rows, layout)
    grids = {} if masks is None else resize_masks(masks, attachment, layers, batch)
    terms = {
        layer: tuple(_make_terms(keys_values[layer], scale, images, grids.get(layer)))
        for layer, scale in layers.items()
    }
    result = {
        layer: LayerInputs(tuple(_expand_term(one, attachment.heads(layer), batch) for one in some))
        for layer, some in terms.items()
    }
    check_finite(result, batch.dtype)
    return _add_lora(result, adapter, prompt.lora_scale, batch)


def _acts(scale: Scale) -> bool:
    return any(scale) if isinstance(scale, tuple) else bool(scale)


def name_inputs(
    adapter: ImagePromptAdapter, prompt: AdapterPrompt, batch: DenoiserBatch, layout: RowLayout | None
) -> dict[Input, Tensor]:
    """Return the projection's inputs, "batch images ...", in float32 where the adapter is."""
    names: list[Input] = list(adapter.projection.takes)
    values: dict[Input, Tensor] = {names[0]: prompt.embeddings}
    if len(names) > 1:
        if prompt.features is None:
            raise AdapterMismatch(
                "FaceID-Plus takes image features beside the face embeddings; set "
                "pipe.unet.encoder_hid_proj.image_projection_layers[i].clip_embeds to those that "
                "pipe.prepare_ip_adapter_image_embeds returns"
            )
        values[names[1]] = prompt.features
    weight = next(adapter.parameters())
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return {
        name: fit_embeddings(_remove_single_token(name, value), batch.rows, layout).to(weight.device, dtype)
        for name, value in values.items()
    }


def _remove_single_token(name: Input, value: Tensor) -> Tensor:
    """Return an embedding as "rows images dim", where scripts have an axis of one token before `dim`."""
    expected = 4 if name == "image_features" else 3
    if value.ndim == 4 and expected == 3 and value.shape[2] == 1:
        return value.squeeze(2)
    if value.ndim != expected:
        shape = "rows, images, patches, width" if expected == 4 else "rows, images, width"
        raise AdapterMismatch(f"this adapter takes {name} of shape ({shape}), not {tuple(value.shape)}")
    return value


def _check_images(scales: Iterable[Scale], images: int, masks: Tensor | None) -> None:
    """Refuse numbers of masks or of λ that are not those of the pictures."""
    if masks is not None and masks.shape[1] != images:
        raise InvalidReference(f"ip_adapter_masks have {masks.shape[1]} masks for {images} pictures")
    for scale in scales:
        if isinstance(scale, tuple) and masks is None:
            raise InvalidReference(
                f"a scale for each picture, {list(scale)}, needs ip_adapter_masks; without them give one"
            )
        if isinstance(scale, tuple) and len(scale) != images:
            raise InvalidReference(f"{len(scale)} scales are given for {images} pictures: {list(scale)}")


def _make_terms(
    key_value: KeyValue, scale: Scale, images: int, grids: Float[Tensor, "rows images queries"] | None
) -> list[ImageTerm]:
    """Return one term for all pictures, or with masks one for each, as diffusers does."""
    key, value = key_value
    if grids is None:
        assert not isinstance(scale, tuple)
        return [ImageTerm(key, scale * value)]
    scales = scale if isinstance(scale, tuple) else (scale,) * images
    parts = zip(scales, key.chunk(images, 1), value.chunk(images, 1), grids.unbind(1), strict=True)
    return [ImageTerm(k, one * v, grid[:, None, :, None]) for one, k, v, grid in parts]


def _expand_term(term: ImageTerm, heads: int, batch: DenoiserBatch) -> ImageTerm:
    """Split the heads of a term, and repeat its rows for the frames of a video."""

    def expand(x: Tensor) -> Tensor:
        return x.to(batch.device, batch.dtype).repeat_interleave(batch.frames, 0)

    weight = None if term.weight is None else expand(term.weight)
    return ImageTerm(expand(split_heads(term.key, heads)), expand(split_heads(term.value, heads)), weight)


def resize_masks(
    masks: Float[Tensor, "rows images height width"],
    attachment: Attachment,
    layers: Mapping[int, Scale],
    batch: DenoiserBatch,
) -> dict[int, Float[Tensor, "rows images queries"]]:
    """Resize masks to the grid of each layer, in diffusers' way (`IPAdapterMaskProcessor.downsample`).

    diffusers guesses the grid from the mask's proportions, and mixes up the positions where these are not
    the picture's. Here the mask covers the whole picture.
    """
    grids: dict[int, Tensor] = {}
    for layer in layers:
        grid = attachment.layers.grid(layer, batch.geometry)
        parts = [
            F.interpolate(masks.float(), [*size], mode="bicubic").flatten(2)  # pyright: ignore[reportCallIssue]
            for size in grid.pictures
        ]
        words = parts[0].mean(2, keepdim=True).expand(-1, -1, grid.text)
        grids[layer] = torch.cat([words, *parts], 2)
    return grids


def _add_lora(
    inputs: dict[int, LayerInputs], adapter: ImagePromptAdapter, scale: float, batch: DenoiserBatch
) -> dict[int, LayerInputs]:
    strength = torch.full((batch.rows * batch.frames, 1, 1), scale)
    for layer, lora in adapter.lora_terms(strength).items():
        converted = convert_lora(lora, batch.device, batch.dtype)
        inputs[layer] = inputs.get(layer, LayerInputs())._replace(lora=converted)
    return inputs


def read_masks(masks: object, images: Sequence[int]) -> list[Tensor | None]:
    """Read `ip_adapter_masks`: the masks of each adapter, "rows images height width".

    Args:
        masks: a list with an element for each adapter, or diffusers' older form: a tensor
            "adapters 1 height width"
        images: the number of pictures of each adapter

    Raises:
        InvalidReference: another number of masks, or other objects
        AmbiguousBatch: a mask for each picture in the place of one for each row
    """
    if isinstance(masks, Tensor):
        masks = [masks] if len(images) == 1 else list(masks.unsqueeze(1))
    if masks is None:
        return [None] * len(images)
    if not isinstance(masks, list | tuple) or len(masks) != len(images):
        raise InvalidReference(
            f"ip_adapter_masks must be a list with the masks of each of {len(images)} adapters"
        )
    return [_read_mask(mask, count) for mask, count in zip(masks, images, strict=True)]


def _read_mask(mask: object, images: int) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise InvalidReference(
            "each of ip_adapter_masks must be a tensor (1, pictures, height, width), as "
            "IPAdapterMaskProcessor makes them"
        )
    if mask.shape[1] == 1 < images == mask.shape[0]:
        return mask.transpose(0, 1)  # One for each picture, as the processor returns them.
    return mask
