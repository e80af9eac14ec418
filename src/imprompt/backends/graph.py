"""The U-Net as a function of tensors alone, which another runtime can compute.

    output = Attn(Q, K, V) + Σ_r m_r · Attn(Q, K'_r, λ_r V'_r)

K, V, K'_r, λ_r V'_r and m_r of every cross-attention layer are inputs, so one graph serves every prompt,
adapter, reference, scale, mask and schedule of a base (Ye et al. 2023, https://arxiv.org/abs/2308.06721,
equation 5). Residuals of a ControlNet are inputs too.
"""

import copy
from typing import Any, NamedTuple, cast

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.attention.layers import find_attention_layers, find_cross_attention_layers
from imprompt.attention.terms import attend, merge_heads, split_heads
from imprompt.errors import ConfigError

BATCH, TEXT_TOKENS, REFERENCES, IMAGE_TOKENS = 2, 7, 2, 3
"""The sizes with which a graph is traced; it is compiled for those of a call."""


class LayerTensors(NamedTuple):
    """The inputs of one cross-attention layer; references and their tokens may have any number."""

    text_key: Tensor
    """K, "batch heads text_tokens head_dim"."""
    text_value: Tensor
    """V, as K."""
    image_key: Tensor
    """K'_r, "batch references heads image_tokens head_dim"."""
    image_value: Tensor
    """λ_r V'_r, as K'_r."""
    bias: Tensor
    """Added to the logits, "batch references 1 1 image_tokens": minus infinity hides a token."""
    weight: Tensor
    """m_r, "batch references 1 queries 1"."""


class GraphAttention:
    """The processor of a cross-attention layer in a graph; it reads keys and values from `tensors`."""

    tensors: LayerTensors

    def __call__(
        self, attn: Attention, hidden_states: Float[Tensor, "batch query_len query_dim"], *_: Any, **__: Any
    ) -> Float[Tensor, "batch query_len query_dim"]:
        """Compute Attn(Q, K, V) + Σ_r m_r · Attn(Q, K'_r, λ_r V'_r)."""
        text_key, text_value, image_key, image_value, bias, weight = self.tensors
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        text = attend(query, text_key, text_value)
        logits = query[:, None] @ image_key.transpose(-1, -2) * query.shape[-1] ** -0.5
        image = (weight * ((logits + bias).softmax(-1) @ image_value)).sum(1)
        to_out, _ = cast(Any, attn.to_out)
        return to_out(merge_heads(text + image))


class GraphUNet(nn.Module):
    """A U-Net whose forward pass takes tensors only, in the order of `names`.

    It is a copy in float32; if the U-Net is in float32, the two share their weights.

    Args:
        unet: the U-Net, which stays as it is

    Attributes:
        names: the names of the inputs

    Raises:
        ConfigError: the U-Net has an input that no graph has
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        check_convertible(unet)
        self.unet = _copy_in_float32(unet)
        self.unet.disable_freeu()
        layers: Any = find_attention_layers(self.unet)
        crossing = find_cross_attention_layers(self.unet)
        for layer, (_, attn) in layers.items():
            attn.processor = GraphAttention() if layer in crossing else AttnProcessor2_0()
        self.processors = [layers[layer][1].processor for layer in crossing]
        self.names = list_inputs(unet)

    def forward(self, *inputs: Tensor) -> Float[Tensor, "batch channels height width"]:
        """Predict the noise of a batch."""
        named = dict(zip(self.names, inputs, strict=True))
        layers = inputs[len(inputs) - len(LayerTensors._fields) * len(self.processors) :]
        for place, processor in enumerate(self.processors):
            first = place * len(LayerTensors._fields)
            processor.tensors = LayerTensors(*layers[first : first + len(LayerTensors._fields)])
        residuals = [x for name, x in named.items() if name.startswith("residual_")]
        added = {name: named[name] for name in ("text_embeds", "time_ids") if name in named}
        sample = named["sample"]
        return type(
            self.unet
        ).forward(  # without the hooks that the U-Net itself may have
            self.unet,
            sample,
            named["timestep"],
            # Only its width matters: no layer reads it.
            sample.new_zeros(BATCH, 1, 1),
            timestep_cond=named.get("timestep_cond"),
            added_cond_kwargs=added or None,
            down_block_additional_residuals=cast(Any, tuple(residuals[:-1])),
            mid_block_additional_residual=residuals[-1],
            return_dict=False,
        )[0]

    @torch.no_grad()
    def make_example(self) -> tuple[Tensor, ...]:
        """Return inputs of the smallest size, with which the graph is traced."""
        generator = torch.Generator().manual_seed(0)
        shapes = list_shapes(self.unet, (BATCH, *find_least_size(self.unet), TEXT_TOKENS))
        sizes = [
            [
                _EXAMPLE_SIZES.get(name.partition(".")[0], {}).get(axis, size)
                for axis, size in enumerate(shape)
            ]
            for name, shape in shapes.items()
        ]
        return tuple(torch.rand([abs(size) for size in shape], generator=generator) for shape in sizes)


_EXAMPLE_SIZES = {
    "image_key": {1: REFERENCES, 3: IMAGE_TOKENS},
    "image_value": {1: REFERENCES, 3: IMAGE_TOKENS},
    "bias": {1: REFERENCES, 4: IMAGE_TOKENS},
    "weight": {1: REFERENCES},
}

CallSize = tuple[int, int, int, int]
"""Rows of the batch, height and width of the latents, tokens of the text: what a graph is compiled for."""


def list_inputs(unet: UNet2DConditionModel) -> list[str]:
    """Return the names of a graph's inputs, in their order."""
    return [*list_shapes(unet, (BATCH, *find_least_size(unet), TEXT_TOKENS))]


