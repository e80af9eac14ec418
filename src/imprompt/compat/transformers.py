"""The adapters of one diffusion transformer: FLUX.1 or Stable Diffusion 3.5.

Pipelines for FLUX.1 call the transformer for one branch of guidance at a time, with the embeddings of that
branch. Those for Stable Diffusion 3.5 stack both.
"""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from imprompt.attention.conditioning import LayerInputs
from imprompt.attention.denoiser_call import DenoiserCall, is_kind
from imprompt.attention.diffusers_internals import Branches, find_running_call, list_branches
from imprompt.attention.pipeline_state import list_call_branches
from imprompt.attention.terms import JointTerm
from imprompt.compat.adapters import DenoiserAdapters, LoadedAdapter
from imprompt.compat.inputs import AdapterPrompt, DenoiserBatch, name_inputs, resize_masks
from imprompt.compat.rows import RowLayout, fit_masks
from imprompt.compat.scales import Scale, read_scale
from imprompt.errors import InvalidReference

_PLACE = "image_proj"
"""The attribute where a transformer of Stable Diffusion 3 keeps the resampler of diffusers' IP-Adapter."""


class FluxAdapters(DenoiserAdapters):
    """The adapters of a transformer of FLUX.1."""

    options_name = "joint_attention_kwargs"

    def find_embeddings(self, options: Mapping[str, Any]) -> list[Tensor] | None:
        """Return the embeddings that the pipeline passes to its transformer, one tensor for each adapter."""
        return (options.get(self.options_name) or {}).get("ip_adapter_image_embeds")

    def find_layout(self, call: DenoiserCall, prepared: Branches | None) -> RowLayout | None:
        """Return how the running pipeline stacks its batch: each call is for one branch."""
        running = find_running_call(self.denoiser, self.denoiser)
        if running is None or running.samples is None or running.prompts is None:
            return None
        branches = list_call_branches(running, call)
        return RowLayout(branches, branches, running.samples, running.prompts)

    def set_scale(self, scale: object) -> None:
        """Set λ: a number, one for each adapter, or for each block of one adapter, or a list of such lists.

        Raises:
            AttachmentError: no adapter is loaded
            InvalidReference: another number of scales than of adapters, or an impossible one
        """
        if (
            len(self.adapters) == 1
            and isinstance(scale, list)
            and all(isinstance(one, Real) for one in scale)
        ):
            scale = [scale]
        super().set_scale(scale)

    def read_scale(self, scale: object, loaded: LoadedAdapter) -> dict[int, Scale]:
        """Return λ of every block of an adapter."""
        if not isinstance(scale, list):
            return read_scale(scale, loaded.attachment.names)
        if len(scale) != len(loaded.attachment.names):
            raise InvalidReference(
                f"set_ip_adapter_scale got {len(scale)} scales for {len(loaded.attachment.names)} blocks"
            )
        each = (
            read_scale(one, {layer: ""}) for one, layer in zip(scale, loaded.attachment.names, strict=True)
        )
        return {layer: one for scales in each for layer, one in scales.items()}


class JointAdapters(DenoiserAdapters):
    """The adapters of a transformer of Stable Diffusion 3.5."""

    options_name = "joint_attention_kwargs"

    def __init__(self, denoiser: nn.Module, called: nn.Module) -> None:
        super().__init__(denoiser, called)
        vars(denoiser)[_PLACE] = _project_nothing

    @property
    def is_active(self) -> bool:
        """Whether an adapter is loaded with a scale other than 0, for which the pipelines ask."""
        return any(scale for loaded in self.adapters for scale in loaded.scales.values())

    def close(self) -> None:
        """Unload all adapters and leave the denoiser as it was."""
        super().close()
        vars(self.denoiser).pop(_PLACE, None)

    def find_embeddings(self, options: Mapping[str, Any]) -> list[Tensor] | None:
        """Return the features that the pipeline passes to its transformer, "rows 1 patches width"."""
        features = (options.get(self.options_name) or {}).get("ip_adapter_image_embeds")
        return None if features is None else [features.unsqueeze(1) if features.ndim == 3 else features]

    def find_layout(self, call: DenoiserCall, prepared: Branches | None) -> RowLayout | None:
        """Return how the running pipeline stacks its batch; skip-layer guidance has positive rows alone."""
        running = find_running_call(self.denoiser, self.denoiser)
        if running is None or running.samples is None or running.prompts is None:
            return None
        branches = list_branches(running.pipeline)
        return RowLayout(branches, list_call_branches(running, call), running.samples, running.prompts)

    def compute_one(
        self,
        loaded: LoadedAdapter,
        prompt: AdapterPrompt,
        batch: DenoiserBatch,
        layout: RowLayout | None,
        call: DenoiserCall,
    ) -> Mapping[int, LayerInputs]:
        """Compute the inputs of one adapter, which belong to the time step."""
        adapter, attachment = loaded.adapter.to(batch.device), loaded.attachment
        scales = {layer: one for layer, one in prompt.scales.items() if attachment.is_compiled or one}
        inputs = name_inputs(adapter, prompt, batch, layout)
        times = torch.as_tensor(call.timestep, device=batch.device).expand(batch.rows)
        masks = None if prompt.masks is None else fit_masks(prompt.masks, batch.rows, layout)
        grids = {} if masks is None else resize_masks(masks, attachment, scales, batch)
        terms = adapter.compute_joint_terms(inputs, times, [*scales], attachment.heads(0))
        result: dict[int, LayerInputs] = {}
        for layer, term in terms.items():
            weight = term.weight * _read_number(scales[layer])
            if layer in grids:
                weight = weight * grids[layer][:, :1, :, None].to(weight)
            weighted = term._replace(weight=weight)
            result[layer] = LayerInputs((JointTerm(*(x.to(batch.device, batch.dtype) for x in weighted)),))
        return result


def build_adapters(denoiser: nn.Module, called: nn.Module) -> DenoiserAdapters:
    """Build what answers the calls on a denoiser."""
    if is_kind(denoiser, "FluxTransformer2DModel"):
        return FluxAdapters(denoiser, called)
    if is_kind(denoiser, "SD3Transformer2DModel"):
        return JointAdapters(denoiser, called)
    return DenoiserAdapters(denoiser, called)


def _read_number(scale: Scale) -> float:
    if isinstance(scale, tuple):
        raise InvalidReference(f"one scale for all pictures is possible on this base, not {list(scale)}")
    return scale


def _project_nothing(*_: object) -> tuple[None, None]:
    """Stand for the resampler: imprompt has computed the image prompt already."""
    return None, None
