"""Pictures that are none: painted black by a safety checker, or not finite."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig

import tiny
from imprompt.errors import OutputError
from imprompt.generation.generate import generate
from imprompt.generation.pipeline_call import call_pipeline, call_pipeline_by_rows
from imprompt.inputs.encoder import load_image_encoder
from imprompt.training.frozen_base import FrozenBase


def strict_checker() -> StableDiffusionSafetyChecker:
    """A safety checker that takes every picture for one that must not be seen."""
    vision = tiny.vision_model().config
    config = CLIPConfig(
        text_config=tiny.text_config(20, 20).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=vision.projection_dim,
    )
    checker = StableDiffusionSafetyChecker(config).eval()
    checker.concept_embeds_weights.data.fill_(-9.0)
    return checker


def checked_pipeline() -> Any:
    pipe: Any = tiny.sd_pipeline()
    pipe.register_modules(safety_checker=strict_checker())
    return pipe


def decode(pixels: torch.Tensor) -> Any:
    """What a pipeline gives back for decoded pixels, as diffusers makes it."""
    return SimpleNamespace(images=VaeImageProcessor().postprocess(pixels, output_type="pil"))


def test_a_generation_says_which_seed_the_safety_checker_painted_black() -> None:
    pipe = checked_pipeline()
    adapter = tiny.adapter(pipe.unet)
    adapter.image_encoder = load_image_encoder(tiny.vision_model(seed=3))
    with pytest.raises(OutputError, match=r"the picture of seed 7 was painted black by .* safety checker"):
        generate(pipe, adapter, [tiny.picture()], steps=1, seeds=[7])


def test_a_base_that_is_trained_on_has_no_safety_checker() -> None:
    pipe = checked_pipeline()
    FrozenBase(pipe, None)
    assert pipe.safety_checker is None


@pytest.mark.parametrize("value", [float("nan"), float("-nan")])
def test_a_picture_that_is_not_finite_is_named(value: float) -> None:
    pixels = torch.zeros(3, 3, 8, 8)
    pixels[1] = value
    with pytest.raises(OutputError, match=r"the picture of seed 5 holds values that are not finite"):
        call_pipeline(lambda: decode(pixels), {}, seeds=[4, 5, 6])
    pixels[2] = value
    with pytest.raises(OutputError, match=r"^picture 2 \(and 1 more\) holds values that are not finite"):
        call_pipeline(lambda: decode(pixels), {})


def test_a_picture_that_is_not_finite_in_one_place_is_said() -> None:
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[0, 0, 0, 0] = float("nan")
    with pytest.raises(OutputError, match="picture 1 holds values that are not finite"):
        call_pipeline(lambda: decode(pixels), {})


def test_a_generation_whose_weights_overflow_is_no_success() -> None:
    pipe = tiny.sd_pipeline()
    adapter = tiny.adapter(pipe.unet)
    adapter.image_encoder = load_image_encoder(tiny.vision_model(seed=3))
    torch.nn.init.constant_(pipe.vae.decoder.conv_in.weight, float("nan"))
    with pytest.raises(OutputError, match=r"the picture of seed 3 holds values that are not finite"):
        generate(pipe, adapter, [tiny.picture()], steps=1, seeds=[3])


def test_a_black_picture_that_the_model_made_is_a_picture() -> None:
    (picture,) = call_pipeline(lambda: decode(torch.full((1, 3, 8, 8), -1.0)), {})
    assert not np.asarray(picture).any()


def test_a_fault_in_another_thread_is_not_taken_for_this_one() -> None:
    def elsewhere() -> None:
        with np.errstate(invalid="ignore"):
            np.array([np.nan]).astype(np.uint8)

    def call() -> Any:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return decode(torch.zeros(1, 3, 8, 8))

    assert len(call_pipeline(call, {})) == 1


def test_rows_are_called_in_batches_each_with_its_own_noise() -> None:
    calls: list[dict[str, Any]] = []
    done: list[int] = []

    def call(rows: slice, arguments: dict[str, Any]) -> list[Image.Image]:
        calls.append({"rows": rows, **arguments})
        return [Image.new("L", (1, 1), seed) for seed in seeds[rows]]

    seeds = [5, 6, 7]
    arguments = {"prompt": ["a", "b", "c"], "num_inference_steps": 2}
    pictures = call_pipeline_by_rows(call, arguments, seeds, batch_size=2, advance=done.append)
    assert [picture.getpixel((0, 0)) for picture in pictures] == seeds
    assert [(one["prompt"], one["num_inference_steps"]) for one in calls] == [(["a", "b"], 2), (["c"], 2)]
    assert [noise.initial_seed() for one in calls for noise in one["generator"]] == seeds
    assert done == [2, 1]
