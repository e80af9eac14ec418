"""The layers of a transformer for which a new adapter has weights, and the weights with which they begin."""

from typing import Any, cast

from torch import nn

from imprompt.attention.choices import Injection
from imprompt.attention.denoiser_call import is_kind
from imprompt.attention.layers import Shapes
from imprompt.attention.weights import ImageKeyValue, JointKeyValue, read_weight
from imprompt.errors import AdapterMismatch


def list_layer_shapes(transformer: nn.Module, injection: Injection) -> Shapes:
    """Return (context_dim, inner_dim) of each block in which a kind of adapter acts, by its number.

    Raises:
        AdapterMismatch: the transformer is of another kind than the adapter
    """
    kind = "SD3Transformer2DModel" if injection == "sd35" else "FluxTransformer2DModel"
    if not is_kind(transformer, kind):
        raise AdapterMismatch(
            f"a {injection} adapter is for a {kind}, not for a {type(transformer).__name__}"
        )
    # Imported late: each module imports a transformer of diffusers.
    if injection == "sd35":
        from imprompt.attention.joint_layers import list_joint_shapes

        return list_joint_shapes(cast(Any, transformer))
    from imprompt.attention.flux_layers import list_flux_shapes

    return list_flux_shapes(cast(Any, transformer), single=injection == "flux-instantx")


def initialize_layer(
    layer: ImageKeyValue | JointKeyValue, transformer: nn.Module, number: int, injection: Injection
) -> None:
    """Set the weights of one block's layer to those with which training begins.

    Raises:
        AdapterMismatch: the base is quantized, so that its weights cannot be copied
    """
    if isinstance(layer, JointKeyValue):
        attn: Any = transformer.get_submodule(f"transformer_blocks.{number}.attn")
        for weight, linear in ((layer.to_key.weight, attn.to_k), (layer.to_value.weight, attn.to_v)):
            weight.copy_(read_weight(linear, weight.shape))
        nn.init.zeros_(layer.norm_ip.linear.weight)
        nn.init.zeros_(layer.norm_ip.linear.bias)
        return
    zero = [layer.to_value] if injection == "flux-instantx" else [layer.to_key, layer.to_value]
    for parameter in (parameter for linear in zero for parameter in linear.parameters()):
        nn.init.zeros_(parameter)
