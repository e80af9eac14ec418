"""The shipped model: whole, small, an ordinary diffusers model, and it follows its image prompts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from imprompt import Reference, generate, load_adapter, mini
from imprompt.checkpoint import describe
from imprompt.evaluation.judge import load_judge
from imprompt.evaluation.metrics import cosine_similarity
from imprompt.evaluation.pictures import load_held_out

FILES = [path for path in mini.WEIGHTS.rglob("*") if path.is_file()]
ADAPTER = mini.WEIGHTS / "adapter" / "ip-adapter.safetensors"


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return mini.pipeline()


def draw(pipe: Any, **more: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipe("face", num_inference_steps=3, output_type="np", generator=generator, **more).images


def test_all_of_it_is_at_most_64_megabytes() -> None:
    assert sum(path.stat().st_size for path in FILES) <= 64e6


def test_the_adapter_file_explains_itself() -> None:
    description = describe(ADAPTER)
    assert (description.variant, description.base_family, description.tokens) == ("base", "mini", 4)
    assert not description.problems


def test_the_base_folder_is_a_diffusers_pipeline(pipe: StableDiffusionPipeline) -> None:
    folder = mini.WEIGHTS / "base"
    loaded: Any = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(loaded), draw(pipe))


def test_scale_zero_is_the_embedded_base_bit_for_bit(pipe: StableDiffusionPipeline) -> None:
    adapter, picture = load_adapter("mini"), Image.new("RGB", (64, 64), "teal")
    alone = draw(pipe)
    with adapter.attach(pipe), adapter.references(Reference(picture, scale=0.0)):
        assert np.array_equal(draw(pipe), alone)
    assert np.array_equal(draw(pipe), alone)


def test_diffusers_makes_the_same_picture_with_the_shipped_adapter(tmp_path: Path) -> None:
    ours, theirs, adapter = mini.pipeline(), mini.pipeline(), load_adapter("mini")
    embedding = torch.randn(1, 256, generator=torch.Generator().manual_seed(1))
    theirs.load_ip_adapter(
        str(ADAPTER.parent), subfolder="", weight_name=ADAPTER.name, image_encoder_folder=None
    )
    embeddings = [torch.stack([torch.zeros_like(embedding), embedding])]
    with adapter.attach(ours), adapter.references(embedding):
        difference = np.abs(draw(ours) - draw(theirs, ip_adapter_image_embeds=embeddings)).max()
    assert difference <= 1e-4  # of [0, 1]; three steps at guidance 7.5 multiply rounding


def test_pictures_look_more_like_their_own_reference_than_like_another(pipe: StableDiffusionPipeline) -> None:
    held_out, judge, adapter = load_held_out(), load_judge(mini.WEIGHTS / "judge"), load_adapter("mini")
    pictures = [held_out.on_white(drawing) for drawing in held_out.references(12)]
    made = [generate(pipe, adapter, [picture], steps=8)[0] for picture in pictures]
    similarity = cosine_similarity(judge.features(made), judge.features(pictures))
    own, others = similarity.diagonal().mean(), similarity.roll(1, dims=1).diagonal().mean()
    assert own > others + 0.1