def list_shapes(unet: UNet2DConditionModel, size: CallSize) -> dict[str, tuple[int, ...]]:
    """Return the shape of every input, by name, for calls of a size; -1 stands for any number."""
    batch, height, width, text = size
    config: Any = unet.config
    shapes: dict[str, tuple[int, ...]] = {
        "sample": (batch, config.in_channels, height, width),
        "timestep": (batch,),
    }
    if config.addition_embed_type == "text_time":
        ids = 6
        embeds = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
        shapes |= {"text_embeds": (batch, embeds), "time_ids": (batch, ids)}
    if config.time_cond_proj_dim is not None:
        shapes["timestep_cond"] = (batch, config.time_cond_proj_dim)
    for place, channels in enumerate(list_residual_channels(unet)):
        shapes[f"residual_{place}"] = (-1, channels, -1, -1)
    for layer, (_, attn) in find_cross_attention_layers(unet).items():
        heads, width = attn.heads, attn.inner_dim // attn.heads
        sizes = [(batch, heads, text, width)] * 2 + [(batch, -1, heads, -1, width)] * 2
        sizes += [(-1, -1, 1, 1, -1), (batch, -1, 1, -1, 1)]
        shapes |= {
            f"{field}.{layer}": shape for field, shape in zip(LayerTensors._fields, sizes, strict=True)
        }
    return shapes


def list_residual_channels(unet: UNet2DConditionModel) -> list[int]:
    """Return the channels of a ControlNet's residuals: of every down block, and of the middle one."""
    blocks: Any = unet.down_blocks
    channels: list[int] = [cast(Any, unet.conv_in).out_channels]
    for block in blocks:
        channels += [resnet.out_channels for resnet in block.resnets]
        channels += [sampler.out_channels for sampler in block.downsamplers or ()]
    return [*channels, channels[-1]]


def find_least_size(unet: UNet2DConditionModel) -> tuple[int, int]:
    """Return the least height and width of latents that every block halves without a remainder."""
    side = 2 ** (len(cast(Any, unet.down_blocks)) - 1)
    return 2 * side, 2 * side


def check_convertible(unet: Any) -> None:
    """Refuse a denoiser that is no U-Net of Stable Diffusion, or has an input that no graph has.

    Raises:
        ConfigError: such a denoiser; the message names the setting
    """
    if type(unet).__name__ != "UNet2DConditionModel":
        raise ConfigError(f"OpenVINO computes the U-Nets of Stable Diffusion, not {type(unet).__name__}")
    if unet.config.addition_embed_type not in (None, "text_time"):
        raise ConfigError(
            f"OpenVINO cannot compute this U-Net: its addition_embed_type is "
            f"{unet.config.addition_embed_type!r}"
        )
    for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "encoder_hid_dim"):
        if getattr(unet.config, name, None) is not None:
            raise ConfigError(
                f"OpenVINO cannot compute this U-Net: its {name} is {getattr(unet.config, name)!r}"
            )


def _copy_in_float32(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Copy the modules; weights in float32 are shared, as a checkpoint of true size fills the memory."""
    is_shared = all(parameter.dtype == torch.float32 for parameter in unet.parameters())
    memo: dict[int, Any] = {id(one): one for one in unet.parameters()} if is_shared else {}
    copied = copy.deepcopy(unet, memo)
    return copied if is_shared else copied.float()
