"""How image tokens reach the base while it is trained and shown: the method, and the simple way beside it.

    decoupled       output = Attn(Q, K, V) + λ Attn(Q, K', V')        trained: projection, every W'_k, W'_v
    concatenated    output = Attn(Q, [K, K_i], [V, V_i])              trained: the projection alone

The second is the paper's "simple adapter" (Ye et al. 2023, section 4.4.1): image tokens stand behind the
text's and go through the frozen W_k, W_v. It is here to be compared with, at equal data and steps.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from imprompt.adapter import ImagePromptAdapter
from imprompt.checkpoint import from_official, save_adapter
from imprompt.checkpoint.files import read_tensors, write_tensors
from imprompt.embeddings import ImageEmbeddings
from imprompt.encoder import Input
from imprompt.projection import ImageProjection
from imprompt.reference import Reference

Inputs = Mapping[Input, Tensor]

Denoise = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""(x_t "batch channels height width", times " batch", text embeddings, added conditions) → prediction."""

_EMBEDS = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


class Injection:
    """A way for image tokens into a base.

    Attributes:
        trained: everything that learns
    """

    trained: nn.Module

    def prompted(self, inputs: Inputs) -> contextlib.AbstractContextManager[Denoise]:
        """Give the U-Net under these image prompts, "batch 1 ..." each; call `backward` inside."""
        raise NotImplementedError

    def pictures(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Draw with the pipeline, one picture for each image prompt; `call` is what it is called with."""
        raise NotImplementedError

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the trained weights as a safetensors file."""
        raise NotImplementedError

    def restore(self, path: Path) -> None:
        """Read what `save` wrote into the trained weights."""
        raise NotImplementedError


class DecoupledInjection(Injection):
    """The method: an adapter, attached to the base's pipeline for good."""

    def __init__(self, adapter: ImagePromptAdapter, pipe: Any) -> None:
        self.trained = self.adapter = adapter
        self.unet = pipe.unet
        self.attachment = adapter.attach(pipe)

    @contextlib.contextmanager
    def prompted(self, inputs: Inputs) -> Iterator[Denoise]:
        """K' and V' of these image prompts act beside the text."""
        with self.adapter.conditioned_on(inputs):
            yield lambda noisy, times, text, added: denoised(self.unet, noisy, times, text, added)

    def pictures(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Draw with λ = `scale`."""
        with self.adapter.references([Reference(one, scale=scale) for one in images]):
            return pipe(**call).images

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write an adapter in the official layout."""
        save_adapter(self.adapter, path, metadata)

    def restore(self, path: Path) -> None:
        """Read the adapter's file."""
        self.trained.load_state_dict(from_official(read_tensors(path).tensors))


class ConcatenatedInjection(Injection):
    """The simple adapter: image tokens behind the text's."""

    def __init__(self, projection: ImageProjection, pipe: Any) -> None:
        self.trained = self.projection = projection
        self.unet = pipe.unet

    @contextlib.contextmanager
    def prompted(self, inputs: Inputs) -> Iterator[Denoise]:
        """The text that the U-Net reads is longer by the image tokens."""
        tokens = self.projection(*(inputs[name][:, 0] for name in self.projection.takes))

        def denoise(noisy: Tensor, times: Tensor, text: Tensor, added: Any) -> Tensor:
            return denoised(self.unet, noisy, times, torch.cat([text, tokens.to(text)], dim=1), added)

        yield denoise

    @torch.no_grad()
    def pictures(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Draw with the tokens multiplied by `scale`, the only handle there is."""
        texts = pipe.encode_prompt(
            prompt=call["prompt"],
            negative_prompt=call["negative_prompt"],
            device=pipe.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
        )
        embeds = dict(zip(_EMBEDS, texts, strict=False))
        sides = [one.inputs for one in images], [one.blank for one in images]
        for name, side in zip(_EMBEDS, sides, strict=False):
            tokens = scale * self.tokens(side)
            embeds[name] = torch.cat([embeds[name], tokens.to(embeds[name])], dim=1)
        rest = {key: value for key, value in call.items() if key not in ("prompt", "negative_prompt")}
        return pipe(**rest, **embeds).images

    def tokens(self, sides: Sequence[Inputs]) -> Float[Tensor, "batch tokens context_dim"]:
        """The image tokens of one picture for each sample."""
        weight = next(self.projection.parameters())
        inputs = []
        for name in self.projection.takes:
            axes = 2 if name == "image_features" else 1
            inputs.append(
                torch.stack(
                    [side[name].to(weight).reshape(-1, *side[name].shape[-axes:])[0] for side in sides]
                )
            )
        return self.projection(*inputs)

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the projection alone, under the official layout's names; it is no adapter without layers."""
        tensors = {f"image_proj.{name}": value for name, value in self.trained.state_dict().items()}
        write_tensors(tensors, path, {"injection": "concatenated", **metadata})

    def restore(self, path: Path) -> None:
        """Read the projection's tensors."""
        tensors = read_tensors(path).tensors
        self.trained.load_state_dict({n.removeprefix("image_proj."): value for n, value in tensors.items()})


def denoised(unet: Any, noisy: Tensor, times: Tensor, text: Tensor, added: Any) -> Tensor:
    """The U-Net's prediction."""
    return unet(noisy, times, text, added_cond_kwargs=added).sample
