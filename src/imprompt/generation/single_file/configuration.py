"""A base's configuration: a folder in diffusers' format without weights, composed of parts in this package.

The values are those of the published folders of runwayml/stable-diffusion-v1-5 and
stable-diffusion-inpainting, of stabilityai/stable-diffusion-2-1, -2-1-base, -2-inpainting and
stable-diffusion-xl-base-1.0, and of diffusers/stable-diffusion-xl-1.0-inpainting-0.1. They were written from
knowledge, not downloaded; the tests compare numbers of parameters. SD 2.1 computes attention in float32
(`upcast_attention`), and SD 2.0 cannot be told from it, so both do. A single file has no safety checker.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imprompt.generation.single_file.bases import BaseVariant, Family
from imprompt.generation.single_file.recognition import require_base
from imprompt.generation.single_file.tokenizer import write_tokenizer

Configuration = dict[str, Any]

_FOLDER = Path(__file__).parent / "configurations"
_UNETS: Mapping[Family, str] = {"SD1.5": "unet-sd15", "SD2.x": "unet-sd2", "SDXL": "unet-sdxl"}
_TEXTS: Mapping[Family, tuple[str, ...]] = {
    "SD1.5": ("text-clip-l",),
    "SD2.x": ("text-openclip-h",),
    "SDXL": ("text-clip-l", "text-openclip-bigg"),
}
_OPENCLIP = "text-openclip"


def compose_configuration(base: BaseVariant) -> dict[str, Configuration]:
    """Return the configuration of each part that has one: "unet", "vae", "text_encoder", "scheduler", ..."""
    texts = {name: _read(file) for name, file in _name_texts(base.family).items()}
    return {"unet": _unet(base), "vae": _autoencoder(base), "scheduler": _scheduler(base), **texts}


def write_configuration(base: BaseVariant, folder: Path) -> None:
    """Write a base's folder in diffusers' format: model_index.json, and a folder for each part.

    Args:
        base: the base
        folder: an existing folder
    """
    parts = compose_configuration(base)
    for name, configuration in parts.items():
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        _write(configuration, folder / name / file)
    for name, file in _name_texts(base.family).items():
        # OpenCLIP pads with zeros, the token "!" (mlfoundations/open_clip, tokenizer.py). As in the published
        # folders, transformers then reads a "!" in a text as padding too.
        padding = "!" if file.startswith(_OPENCLIP) else None
        write_tokenizer(folder / name.replace("text_encoder", "tokenizer"), padding=padding)
    _write(_index(base, parts), folder / "model_index.json")


def read_configuration(path: Path, part: str) -> Configuration:
    """Return the configuration of a part of the base in a single file.

    Args:
        path: the file
        part: "unet", "vae", "text_encoder" or "scheduler", and for SDXL "text_encoder_2"

    Raises:
        CheckpointError: see `require_base`
    """
    return compose_configuration(require_base(path))[part]


def _unet(base: BaseVariant) -> Configuration:
    configuration = _read(_UNETS[base.family])
    if base.inpainting:
        configuration["in_channels"] = 9
    if base.family == "SD2.x" and base.prediction == "v_prediction":
        configuration["sample_size"] = 96
    return configuration


def _autoencoder(base: BaseVariant) -> Configuration:
    configuration = _read("vae")
    if base.family == "SDXL":
        configuration |= {"scaling_factor": 0.13025, "sample_size": 1024, "force_upcast": True}
    return configuration


def _scheduler(base: BaseVariant) -> Configuration:
    configuration = _read("scheduler") | {"prediction_type": base.prediction}
    if base.zero_snr:  # trailing steps begin at zero signal, as the paper wants
        configuration |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if base.family == "SDXL":
        return configuration | {"_class_name": "EulerDiscreteScheduler"}
    configuration["set_alpha_to_one"] = False
    if base.prediction == "v_prediction":
        return configuration | {"_class_name": "DDIMScheduler", "clip_sample": False}
    return configuration | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}


def _index(base: BaseVariant, parts: Mapping[str, Configuration]) -> Configuration:
    index: Configuration = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", parts["scheduler"]["_class_name"]],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    for name in _name_texts(base.family):
        index[name] = ["transformers", *parts[name]["architectures"]]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if base.family == "SDXL":
        return index | {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    index |= {"_class_name": "StableDiffusionPipeline"}
    return index | {"safety_checker": [None, None], "requires_safety_checker": False}


def _name_texts(family: Family) -> dict[str, str]:
    """Return the parts that encode text, and the configuration of each."""
    return dict(zip(("text_encoder", "text_encoder_2"), _TEXTS[family], strict=False))


def _read(name: str) -> Configuration:
    return json.loads((_FOLDER / f"{name}.json").read_text())


def _write(configuration: Configuration, file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(configuration))
