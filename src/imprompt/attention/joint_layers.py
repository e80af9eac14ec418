"""An adapter's layers in Stable Diffusion 3.5: every block's attention gets a processor of imprompt's.

    output_image = JointAttn_image + Σ λm · Attn( RMS_q(Q), [RMS_k(K); K'], [V; V'] )        before W_out

Q, K and V are the base's projections of the latents, before the base's own norms; RMS_q and RMS_k are the
adapter's norms. K' and V' belong to the time step (imprompt.attention.weights.JointImageKeyValue). So the
latents stand among the keys, beside the image tokens, and λ cannot be folded into V'. The rows of the text
are those of the base (InstantX/SD3.5-Large-IP-Adapter, models/attention.py).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.models.attention_processor import (
    Attention,
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
)
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.attention.denoiser_call import DenoiserCall
from imprompt.attention.denoiser_layers import ProcessorLayers, QueryGrid
from imprompt.attention.layers import Shapes, check_fit
from imprompt.attention.processor import project_without_bias
from imprompt.attention.terms import JointTerm, LayerProcessor, attend, check_batch, merge_heads, split_heads
from imprompt.errors import AdapterMismatch, AttachmentError

EPSILON = 1e-6
"""ε of the adapter's norms."""


def find_joint_layers(transformer: SD3Transformer2DModel) -> dict[int, tuple[str, Attention]]:
    """Return the joint attention of every block under its official number."""
    names = [f"transformer_blocks.{number}.attn" for number in range(len(transformer.transformer_blocks))]
    return {
        number: (name, cast(Attention, transformer.get_submodule(name))) for number, name in enumerate(names)
    }


def list_joint_shapes(transformer: SD3Transformer2DModel) -> dict[int, tuple[int, int]]:
    """Return (context_dim, inner_dim) of each block: image tokens are as wide as the latents."""
    layers = find_joint_layers(transformer).items()
    return {number: (attn.inner_dim, attn.inner_dim) for number, (_, attn) in layers}


class JointDecoupledAttention(LayerProcessor):
    """The attention processor that an attached adapter installs on one block.

    The base's own processor computes the text and the latents, so without image prompts the layer returns the
    same bits as before. The image prompts are added behind the output projection, which is linear.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "batch queries width"],
        encoder_hidden_states: Float[Tensor, "batch text_len width"] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute one layer: the base's attention, and the attention to every image prompt.

        `temb` is what diffusers passes for its own IP-Adapter; it has no meaning here.

        Raises:
            AmbiguousBatch: the image prompts are for another batch size or other positions
        """
        terms = cast("Sequence[JointTerm]", self.find_running_state().terms)
        picture, text = self.base(attn, hidden_states, encoder_hidden_states, attention_mask)
        if not terms:
            return picture, text
        linear, dropout = cast(nn.ModuleList, attn.to_out)
        image = compute_joint_image(attn, hidden_states, terms)
        return picture + dropout(project_without_bias(linear, image)), text


def compute_joint_image(
    attn: Attention, hidden_states: Float[Tensor, "batch queries width"], terms: Sequence[JointTerm]
) -> Float[Tensor, "batch queries width"]:
    """Return Σ λm · Attn(RMS_q(Q), [RMS_k(K); K'], [V; V'])."""
    projections: tuple[Any, ...] = attn.to_q, attn.to_k, attn.to_v
    query, key, value = (split_heads(linear(hidden_states), attn.heads) for linear in projections)
    image = torch.zeros_like(query)
    for term in terms:
        check_batch(query, term.key, term.weight)
        keys = torch.cat([normalize(key, term.key_norm), term.key.to(key)], dim=2)
        values = torch.cat([value, term.value.to(value)], dim=2)
        image = image + term.weight.to(query) * attend(normalize(query, term.query_norm), keys, values)
    return merge_heads(image)


def normalize(
    x: Float[Tensor, "batch heads length head_dim"], weight: Float[Tensor, " head_dim"]
) -> Float[Tensor, "batch heads length head_dim"]:
    """Return x / √(mean x² + ε), times the learned weight, over each head."""
    return F.rms_norm(x, x.shape[-1:], weight.to(x), EPSILON)


class JointLayers(ProcessorLayers):
    """The blocks of Stable Diffusion 3.5 in which an adapter acts.

    Args:
        transformer: the transformer
        owner: stands for the attachment in processors that several adapters share
        shapes: the adapter's layers

    Raises:
        AttachmentError: an attention processor that is not supported
        AdapterMismatch: the adapter's layers are not this transformer's, or its blocks have two attentions
    """

    def __init__(self, transformer: SD3Transformer2DModel, owner: object, shapes: Shapes) -> None:
        layers = find_joint_layers(transformer)
        check_fit(shapes, list_joint_shapes(transformer))
        if transformer.config["dual_attention_layers"]:
            raise AdapterMismatch(
                "this base has blocks with two attentions, as Stable Diffusion 3.5 Medium, for which this "
                "kind of adapter is not defined; use Stable Diffusion 3.5 Large"
            )
        for name, attn in layers.values():
            _check_supported(name, attn)
        self.names = {number: name for number, (name, _) in layers.items()}
        self.patch = int(transformer.config["patch_size"])
        super().__init__(layers, JointDecoupledAttention, owner)

    def read_geometry(self, call: DenoiserCall) -> tuple[int, int]:
        """Return height and width of the latents."""
        return call.sample.shape[-2], call.sample.shape[-1]

    def grid(self, layer: int, geometry: Any) -> QueryGrid:
        """Return the queries of a layer: one for each patch of the latents."""
        height, width = geometry
        return QueryGrid(((height // self.patch, width // self.patch),))

    def list_layers_of(self, call: DenoiserCall) -> set[int]:
        """Return the layers that a call runs: skip-layer guidance leaves some out."""
        return set(self.modules) - set(call.options.get("skip_layers") or ())


def _check_supported(name: str, attn: Attention) -> None:
    kind = type(attn.processor)
    if kind.__name__.startswith("SD3IPAdapter"):
        raise AttachmentError(
            f"diffusers' own IP-Adapter is loaded on this transformer ({name} has the attention processor "
            f"{kind.__name__}); call pipe.unload_ip_adapter() first"
        )
    if kind is FusedJointAttnProcessor2_0:
        raise AttachmentError(
            f"{name} has the attention processor {kind.__name__}, which leaves out the norms of Stable "
            "Diffusion 3.5's queries and keys; call transformer.unfuse_qkv_projections() before attaching"
        )
    if kind not in (JointAttnProcessor2_0, JointDecoupledAttention):
        raise AttachmentError(
            f"{name} has the attention processor {kind.__name__}, which is not supported; undo what put it "
            "there, or call transformer.set_attn_processor(JointAttnProcessor2_0()) before attaching"
        )
