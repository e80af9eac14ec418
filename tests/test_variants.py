"""Every published variant: its size on the true architecture, and the same pictures as diffusers makes."""

import copy
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from variants import (
    ARCHITECTURES,
    Variant,
    variants_markdown,
    variants_table,
)

import adapter_files
import tiny
import tiny_bases
import tiny_pipelines
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint import PUBLISHED
from imprompt.checkpoint.published import describe_encoder
from imprompt.inputs.choices import Input
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.projection import FacePlusProjection
from imprompt.reference import Reference

PAGE = Path(__file__).parent.parent / "docs" / "variants.md"

KV_SD, KV_XL = 19_169_280, 340_787_200
LORA_SD, LORA_XL = 25_509_888, 185_794_560
PLUS_SD, PLUS_XL = (KV_SD, 29_918_208, 0, 49_087_488), (KV_XL, 82_961_664, 0, 423_748_864)
FACE_PLUS_SD = (KV_SD, 33_581_568, LORA_SD, 78_260_736)
PUBLISHED_COUNTS = {
    "sd15": (KV_SD, 3_150_336, 0, 22_319_616),
    "sd15-light": (KV_SD, 3_150_336, 0, 22_319_616),
    "sd15-vit-G": (KV_SD, 3_936_768, 0, 23_106_048),
    "sd15-plus": PLUS_SD,
    "sd15-plus-face": PLUS_SD,
    "sd15-full-face": (KV_SD, 2_625_024, 0, 21_794_304),
    "sd15-composition": PLUS_SD,
    "sdxl": (KV_XL, 10_498_048, 0, 351_285_248),
    "sdxl-vit-h": (KV_XL, 8_400_896, 0, 349_188_096),
    "sdxl-plus": PLUS_XL,
    "sdxl-plus-face": PLUS_XL,
    "sdxl-composition": PLUS_XL,
    "sd15-faceid": (KV_SD, 3_675_648, LORA_SD, 48_354_816),
    "sd15-faceid-plus": FACE_PLUS_SD,
    "sd15-faceid-plusv2": FACE_PLUS_SD,
    "sd15-faceid-portrait": (KV_SD, 13_122_048, 0, 32_291_328),
    "sdxl-faceid": (KV_XL, 8_926_208, LORA_XL, 535_507_968),
    "sdxl-faceid-plusv2": (KV_XL, 217_125_888, LORA_XL, 743_707_648),
    "sdxl-faceid-portrait": (KV_XL, 34_116_608, 0, 374_903_808),
    "flux-xlabs": (478_267_392, 12_607_488, 0, 490_874_880),
    "flux-xlabs-v2": (478_267_392, 50_405_376, 0, 528_672_768),
    "flux-instantx": (1_434_451_968, 1_211_148_544, 0, 2_645_600_512),
    "flux-redux": (0, 64_503_808, 0, 64_503_808),
    "sd35": (686_288_512, 111_637_376, 0, 797_925_888),
}
"""K' and V', projection, LoRA, all: the counts of the published files (their sizes agree with them). That of
Kolors-Plus is not known to us."""


@pytest.fixture(scope="module")
def table() -> dict[str, Variant]:
    return {row.name: row for row in variants_table()}


def test_every_published_adapter_is_in_the_table() -> None:
    assert set(ARCHITECTURES) == set(PUBLISHED) == set(PUBLISHED_COUNTS) | {"kolors-plus"}


