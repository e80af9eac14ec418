"""The adapters of one denoiser that `load_ip_adapter` has loaded."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.embeddings import ImageProjection
from torch import Tensor, nn

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.batch import find_device_and_dtype
from imprompt.attention.conditioning import LayerInputs
from imprompt.attention.denoiser_call import DenoiserCall, name_denoiser
from imprompt.attention.diffusers_internals import Branches, find_running_call
from imprompt.attention.hooks import Owner, add_hook
from imprompt.attention.ip_adapter_calls import (
    Provider,
    install_projections,
    remove_unused_projections,
)
from imprompt.checkpoint import build_adapter
from imprompt.compat.inputs import AdapterPrompt, DenoiserBatch, compute_inputs, read_masks
from imprompt.compat.rows import RowLayout, read_layout
from imprompt.compat.scales import Scale, read_scale
from imprompt.errors import AttachmentError, InvalidReference
from imprompt.projection import FacePlusProjection

_NOTHING: Mapping[int, LayerInputs] = {}


class ProjectionSettings(nn.Module):
    """What scripts find in `unet.encoder_hid_proj.image_projection_layers`, in place of a projection.

    Attributes:
        clip_embeds: the image features for FaceID-Plus, "rows images patches feature_dim"
        shortcut: whether FaceID-Plus is version 2
        shortcut_scale: strength of its features relative to the face, for version 2
    """

    clip_embeds: Tensor | None

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.clip_embeds, self.shortcut, self.shortcut_scale = None, False, 1.0


class PooledProjectionSettings(ProjectionSettings, ImageProjection):
    """The same for an adapter that takes the pooled embedding, by which diffusers recognizes it."""


class LoadedAdapter:
    """An adapter on a denoiser.

    Attributes:
        adapter: its weights
        attachment: its attachment to the denoiser
        settings: what scripts may set for FaceID-Plus
        scales: layer → λ, see `read_scale`
    """

    def __init__(self, adapter: ImagePromptAdapter, unet: nn.Module) -> None:
        self.adapter = adapter
        self.attachment = adapter.attach(unet)
        is_pooled = "image_embedding" in adapter.projection.takes
        self.settings = PooledProjectionSettings() if is_pooled else ProjectionSettings()
        # The default of diffusers' processors.
        self.scales = read_scale(0.5 if adapter.injection == "sd35" else 1.0, self.attachment.names)

    @property
    def sources(self) -> tuple[object, ...]:
        """The tensors and containers on which its inputs depend."""
        return self.settings.clip_embeds, self.scales

    @property
    def face_scale(self) -> float | None:
        """The strength of FaceID-Plus's features relative to the face; None for version 1."""
        return float(self.settings.shortcut_scale) if self.settings.shortcut else None

    def make_prompt(self, embeddings: Tensor, masks: Tensor | None, lora_scale: float) -> AdapterPrompt:
        """Return what the adapter gets, under the settings as they are now."""
        projection, face_scale = self.adapter.projection, 1.0
        if isinstance(projection, FacePlusProjection):
            projection.version = 1 if self.face_scale is None else 2
            face_scale = 1.0 if self.face_scale is None else self.face_scale
        features = self.settings.clip_embeds
        return AdapterPrompt(embeddings, features, face_scale, masks, self.scales, lora_scale)


class CachedInputs(NamedTuple):
    """The inputs of all adapters for one batch, and everything that they were computed from."""

    settings: tuple[object, ...]
    """Compared by value."""
    sources: Sequence[object]
    """Tensors and containers, compared by identity."""
    inputs: Sequence[Mapping[int, LayerInputs]]

    def is_for(self, settings: tuple[object, ...], sources: Sequence[object]) -> bool:
        """Whether they were computed from these."""
        same_count = len(sources) == len(self.sources)
        same = same_count and all(a is b for a, b in zip(self.sources, sources, strict=True))
        return same and settings == self.settings


class ThreadState(threading.local):
    """What a thread has computed last."""

    cached: tuple[CachedInputs, ...] = ()
    """Two at most: pipelines that call a transformer twice in a step alternate between two image prompts."""
    embeddings: object = None
    prepared: Branches | None = None
    """The branches of guidance when these embeddings came for the first time."""


