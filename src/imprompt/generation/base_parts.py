"""Change a loaded base: LoRAs, autoencoder, textual inversions, sampler, memory.

All of it happens before an adapter is attached. LoRAs are fused into the weights, so that no layer of peft
remains in the base, and an adapter attaches as to any other base.
"""

import importlib.util
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor

from imprompt.attention.chunks import use_chunked_attention
from imprompt.errors import ConfigError, MissingExtra, UnknownModel
from imprompt.generation.job.base_options import BaseOptions, JobEmbedding, JobLora, Offload
from imprompt.generation.job.samplers import SAMPLERS
from imprompt.generation.transformer_bases import count_latent_channels, find_transformer
from imprompt.runtime.foreign_models import explain_failure, ignore_own_deprecations, parse_source
from imprompt.runtime.hub import fetch_file
from imprompt.runtime.machine import ComputeChoice

_SEVERAL = ".safetensors, .bin, .pt or .ckpt"


def apply_base_options(pipe: Any, options: BaseOptions) -> None:
    """Change a base, in place, as the options say; device and memory are those of `place_base`.

    Raises:
        UnknownModel: a file or repository that cannot be read
        ConfigError: a file that does not fit this base, or an option that this base cannot honor
        MissingExtra: a LoRA needs peft
    """
    if options.vae is not None:
        pipe.vae = load_autoencoder(options.vae, pipe)
    if options.loras:
        fuse_loras(pipe, options.loras)
    for embedding in options.embeddings:
        load_embedding(pipe, embedding)
    if options.scheduler is not None:
        set_scheduler(pipe, options.scheduler)
    if options.tiling:
        pipe.vae.enable_tiling()
        pipe.vae.enable_slicing()


def set_scheduler(pipe: Any, name: str) -> None:
    """Give a pipeline the scheduler of a sampler, with its own noise schedule.

    Raises:
        ConfigError: the base has a transformer, which needs the scheduler that it has
    """
    if find_transformer(pipe) is not None:
        raise ConfigError(f"scheduler {name!r} is for bases that predict noise; this base has its own")
    pipe.scheduler = build_scheduler(name, pipe.scheduler)


def build_scheduler(name: str, base_scheduler: Any) -> Any:
    """Build the scheduler of a sampler from the base's own noise schedule.

    Args:
        name: one of `SAMPLERS`
        base_scheduler: the base's own scheduler, whose noise schedule and prediction type are kept
    """
    sampler = SAMPLERS[name]
    kind = getattr(diffusers, sampler.scheduler)
    return kind.from_config(base_scheduler.config, **sampler.settings)


# Parts


def load_autoencoder(name: str, pipe: Any) -> AutoencoderKL | AutoencoderTiny:
    """Load another autoencoder for a base, from a folder in diffusers' format, a file, or the hub.

    A folder or repository may hold an `AutoencoderTiny`, such as TAESD, which decodes much faster.

    Raises:
        UnknownModel, CheckpointError: it cannot be read
        ConfigError: its latents have another number of channels than the base's
    """
    if Path(name).is_file():
        # It imports every pipeline of diffusers, which nothing else here needs.
        from imprompt.generation.single_file import load_autoencoder_file

        return load_autoencoder_file(name, pipe.vae).to(pipe.device)
    source = parse_source(name)
    with explain_failure(f"the autoencoder {name} cannot be loaded"), ignore_own_deprecations():
        config: Any = AutoencoderKL.load_config(source.name, **source.options)
        kind = AutoencoderTiny if config.get("_class_name") == "AutoencoderTiny" else AutoencoderKL
        vae: Any = kind.from_pretrained(source.name, torch_dtype=pipe.dtype, **source.options)
    given, wanted = vae.config.latent_channels, count_latent_channels(pipe)
    if given != wanted:
        raise ConfigError(f"the autoencoder {name} has {given} latent channels; this base has {wanted}")
    return vae.to(pipe.device)


def fuse_loras(pipe: Any, loras: tuple[JobLora, ...]) -> None:
    """Add LoRAs to the base's weights, W ← W + weight · B A, one after another.

    Raises:
        UnknownModel: a file cannot be read
        ConfigError: a LoRA for another base, or without an effect on this one
        MissingExtra: peft is not installed
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingExtra("peft", "train")
    for lora in loras:
        file = find_file(lora.file, "LoRA")
        with explain_failure(f"the LoRA {lora.file} does not fit this base", ConfigError):
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="lora")
        if not pipe.get_list_adapters():
            raise ConfigError(f"{lora.file} changes no layer of this base: it is for another one, or no LoRA")
        pipe.fuse_lora(lora_scale=lora.weight)
        pipe.unload_lora_weights()


def load_embedding(pipe: Any, embedding: JobEmbedding) -> None:
    """Add the token embeddings of a textual inversion to the base's text encoders.

    Raises:
        UnknownModel: the file cannot be read
        ConfigError: it is for another base, or no textual inversion
    """
    file = find_file(embedding.file, "textual inversion")
    token = embedding.token or file.stem
    tensors = _read_embedding(file)
    with explain_failure(f"the textual inversion {embedding.file} does not fit this base", ConfigError):
        if "clip_g" not in tensors:
            pipe.load_textual_inversion(tensors, token=token)
            return
        # SDXL: embeddings for both text encoders, under the names that kohya's scripts gave them.
        first, second = (pipe.text_encoder, pipe.tokenizer), (pipe.text_encoder_2, pipe.tokenizer_2)
        for key, (encoder, tokenizer) in (("clip_l", first), ("clip_g", second)):
            pipe.load_textual_inversion(tensors[key], token=token, text_encoder=encoder, tokenizer=tokenizer)


def _read_embedding(file: Path) -> dict[str, Tensor]:
    with explain_failure(f"the textual inversion {file} cannot be read"):
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)


def find_file(name: str, kind: str) -> Path:
    """Return a local file, or fetch owner/name:file from the hub.

    Raises:
        UnknownModel: there is no such file
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise UnknownModel(f"{name} is a folder; a {kind} is a file ({_SEVERAL})")
    repository, colon, file = name.partition(":")
    if colon and repository.count("/") == 1 and not path.is_absolute():
        return fetch_file(repository, file)
    raise UnknownModel(f"no {kind} {name!r}: there is no such file; on the hub it is owner/name:file")


# Device, speed and memory


def arrange_for_speed(pipe: Any, choice: ComputeChoice) -> None:
    """Give a base on the CPU the layout in memory and the attention in which this machine computes fastest.

    Args:
        pipe: the base, in the number format of the choice
        choice: from `choose_computation`
    """
    denoiser = find_transformer(pipe) or pipe.unet
    if choice.channels_last:
        for module in (denoiser, pipe.vae):
            module.to(memory_format=torch.channels_last)
    if choice.chunked_attention and denoiser is getattr(pipe, "unet", None):
        use_chunked_attention(denoiser)


def offload_base(pipe: Any, kind: Offload, device: torch.device) -> None:
    """Keep a base in main memory, and move its parts to `device` when they compute.

    Args:
        pipe: the base, on the CPU
        kind: "model": a model at a time; "sequential": a layer at a time, slower, least memory; "group":
            groups of layers, which are moved while others compute
        device: a GPU

    Raises:
        ConfigError: the device is the CPU, so there is nothing to save
    """
    if device.type == "cpu":
        raise ConfigError(f"offload = {kind!r} moves models between memory and a GPU; the device is the CPU")
    if kind == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif kind == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=True)
