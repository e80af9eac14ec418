"""A base model in a single file draws what its folder draws, by true configurations and a true tokenizer."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

import tiny
import tiny_bases
from conftest import Result, ToyModel
from imprompt import load_pipeline
from imprompt.checkpoint import save_adapter
from imprompt.checkpoint.files import TensorFile
from imprompt.errors import CheckpointError, ConfigError
from imprompt.generation.generate import generate
from imprompt.generation.single_file import loading, read_configuration
from imprompt.generation.single_file.bases import (
    V_PREDICTION_BIAS,
    V_PREDICTION_DEVIATION,
    BaseVariant,
    Family,
    find_base,
)
from imprompt.generation.single_file.configuration import compose_configuration, write_configuration
from imprompt.generation.single_file.loading import build_pipeline, read_weights
from imprompt.generation.single_file.recognition import recognize_tensors
from imprompt.generation.single_file.tokenizer import write_tokenizer
from ldm_layout import convert_pipeline, shapes_of, write_single_file

Imprompt = Callable[..., Result]


def tiny_sd2_pipeline() -> Any:
    parts = tiny_bases.base_parts("SD2.x")
    names = (
        "vae",
        "text_encoder",
        "tokenizer",
        "safety_checker",
        "feature_extractor",
        "requires_safety_checker",
    )
    return StableDiffusionPipeline(
        **{name: parts[name] for name in names},
        unet=tiny_bases.base_unet("SD2.x"),
        scheduler=tiny_bases.base_scheduler("SD2.x"),
    )


PIPELINES: dict[Family, Callable[[], Any]] = {
    "SD1.5": tiny.sd_pipeline,
    "SD2.x": tiny_sd2_pipeline,
    "SDXL": tiny.xl_pipeline,
}


def draw(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(0)
    return pipe("a hat", num_inference_steps=2, generator=seed, output_type="np").images


def save_configuration(pipe: Any, folder: Path) -> Path:
    pipe.save_pretrained(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return folder


def load_tiny(pipe: Any, file: Path, dtype: torch.dtype = torch.float32) -> Any:
    configuration = save_configuration(pipe, file.parent / "configuration")
    return build_pipeline(read_weights(file, dtype), configuration, file, dtype=dtype)


# Laws


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("family", PIPELINES)
def test_a_single_file_draws_the_picture_of_its_pipeline_bit_for_bit(
    tmp_path: Path, family: Family, suffix: str
) -> None:
    pipe = PIPELINES[family]()
    loaded = load_tiny(pipe, write_single_file(pipe, tmp_path / f"model.{suffix}"))
    assert type(loaded) is type(pipe)
    assert np.array_equal(draw(loaded), draw(pipe))


def test_every_part_has_the_wanted_number_format_at_once(tmp_path: Path) -> None:
    pipe = tiny.xl_pipeline()
    file = write_single_file(pipe, tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in read_weights(file, torch.float16).values()} == {torch.float16}
    loaded = load_tiny(pipe, file, torch.float16)
    parts = loaded.unet, loaded.vae, loaded.text_encoder, loaded.text_encoder_2
    assert {part.dtype for part in parts} == {torch.float16}
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.float16}


def test_what_has_no_part_in_a_picture_changes_nothing(tmp_path: Path) -> None:
    pipe = tiny.sd_pipeline()
    extra = {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.zeros(1, 11).long(),
        "first_stage_model.loss.logvar": torch.ones(1),
        "alphas_cumprod": torch.ones(1000),
        **{f"model_ema.diffusion_model{number}": torch.ones(2) for number in range(120)},
    }
    loaded = load_tiny(pipe, write_single_file(pipe, tmp_path / "model.safetensors", **extra))
    assert np.array_equal(draw(loaded), draw(pipe))


def test_a_text_encoder_without_its_outer_name_is_the_same(tmp_path: Path) -> None:
    pipe = tiny.sd_pipeline()
    tensors = load_file(write_single_file(pipe, tmp_path / "model.safetensors"))
    bare = {name.replace(".text_model.", "."): tensor for name, tensor in tensors.items()}
    assert bare.keys() != tensors.keys()
    save_file(bare, tmp_path / "model.safetensors")
    assert np.array_equal(draw(load_tiny(pipe, tmp_path / "model.safetensors")), draw(pipe))


# The true bases


BASES = [
    BaseVariant(family="SD1.5"),
    BaseVariant(family="SD1.5", inpainting=True),
    BaseVariant(family="SD2.x"),
    BaseVariant(family="SD2.x", prediction="v_prediction"),
    BaseVariant(family="SD2.x", inpainting=True),
    BaseVariant(family="SDXL"),
    BaseVariant(family="SDXL", inpainting=True),
    BaseVariant(family="SDXL", prediction="v_prediction", zero_snr=True),
]
PARAMETERS: dict[Family, dict[str, int]] = {
    "SD1.5": {"unet": 859_520_964, "text_encoder": 123_060_480},
    "SD2.x": {"unet": 865_910_724, "text_encoder": 340_387_840},
    "SDXL": {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
}
AUTOENCODER_PARAMETERS = 83_653_863
MASK_PARAMETERS = 5 * 320 * 3 * 3
"""Weights for the mask and the masked picture in the first convolution of an inpainting U-Net."""


def build_part(name: str, configuration: dict[str, Any]) -> nn.Module:
    """Build one part of a base without memory for its weights."""
    with torch.device("meta"):
        if name == "unet":
            return UNet2DConditionModel.from_config(configuration)  # pyright: ignore[reportReturnType]
        if name == "vae":
            return AutoencoderKL.from_config(configuration)  # pyright: ignore[reportReturnType]
        kind = getattr(transformers, configuration["architectures"][0])
        return kind(transformers.CLIPTextConfig(**configuration))


def true_parts(base: BaseVariant) -> dict[str, Any]:
    parts = compose_configuration(base)
    return {name: build_part(name, parts[name]) for name in parts if name != "scheduler"}


def true_tensors(base: BaseVariant, parts: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a whole file, of which one holds values and the others have shapes only."""
    markers = ["v_pred"] * (base.prediction == "v_prediction") + ["ztsnr"] * base.zero_snr
    extra = {name: torch.zeros(0) for name in markers} if base.family == "SDXL" else {}
    spread = 0.2 if base.prediction == "v_prediction" else 0.01
    bias = {V_PREDICTION_BIAS: spread * torch.tensor([-1.0, 1.0]).repeat(160)}
    tensors = convert_pipeline(SimpleNamespace(**parts))
    return tensors | extra | (bias if base.family == "SD2.x" else {})


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_a_file_of_true_shapes_is_recognized_and_becomes_the_models_of_diffusers(base: BaseVariant) -> None:
    parts = true_parts(base)
    tensors = true_tensors(base, parts)
    found = recognize_tensors(TensorFile(tensors, {}, "safetensors"))
    assert (found.role, found.base, found.name) == ("base", base, base.name)
    unet = convert_ldm_unet_checkpoint(tensors, parts["unet"].config)
    assert shapes_of(unet) == shapes_of(parts["unet"].state_dict())
    vae = convert_ldm_vae_checkpoint(dict(tensors), parts["vae"].config)
    assert shapes_of(vae) == shapes_of(parts["vae"].state_dict())
    for name in parts.keys() - {"unet", "vae"}:
        own = shapes_of(parts[name].state_dict())
        prefix = "" if any(key.startswith("text_model.") for key in own) else "text_model."
        converted = shapes_of(convert_text(name, parts[name], tensors))
        assert {key.removeprefix(prefix): shape for key, shape in converted.items()} == own


