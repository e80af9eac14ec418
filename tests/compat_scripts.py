"""Scripts that use diffusers' IP-Adapter calls, run as they are and after `imprompt.compat.enable`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import adapter_files
import tiny
from imprompt import compat
from imprompt.adapter.module import ImagePromptAdapter

TOLERANCE = 1e-5

Script = Callable[[Any], Tensor]
"""Loads adapters into a pipeline, calls it, and returns the latents."""

ONE, TWO = tiny.picture(seed=1), tiny.picture(seed=2)


def sd() -> Any:
    return tiny.sd_pipeline(image_encoder=True)


def xl() -> Any:
    return tiny.xl_pipeline(image_encoder=True)


def load(pipe: Any, *adapters: ImagePromptAdapter, **options: Any) -> None:
    """Load adapters from state dicts, as `.bin` files have them."""
    blanks = [""] * len(adapters)
    files = [adapter_files.nest_tensors(adapter_files.official(adapter)) for adapter in adapters]
    settings = {"subfolder": blanks, "weight_name": blanks, "image_encoder_folder": None}
    pipe.load_ip_adapter(files, **settings | options)


def load_base(pipe: Any, *seeds: int) -> None:
    """Load adapters of the base variant with random weights."""
    load(pipe, *(tiny.adapter(pipe.unet, seed=seed) for seed in seeds or (0,)))


def latents(pipe: Any, **arguments: Any) -> Tensor:
    prompts = arguments.get("prompt", "a cat")
    count = (1 if isinstance(prompts, str) else len(prompts)) * arguments.get("num_images_per_prompt", 1)
    settings = {"prompt": prompts, "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    settings["generator"] = [torch.Generator().manual_seed(seed) for seed in range(count)]
    return pipe(**settings | arguments).images


def run_in_diffusers(pipe: Any, script: Script) -> Tensor:
    """Run a script as it is, and remove what it leaves."""
    try:
        return script(pipe)
    finally:
        pipe.unload_ip_adapter()
        if hasattr(pipe.unet, "text_encoder_hid_proj"):  # diffusers forgets Kolors's own the next time
            del pipe.unet.text_encoder_hid_proj
        if getattr(pipe.unet, "peft_config", None):  # nor does it remove FaceID's LoRA
            pipe.unload_lora_weights()


def run_in_imprompt(pipe: Any, script: Script) -> Tensor:
    """Run a script after `enable`."""
    compat.enable(pipe)
    try:
        return script(pipe)
    finally:
        compat.disable(pipe)


def assert_unchanged(make: Callable[[], Any], script: Script) -> Tensor:
    """Compare both on pipelines of their own; return the latents."""
    theirs, ours = run_in_diffusers(make(), script), run_in_imprompt(make(), script)
    assert_close(ours, theirs)
    return ours


def assert_close(ours: Tensor, expected: Tensor) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= TOLERANCE


def assert_differ(ours: Tensor, other: Tensor) -> None:
    assert (ours - other).abs().max() > 1000 * TOLERANCE


def stack(embeddings: Tensor, guided: bool = True) -> Tensor:
    """Embeddings of one adapter, "images dim", in diffusers' layout: the negative and the positive."""
    one = embeddings[None]
    return torch.cat([torch.zeros_like(one), one]) if guided else one


def seeded_embeddings(seeds: Sequence[int]) -> Tensor:
    return torch.cat([tiny.embedding(1, seed=seed) for seed in seeds])
