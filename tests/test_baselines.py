"""Methods of the benchmarks: each baseline runs, from a folder of tiny random models of its class."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
import tiny_baselines
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint import save_adapter
from imprompt.errors import AdapterMismatch, OutputError
from imprompt.evaluation.methods import METHODS, Method, load_conditioning_encoder, load_method
from imprompt.evaluation.settings import DrawingSettings, MethodSettings
from imprompt.projection import FaceProjection

NAMES = list(tiny_baselines.BASELINES)
STEPS = {"steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> dict[str, MethodSettings]:
    folder = tmp_path_factory.mktemp("baselines")
    return {
        name: MethodSettings(name=name, **make(folder)) for name, make in tiny_baselines.BASELINES.items()
    }


def pixels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures])


def drawing_of(name: str) -> DrawingSettings:
    """16 px; Kandinsky's own size is 512 whatever its U-Net's, and Karlo cannot be asked for any."""
    return DrawingSettings(**STEPS, size=16 if METHODS[name].takes_size else 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_draws_what_follows_from_reference_and_seed(
    name: str, methods: dict[str, MethodSettings]
) -> None:
    method: Method = load_method(methods[name], drawing_of(name), "cpu")
    with torch.inference_mode():
        cat, dog = tiny.picture(seed=1), tiny.picture(seed=2)
        first = pixels(method.draw(cat, "", 1.0, [3, 4]))
        assert first.shape == (2, 16, 16, 3)
        assert np.array_equal(first, pixels(method.draw(cat, "", 1.0, [3, 4])))
        assert not np.array_equal(first[0], first[1])
        assert not np.array_equal(first, pixels(method.draw(dog, "", 1.0, [3, 4])))
    assert (load_conditioning_encoder(methods[name]) is None) == (name == "controlnet-shuffle")


DECODERS = ("vae", "movq", "super_res_last")
"""What makes the pixels, by its name in a pipeline."""


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_that_is_not_finite_is_never_measured(
    name: str, methods: dict[str, MethodSettings]
) -> None:
    method: Method = load_method(methods[name], drawing_of(name), "cpu")
    (decoder,) = (module for part, module in method.modules() if part in DECODERS)
    for parameter in decoder.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    with torch.inference_mode(), pytest.raises(OutputError, match=r"the picture of seed 3 \(and 1 more\)"):
        method.draw(tiny.picture(seed=1), "", 1.0, [3, 4])


def test_an_adapter_that_reads_faces_is_refused(tmp_path: Path) -> None:
    """Most references of a benchmark show no face; one that is found in a cup would be measured."""
    projection = FaceProjection(tiny.SD_CONTEXT, embedding_dim=16)
    path = tmp_path / "face.safetensors"
    save_adapter(ImagePromptAdapter.for_unet(tiny.sd_unet(), projection), path)
    with pytest.raises(AdapterMismatch, match="is of a FaceID variant"):
        load_conditioning_encoder(MethodSettings(name="ip-adapter", adapter=str(path)))
