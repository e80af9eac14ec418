"""The trained matrices of one attention layer."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.attention.choices import Injection, LoraShapes
from imprompt.attention.layers import UNet, find_attention_layers
from imprompt.attention.terms import KeyValue
from imprompt.errors import AdapterMismatch


class ImageKeyValue(nn.Module):
    """W'_k and W'_v of one attention layer."""

    def __init__(self, context_dim: int, inner_dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.to_key = nn.Linear(context_dim, inner_dim, bias=bias)
        self.to_value = nn.Linear(context_dim, inner_dim, bias=bias)

    def forward(self, image_tokens: Float[Tensor, "batch tokens context_dim"]) -> KeyValue:
        """Compute K' = c_i W'_k and V' = c_i W'_v, each "batch tokens inner_dim"."""
        return KeyValue(self.to_key(image_tokens), self.to_value(image_tokens))


class NormalizedKeyValue(ImageKeyValue):
    """W'_k and W'_v of one block of FLUX.1 in InstantX's adapter: K' is normalized over each head, V' is not.

    The norm has no learned weight (InstantX/FLUX.1-dev-IP-Adapter, attention_processor.py).
    """

    EPSILON = 1e-5

    def __init__(self, context_dim: int, inner_dim: int, *, head_dim: int) -> None:
        super().__init__(context_dim, inner_dim)
        self.head_dim = head_dim

    def forward(self, image_tokens: Float[Tensor, "batch tokens context_dim"]) -> KeyValue:
        """Compute K' = RMS(c_i W'_k) and V' = c_i W'_v, each "batch tokens inner_dim"."""
        key, value = super().forward(image_tokens)
        heads = key.unflatten(-1, (-1, self.head_dim))
        return KeyValue(F.rms_norm(heads, (self.head_dim,), eps=self.EPSILON).flatten(-2), value)


class TimedNorm(nn.Module):
    """LayerNorm without weights, then x (1 + scale) + shift, both linear in SiLU of the time's embedding."""

    EPSILON = 1e-6

    def __init__(self, time_dim: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(time_dim, 2 * width)

    def forward(
        self, x: Float[Tensor, "batch length width"], time: Float[Tensor, "batch time_dim"]
    ) -> Float[Tensor, "batch length width"]:
        """Normalize; the shift is the first half of what the linear layer makes."""
        shift, scale = self.linear(F.silu(time))[:, None].chunk(2, dim=-1)
        return F.layer_norm(x, x.shape[-1:], eps=self.EPSILON) * (1 + scale) + shift


class HeadNorm(nn.Module):
    """The learned weight of a norm over each head."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))


class JointKeyValue(nn.Module):
    """What an adapter trains in one block of Stable Diffusion 3.5: W'_k, W'_v and four norms.

    InstantX/SD3.5-Large-IP-Adapter, models/attention.py; diffusers, `SD3IPAdapterJointAttnProcessor2_0`.

    Args:
        context_dim: width of an image token
        inner_dim: width of all heads together
        head_dim: width of a head
        time_dim: width of the embedding of the time step, which the projection makes
    """

    EPSILON = 1e-6

    def __init__(self, context_dim: int, inner_dim: int, *, head_dim: int, time_dim: int) -> None:
        super().__init__()
        self.to_key = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_value = nn.Linear(context_dim, inner_dim, bias=False)
        self.norm_ip = TimedNorm(time_dim, context_dim)
        self.norm_q, self.norm_k, self.norm_ip_k = HeadNorm(head_dim), HeadNorm(head_dim), HeadNorm(head_dim)

    def forward(
        self,
        image_tokens: Float[Tensor, "batch tokens context_dim"],
        time: Float[Tensor, "batch time_dim"],
    ) -> KeyValue:
        """Compute K' = RMS(c W'_k) and V' = c W'_v of the tokens c, normalized for the time step."""
        c = self.norm_ip(image_tokens, time)
        weight = self.norm_ip_k.weight
        heads = self.to_key(c).unflatten(-1, (-1, len(weight)))
        key = F.rms_norm(heads, weight.shape, weight, self.EPSILON).flatten(-2)
        return KeyValue(key, self.to_value(c))


class TokenLayer(nn.Module):
    """Nothing that is trained: FLUX.1 Redux's tokens stand in the text themselves."""

    def forward(self, image_tokens: Float[Tensor, "batch tokens context_dim"]) -> KeyValue:
        """Return the tokens as both key and value."""
        return KeyValue(image_tokens, image_tokens)


def build_layer(injection: Injection, shape: tuple[int, int], head_dim: int, time_dim: int) -> nn.Module:
    """Build the trained matrices of one layer.

    Args:
        injection: how the adapter's image prompts enter a denoiser
        shape: (context_dim, inner_dim)
        head_dim: width of a head, for the norms that some adapters have
        time_dim: width of the projection's embedding of the time step, if it makes one
    """
    if injection == "flux-redux":
        return TokenLayer()
    if injection == "flux-instantx":
        return NormalizedKeyValue(*shape, head_dim=head_dim)
    if injection == "sd35":
        return JointKeyValue(*shape, head_dim=head_dim, time_dim=time_dim)
    return ImageKeyValue(*shape, bias=injection == "flux-xlabs")


class LowRank(nn.Module):
    """A low-rank change of a matrix, up · down, which is zero at first."""

    def __init__(self, in_dim: int, out_dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(in_dim, rank, bias=False)
        self.up = nn.Linear(rank, out_dim, bias=False)
        # The initialization of diffusers' LoRALinearLayer, with which FaceID was trained.
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)


def read_weight(linear: nn.Module, shape: torch.Size) -> Tensor:
    """Return the matrix of a linear layer of the base, "out in", also if a LoRA is around it.

    Raises:
        AdapterMismatch: the layer is quantized, so its weight is no such matrix
    """
    weight = linear.weight
    if isinstance(weight, Tensor) and weight.is_floating_point() and weight.shape == shape:
        return weight
    raise AdapterMismatch(
        f"new matrices for the image start as copies of the base's, but {type(linear).__name__} has no plain "
        "weight; make the adapter from the base before it is quantized"
    )


def list_lora_shapes(unet: UNet, rank: int) -> dict[int, LoraShapes]:
    """Return (in, out, rank) of the four matrices of every attention layer."""
    return {
        number: {
            "q": (attn.query_dim, attn.inner_dim, rank),
            "k": (attn.cross_attention_dim, attn.inner_kv_dim, rank),
            "v": (attn.cross_attention_dim, attn.inner_kv_dim, rank),
            "out": (attn.inner_dim, attn.out_dim, rank),
        }
        for number, (_, attn) in find_attention_layers(unet).items()
    }
