"""The settings of a generation apart from its references, and the checks that a base can honor them."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from PIL import Image, ImageOps

from imprompt.attention.pipeline_state import count_timesteps
from imprompt.errors import ConfigError
from imprompt.generation.job.limits import (
    DEFAULT_GUIDANCE,
    DEFAULT_STEPS,
    MAX_SIDE,
    MAX_STEPS,
    find_settings_fault,
    find_size_fault,
    find_text_fault,
)
from imprompt.generation.transformer_bases import (
    check_guidance,
    find_own_size,
    find_patch,
    find_transformer,
)
from imprompt.inputs.crop import MAX_PROPORTION

_MAX_SEED = 2**63 - 1
_STRENGTH = {"init_image": 0.8, "inpaint": 1.0}


class Control(NamedTuple):
    """A ControlNet, the picture that it follows, and how strongly."""

    model: ControlNetModel
    image: Image.Image
    scale: float | int = 1.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a generation, apart from its references.

    Args:
        prompt: the text prompt; "" leaves everything to the image prompts
        negative_prompt: the text of what to avoid
        guidance_scale: w of classifier-free guidance; at most 1 turns guidance off. FLUX.1 [dev] is distilled
            and takes it as an input
        guidance_interval: (start, end): the fraction of the steps with guidance; outside it there is none
        feature_cache: compute the U-Net's deep blocks at every n-th step only, see `FeatureCache`; 1 means at
            every step
        true_guidance_scale: w of classifier-free guidance on FLUX.1, with the negative prompt; at most 1, the
            default, turns it off
        steps: denoising steps
        size: width and height in pixels, multiples of 8. By default the base's own; with `init_image`, its
            proportions, the shorter side as long as the base's own
        init_image: the picture to start from, made to fit the size
        strength: how much of it is repainted, above 0 and up to 1; 0.8 by default, 1 with `inpaint`
        inpaint: mask over `init_image`: white parts are repainted; in black parts every pixel stays as it
            was
        controls: ControlNets, acting together
        clip_skip: the layer of the text encoder that is read, counted from its end as in A1111: 1 is the last
        prompt_weighting: read weights in the texts, and texts of any length, by compel
    """

    prompt: str = ""
    negative_prompt: str = ""
    guidance_scale: float | int = DEFAULT_GUIDANCE
    guidance_interval: tuple[float | int, float | int] = (0.0, 1.0)
    feature_cache: int = 1
    true_guidance_scale: float | int = 1.0
    steps: int = DEFAULT_STEPS
    size: tuple[int, int] | None = None
    init_image: Image.Image | None = None
    strength: float | int | None = None
    inpaint: Image.Image | None = None
    controls: Sequence[Control] = ()
    clip_skip: int | None = None
    prompt_weighting: bool = False

    @property
    def effective_strength(self) -> float:
        """The strength, or its default."""
        if self.strength is not None:
            return float(self.strength)
        return _STRENGTH["init_image" if self.inpaint is None else "inpaint"]

    @property
    def effective_steps(self) -> int:
        """The number of steps that are run: with a picture to start from, only the last part of `steps`."""
        return self.steps if self.init_image is None else int(self.steps * self.effective_strength)


def check_settings(pipe: DiffusionPipeline, settings: Settings, seeds: Sequence[int]) -> None:
    """Refuse, before the first step, settings that this base cannot honor.

    Raises:
        ConfigError: the first such setting
    """
    _check_types(settings, seeds)
    for name in ("prompt", "negative_prompt"):
        if fault := find_text_fault(getattr(settings, name)):
            raise ConfigError(f"{name}: {fault}")
    _check_guidance(pipe, settings)
    if settings.steps < 1:
        raise ConfigError(f"steps must be at least 1, not {settings.steps}")
    if settings.steps > MAX_STEPS:
        raise ConfigError(f"steps may be {MAX_STEPS}, not {settings.steps}; give fewer")
    _check_schedule(getattr(pipe, "scheduler"), settings.steps)  # noqa: B009
    for seed in seeds:
        if not 0 <= seed <= _MAX_SEED:
            raise ConfigError(f"a seed must be 0 to {_MAX_SEED}, not {seed}")
    _check_size(pipe, settings.size)
    _check_images(settings)
    _check_mask(pipe, settings)


def _check_types(settings: Settings, seeds: object) -> None:
    """Refuse values of wrong types here, because a pipeline would fail with a sentence about its inside."""
    for name in ("prompt", "negative_prompt"):
        if not isinstance(text := getattr(settings, name), str):
            raise ConfigError(f"{name} must be one text, not {text!r:.80}; generate once for each text")
    for name, kind, wanted in (
        ("guidance_scale", Real, "a number"),
        ("steps", Integral, "a whole number"),
        ("feature_cache", Integral, "a whole number"),
    ):
        if not isinstance(value := getattr(settings, name), kind) or isinstance(value, bool):
            raise ConfigError(f"{name} must be {wanted}, not {value!r:.80}")
    if settings.size is not None and not _is_whole(settings.size, length=2):
        raise ConfigError(f"size must be one whole number or (width, height), not {settings.size!r:.80}")
    if not _is_whole(seeds):
        raise ConfigError(f"seeds must be a list of whole numbers, not {seeds!r:.80}")


def _is_whole(values: object, length: int | None = None) -> bool:
    """Whether this is a sequence of whole numbers, of this length if one is given."""
    if not isinstance(values, Sequence) or isinstance(values, str) or length not in (None, len(values)):
        return False
    return all(isinstance(value, Integral) and not isinstance(value, bool) for value in values)


