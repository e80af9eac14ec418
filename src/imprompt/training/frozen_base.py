"""The frozen models of a run: encodings of images and captions, and fingerprints of the models.

The base's U-Net is one of them; the cache needs the others, training the U-Net alone.
"""

import copy
import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from imprompt import mini
from imprompt.attention.denoiser_call import is_kind
from imprompt.attention.diffusers_internals import get_pipeline_denoiser
from imprompt.checkpoint import find_embedded_part
from imprompt.errors import AdapterMismatch, ConfigError
from imprompt.generation.models import load_pipeline
from imprompt.generation.pipeline_call import remove_safety_checker
from imprompt.inputs.choices import Input, NoImage
from imprompt.inputs.crop import Crop
from imprompt.inputs.encoder import ImageEncoder, load_image_encoder
from imprompt.runtime.foreign_models import is_embedded, log_errors_only
from imprompt.runtime.machine import Precision
from imprompt.runtime.precision import resolve_precision
from imprompt.training.config import TrainingConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenBase:
    """A base model and its image encoder, frozen and in evaluation mode.

    Args:
        pipe: a diffusers pipeline with a U-Net, or of FLUX.1 or Stable Diffusion 3.5; moved, converted and
            frozen in place, and its safety checker taken off
        image_encoder: None if only face embeddings are needed
        device: device of all models
        dtype: type of all models, except where `choose_encoding_dtype` returns another

    Attributes:
        denoiser: the pipeline's U-Net or transformer
        scheduler: the pipeline's
        autoencoder: the pipeline's, or a copy of it in another type, for encoding only

    Raises:
        AdapterMismatch: the pipeline has neither a U-Net nor one of these transformers
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        image_encoder: ImageEncoder | None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        denoiser = get_pipeline_denoiser(pipe)
        if denoiser is None or (not hasattr(pipe, "unet") and not is_trainable_transformer(denoiser)):
            raise AdapterMismatch(
                f"a {type(pipe).__name__} has no U-Net and no transformer of FLUX.1 or Stable Diffusion 3.5; "
                "training needs one"
            )
        remove_safety_checker(pipe)
        self.device, self.dtype = torch.device(device), dtype
        # Before bfloat16 rounds the weights; for other types this can wait until it is needed.
        bfloat16 = dtype == torch.bfloat16
        self._fingerprints = hash_models(pipe, image_encoder) if bfloat16 else None
        autoencoder = cast(Any, pipe).vae
        encodes_in = choose_encoding_dtype(dtype, autoencoder)
        apart = None if encodes_in == dtype else copy.deepcopy(autoencoder).to(device).to(encodes_in)
        with log_errors_only("diffusers"):  # it warns of parts to keep in float32, though there are none
            self.pipe: Any = pipe.to(device, dtype)
        self.pipe.set_progress_bar_config(disable=True)
        self.autoencoder: Any = self.pipe.vae if apart is None else apart
        self.denoiser: Any = denoiser
        self.scheduler = self.pipe.scheduler
        if self.device.type == "cuda" and not self.is_transformer:  # how convolutions are quickest
            self.denoiser.to(memory_format=torch.channels_last)
        self.image_encoder = image_encoder and image_encoder.to(self.device).to(dtype)
        for module in self.modules:
            module.eval().requires_grad_(False)

    @property
    def modules(self) -> list[nn.Module]:
        """All networks, the image encoder last."""
        parts = [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]
        apart = [] if self.autoencoder is self.pipe.vae else [self.autoencoder]
        return [*parts, *apart, *([self.image_encoder.model] if self.image_encoder else [])]

    @property
    def is_transformer(self) -> bool:
        """Whether the base has a transformer in place of a U-Net."""
        return is_trainable_transformer(self.denoiser)

    @property
    def unet(self) -> Any:
        """The U-Net.

        Raises:
            AdapterMismatch: the base has a transformer
        """
        if self.is_transformer:
            raise AdapterMismatch(
                f"a {type(self.pipe).__name__} has no U-Net; this can be trained only on one"
            )
        return self.denoiser

    @property
    def context_dim(self) -> int:
        """Width of the text embeddings; for Stable Diffusion 3.5 that of the latents' states."""
        config = self.denoiser.config
        if is_kind(self.denoiser, "SD3Transformer2DModel"):
            return config.num_attention_heads * config.attention_head_dim
        return int(config.joint_attention_dim if self.is_transformer else config.cross_attention_dim)

    @property
    def needs_size(self) -> bool:
        """Whether the U-Net takes the image size and a pooled text, as that of SDXL and Kolors does."""
        return not self.is_transformer and self.denoiser.config.addition_embed_type == "text_time"

    @torch.no_grad()
    def encode_targets(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch twochannels latent_height latent_width"]:
        """Encode images in [-1, 1]: mean and log-variance of the latents, unscaled, float32.

        The log-variance of a deterministic autoencoder is -∞, for which `sample_latents` returns the mean.
        """
        distribution = self.autoencoder.encode(pixels.to(self.device, self.autoencoder.dtype)).latent_dist
        spread = (
            torch.full_like(distribution.mean, -torch.inf)
            if distribution.deterministic
            else distribution.logvar
        )
        return torch.cat([distribution.mean, spread], dim=1).float()

    def sample_latents(
        self,
        moments: Float[Tensor, "batch twochannels latent_height latent_width"],
        noise: Float[Tensor, "batch channels latent_height latent_width"],
    ) -> Float[Tensor, "batch channels latent_height latent_width"]:
        """Sample latents, mean + deviation · noise, shifted and scaled as in the base's training, float32."""
        mean, log_variance = moments.float().chunk(2, dim=1)
        return self._scale(mean + (log_variance / 2).exp() * noise)

    def _scale(self, latents: Tensor) -> Tensor:
        """Scale as AutoencoderKL does: all channels by two numbers, or each by its own two."""
        config = self.pipe.vae.config
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            mean, std = (
                torch.tensor(config[key], device=latents.device).view(1, -1, 1, 1)
                for key in ("latents_mean", "latents_std")
            )
            return (latents - mean) * config["scaling_factor"] / std
        return (latents - (config.get("shift_factor") or 0)) * config["scaling_factor"]

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> dict[str, Float[Tensor, "batch ..."]]:
        """Encode captions as the pipeline does, truncated to the length of its text encoder.

        Returns:
            "text_embeddings", "batch length width"; for SDXL, Kolors and transformers also "pooled_text",
            "batch width"
        """
        with log_errors_only("diffusers", "transformers"):  # they would name every caption that is cut
            call = {"prompt": list(captions), "device": self.device, "num_images_per_prompt": 1}
            if is_kind(self.denoiser, "FluxTransformer2DModel"):
                states, pooled, _ = self.pipe.encode_prompt(**call, prompt_2=None)
                return {"text_embeddings": states, "pooled_text": pooled}
            others = {"prompt_2": None, "prompt_3": None} if self.is_transformer else {}
            outputs = self.pipe.encode_prompt(**call, **others, do_classifier_free_guidance=False)
        pooled = {"pooled_text": outputs[2]} if len(outputs) == 4 else {}
        return {"text_embeddings": outputs[0], **pooled}

    def encode_references(
        self, pictures: Sequence[Image.Image], names: Collection[Input], crop: Crop | str = "center"
    ) -> dict[Input, Float[Tensor, "batch ..."]]:
        """Encode upright RGB images to the inputs of a projection.

        Raises:
            AdapterMismatch: there is no image encoder, or a face embedding, which none makes
        """
        encoder = self._encoder()
        return encoder.inputs(encoder.pixels(pictures, crop), names)

    def blank(self, name: Input, no_image: NoImage = "blank") -> Float[Tensor, "..."]:
        """Return the encoding that replaces a dropped image.

        Args:
            name: an input of the projection
            no_image: "blank" is `ImageEncoder.blank`, "black picture" `ImageEncoder.black`; for "zeros" and
                "nothing" it is all zeros

        Raises:
            AdapterMismatch: as `encode_references`
        """
        encoder = self._encoder()
        if no_image == "black picture":
            return encoder.black(name)
        blank = encoder.blank(name)
        return blank if no_image == "blank" else torch.zeros_like(blank)

    def _encoder(self) -> ImageEncoder:
        if self.image_encoder is None:
            raise AdapterMismatch("there is no image encoder; name one in base.image_encoder")
        return self.image_encoder

    def build_added_conditions(
        self,
        pooled_text: Float[Tensor, "batch width"] | None,
        size_condition: Int[Tensor, "batch 6"] | None,
        guidance_scale: float | int = 1.0,
    ) -> dict[str, Tensor] | None:
        """Return SDXL's `added_cond_kwargs`, or what transformers take beside the text; None for other bases.

        Args:
            pooled_text: see `encode_text`
            size_condition: original height and width, top and left of the cut, the target's height and width
                in pixels (Podell et al. 2023, section 2.2)
            guidance_scale: the guidance that a distilled transformer is given

        Raises:
            AdapterMismatch: one of the two that the base needs is missing
        """
        if self.is_transformer and pooled_text is not None:
            distilled = self.denoiser.config.get("guidance_embeds", False)
            guidance = torch.full((len(pooled_text),), float(guidance_scale), device=pooled_text.device)
            return {"pooled_projections": pooled_text} | ({"guidance": guidance} if distilled else {})
        if not self.needs_size:
            return None
        if pooled_text is None or size_condition is None:
            raise AdapterMismatch("this base needs a pooled text and the picture's size")
        sizes = size_condition.to(pooled_text.device, pooled_text.dtype)
        return {"text_embeds": pooled_text, "time_ids": sizes}

    def fingerprints(self) -> dict[str, str]:
        """Return the SHA-256 of the autoencoder, the text encoders with tokenizers, the image encoder.

        Weights are rounded to float16 first, so that the type in which a model is loaded does not matter.
        """
        if self._fingerprints is None:
            self._fingerprints = hash_models(self.pipe, self.image_encoder)
        return self._fingerprints


def is_trainable_transformer(denoiser: nn.Module) -> bool:
    """Whether a denoiser is a transformer on which an adapter can be trained."""
    return any(is_kind(denoiser, kind) for kind in ("FluxTransformer2DModel", "SD3Transformer2DModel"))


def hash_models(pipe: Any, encoder: ImageEncoder | None) -> dict[str, str]:
    """Return the SHA-256 of each frozen model of a pipeline and of its image encoder."""
    numbered = ("", "_2", "_3")
    texts = [getattr(pipe, f"text_encoder{number}", None) for number in numbered]
    tokenizers = [getattr(pipe, f"tokenizer{number}", None) for number in numbered]
    return {
        "autoencoder": hash_weights(pipe.vae, rounded=True),
        "text_encoder": _hash_json(
            hash_weights(*(text for text in texts if text is not None), rounded=True),
            *(_vocabulary(tokenizer) for tokenizer in tokenizers if tokenizer is not None),
        ),
        "image_encoder": ""
        if encoder is None
        else _hash_json(hash_weights(encoder.model, rounded=True), encoder.mean, encoder.std),
    }


def load_frozen_base(config: TrainingConfig, device: torch.device | str) -> FrozenBase:
    """Load the frozen models of a run.

    On the CPU they compute in float32, so that every process fills a cache with the same bytes; elsewhere in
    `training.precision`.

    Raises:
        UnknownModel: no such base or image encoder
        ConfigError: base.image_encoder is "known" for a base whose encoder is not
        AdapterMismatch: a base without a U-Net
    """
    dtype = DTYPES[choose_frozen_precision(config, device)]
    # Exact weights first: the cache's autoencoder may need them wider than the rest.
    pipe = load_pipeline(config.base.model, device="cpu", dtype=torch.float32)
    encoder = _image_encoder(config)
    return FrozenBase(pipe, encoder, device=device, dtype=dtype)


def choose_frozen_precision(config: TrainingConfig, device: torch.device | str) -> Precision:
    """Return the number format of a run's frozen models; float32 on a CPU or for a trained base."""
    if config.trains_base or torch.device(device).type == "cpu":
        return "fp32"
    return resolve_precision(config.training.precision, str(device))


def _image_encoder(config: TrainingConfig) -> ImageEncoder | None:
    base = config.base
    if base.image_encoder not in ("known", "mini"):
        return load_image_encoder(base.image_encoder)
    if is_embedded(base.model) or base.image_encoder == "mini":
        return load_image_encoder(find_embedded_part(mini.WEIGHTS / "image_encoder"))
    if not config.needs_encoder:
        return None
    raise ConfigError(
        f"base.image_encoder: no encoder is known for {base.model}; name a folder or owner/name[:subfolder]"
    )


def choose_encoding_dtype(dtype: torch.dtype, autoencoder: Any) -> torch.dtype:
    """Return the type in which an autoencoder encodes: float16 if base and range allow it, else float32.

    `force_upcast` is how diffusers notes that it does not. Bfloat16 would round latents by half a percent,
    once and for all.
    """
    safe = dtype == torch.float16 and not autoencoder.config.get("force_upcast", True)
    return torch.float16 if safe else torch.float32


def hash_weights(*modules: nn.Module, rounded: bool = False) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of all saved parameters and buffers.

    Args:
        modules: the modules, in this order
        rounded: round types wider than float16 to float16 first
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            tensor = tensor.half() if rounded and tensor.is_floating_point() else tensor
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(values.numpy())  # pyright: ignore[reportArgumentType]
    return digest.hexdigest()


def _hash_json(*words: object) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _vocabulary(tokenizer: Any) -> list[object]:
    """Return what determines the output of a tokenizer."""
    known = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
    return [type(tokenizer).__name__, getattr(tokenizer, "model_max_length", None), sorted(known.items())]
