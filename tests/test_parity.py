"""Against diffusers' own IP-Adapter: the same random base and adapter weights give the same latents.

Tolerance 1e-5 absolute, float32, on latents that reach ±10 (one unit in the last place there is 1e-6). One
image at λ = 1 comes out equal to the last bit. Otherwise the order of rounding differs: λ is folded into V'
here and multiplied afterwards there, and guidance multiplies what is left by its own scale.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.inputs.encoder import ImageEncoder
from imprompt.reference import Reference

TOLERANCE = 1e-5
PIPELINES = {"sd": tiny.sd_pipeline, "sdxl": tiny.xl_pipeline}


def official(adapter: ImagePromptAdapter) -> Any:
    """The two dictionaries of an official `.bin` file."""
    layers = {n: adapter.key_value(n) for n in adapter.shapes}
    keys = {f"{n}.to_k_ip.weight": layer.to_key.weight.detach() for n, layer in layers.items()}
    values = {f"{n}.to_v_ip.weight": layer.to_value.weight.detach() for n, layer in layers.items()}
    return {"image_proj": adapter.projection.state_dict(), "ip_adapter": keys | values}


def latents(pipe: Any, **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    settings = {"prompt": "a cat", "num_inference_steps": 3, "guidance_scale": 3.0, "generator": generator}
    return pipe(**(settings | arguments), output_type="latent").images


@contextmanager
def theirs(pipe: Any, adapter: ImagePromptAdapter, scale: float) -> Iterator[None]:
    pipe.load_ip_adapter(official(adapter), subfolder="", weight_name="", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(scale)
    yield
    pipe.unload_ip_adapter()


def for_diffusers(embeddings: Tensor, guided: bool) -> list[Tensor]:
    one = embeddings[None]
    return [torch.cat([torch.zeros_like(one), one]) if guided else one]


@pytest.fixture(params=PIPELINES)
def pipe(request: pytest.FixtureRequest) -> Any:
    build: Callable[..., Any] = PIPELINES[request.param]
    return build(image_encoder=True)


@pytest.fixture
def adapter(pipe: Any) -> ImagePromptAdapter:
    return tiny.adapter(pipe.unet)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("scale", [0.6, 1.0])
def test_embeddings_against_diffusers(
    pipe: Any, adapter: ImagePromptAdapter, scale: float, images: int, guidance_scale: float
) -> None:
    embeddings = tiny.embedding(images)
    base = latents(pipe, guidance_scale=guidance_scale)
    with adapter.attach(pipe), adapter.references(Reference(embeddings, scale=scale)):
        ours = latents(pipe, guidance_scale=guidance_scale)
    with theirs(pipe, adapter, scale):
        embeds = for_diffusers(embeddings, guidance_scale > 1)
        expected = latents(pipe, guidance_scale=guidance_scale, ip_adapter_image_embeds=embeds)
    assert (ours - base).abs().max() > 1000 * TOLERANCE
    assert (ours - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_pictures_against_diffusers(
    pipe: Any, adapter: ImagePromptAdapter, seeds: tuple[int, ...], guidance_scale: float
) -> None:
    pictures: list[Image.Image] = [tiny.picture(seed=seed) for seed in seeds]
    adapter.image_encoder = ImageEncoder(pipe.image_encoder)
    with adapter.attach(pipe), adapter.references(Reference(pictures)):
        ours = latents(pipe, guidance_scale=guidance_scale)
    with theirs(pipe, adapter, 1.0):
        expected = latents(pipe, guidance_scale=guidance_scale, ip_adapter_image=[pictures])
    assert (ours - expected).abs().max() <= TOLERANCE


def test_one_image_at_full_scale_equals_diffusers_to_the_last_bit(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    embeddings = tiny.embedding(1)
    if not multiplies_rows_alike(adapter, embeddings):
        pytest.skip("this processor sums the products of one row in another order than those of two")
    with adapter.attach(pipe), adapter.references(embeddings):
        ours = latents(pipe)
    with theirs(pipe, adapter, 1.0):
        expected = latents(pipe, ip_adapter_image_embeds=for_diffusers(embeddings, guided=True))
    assert torch.equal(ours, expected)


def multiplies_rows_alike(adapter: ImagePromptAdapter, embeddings: Tensor) -> bool:
    """Whether a row is projected to the same bits alone, as we do it, and beside zeros, as diffusers does."""
    rows = torch.cat([torch.zeros_like(embeddings), embeddings])
    alone, beside = (adapter.image_tokens({"image_embedding": some[:, None]}) for some in (embeddings, rows))
    return torch.equal(alone, beside[1:])


def test_several_pictures_of_one_prompt_against_diffusers(pipe: Any, adapter: ImagePromptAdapter) -> None:
    embeddings = tiny.embedding(1)
    with adapter.attach(pipe), adapter.references(embeddings):
        ours = latents(pipe, num_images_per_prompt=3)
    with theirs(pipe, adapter, 1.0):
        embeds = for_diffusers(embeddings, guided=True)
        expected = latents(pipe, num_images_per_prompt=3, ip_adapter_image_embeds=embeds)
    assert (ours - expected).abs().max() <= TOLERANCE


def test_several_adapters_against_diffusers(pipe: Any, adapter: ImagePromptAdapter) -> None:
    other = tiny.adapter(pipe.unet, seed=9)
    one, two = tiny.embedding(1, seed=1), tiny.embedding(1, seed=2)
    with adapter.attach(pipe), other.attach(pipe), adapter.references(one), other.references(two):
        ours = latents(pipe)
    files = [official(adapter), official(other)]
    pipe.load_ip_adapter(files, subfolder=["", ""], weight_name=["", ""], image_encoder_folder=None)
    embeds = for_diffusers(one, guided=True) + for_diffusers(two, guided=True)
    expected = latents(pipe, ip_adapter_image_embeds=embeds)
    assert (ours - expected).abs().max() <= TOLERANCE