def convert_text(name: str, model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if name == "text_encoder_2":
        return convert_open_clip_checkpoint(model, tensors, prefix="conditioner.embedders.1.model.")
    if "cond_stage_model.model.ln_final.bias" in tensors:
        return convert_open_clip_checkpoint(model, tensors)
    return convert_ldm_clip_checkpoint(tensors)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_the_parts_of_a_base_have_the_published_numbers_of_parameters(base: BaseVariant) -> None:
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in true_parts(base).items()
    }
    expected = PARAMETERS[base.family] | {"vae": AUTOENCODER_PARAMETERS}
    expected["unet"] += MASK_PARAMETERS * base.inpainting
    assert counts == expected


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_a_configuration_is_a_folder_that_diffusers_reads(tmp_path: Path, base: BaseVariant) -> None:
    write_configuration(base, tmp_path)
    kind: Any = "StableDiffusionXLPipeline" if base.family == "SDXL" else "StableDiffusionPipeline"
    parts = dict.fromkeys(
        ["unet", "vae", "text_encoder", "text_encoder_2"][: 4 if base.family == "SDXL" else 3]
    )
    pipe = getattr(__import__("diffusers"), kind).from_pretrained(str(tmp_path), **parts)
    assert pipe.scheduler.config.prediction_type == base.prediction
    assert pipe.scheduler.config.beta_end == 0.012
    assert pipe.scheduler.config.get("rescale_betas_zero_snr", False) is base.zero_snr
    assert pipe.tokenizer.pad_token == ("!" if base.family == "SD2.x" else "<|endoftext|>")
    if base.family == "SDXL":
        assert (pipe.tokenizer.pad_token, pipe.tokenizer_2.pad_token) == ("<|endoftext|>", "!")


