"""Deep features of a U-Net, computed at every n-th step and used again between (the idea of DeepCache).

Ma et al. 2024, https://arxiv.org/abs/2312.00858: the features of deep layers change slowly from step to step.
Here the first down block and the last up block run at every step; the blocks between them return what they
returned at the last full step. This changes the picture a little.

A step is full if anything else changes what the deep blocks compute: another generation, size, text or number
of rows, or other image prompts, λ, masks or LoRA strengths in any layer.
"""

from collections.abc import Callable
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from imprompt.attention.denoiser_call import DenoiserCall, read_call
from imprompt.attention.diffusers_internals import find_running_call, get_pipeline_denoiser, is_compiled
from imprompt.attention.processor import DecoupledAttention
from imprompt.errors import AttachmentError, ConfigError

_STOCHASTIC = ("Ancestral", "SDE", "DDPM", "LCM", "TCD")
"""Parts of the names of samplers that add noise at every step."""

_RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)


class FeatureCache:
    """Lets the deep blocks of a pipeline's U-Net be computed at every n-th step; use it with `with`.

    Args:
        pipe: a pipeline with a U-Net; it is changed at once, and restored by `remove`
        every: n, at least 2

    Attributes:
        full_steps: the number of steps at which all blocks were computed

    Raises:
        AttachmentError: no U-Net of Stable Diffusion or SDXL, or one that is compiled, offloaded, or has CUDA
            graphs
        ConfigError: a sampler that adds noise at every step
    """

    def __init__(self, pipe: Any, every: int) -> None:
        unet = get_pipeline_denoiser(pipe)
        if not isinstance(unet, UNet2DConditionModel) or is_compiled(unet) or "forward" in vars(unet):
            raise AttachmentError(
                "a feature cache is for a U-Net of Stable Diffusion or SDXL that is neither compiled nor "
                f"offloaded and has no CUDA graphs, not for that of {type(pipe).__name__}"
            )
        check_sampler(pipe.scheduler)
        self.pipe, self.unet, self.every = pipe, unet, every
        self.full_steps = 0
        self._outputs: dict[int, Any] = {}
        self._reuses = False
        self._last: tuple[int, list[object]] | None = None
        self._blocks = list_deep_blocks(unet)
        self._before = [vars(block).get("forward") for block in self._blocks]
        for number, block in enumerate(self._blocks):
            vars(block)["forward"] = self._wrap(number, block.forward)
        self._forward = unet.forward
        vars(unet)["forward"] = self._call_unet

    def __enter__(self) -> "FeatureCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Restore the U-Net."""
        for module, before in zip((self.unet, *self._blocks), (None, *self._before), strict=True):
            vars(module).pop("forward", None)
            if before is not None:
                vars(module)["forward"] = before
        self._outputs.clear()

    def _wrap(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if not self._reuses:
                self._outputs[number] = forward(*args, **kwargs)
            return self._outputs[number]

        return run

    def _call_unet(self, *args: Any, **kwargs: Any) -> Any:
        step, sources = self._read_sources(read_call(self.unet, args, kwargs))
        last, self._last = self._last, None  # Nothing is used again after a call that failed.
        self._reuses = last is not None and 0 < step - last[0] < self.every and _same(last[1], sources)
        output = self._forward(*args, **kwargs)
        if self._reuses and last is not None:
            self._last = last
        else:
            self.full_steps += 1
            self._last = step, sources
        return output

    def _read_sources(self, denoising: DenoiserCall) -> tuple[int, list[object]]:
        """Return the step, and the objects from which the deep blocks' outputs come, except the latents.

        Raises:
            AttachmentError: a sampling loop that imprompt does not know
            ConfigError: residuals of a ControlNet or a T2I-Adapter, which change the deep blocks
        """
        call = find_running_call(self.unet, self.pipe)
        if call is None or not call.is_known:
            raise AttachmentError("a feature cache needs a pipeline whose sampling loop imprompt knows")
        if any(denoising.options.get(name) is not None for name in _RESIDUALS):
            raise ConfigError(
                "feature_cache cannot be used with a ControlNet, which changes the deep features"
            )
        processors = [vars(module).get("processor") for module in self.unet.modules()]
        terms: list[object] = []
        for processor in processors:
            if isinstance(processor, DecoupledAttention):
                terms += [processor, processor.state.terms, processor.state.loras]
        return call.step, [call.timesteps, denoising.text, *terms, *denoising.sample.shape]


def list_deep_blocks(unet: UNet2DConditionModel) -> list[nn.Module]:
    """Return all blocks except the first down block and the last up block."""
    middle = [unet.mid_block] if isinstance(unet.mid_block, nn.Module) else []
    return [*list(unet.down_blocks)[1:], *middle, *list(unet.up_blocks)[:-1]]


def check_sampler(scheduler: Any) -> None:
    """Refuse a sampler that adds noise at every step, so that successive steps are not alike.

    Raises:
        ConfigError: it is one
    """
    name, algorithm = type(scheduler).__name__, str(scheduler.config.get("algorithm_type", ""))
    if any(part in name for part in _STOCHASTIC) or algorithm.startswith("sde"):
        raise ConfigError(
            f"feature_cache cannot be used with {name}, which adds noise at every step; choose another "
            "scheduler, for instance dpm++_2m"
        )


def _same(before: list[object], now: list[object]) -> bool:
    """Whether these are the same objects; numbers are compared by value."""
    return len(before) == len(now) and all(
        one is other or (isinstance(one, int) and one == other)
        for one, other in zip(before, now, strict=True)
    )
