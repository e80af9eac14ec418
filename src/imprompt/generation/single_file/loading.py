"""A file of the original layout → a diffusers pipeline, with diffusers' own conversion of names."""

import json
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.auto_pipeline import AutoPipelineForText2Image
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from imprompt.checkpoint.files import take_tensors
from imprompt.errors import CheckpointError
from imprompt.generation.single_file.bases import AUTOENCODER, UNET, use_original_names
from imprompt.generation.single_file.configuration import write_configuration
from imprompt.generation.single_file.kinds import BASE_NEEDED
from imprompt.generation.single_file.recognition import require_base
from imprompt.runtime.foreign_models import explain_failure, log_errors_only

_PARTS = (UNET, AUTOENCODER, "cond_stage_model.", "conditioner.")
_TRAINING_ONLY = f"{AUTOENCODER}loss."
_MODELS: Mapping[str, tuple[Any, str, str]] = {
    "unet": (UNet2DConditionModel, UNET, "U-Net"),
    "vae": (AutoencoderKL, AUTOENCODER, "autoencoder"),
}


def load_single_file(path: str | os.PathLike[str], *, dtype: torch.dtype) -> DiffusionPipeline:
    """Load a base model from a single file, on the CPU, as a text-to-image pipeline without a safety checker.

    Averaged weights beside the others (`model_ema.`) are not read, as in diffusers, A1111's web UI and
    ComfyUI: in a merged file they may belong to another model. Other tensors outside the U-Net, the autoencoder
    and the text encoders have no effect on pictures, and are not read either.

    Args:
        path: a safetensors file, or a torch pickle such as a `.ckpt`, of which nothing is run
        dtype: number format; each tensor is converted as it is read, so there is no copy in another format

    Raises:
        CheckpointError: the file is damaged or incomplete, or no base model that imprompt can load
        UnknownModel: diffusers cannot convert it, for instance because a tensor has a wrong shape
    """
    path = Path(path)
    base = require_base(path)
    tensors = read_weights(path, dtype)
    with tempfile.TemporaryDirectory() as folder:
        write_configuration(base, Path(folder))
        return build_pipeline(tensors, Path(folder), path, dtype=dtype)


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
        models = {name: _build_model(name, tensors, configuration, path, dtype) for name in _MODELS}
        for name in ("text_encoder", "text_encoder_2"):
            if name in index:
                kind = getattr(transformers, index[name][1])
                models[name] = _build_text_encoder(name, kind, tensors, configuration, path, dtype)
        return AutoPipelineForText2Image.from_pretrained(str(configuration), dtype=dtype, **models)


def _build_model(
    name: str, tensors: Mapping[str, Tensor], configuration: Path, path: Path, dtype: torch.dtype
) -> nn.Module:
    kind, prefix, word = _MODELS[name]
    weights = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    with explain_failure(f"the {word} in {path} cannot be loaded"):
        model: nn.Module = kind.from_single_file(
            weights, config=str(configuration), subfolder=name, torch_dtype=dtype, local_files_only=True
        )
    _check_complete(model, word, path)
    _check_nothing_left(model, weights, word, path)
    return model


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
    _check_complete(model, "text encoder", path)
    return model


def _check_complete(model: nn.Module, word: str, path: Path) -> None:
    """Refuse a model with parameters for which there were no weights: they are still on the meta device."""
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise CheckpointError(
            f"{path} is incomplete: its {word} lacks {len(missing)} tensors, such as {missing[0]} (diffusers' "
            "name); get the file again"
        )


def _check_nothing_left(model: nn.Module, weights: Collection[str], word: str, path: Path) -> None:
    """Refuse weights that the model has no place for; each weight of the original layout has one place."""
    expected = len(model.state_dict())
    if len(weights) > expected:
        raise CheckpointError(
            f"{path} is a modified model: its {word} has {len(weights)} tensors, not {expected}; {BASE_NEEDED}"
        )
