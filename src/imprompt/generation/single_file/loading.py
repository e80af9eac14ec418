"""A file of the original layout → a diffusers pipeline, with diffusers' own conversion of names."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    create_diffusers_clip_model_from_ldm,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.auto_pipeline import AutoPipelineForText2Image
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from imprompt.checkpoint.files import take_tensors
from imprompt.checkpoint.projections import format_shape
from imprompt.errors import CheckpointError
from imprompt.generation.single_file.bases import AUTOENCODER, UNET, use_original_names
from imprompt.generation.single_file.configuration import write_configuration
from imprompt.generation.single_file.kinds import BASE_NEEDED
from imprompt.generation.single_file.recognition import require_base
from imprompt.runtime.foreign_models import explain_failure, log_errors_only

_PARTS = (UNET, AUTOENCODER, "cond_stage_model.", "conditioner.")
_TRAINING_ONLY = f"{AUTOENCODER}loss."


class _Part(NamedTuple):
    """A model of diffusers in a file.

    Attributes:
        kind: its class
        prefix: the beginning of the names of its tensors
        convert: diffusers' conversion of them, which takes the model's configuration too
        word: its name in messages
    """

    kind: Any
    prefix: str
    convert: Callable[[dict[str, Tensor], Any], dict[str, Tensor]]
    word: str


_MODELS = {
    "unet": _Part(UNet2DConditionModel, UNET, convert_ldm_unet_checkpoint, "U-Net"),
    "vae": _Part(AutoencoderKL, AUTOENCODER, convert_ldm_vae_checkpoint, "autoencoder"),
}


def load_single_file(path: str | os.PathLike[str], *, dtype: torch.dtype) -> DiffusionPipeline:
    """Load a base model from a single file, on the CPU, as a text-to-image pipeline without a safety checker.

    Averaged weights beside the others (`model_ema.`) are not read, as in diffusers, A1111's web UI and
    ComfyUI: in a merged file they may belong to another model. Other tensors outside the U-Net, the
    autoencoder and the text encoders have no effect on pictures, and are not read either.

    Args:
        path: a safetensors file, or a torch pickle such as a `.ckpt`, of which nothing is run
        dtype: number format; each tensor is converted as it is read, so there is no copy in another format

    Raises:
        CheckpointError: the file is damaged or incomplete, or no base model that imprompt can load
        UnknownModel: diffusers cannot convert it
    """
    path = Path(path)
    base = require_base(path)
    tensors = read_weights(path, dtype)
    with tempfile.TemporaryDirectory() as folder:
        write_configuration(base, Path(folder))
        return build_pipeline(tensors, Path(folder), path, dtype=dtype)


def load_autoencoder_file(path: str | os.PathLike[str], base_autoencoder: AutoencoderKL) -> AutoencoderKL:
    """Load an autoencoder from a single file, in the original layout or in diffusers'.

    Args:
        path: a safetensors file, or a torch pickle, of which nothing is run
        base_autoencoder: that of the base, which has the same configuration; its number format is used

    Raises:
        CheckpointError: the file is damaged, or holds no autoencoder of this size
        UnknownModel: diffusers cannot convert it
    """
    path = Path(path)
    tensors = take_tensors(path, lambda _, tensor: tensor.to(base_autoencoder.dtype, copy=True)).tensors
    weights = {
        name.removeprefix(AUTOENCODER): tensor
        for name, tensor in tensors.items()
        if not name.removeprefix(AUTOENCODER).startswith(("loss.", "model_ema."))
    }
    converted, config = weights, base_autoencoder.config
    with explain_failure(f"the autoencoder {path} cannot be loaded"):
        if any(name.startswith(("encoder.down.", "decoder.up.")) for name in weights):
            converted = convert_ldm_vae_checkpoint(dict(weights), config)
        with torch.device("meta"):
            model: Any = AutoencoderKL.from_config(config)
    _check_weights(model, converted, len(weights), "autoencoder", path)
    model.load_state_dict(converted, assign=True)
    return model.eval()


def read_weights(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights of U-Net, autoencoder and text encoders in one format, under their original names.

    Raises:
        CheckpointError: see `take_tensors`
    """

    def take(name: str, tensor: Tensor) -> Tensor | None:
        is_weight = name.startswith(_PARTS) and not name.startswith(_TRAINING_ONLY)
        # Whole numbers are positions, which transformers counts itself; those in merged files may be wrong.
        return tensor.to(dtype, copy=True) if is_weight and tensor.is_floating_point() else None

    return use_original_names(take_tensors(path, take).tensors)