@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_a_variant_has_the_published_count(table: Mapping[str, Variant], name: str) -> None:
    row = table[name]
    assert (row.key_value, row.projection, row.lora, row.total) == PUBLISHED_COUNTS[name]
    assert row.total == sum(math.prod(shape) for shape in row.keys.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_of_short_names_names_the_encoder_that_the_shapes_ask_for(name: str) -> None:
    with torch.device("meta"):
        takes = ARCHITECTURES[name].projection().takes
    sources = {describe_encoder(*taken).source for taken in takes.items()} - {None}
    assert sources == ({PUBLISHED[name].encoder} - {None})


def test_the_page_is_what_the_script_prints() -> None:
    assert PAGE.read_text() == variants_markdown() + "\n"


# Parity with diffusers, through whole pipelines

STEPS = 2


def embeddings(adapter: ImagePromptAdapter, images: int = 1) -> ImageEmbeddings:
    """Random inputs of an adapter; features stand on the negative branch too, as they do in diffusers."""
    shapes: dict[Input, tuple[int, ...]] = {
        name: (adapter_files.PATCHES, width) if name == "image_features" else (width,)
        for name, width in adapter.projection.takes.items()
    }
    inputs: dict[Input, Tensor] = {
        name: tiny_bases.numbers(images, *shape, seed=i) for i, (name, shape) in enumerate(shapes.items())
    }
    blank: dict[Input, Tensor] = {
        name: tiny_bases.numbers(*shape, seed=7) if name == "image_features" else torch.zeros(shape)
        for name, shape in shapes.items()
    }
    return ImageEmbeddings(inputs, blank)


def for_diffusers(given: ImageEmbeddings, name: Input) -> Tensor:
    """[negative, positive], each "1 images ..."."""
    positive = given.inputs[name]
    return torch.stack([given.blank[name].expand_as(positive), positive])


def run(pipe: Any, **more: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    more = {"guidance_scale": 5.0, "num_inference_steps": STEPS, "output_type": "np"} | more
    return pipe(["a cat"], generator=generator, **more).images


def ours(pipe: Any, adapter: ImagePromptAdapter, reference: Reference) -> np.ndarray:
    with adapter.attach(pipe), adapter.references(reference):
        return run(pipe)


def theirs(
    pipe: Any, adapter: ImagePromptAdapter, given: ImageEmbeddings, scale: float, strength: float = 1.0
) -> np.ndarray:
    file: Any = adapter_files.nest_tensors(adapter_files.official(adapter))
    pipe.load_ip_adapter(file, subfolder="", weight_name="", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(scale)
    first = next(iter(adapter.projection.takes))
    if isinstance(adapter.projection, FacePlusProjection):
        projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        projection.clip_embeds = for_diffusers(given, "image_features")
        projection.shortcut = adapter.projection.version == 2
        projection.shortcut_scale = strength
    return run(pipe, ip_adapter_image_embeds=[for_diffusers(given, first)])


PIPELINES = {"SD": tiny.sd_pipeline, "SDXL": tiny.xl_pipeline}


@pytest.mark.parametrize("base", PIPELINES)
@pytest.mark.parametrize("variant", adapter_files.PROJECTIONS)
def test_diffusers_makes_the_same_picture_with_every_variant(variant: str, base: str) -> None:
    pipe: Any = PIPELINES[base]()
    adapter = adapter_files.adapter(pipe.unet, variant)
    given, scale, strength = embeddings(adapter), 0.6, 1.7 if variant == "faceid-plusv2" else 1.0
    plain = run(pipe)
    made = ours(pipe, adapter, Reference(given, scale=scale, face_scale=strength))
    assert np.array_equal(run(pipe), plain)
    expected = theirs(pipe, adapter, given, scale, strength)
    assert np.abs(made - expected).max() <= 1e-5
    assert np.abs(made - plain).max() > 1e-2


@pytest.mark.parametrize("variant", ["base", "plus", "faceid-portrait"])
def test_diffusers_makes_the_same_picture_of_several_images(variant: str) -> None:
    pipe: Any = tiny.sd_pipeline()
    adapter = adapter_files.adapter(pipe.unet, variant)
    given = embeddings(adapter, images=3)
    made = ours(pipe, adapter, Reference(given))
    assert np.abs(made - theirs(pipe, adapter, given, 1.0)).max() <= 1e-5


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_diffusers_makes_the_same_picture_on_kolors() -> None:
    pipe: Any = kolors()
    adapter = adapter_files.adapter(pipe.unet, "plus")
    given = embeddings(adapter)
    made = ours(pipe, adapter, Reference(given))
    assert np.abs(made - theirs(pipe, adapter, given, 1.0)).max() <= 1e-5


def kolors() -> Any:
    kind = tiny_pipelines.kind_of("KolorsPipeline")
    parts = tiny_bases.base_parts("Kolors") | {"scheduler": tiny_bases.base_scheduler("Kolors")}
    wanted = inspect.signature(kind.__init__).parameters
    unet = copy.deepcopy(tiny_bases.base_unet("Kolors"))
    pipe = kind(unet=unet, **{name: part for name, part in parts.items() if name in wanted})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("variant", ["base", "plus", "full-face"])
def test_diffusers_makes_the_same_picture_of_a_picture(variant: str) -> None:
    """From the picture on: its pixels, the encoder, the features of "no image"."""
    pipe: Any = tiny.sd_pipeline(image_encoder=True)
    adapter = adapter_files.adapter(pipe.unet, variant)
    adapter.image_encoder = pipe.image_encoder
    picture = tiny.picture()
    made = ours(pipe, adapter, Reference(picture))
    file: Any = adapter_files.nest_tensors(adapter_files.official(adapter))
    pipe.load_ip_adapter(file, subfolder="", weight_name="", image_encoder_folder=None)
    assert np.abs(made - run(pipe, ip_adapter_image=picture)).max() <= 1e-5
