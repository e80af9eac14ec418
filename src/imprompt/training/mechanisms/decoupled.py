"""The paper's mechanism: a second cross-attention with its own keys and values, added to the text's."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.choices import NO_IMAGE
from imprompt.attention.diffusers_internals import get_pipeline_denoiser
from imprompt.checkpoint import from_official, save_adapter
from imprompt.checkpoint.files import read_tensors
from imprompt.generation.pipeline_call import call_pipeline
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.reference import Reference
from imprompt.training.denoising import predict
from imprompt.training.mechanisms.base import Denoise, Inputs, Mechanism, load_tensors


class DecoupledMechanism(Mechanism):
    """output = Attn(Q, K, V) + λ Attn(Q, K', V'); projection and every W'_k, W'_v are trained.

    Args:
        adapter: attached to `pipe` at once, until `detach`
        pipe: the base's pipeline
    """

    name = "decoupled"

    def __init__(self, adapter: ImagePromptAdapter, pipe: Any) -> None:
        self.trained = self.adapter = adapter
        self.unet = get_pipeline_denoiser(pipe)
        self.attachment = adapter.attach(pipe)

    @contextlib.contextmanager
    def condition_on(self, inputs: Inputs) -> Iterator[Denoise]:
        """Let K' and V' of these image prompts act in addition to the text."""
        with self.adapter.condition_on(inputs, self._scale(inputs)):
            yield lambda noisy, times, text, added: predict(self.unet, noisy, times, text, added)

    def _scale(self, inputs: Inputs) -> Float[Tensor, " batch"] | float:
        """Return λ: 0 for a dropped image, all zeros, where "no image" is the base itself; else 1."""
        if NO_IMAGE[self.adapter.injection] != "nothing":
            return 1.0
        (value,) = inputs.values()
        return value.flatten(1).any(1).float()

    def generate(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Generate with λ = `scale`."""
        self.check_pipeline(pipe)
        if pipe is not self.attachment.target:  # it asks its pipeline for branches and steps
            self.attachment.detach()
            self.attachment = self.adapter.attach(pipe)
        with self.adapter.use([Reference(one, scale=scale) for one in images]):
            return call_pipeline(pipe, call)

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write an adapter in the official layout."""
        save_adapter(self.adapter, path, self.metadata(metadata))

    def restore(self, path: Path) -> None:
        """Read the adapter's file."""
        tensors: dict[str, Tensor] = from_official(read_tensors(path).tensors)
        load_tensors({"": self.trained}, tensors, path)

    def detach(self) -> None:
        """Detach the adapter from the U-Net."""
        self.attachment.detach()
