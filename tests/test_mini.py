"""The shipped model: whole, small, an ordinary diffusers model, and it follows its image prompts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from imprompt.evaluation.figures.measures import edge_gap
from imprompt.evaluation.pictures import load_held_out
from PIL import Image

from imprompt import Reference, generate, load_adapter, mini
from imprompt.checkpoint import EMBEDDED, describe
from imprompt.errors import UnknownModel
from imprompt.evaluation.judge import load_judge
from imprompt.evaluation.metrics import cosine_similarity

FILES = [path for path in mini.WEIGHTS.rglob("*") if path.is_file()]
SHAPES = {"mini": ("base", 4), "mini-plus": ("plus", 16)}
"""Each adapter's variant and number of tokens."""

every_adapter = pytest.mark.parametrize("name", EMBEDDED)


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return mini.pipeline()


def draw(pipe: Any, **more: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipe("face", num_inference_steps=3, output_type="np", generator=generator, **more).images


def test_all_of_it_is_at_most_64_megabytes() -> None:
    assert sum(path.stat().st_size for path in FILES) <= 64e6


@every_adapter
def test_an_adapter_file_explains_itself(name: str) -> None:
    description = describe(file_of(name))
    assert (description.variant, description.tokens, description.base_family) == (*SHAPES[name], "mini")
    assert not description.problems


@every_adapter
def test_an_adapter_file_finds_its_own_encoder_again(name: str) -> None:
    by_name, by_file = load_adapter(name), load_adapter(file_of(name))
    pictures = [adapter.encode(Image.new("RGB", (64, 64), "teal")).inputs for adapter in (by_name, by_file)]
    assert all(torch.equal(value, pictures[1][key]) for key, value in pictures[0].items())


def test_an_embedded_adapter_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownModel, match="no embedded adapter 'maxi'; they are: mini, mini-plus"):
        mini.adapter("maxi")


def file_of(name: str) -> Path:
    return mini.WEIGHTS / "adapter" / EMBEDDED[name].file


def test_the_base_folder_is_a_diffusers_pipeline(pipe: StableDiffusionPipeline) -> None:
    folder = mini.WEIGHTS / "base"
    loaded: Any = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(loaded), draw(pipe))


@every_adapter
def test_scale_zero_is_the_embedded_base_bit_for_bit(name: str, pipe: StableDiffusionPipeline) -> None:
    adapter, picture = load_adapter(name), Image.new("RGB", (64, 64), "teal")
    alone = draw(pipe)
    with adapter.attach(pipe), adapter.references(Reference(picture, scale=0.0)):
        assert np.array_equal(draw(pipe), alone)
    assert np.array_equal(draw(pipe), alone)


@every_adapter
def test_diffusers_makes_the_same_picture_with_a_shipped_adapter(name: str) -> None:
    ours, theirs, adapter, file = mini.pipeline(), mini.pipeline(), load_adapter(name), file_of(name)
    embedded = adapter.encode(Image.new("RGB", (64, 64), "teal"))
    theirs.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=None)
    ((kind, embedding),) = embedded.inputs.items()
    embeddings = [torch.stack([embedded.blank[kind][None], embedding])]
    with adapter.attach(ours), adapter.references(embedded):
        difference = np.abs(draw(ours) - draw(theirs, ip_adapter_image_embeds=embeddings)).max()
    assert difference <= 1e-4  # of [0, 1]; three steps at guidance 7.5 multiply rounding


@every_adapter
def test_pictures_look_more_like_their_own_reference_than_like_another(
    name: str, pipe: StableDiffusionPipeline
) -> None:
    held_out, judge, adapter = load_held_out(), load_judge(mini.WEIGHTS / "judge"), load_adapter(name)
    pictures = [held_out.on_white(drawing) for drawing in held_out.references(12)]
    made = [generate(pipe, adapter, [picture], steps=8)[0] for picture in pictures]
    similarity = cosine_similarity(judge.features(made), judge.features(pictures))
    own, others = similarity.diagonal().mean(), similarity.roll(1, dims=1).diagonal().mean()
    assert own > others + 0.1


# What stands beside the base


def test_the_fine_tuned_base_draws_on_dark_blue_and_the_base_does_not(pipe: StableDiffusionPipeline) -> None:
    styled, plain = (draw(one)[0].mean(axis=(0, 1)) for one in (mini.pipeline(style="blueprint"), pipe))
    assert styled[2] > 1.3 * styled[0]
    assert plain[2] < 1.1 * plain[0]


def test_a_style_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownModel, match="no style 'neon'; the styles are: blueprint"):
        mini.pipeline(style="neon")


def test_edges_at_strength_zero_are_the_base(pipe: StableDiffusionPipeline) -> None:
    kind, picture = StableDiffusionControlNetPipeline, mini.edge_picture(Image.new("RGB", (64, 64), "teal"))
    edged = mini.as_pipeline(kind, pipe, controlnet=mini.controlnet())
    assert np.array_equal(draw(edged, image=picture, controlnet_conditioning_scale=0.0), draw(pipe))


def test_pictures_have_the_edges_that_were_asked_for(pipe: StableDiffusionPipeline) -> None:
    kind, held_out = StableDiffusionControlNetPipeline, load_held_out()
    edged: Any = mini.as_pipeline(kind, pipe, controlnet=mini.controlnet())
    controls = [mini.edge_picture(held_out.on_white(drawing)) for drawing in held_out.references(6)]
    made = edged(
        [""] * 6,
        image=controls,
        num_inference_steps=8,
        generator=[torch.Generator().manual_seed(seed) for seed in range(6)],
    ).images
    agreement = edge_gap(made, controls)
    assert agreement is not None
    assert agreement.mean > 0.1


def test_a_plain_picture_has_no_edges_and_a_step_is_white() -> None:
    plain, step = Image.new("RGB", (64, 64), "teal"), Image.new("RGB", (64, 64))
    step.paste("white", (32, 0, 64, 64))
    found = np.asarray(mini.edge_picture(step))
    assert not np.asarray(mini.edge_picture(plain)).any()
    assert (found[:, 31:33] == 255).all()
    assert not found[:, :31].any()
    assert not found[:, 33:].any()


@pytest.mark.parametrize(("size", "mode"), [((64, 64), "RGBA"), ((200, 90), "L"), ((30, 31), "P")])
def test_any_picture_has_an_edge_picture(size: tuple[int, int], mode: str) -> None:
    found = mini.edge_picture(Image.new(mode, size))
    assert (found.size, found.mode) == ((64, 64), "RGB")


def test_inpainting_keeps_what_is_not_masked_and_leaves_the_base_alone(pipe: StableDiffusionPipeline) -> None:
    held_out, config = load_held_out(), pipe.unet.config
    picture, mask = held_out.on_white(held_out.reference("penguin")), Image.new("L", (64, 64))
    mask.paste(255, (0, 32, 64, 64))
    inpaint: Any = mini.as_pipeline(mini.InpaintPipeline, pipe)
    settings = {"image": picture, "mask_image": mask, "height": 64, "width": 64, "strength": 1.0}
    painted = draw(inpaint, **settings)[0]
    difference = np.abs(painted - np.asarray(picture) / 255)
    assert difference[:24].mean() < 0.04
    assert difference[40:].mean() > 0.1
    with pytest.raises(ValueError, match="strength"):
        draw(inpaint, **settings | {"strength": 2.0})
    assert pipe.unet.config is config