@pytest.mark.parametrize(("factor", "prediction"), [(0.99, "epsilon"), (1.01, "v_prediction")])
def test_stable_diffusion_2_predicts_v_above_a_deviation(factor: float, prediction: str) -> None:
    base = BaseVariant(family="SD2.x")
    tensors = true_tensors(base, true_parts(base))
    tensors[V_PREDICTION_BIAS] = V_PREDICTION_DEVIATION * factor * torch.tensor([-1.0, 1.0]).repeat(160)
    found = find_base(tensors)
    assert isinstance(found, BaseVariant)
    assert found.prediction == prediction


# The tokenizer


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """CLIP's tokenizer, and OpenCLIP's, which differs in what it pads with."""
    folder = tmp_path_factory.mktemp("tokenizers")
    write_tokenizer(folder / "clip")
    write_tokenizer(folder / "openclip", padding="!")
    return CLIPTokenizer.from_pretrained(folder / "clip"), CLIPTokenizer.from_pretrained(folder / "openclip")


KNOWN_IDS = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "a photograph of an astronaut riding a horse": [320, 8853, 539, 550, 18376, 6765, 320, 4558],
    "Hello world!": [3306, 1002, 256],
    "": [],
}


def test_the_tokenizer_has_clips_tokens(tokenizers: tuple[Any, Any]) -> None:
    clip, _ = tokenizers
    assert len(clip) == 49_408
    for text, ids in KNOWN_IDS.items():
        padding = [49407] * (77 - 2 - len(ids))
        encoded = clip(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert encoded == [49406, *ids, 49407, *padding]


def test_any_text_comes_back(tokenizers: tuple[Any, Any]) -> None:
    for text in ("naïve façade", "猫", "🐱 0123", "don't @#$%^"):
        ids = tokenizers[0](text).input_ids
        assert max(ids[1:-1]) < 49406
        assert tokenizers[0].decode(ids[1:-1]).replace(" ", "") == text.replace(" ", "")


def test_openclip_pads_with_zeros(tokenizers: tuple[Any, Any]) -> None:
    ids = tokenizers[1]("a photo of a cat", padding="max_length", max_length=77).input_ids
    assert ids == [49406, *KNOWN_IDS["a photo of a cat"], 49407, *[0] * 70]


# From the command line


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tiny base whose text is as wide as that of SD 1.5, so that it is recognized as one."""
    folder = tmp_path_factory.mktemp("wide")
    pipe = tiny.sd_pipeline()
    pipe.register_modules(
        unet=tiny_bases.unet_of(dict(pipe.unet.config) | {"cross_attention_dim": 768}),
        text_encoder=tiny.text_model(width=768),
    )
    file = write_single_file(pipe, folder / "model.safetensors")
    return SimpleNamespace(pipe=pipe, file=file, configuration=save_configuration(pipe, folder / "base"))


@pytest.fixture
def of_wide(monkeypatch: pytest.MonkeyPatch, wide: SimpleNamespace) -> SimpleNamespace:
    """Give the configuration of the tiny base in place of that of SD 1.5."""

    def copy(base: BaseVariant, folder: Path) -> None:
        assert base == BaseVariant(family="SD1.5")
        shutil.copytree(wide.configuration, folder, dirs_exist_ok=True)

    monkeypatch.setattr(loading, "write_configuration", copy)
    return wide


def test_the_command_generates_from_a_single_file(
    imprompt: Imprompt, of_wide: SimpleNamespace, toy: ToyModel, tmp_path: Path
) -> None:
    save_adapter(tiny.adapter(of_wide.pipe.unet), tmp_path / "adapter.safetensors")
    tiny.picture().save(tmp_path / "cat.png")
    options = [
        "--adapter",
        tmp_path / "adapter.safetensors",
        "--image-encoder",
        toy.image_encoder,
        "--steps",
        "2",
    ]
    output = tmp_path / "out.png"
    result = imprompt("generate", tmp_path / "cat.png", "--base", of_wide.file, *options, "--output", output)
    assert (result.code, result.error) == (0, "")
    assert output.is_file()


def test_a_base_from_a_file_draws_as_its_pipeline(of_wide: SimpleNamespace) -> None:
    assert np.array_equal(draw(load_pipeline(str(of_wide.file))), draw(of_wide.pipe))


def test_a_file_has_no_variant_and_no_revision(wide: SimpleNamespace) -> None:
    options: list[dict[str, Any]] = [{"variant": "fp16"}, {"revision": "main"}]
    for option in options:
        with pytest.raises(
            ConfigError, match=rf"{next(iter(option))} .* has no effect on the base .*safetensors"
        ):
            load_pipeline(str(wide.file), **option)


def test_training_reads_the_sizes_of_the_base_in_a_file(wide: SimpleNamespace) -> None:
    assert read_configuration(wide.file, "unet")["cross_attention_dim"] == 768
    assert read_configuration(wide.file, "text_encoder")["max_position_embeddings"] == 77


def test_a_tensor_that_is_missing_is_named(of_wide: SimpleNamespace, tmp_path: Path) -> None:
    tensors = load_file(of_wide.file)
    del tensors["model.diffusion_model.out.2.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is incomplete: its U-Net lacks 1 tensors, such as conv_out\.bias"
    ):
        load_pipeline(str(tmp_path / "model.safetensors"))


def test_a_tensor_too_many_is_refused(of_wide: SimpleNamespace, tmp_path: Path) -> None:
    tensors = load_file(of_wide.file) | {"model.diffusion_model.out.3.bias": torch.zeros(1)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is a modified model, whose U-Net has \d+ tensors and not \d+"
    ):
        load_pipeline(str(tmp_path / "model.safetensors"))


def test_a_shape_of_another_model_is_named(of_wide: SimpleNamespace, tmp_path: Path) -> None:
    tensors = load_file(of_wide.file) | {"model.diffusion_model.out.2.bias": torch.zeros(5)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"U-Net has conv_out\.bias of shape 5 and not 4"):
        load_pipeline(str(tmp_path / "model.safetensors"))


def test_a_text_encoder_that_lacks_a_tensor_is_incomplete(of_wide: SimpleNamespace, tmp_path: Path) -> None:
    tensors = load_file(of_wide.file)
    del tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="its text encoder lacks 1 tensors"):
        load_pipeline(str(tmp_path / "model.safetensors"))


def test_an_inpainting_model_without_a_mask_is_refused(tmp_path: Path) -> None:
    pipe: Any = tiny.sd_pipeline()
    pipe.register_modules(unet=tiny_bases.unet_of(dict(pipe.unet.config) | {"in_channels": 9}))
    loaded = load_tiny(pipe, write_single_file(pipe, tmp_path / "model.safetensors"))
    with pytest.raises(ConfigError, match="is an inpainting model: give a picture"):
        generate(loaded, tiny.adapter(loaded.unet), [tiny.picture()], steps=1)