def build_pipeline(
    tensors: Mapping[str, Tensor], configuration: Path, path: Path, *, dtype: torch.dtype
) -> DiffusionPipeline:
    """Build the pipeline of a configuration from weights in the original layout.

    Args:
        tensors: the weights by their original names, in the format `dtype`
        configuration: a folder in diffusers' format; its weights are not read
        path: the file of the weights, for messages
        dtype: number format

    Raises:
        CheckpointError: weights are missing, or there are too many
        UnknownModel: diffusers cannot convert them
    """
    index = json.loads((configuration / "model_index.json").read_text())
    with log_errors_only("diffusers", "transformers"):
        models = {
            name: _build_model(part, name, tensors, configuration, path) for name, part in _MODELS.items()
        }
        for name in ("text_encoder", "text_encoder_2"):
            if name in index:
                kind = getattr(transformers, index[name][1])
                models[name] = _build_text_encoder(name, kind, tensors, configuration, path, dtype)
        return AutoPipelineForText2Image.from_pretrained(str(configuration), dtype=dtype, **models)


def _build_model(
    part: _Part, name: str, tensors: Mapping[str, Tensor], configuration: Path, path: Path
) -> nn.Module:
    weights = {key: tensor for key, tensor in tensors.items() if key.startswith(part.prefix)}
    with explain_failure(f"the {part.word} in {path} cannot be loaded"):
        with torch.device("meta"):
            model: Any = part.kind.from_config(part.kind.load_config(configuration / name))
        converted = part.convert(dict(weights), model.config)
    _check_weights(model, converted, len(weights), part.word, path)
    model.load_state_dict(converted, assign=True)
    return model.eval()


def _check_weights(
    model: nn.Module, converted: Mapping[str, Tensor], count: int, word: str, path: Path
) -> None:
    """Compare converted weights with a model's own; each of the `count` in the file has one place in it."""
    expected = model.state_dict()
    _check_complete([name for name in expected if converted.get(name) is None], word, path)
    fault = f"{count} tensors and not {len(expected)}" if count > len(expected) else None
    for name, tensor in expected.items():
        if tensor.shape != (given := converted[name]).shape:
            fault = fault or f"{name} of shape {format_shape(given)} and not {format_shape(tensor)}"
    if fault:
        raise CheckpointError(f"{path} is a modified model, whose {word} has {fault}: {BASE_NEEDED}")


def _build_text_encoder(
    name: str,
    kind: Any,
    tensors: Mapping[str, Tensor],
    configuration: Path,
    path: Path,
    dtype: torch.dtype,
) -> nn.Module:
    options: dict[str, Any] = {"config": str(configuration), "subfolder": name, "torch_dtype": dtype}
    with explain_failure(f"the text encoder in {path} cannot be loaded"):
        model = create_diffusers_clip_model_from_ldm(kind, dict(tensors), local_files_only=True, **options)
    # A parameter without a weight is still on the meta device.
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    _check_complete(missing, "text encoder", path)
    return model


def _check_complete(missing: Sequence[str], word: str, path: Path) -> None:
    if missing:
        raise CheckpointError(
            f"{path} is incomplete: its {word} lacks {len(missing)} tensors, such as {missing[0]} "
            "(diffusers' name); get the file again"
        )