def _check_guidance(pipe: DiffusionPipeline, settings: Settings) -> None:
    for name in ("guidance_scale", "true_guidance_scale"):
        if not math.isfinite(scale := getattr(settings, name)):
            raise ConfigError(f"{name} must be a finite number, not {scale}")
    check_guidance(
        pipe,
        negative_prompt=settings.negative_prompt,
        true_guidance_scale=settings.true_guidance_scale,
        has_interval=tuple(settings.guidance_interval) != (0, 1),
    )
    if fault := find_settings_fault(settings):
        raise ConfigError(fault)
    if tuple(settings.guidance_interval) == (0, 1):
        return
    if getattr(pipe, "unet").config.time_cond_proj_dim is not None:  # noqa: B009
        raise ConfigError("guidance_interval has no effect on this base: the scale is an input of its U-Net")


def _check_schedule(scheduler: Any, steps: int) -> None:
    """Try the steps on a copy: some schedulers refuse too many, and some would fail at the first step."""
    trial = copy.deepcopy(scheduler)
    shift = {"mu": 1.0} if trial.config.get("use_dynamic_shifting", False) else {}
    try:
        trial.set_timesteps(steps, **shift)
        fits = float(trial.timesteps.max()) <= count_timesteps(trial)
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(f"{steps} steps are too many for this base's scheduler, {type(scheduler).__name__}")


def _check_size(pipe: DiffusionPipeline, size: tuple[int, int] | None) -> None:
    for side in size or ():
        if side > MAX_SIDE:
            raise ConfigError(f"a picture may be {MAX_SIDE} pixels wide or high, not {side}")
        if side < _unit(pipe) or side % _unit(pipe):
            raise ConfigError(f"size must be a multiple of {_unit(pipe)} pixels on this base, not {side}")
    if fault := find_size_fault(size):
        raise ConfigError(fault)


def check_proportions(picture: Image.Image, name: str) -> None:
    """Refuse a picture so thin that resizing it to fit would take gigabytes.

    Raises:
        ConfigError: longer than MAX_PROPORTION times its shorter side
    """
    shorter, longer = sorted(picture.size)
    if longer > MAX_PROPORTION * shorter:
        raise ConfigError(
            f"{name} has {picture.width} × {picture.height} pixels, longer than {MAX_PROPORTION}:1; crop it"
        )


def _check_images(settings: Settings) -> None:
    for control in settings.controls:
        check_proportions(control.image, "a control picture")
    for name, picture in (("init_image", settings.init_image), ("inpaint", settings.inpaint)):
        if picture is not None:
            check_proportions(picture, name)
    if settings.init_image is None:
        return
    if not 0 < settings.effective_strength <= 1:
        raise ConfigError(f"strength must be above 0 and up to 1, not {settings.strength}")
    if settings.effective_steps < 1:
        raise ConfigError(
            f"strength {settings.effective_strength} of {settings.steps} steps is less than one step; "
            "give more of either"
        )


def _check_mask(pipe: Any, settings: Settings) -> None:
    """Refuse to use an inpainting model without a mask; its U-Net reads latents twice, and the mask."""
    if find_transformer(pipe) is not None:
        return
    channels, latents = pipe.unet.config.in_channels, pipe.unet.config.out_channels
    if channels == 2 * latents + 1 and settings.inpaint is None:
        raise ConfigError(
            "this base is an inpainting model: give a picture (init_image) and a mask (inpaint), or choose "
            "another base"
        )


def build_call_arguments(pipe: DiffusionPipeline, settings: Settings) -> dict[str, Any]:
    """Return the arguments for the pipeline of `derive_pipeline` except the texts; pictures are resized."""
    arguments: dict[str, Any] = {
        "guidance_scale": settings.guidance_scale,
        "num_inference_steps": settings.steps,
    }
    size = _size(pipe, settings)
    if size is None:
        return arguments
    arguments |= {"width": size[0], "height": size[1]}
    if settings.init_image is not None:
        arguments |= {
            "image": fit_picture(settings.init_image, size),
            "strength": settings.effective_strength,
        }
    if settings.inpaint is not None:
        arguments["mask_image"] = fit_picture(settings.inpaint, size)
    return arguments | _control_arguments(pipe, settings, size)


def fit_picture(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize a picture; where the proportions differ, the edges are cut off."""
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def _name_control(pipe: Any, settings: Settings) -> str:
    """Return the argument for a ControlNet's picture."""
    is_alone = settings.init_image is None and find_transformer(pipe) is None
    return "image" if is_alone else "control_image"


def _control_arguments(pipe: Any, settings: Settings, size: tuple[int, int]) -> dict[str, Any]:
    if not settings.controls:
        return {}
    images = [fit_picture(control.image, size) for control in settings.controls]
    scales = [float(control.scale) for control in settings.controls]
    several = len(images) > 1
    return {
        _name_control(pipe, settings): images if several else images[0],
        "controlnet_conditioning_scale": scales if several else scales[0],
    }


def _size(pipe: DiffusionPipeline, settings: Settings) -> tuple[int, int] | None:
    """Return width and height; None to let the pipeline choose its own."""
    if settings.size is not None or (settings.init_image is None and not settings.controls):
        return settings.size
    side, unit = _own_size(pipe), _unit(pipe)
    if settings.init_image is None:
        return side, side
    shorter = min(settings.init_image.size)
    width, height = (max(unit, round(side * x / shorter / unit) * unit) for x in settings.init_image.size)
    return width, height


def _own_size(pipe: Any) -> int:
    if find_transformer(pipe) is not None:
        return find_own_size(pipe)
    latent = pipe.unet.config.sample_size
    return (latent if isinstance(latent, int) else min(latent)) * pipe.vae_scale_factor


def _unit(pipe: DiffusionPipeline) -> int:
    return math.lcm(8, getattr(pipe, "vae_scale_factor", 8) * find_patch(pipe))
