"""What a run will need, computed without loading a weight: cache size, memory, and a lower bound of the time.

The base is built from its configuration files on fake tensors, which have shapes but no values, and is run
once. So parameters, stored activations and operations are counted, not guessed.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from imprompt import mini
from imprompt.adapter.initial_weights import list_layer_shapes
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.errors import UnknownModel
from imprompt.generation.single_file import read_configuration
from imprompt.projection import LinearProjection, PerceiverShape, TimeResamplerProjection
from imprompt.runtime.foreign_models import explain_failure, is_embedded, log_errors_only, parse_source
from imprompt.runtime.hub import fetch_file
from imprompt.training.config import TrainingConfig
from imprompt.training.denoising import predict
from imprompt.training.frozen_base import DTYPES, choose_frozen_precision

FLUX_TEXT_LENGTH, SD3_TEXT_LENGTH = 512, 77 + 256
"""Tokens of a caption, with padding: the defaults of diffusers' pipelines."""

BYTES_TRAINED = 16
"""Bytes per trained float32 parameter: value, gradient, two moments of AdamW; an average takes 4 more."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Shapes:
    """The sizes of the base and the image encoder on which the size of a cache depends.

    Attributes:
        latent_channels: channels of the autoencoder's latents
        shrink: ratio of an image's width to that of its latents
        text_length: tokens of a caption, with padding
        text_width: width of a token's embedding
        pooled_width: width of a caption's pooled embedding, 0 if the base takes none
        inputs: numbers stored for one reference
    """

    latent_channels: int
    shrink: int
    text_length: int
    text_width: int
    pooled_width: int
    inputs: int


@dataclass(frozen=True)
class Work:
    """Counts for one target of the configured size.

    Attributes:
        frozen: frozen parameters of the denoiser
        trained: trained parameters of the K', V' (and LoRA) layers or the U-Net, without the projection
        activations: numbers stored for the backward pass
        operations: multiplications and additions of one training step, forward and backward
    """

    frozen: int
    trained: int
    activations: int
    operations: int


def read_shapes(config: TrainingConfig) -> Shapes:
    """Read the sizes from the configuration files of the base and the image encoder.

    Raises:
        UnknownModel: a file is not here and cannot be fetched
    """
    model, injection = config.base.model, config.adapter.injection
    autoencoder = read_settings(model, "vae")
    latents = {
        "latent_channels": autoencoder["latent_channels"],
        "shrink": 2 ** (len(autoencoder["block_out_channels"]) - 1),
        "inputs": _inputs(config),
    }
    if injection != "unet":
        transformer = read_settings(model, "transformer")
        return Shapes(
            text_length=SD3_TEXT_LENGTH if injection == "sd35" else FLUX_TEXT_LENGTH,
            text_width=transformer["joint_attention_dim"],
            pooled_width=transformer["pooled_projection_dim"],
            **latents,
        )
    unet, text = (read_settings(model, part) for part in ("unet", "text_encoder"))
    has_pooled = unet.get("addition_embed_type") == "text_time"
    return Shapes(
        text_length=text.get("max_position_embeddings", 256),  # Kolors' ChatGLM: 256, its pipeline's default
        text_width=unet.get("encoder_hid_dim") or unet["cross_attention_dim"],
        pooled_width=unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
        if has_pooled
        else 0,
        **latents,
    )


def estimate_sample_bytes(
    config: TrainingConfig, shapes: Shapes, *, references: float | int = 1.0
) -> float | int:
    """Return the bytes of one cached sample without its caption.

    Args:
        config: the variant, the size of targets, the cache's precision
        shapes: see `Shapes`
        references: mean number per sample; the target itself counts as one
    """
    latents = 2 * shapes.latent_channels * (config.data.size // shapes.shrink) ** 2
    text = (
        shapes.text_length * shapes.text_width + shapes.pooled_width if config.cache.text == "states" else 0
    )
    return (latents + text + references * shapes.inputs) * DTYPES[config.cache.precision].itemsize


def count_work(config: TrainingConfig, shapes: Shapes) -> Work:
    """Run the denoiser once on fake tensors and count.

    The operations of a step are twice the forward pass's: the way back goes through frozen layers to their
    inputs, not to their weights; if the U-Net learns, to both. Attention's products may be missing, so a step
    takes at least as many.
    """
    # Fake tensors make diffusers warn of problems that only real ones would have.
    with log_errors_only("diffusers"), FakeTensorMode():
        denoiser = _build_denoiser(config)
        trained = _trainable(denoiser, config)
        stored: dict[int, Tensor] = {}
        counter = FlopCounterMode(display=False)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: _keep(x, stored), lambda x: x), counter:
            predict(denoiser, *_inputs_of(denoiser, config, shapes))
        weights = {id(parameter) for parameter in denoiser.parameters()}
        activations = sum(tensor.numel() for key, tensor in stored.items() if key not in weights)
        frozen = 0 if config.trains_base else sum(parameter.numel() for parameter in denoiser.parameters())
    passes = 3 if config.trains_base else 2
    return Work(frozen, trained + _lora(denoiser, config), activations, passes * counter.get_total_flops())


def estimate_memory(config: TrainingConfig, work: Work, *, on_cpu: bool) -> int:
    """Return the bytes that one process needs for weights and the activations of one pass."""
    width = DTYPES[choose_frozen_precision(config, "cpu" if on_cpu else "cuda")].itemsize
    as_it_was = on_cpu and config.trains_base  # the copy of a trained U-Net that `detach` puts back
    per_trained = BYTES_TRAINED + 4 * (bool(config.training.ema_decay) + as_it_was)
    samples = config.training.batch_size // config.training.passes
    return width * (work.frozen + samples * work.activations) + per_trained * work.trained


def measure_speed(device: torch.device | str = "cpu") -> float:
    """Measure the operations per second of large matrix products, which no training step exceeds."""
    side = 4096 if torch.device(device).type == "cuda" else 1024
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def read_settings(model: str, part: str) -> Settings:
    """Read the config.json of a part of the embedded model, of a folder, or of a hub repository.

    For a base model in a single file, return what diffusers' folder of this base would have.

    Raises:
        UnknownModel: it is not there, or not JSON
        CheckpointError: a single file is no base model
    """
    if part and Path(model).is_file():
        return read_configuration(Path(model), part)
    name = str(Path(part, "config.json")) if part else "config.json"
    with explain_failure(f"{model}: {name} cannot be read"):
        if is_embedded(model):
            path = mini.WEIGHTS / "base" / name
        else:
            path = Path(model, name) if Path(model).is_dir() else fetch_file(model, name)
        return json.loads(path.read_text())


def _inputs(config: TrainingConfig) -> int:
    """Return how many numbers the encoders compute for one reference."""
    takes = config.takes
    faces = config.adapter.face_dim if "face_embedding" in takes else 0
    if not config.needs_encoder:
        return faces
    encoder = _encoder_settings(config)
    if "image_pixels" in takes:
        return 3 * encoder["image_size"] ** 2
    if "image_embedding" in takes:
        return faces + encoder["projection_dim"]
    patches = (encoder["image_size"] // encoder["patch_size"]) ** 2 + 1
    return faces + patches * encoder["hidden_size"]


def _encoder_settings(config: TrainingConfig) -> Settings:
    name = config.base.image_encoder
    if name == "known" and not is_embedded(config.base.model):
        raise UnknownModel(f"base.image_encoder: no encoder is known for {config.base.model}; name one")
    if name == "known":
        return json.loads((mini.WEIGHTS / "image_encoder" / "config.json").read_text())
    return read_settings(*parse_source(name))


def _build_denoiser(config: TrainingConfig) -> Any:
    part = "unet" if config.adapter.injection == "unet" else "transformer"
    settings = dict(read_settings(config.base.model, part))
    kinds = {
        "unet": "UNet2DConditionModel",
        "sd35": "SD3Transformer2DModel",
        "flux-xlabs": "FluxTransformer2DModel",
        "flux-instantx": "FluxTransformer2DModel",
    }
    return getattr(diffusers, kinds[config.adapter.injection]).from_config(settings)


def _trainable(denoiser: nn.Module, config: TrainingConfig) -> int:
    """Freeze what is not trained and return how many parameters of the layers are trained.

    The keys and values of cross-attention stand for K' and V', those of a transformer's attention too. With
    the simple adapter they do not learn, but the way back to its tokens goes through them.
    """
    if config.trains_base:
        return sum(parameter.requires_grad_(True).numel() for parameter in denoiser.parameters())
    denoiser.requires_grad_(False)
    injection = config.adapter.injection
    names = (
        ("attn2.to_k.weight", "attn2.to_v.weight") if injection == "unet" else ("to_k.weight", "to_v.weight")
    )
    layers = [
        parameter.requires_grad_(True)
        for name, parameter in denoiser.named_parameters()
        if name.endswith(names)
    ]
    if injection != "unet":
        return _count_layers(denoiser, config)
    return sum(parameter.numel() for parameter in layers) if config.adapter.mechanism == "decoupled" else 0


def _count_layers(transformer: Any, config: TrainingConfig) -> int:
    """Return the parameters of the layers that an adapter adds to a transformer."""
    shapes = list_layer_shapes(transformer, config.adapter.injection)
    width = next(iter(shapes.values()))[0]
    shape = PerceiverShape(width=min(width, 1280), depth=1, head_dim=1)
    is_timed = config.adapter.injection == "sd35"
    projection = (
        TimeResamplerProjection(1, width, 1, shape=shape) if is_timed else LinearProjection(1, width, 1)
    )
    head_dim = int(transformer.config["attention_head_dim"])
    adapter = ImagePromptAdapter(projection, shapes, injection=config.adapter.injection, head_dim=head_dim)
    return sum(parameter.numel() for parameter in adapter.layers.parameters())


def _lora(denoiser: nn.Module, config: TrainingConfig) -> int:
    """Return the parameters of a LoRA on the four matrices of every attention layer."""
    matrices = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    sides = sum(sum(p.shape) for name, p in denoiser.named_parameters() if name.endswith(matrices))
    return config.adapter.lora_rank * sides


def _inputs_of(denoiser: Any, config: TrainingConfig, shapes: Shapes) -> tuple[Any, ...]:
    """Return the arguments of `predict` for one target."""
    side, is_unet = config.data.size // shapes.shrink, config.adapter.injection == "unet"
    channels = denoiser.config["in_channels"] if is_unet else shapes.latent_channels
    pooled = torch.zeros(1, shapes.pooled_width)
    added: dict[str, Tensor] | None = None
    if not is_unet:
        distilled = denoiser.config.get("guidance_embeds", False)
        added = {"pooled_projections": pooled} | ({"guidance": torch.ones(1)} if distilled else {})
    elif shapes.pooled_width:
        added = {"text_embeds": pooled, "time_ids": torch.zeros(1, 6)}
    noisy, text = torch.zeros(1, channels, side, side), torch.zeros(1, shapes.text_length, shapes.text_width)
    return noisy, torch.zeros(1, dtype=torch.long), text, added


def _keep(tensor: Tensor, stored: dict[int, Tensor]) -> Tensor:
    """Record a tensor that the backward pass needs; a tensor and its views count once."""
    whole = tensor if tensor._base is None else tensor._base
    stored[id(whole)] = whole
    return tensor
