"""The shipped model: whole, small, an ordinary diffusers model, and it follows its image prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from imprompt import Reference, generate, load_adapter, mini
from imprompt.checkpoint import EMBEDDED, describe
from imprompt.errors import UnknownModel
from imprompt.evaluation.judges import CharacterJudge
from imprompt.lab.suite.scoring import read_pictures
from imprompt.lab.suite.structure import measure_edge_gaps, measure_line_shares
from imprompt.lab.suite.subjects import sample_subjects

SIZE = 128
FILES = [path for path in mini.WEIGHTS.rglob("*") if path.is_file()]
SHAPES = {"mini": ("base", 4), "mini-plus": ("plus", 16)}
"""Each adapter's variant and number of tokens."""

every_adapter = pytest.mark.parametrize("name", EMBEDDED)


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return mini.pipeline()


def draw(pipe: Any, **more: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipe("smiling", num_inference_steps=3, output_type="np", generator=generator, **more).images


def draw_pictures(pipe: Any) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(0)
    return pipe("smiling", num_inference_steps=10, generator=generator).images


def kept_share(
    judge: CharacterJudge, pictures: Sequence[Image.Image], references: Sequence[Image.Image]
) -> float:
    """The share of attributes that the judge reads alike in pictures and references."""
    made, shown = (read_pictures(judge, several).words for several in (pictures, references))
    alike = [one == other for name in shown for one, other in zip(made[name], shown[name], strict=True)]
    return sum(alike) / len(alike)


def test_all_of_it_is_at_most_80_megabytes() -> None:
    assert sum(path.stat().st_size for path in FILES) <= 80e6


@every_adapter
def test_an_adapter_file_explains_itself(name: str) -> None:
    description = describe(file_of(name))
    assert (description.variant, description.tokens, description.base_family) == (*SHAPES[name], "mini")
    assert not description.problems


@every_adapter
def test_an_adapter_file_finds_its_own_encoder_again(name: str) -> None:
    by_name, by_file = load_adapter(name), load_adapter(file_of(name))
    teal = Image.new("RGB", (SIZE, SIZE), "teal")
    pictures = [adapter.encode(teal).inputs for adapter in (by_name, by_file)]
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
    adapter, picture = load_adapter(name), Image.new("RGB", (SIZE, SIZE), "teal")
    alone = draw(pipe)
    with adapter.attach(pipe), adapter.references(Reference(picture, scale=0.0)):
        assert np.array_equal(draw(pipe), alone)
    assert np.array_equal(draw(pipe), alone)


@every_adapter
def test_diffusers_makes_the_same_picture_with_a_shipped_adapter(name: str) -> None:
    ours, theirs, adapter, file = mini.pipeline(), mini.pipeline(), load_adapter(name), file_of(name)
    embedded = adapter.encode(Image.new("RGB", (SIZE, SIZE), "teal"))
    theirs.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=None)
    ((kind, embedding),) = embedded.inputs.items()
    embeddings = [torch.stack([embedded.blank[kind][None], embedding])]
    with adapter.attach(ours), adapter.references(embedded):
        difference = np.abs(draw(ours) - draw(theirs, ip_adapter_image_embeds=embeddings)).max()
    assert difference <= 1e-4  # of [0, 1]; three steps at guidance 7.5 multiply rounding


@pytest.mark.parametrize("name", ["mini", pytest.param("mini-plus", marks=pytest.mark.slow)])
def test_pictures_keep_more_of_their_own_reference_than_of_another(
    name: str, pipe: StableDiffusionPipeline
) -> None:
    subjects, adapter = sample_subjects("combinations", 12), load_adapter(name)
    judge = CharacterJudge.load(mini.WEIGHTS / "judge")
    made = [generate(pipe, adapter, [subject.picture], steps=8)[0] for subject in subjects]
    own = kept_share(judge, made, [subject.picture for subject in subjects])
    others = kept_share(judge, made, [subject.picture for subject in (*subjects[1:], subjects[0])])
    assert own > others + 0.2


# What stands beside the base


def test_the_fine_tuned_base_makes_line_drawings_and_the_base_does_not(pipe: StableDiffusionPipeline) -> None:
    styled, plain = (draw_pictures(one) for one in (mini.pipeline(style="lines"), pipe))
    assert measure_line_shares(styled)[0] > measure_line_shares(plain)[0] + 0.5


def test_a_style_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownModel, match="no style 'neon'; the styles are: lines"):
        mini.pipeline(style="neon")


def test_edges_at_strength_zero_are_the_base(pipe: StableDiffusionPipeline) -> None:
    kind = StableDiffusionControlNetPipeline
    picture = mini.edge_picture(Image.new("RGB", (SIZE, SIZE), "teal"))
    edged = mini.as_pipeline(kind, pipe, controlnet=mini.controlnet())
    assert np.array_equal(draw(edged, image=picture, controlnet_conditioning_scale=0.0), draw(pipe))


def test_pictures_have_the_edges_that_were_asked_for(pipe: StableDiffusionPipeline) -> None:
    kind, subjects = StableDiffusionControlNetPipeline, sample_subjects("combinations", 6)
    edged: Any = mini.as_pipeline(kind, pipe, controlnet=mini.controlnet())
    controls = [mini.edge_picture(subject.picture) for subject in subjects]
    made = edged(
        [""] * 6,
        image=controls,
        num_inference_steps=8,
        generator=[torch.Generator().manual_seed(seed) for seed in range(6)],
    ).images
    assert sum(measure_edge_gaps(made, controls)) / 6 > 0.3


def test_a_plain_picture_has_no_edges_and_a_step_is_white() -> None:
    plain, step = Image.new("RGB", (SIZE, SIZE), "teal"), Image.new("RGB", (SIZE, SIZE))
    step.paste("white", (64, 0, SIZE, SIZE))
    found = np.asarray(mini.edge_picture(step))
    assert not np.asarray(mini.edge_picture(plain)).any()
    assert (found[:, 63:65] == 255).all()
    assert not found[:, :63].any()
    assert not found[:, 65:].any()


@pytest.mark.parametrize(("size", "mode"), [((SIZE, SIZE), "RGBA"), ((200, 90), "L"), ((30, 31), "P")])
def test_any_picture_has_an_edge_picture(size: tuple[int, int], mode: str) -> None:
    found = mini.edge_picture(Image.new(mode, size))
    assert (found.size, found.mode) == ((SIZE, SIZE), "RGB")


def test_inpainting_keeps_what_is_not_masked_and_leaves_the_base_alone(pipe: StableDiffusionPipeline) -> None:
    (subject,), config = sample_subjects("combinations", 1), pipe.unet.config
    picture, mask = subject.picture, Image.new("L", (SIZE, SIZE))
    mask.paste(255, (0, 64, SIZE, SIZE))
    inpaint: Any = mini.as_pipeline(mini.InpaintPipeline, pipe)
    settings = {"image": picture, "mask_image": mask, "height": SIZE, "width": SIZE, "strength": 1.0}
    painted = draw(inpaint, **settings)[0]
    difference = np.abs(painted - np.asarray(picture) / 255)
    assert difference[:48].mean() < 0.04
    assert difference[80:].mean() > 0.1
    with pytest.raises(ValueError, match="strength"):
        draw(inpaint, **settings | {"strength": 2.0})
    assert pipe.unet.config is config