class DenoiserAdapters(Provider):
    """The adapters of one denoiser; it reads the image prompt of every call of the denoiser.

    Args:
        denoiser: the U-Net or the transformer
        called: the module that pipelines call: the denoiser, or the compiled module around it

    Attributes:
        options_name: the argument of the denoiser in which pipelines pass masks
    """

    options_name = "cross_attention_kwargs"

    def __init__(self, denoiser: nn.Module, called: nn.Module) -> None:
        self.denoiser, self.called = denoiser, called
        self.adapters: list[LoadedAdapter] = []
        self._state = ThreadState()
        install_projections(denoiser).provider = self
        self._unhook = add_hook(called, Owner(self))

    @property
    def image_projection_layers(self) -> Sequence[nn.Module]:
        """The settings of each adapter, which diffusers' pipelines count.

        Raises:
            AttachmentError: no adapter is loaded
        """
        self._require_adapters()
        return [one.settings for one in self.adapters]

    def load(self, state_dicts: Sequence[Mapping[str, Any]]) -> None:
        """Load adapters in place of those that are there.

        Args:
            state_dicts: the tensors of each, {"image_proj": ..., "ip_adapter": ...}

        Raises:
            CheckpointError: something else is in them
            AdapterMismatch: an adapter for another base; those that are there stay
        """
        built = [_build(tensors, place) for place, tensors in enumerate(state_dicts)]
        added: list[LoadedAdapter] = []
        try:
            for adapter in built:
                device = next(self.denoiser.parameters()).device
                added.append(LoadedAdapter(adapter.to(device), self.called))
        except Exception:
            _detach(added)
            raise
        self.unload()
        self.adapters = added

    def unload(self) -> None:
        """Remove all adapters."""
        _detach(self.adapters)
        self.adapters = []
        self._state = ThreadState()

    def set_scale(self, scale: object) -> None:
        """Set λ: one for all adapters, or a list with one for each, see `imprompt.compat.scales`.

        Raises:
            AttachmentError: no adapter is loaded
            InvalidReference: another number of scales than of adapters, or an impossible one
        """
        self._require_adapters()
        scales = scale if isinstance(scale, list) else [scale] * len(self.adapters)
        if len(scales) != len(self.adapters):
            raise InvalidReference(
                f"set_ip_adapter_scale got {len(scales)} scales for {len(self.adapters)} adapters; give one "
                "number for all, or a list with one for each"
            )
        read = [self.read_scale(one, loaded) for one, loaded in zip(scales, self.adapters, strict=True)]
        for loaded, one in zip(self.adapters, read, strict=True):
            loaded.scales = one

    def read_scale(self, scale: object, loaded: LoadedAdapter) -> dict[int, Scale]:
        """Return λ of every layer of an adapter."""
        return read_scale(scale, loaded.attachment.names)

    def close(self) -> None:
        """Unload all adapters and leave the denoiser as it was."""
        self.unload()
        self._unhook()
        projections = install_projections(self.denoiser)
        projections.provider = None
        remove_unused_projections(self.denoiser)

    def before_forward(self, call: DenoiserCall) -> None:
        """Give the layers the image prompt of the call that is about to run.

        Raises:
            AttachmentError, AdapterMismatch, AmbiguousBatch, InvalidReference: as `compute_inputs`, or there
                is an image prompt but no adapter
        """
        embeddings = self.find_embeddings(call.options)
        inputs: Sequence[Mapping[int, LayerInputs]] = [_NOTHING] * len(self.adapters)
        if embeddings is not None:
            self._check_count(embeddings)
            inputs = self._find_inputs(call, embeddings, call.options.get(self.options_name) or {})
        for loaded, one in zip(self.adapters, inputs, strict=True):
            loaded.attachment.check_in_place()
            loaded.attachment.set_inputs(one, call)

    def after_forward(self) -> None:
        """Make sure that the image prompts have reached their layers.

        Raises:
            AttachmentError: one has not
        """
        for loaded in self.adapters:
            loaded.attachment.after_forward()

    def _require_adapters(self) -> None:
        if not self.adapters:
            raise AttachmentError(
                f"no IP-Adapter is loaded on this {name_denoiser(self.denoiser)}; call "
                "pipe.load_ip_adapter(...) before an image prompt or its scale is given"
            )

    def _check_count(self, embeddings: Sequence[Tensor]) -> None:
        self._require_adapters()
        if len(embeddings) != len(self.adapters):
            raise InvalidReference(
                f"ip_adapter_image_embeds has {len(embeddings)} tensors for {len(self.adapters)} adapters; "
                "give a list with one for each"
            )

    def find_embeddings(self, options: Mapping[str, Any]) -> list[Tensor] | None:
        """Return the embeddings that the pipeline passes to its denoiser, one tensor for each adapter."""
        embeddings = (options.get("added_cond_kwargs") or {}).get("image_embeds")
        if embeddings is not None:
            return embeddings
        # InstructPix2Pix prepares embeddings that it is given, and drops them.
        call = find_running_call(self.denoiser, self.denoiser)
        return None if call is None else call.image_embeddings

    def find_layout(self, call: DenoiserCall, prepared: Branches | None) -> RowLayout | None:
        """Return how the running pipeline stacks its batch; None if it cannot be known."""
        return read_layout(find_running_call(self.denoiser, self.denoiser), prepared)

    def _find_inputs(
        self, call: DenoiserCall, embeddings: Sequence[Tensor], options: Mapping[str, Any]
    ) -> Sequence[Mapping[int, LayerInputs]]:
        """Return the inputs of each adapter, which are computed once for each generation."""
        state = self._state
        if state.embeddings is not embeddings:
            state.embeddings, state.prepared = embeddings, None
        layout = self.find_layout(call, state.prepared)
        branches = layout and layout.current
        state.prepared = state.prepared or branches
        batch = self._describe_batch(call)
        masks, lora_scale = options.get("ip_adapter_masks"), float(options.get("scale", 1.0))
        settings = batch, branches, lora_scale, *(one.face_scale for one in self.adapters)
        sources = [masks, *embeddings, *(source for one in self.adapters for source in one.sources)]
        for cached in state.cached:
            if cached.is_for(settings, sources):
                return cached.inputs
        each = read_masks(masks, [one.shape[1] for one in embeddings])
        prompts = [
            loaded.make_prompt(embedding, mask, lora_scale)
            for loaded, embedding, mask in zip(self.adapters, embeddings, each, strict=True)
        ]
        cached = CachedInputs(settings, sources, self.compute(prompts, batch, layout, call))
        state.cached = (cached, *state.cached[:1])
        return cached.inputs

    def _describe_batch(self, call: DenoiserCall) -> DenoiserBatch:
        sample, layers = call.sample, self.adapters[0].attachment.layers
        frames = sample.shape[2] if sample.ndim == 5 else 1
        place = find_device_and_dtype(sample)
        return DenoiserBatch(sample.shape[0], frames, layers.read_geometry(call), *place)

    @torch.no_grad()
    def compute(
        self,
        prompts: Sequence[AdapterPrompt],
        batch: DenoiserBatch,
        layout: RowLayout | None,
        call: DenoiserCall,
    ) -> Sequence[Mapping[int, LayerInputs]]:
        """Compute the inputs of each adapter."""
        pairs = zip(self.adapters, prompts, strict=True)
        return [self.compute_one(loaded, prompt, batch, layout, call) for loaded, prompt in pairs]

    def compute_one(
        self,
        loaded: LoadedAdapter,
        prompt: AdapterPrompt,
        batch: DenoiserBatch,
        layout: RowLayout | None,
        call: DenoiserCall,
    ) -> Mapping[int, LayerInputs]:
        """Compute the inputs of one adapter."""
        return compute_inputs(loaded.adapter.to(batch.device), loaded.attachment, prompt, batch, layout)


def _build(tensors: Mapping[str, Any], place: int) -> ImagePromptAdapter:
    is_face_plus = any(str(name).startswith("perceiver_resampler.") for name in tensors.get("image_proj", ()))
    adapter = build_adapter(
        tensors, name=f"the IP-Adapter number {place}", face_plus_version=1 if is_face_plus else None
    )
    return adapter.requires_grad_(False)


def _detach(adapters: Sequence[LoadedAdapter]) -> None:
    for loaded in adapters:
        loaded.attachment.detach()
