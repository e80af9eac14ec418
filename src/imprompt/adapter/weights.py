"""The trained weights of an adapter, and what they make of an encoder's outputs.

    c_i = projection(image_embedding)        K' = c_i W'_k        V' = c_i W'_v

Ye et al. 2023, https://arxiv.org/abs/2308.06721, section 3.2. These are the only trained weights: 22,319,616
for SD1.5 with a 1024-wide image embedding and four tokens. Face adapters also have a LoRA for the base's
attention, adapters for transformers have norms.
"""

import copy
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprompt.adapter.encode import ProjectionInputs
from imprompt.attention.choices import HEAD_DIMS, Injection, LoraShapes, Place
from imprompt.attention.terms import JointTerm, KeyValue, LoraTerm, split_heads
from imprompt.attention.weights import ImageKeyValue, JointKeyValue, LowRank, build_layer
from imprompt.errors import AdapterMismatch
from imprompt.projection import FacePlusProjection, ImageProjection, TimeResamplerProjection


class AdapterWeights(nn.Module):
    """An image projection, and the matrices of every layer in which image prompts act.

    Args:
        projection: the image projection
        layers: official layer number N → (context_dim, inner_dim) of that layer
        lora: number of an attention layer (self-attention too) → shapes of its LoRA, for face adapters
        injection: how the image prompts enter a denoiser
        head_dim: width of a head of the base, where the adapter normalizes heads; by default that of the
            published base

    Attributes:
        projection: the image projection
        layers: str(N) → the trained matrices of that layer
        lora: str(N) → a `LowRank` for each matrix of that layer that has one

    Raises:
        AdapterMismatch: the context of a layer has another width than the projection's tokens
    """

    def __init__(
        self,
        projection: ImageProjection,
        layers: Mapping[int, tuple[int, int]],
        lora: Mapping[int, LoraShapes] | None = None,
        *,
        injection: Injection = "unet",
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        for number, (context_dim, _) in layers.items():
            if context_dim != projection.context_dim:
                raise AdapterMismatch(
                    f"layer {number} expects {context_dim}-wide tokens; the projection makes "
                    f"{projection.context_dim}-wide ones"
                )
        self.injection: Injection = injection
        self.head_dim = head_dim or HEAD_DIMS[injection]
        self.projection = projection
        time_dim = projection.time_dim if isinstance(projection, TimeResamplerProjection) else 0
        self.layers = nn.ModuleDict(
            {
                str(number): build_layer(injection, shape, self.head_dim, time_dim)
                for number, shape in layers.items()
            }
        )
        self.lora = nn.ModuleDict(
            {
                str(number): nn.ModuleDict({place: LowRank(*shape) for place, shape in places.items()})
                for number, places in (lora or {}).items()
            }
        )

    def key_value(self, number: int) -> ImageKeyValue | JointKeyValue:
        """Return the trained matrices of the layer with official number N."""
        return cast(ImageKeyValue | JointKeyValue, self.layers[str(number)])

    @property
    def shapes(self) -> dict[int, tuple[int, int]]:
        """Official layer number N → (context_dim, inner_dim)."""
        if self.injection == "flux-redux":
            return {0: (self.projection.context_dim, self.projection.context_dim)}
        weights = {int(number): self.key_value(int(number)).to_key for number in self.layers}
        return {number: (linear.in_features, linear.out_features) for number, linear in weights.items()}

    def low_rank(self, number: int) -> dict[Place, tuple[Tensor, Tensor]]:
        """Return (down, up) of the matrices that the LoRA changes in the layer with official number N."""
        places = cast(nn.ModuleDict, self.lora[str(number)])
        pairs = {place: cast(LowRank, module) for place, module in places.items()}
        return {cast(Place, place): (pair.down.weight, pair.up.weight) for place, pair in pairs.items()}

    def forward(
        self,
        inputs: ProjectionInputs,
        layers: Collection[int] | None = None,
        face_scale: Tensor | None = None,
        timestep: Tensor | None = None,
    ) -> dict[int, KeyValue]:
        """Return K' and V' of every layer, by official number.

        Args:
            inputs: the projection's inputs, each "batch images ..."
            layers: compute only these
            face_scale: see `image_tokens`
            timestep: from 0 to 1000, for each sample, where the projection depends on it
        """
        numbers = self.shapes if layers is None else layers
        if timestep is None:
            tokens: tuple[Tensor, ...] = (self.image_tokens(inputs, face_scale),)
        else:
            tokens = self.project_at(inputs, timestep)
        return {number: self.layers[str(number)](*tokens) for number in numbers}

    def image_tokens(
        self, inputs: ProjectionInputs, face_scale: Float[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch tokens {self.projection.context_dim}"]:
        """Project the encoders' outputs; the tokens of a sample's images are concatenated.

        Args:
            inputs: the projection's inputs, each "batch images ..."
            face_scale: strength of the features relative to the face, for FaceID-PlusV2

        Raises:
            AdapterMismatch: inputs of another kind or width than the projection's
        """
        return self._project(self.projection, inputs, face_scale)

    def _project(
        self, projection: nn.Module, inputs: ProjectionInputs, face_scale: Tensor | None
    ) -> Float[Tensor, "batch tokens context_dim"]:
        batch, images = self._check_inputs(inputs)
        each = [inputs[name].flatten(0, 1) for name in self.projection.takes]
        if face_scale is not None and isinstance(projection, FacePlusProjection):
            tokens = projection(*each, face_scale.repeat_interleave(images).to(each[0]))
        else:
            tokens = projection(*each)
        return tokens.reshape(batch, -1, tokens.shape[-1])

    def project_at(
        self, inputs: ProjectionInputs, timestep: Float[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch tokens context_dim"], Float[Tensor, "batch time_dim"]]:
        """Project the encoders' outputs at time steps; the tokens of a sample's images are concatenated.

        Args:
            inputs: the projection's inputs, each "batch images ..."
            timestep: from 0 to 1000, for each sample

        Returns:
            The image tokens, and the embeddings of the time steps

        Raises:
            AdapterMismatch: inputs of another kind or width than the projection's
        """
        batch, images = self._check_inputs(inputs)
        each = [inputs[name].flatten(0, 1) for name in self.projection.takes]
        tokens, time = self.projection(*each, timestep.repeat_interleave(images).float())
        return tokens.reshape(batch, -1, tokens.shape[-1]), time[::images]

    def _check_inputs(self, inputs: ProjectionInputs) -> tuple[int, int]:
        """Refuse inputs of another kind or width; return the numbers of samples and of images of each."""
        for name, wanted in self.projection.takes.items():
            if name not in inputs or inputs[name].shape[-1] != wanted:
                given = ", ".join(f"{key} {value.shape[-1]} wide" for key, value in inputs.items())
                raise AdapterMismatch(f"this adapter takes {name} {wanted} wide, not {given}")
        samples, images = next(iter(inputs.values())).shape[:2]
        return samples, images

    def compute_keys_values(
        self, inputs: ProjectionInputs, layers: Collection[int], face_scale: Float[Tensor, " prompts"]
    ) -> dict[int, KeyValue]:
        """Compute K' and V' in the inputs' number format, even where the adapter's own is narrower.

        An adapter of FLUX.1 has gigabytes, so its parts are converted one at a time.
        """
        dtype = next(iter(inputs.values())).dtype
        tokens = self._project(convert(self.projection, dtype), inputs, face_scale)
        return {number: convert(self.layers[str(number)], dtype)(tokens) for number in layers}

    def convert(self, dtype: torch.dtype) -> "AdapterWeights":
        """Return these weights in a number format; they are copied where it is not their own."""
        other = AdapterWeights(self.projection, {}, injection=self.injection, head_dim=self.head_dim)
        for name in ("projection", "layers", "lora"):
            setattr(other, name, convert(getattr(self, name), dtype))
        return other

    def compute_joint_terms(
        self, inputs: ProjectionInputs, timestep: Tensor, layers: Collection[int], heads: int
    ) -> dict[int, JointTerm]:
        """Compute the terms of layers of Stable Diffusion 3.5 at time steps, λ being 1.

        Args:
            inputs: the projection's inputs, each "batch images ..."
            timestep: from 0 to 1000, for each sample
            layers: compute only these
            heads: the number of heads
        """
        terms: dict[int, JointTerm] = {}
        for number, key_value in self(inputs, layers, timestep=timestep).items():
            key, value = (split_heads(x, heads) for x in key_value)
            layer = cast(JointKeyValue, self.key_value(number))
            norms = layer.norm_q.weight, layer.norm_k.weight
            terms[number] = JointTerm(key, value, key.new_ones(len(key), 1, 1, 1), *norms)
        return terms

    def lora_terms(self, scale: Float[Tensor, "..."]) -> dict[int, LoraTerm]:
        """Return the adapter's LoRA of each layer that has one, with this strength."""
        return {int(number): LoraTerm(self.low_rank(int(number)), scale) for number in self.lora}


def convert(module: nn.Module, dtype: torch.dtype) -> Any:
    """Return a module in a number format: itself, or a copy."""
    if all(weight.dtype == dtype for weight in module.parameters()):
        return module
    return copy.deepcopy(module).to(dtype)
