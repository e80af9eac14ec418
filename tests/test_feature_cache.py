"""Deep blocks at every n-th step: what is skipped, what makes a step full, and what is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

import tiny
from host_reads import Recording
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.feature_cache import FeatureCache, list_deep_blocks
from imprompt.errors import AttachmentError, ConfigError
from imprompt.generation.base_parts import build_scheduler
from imprompt.generation.generate import generate, generate_each
from imprompt.generation.settings import Settings
from imprompt.reference import Reference

STEPS = 10


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sd_pipeline()


@pytest.fixture(scope="module")
def adapter(pipe: Any) -> ImagePromptAdapter:
    return tiny.adapter(pipe.unet)


def latents(pipe: Any, **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    settings = {"num_inference_steps": STEPS, "generator": generator, "output_type": "latent"}
    return pipe("a cat", **(settings | arguments)).images


@contextmanager
def count_runs(unet: UNet2DConditionModel) -> Iterator[list[int]]:
    """The number of deep blocks that run, for each step."""
    runs: list[int] = []
    forwards = {block: block.forward for block in list_deep_blocks(unet)}

    def counted(block: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            runs[-1] += 1
            return forwards[block](*args, **kwargs)

        return run

    for block in forwards:
        vars(block)["forward"] = counted(block)
    with unet.register_forward_pre_hook(lambda *_: runs.append(0)):
        yield runs
    for block in forwards:
        del vars(block)["forward"]


def test_deep_blocks_run_at_every_nth_step_of_each_picture(pipe: Any, adapter: ImagePromptAdapter) -> None:
    deep = len(list_deep_blocks(pipe.unet))
    assert deep == 3
    full = latents(pipe)
    attached = adapter.attach(pipe)
    with (
        attached,
        count_runs(pipe.unet) as runs,
        FeatureCache(pipe, 3) as cached,
        adapter.use(tiny.embedding(1)),
    ):
        made = [latents(pipe) for _ in range(2)]
    assert runs == 2 * [deep, 0, 0, deep, 0, 0, deep, 0, 0, deep]
    assert cached.full_steps == 8
    assert torch.equal(*made)
    assert not torch.equal(made[0], full)
    assert torch.equal(latents(pipe), full)
    assert "forward" not in vars(pipe.unet)


def test_a_full_step_is_the_step_without_a_cache_bit_for_bit(pipe: Any) -> None:
    with FeatureCache(pipe, 3):
        first = latents(pipe, num_inference_steps=1)
    assert torch.equal(first, latents(pipe, num_inference_steps=1))


@pytest.mark.parametrize(
    "reference",
    [
        Reference(tiny.embedding(1), start=0.5),
        Reference(tiny.embedding(1), end=0.5),
        Reference(tiny.embedding(1), step_weights=[1.0] * 5 + [0.4] * 5),
        Reference(tiny.embedding(1), start=0.5, mask=torch.ones(4, 4)),
    ],
    ids=["start", "end", "weights", "mask"],
)
def test_a_change_of_the_image_prompt_makes_a_full_step(
    pipe: Any, adapter: ImagePromptAdapter, reference: Reference
) -> None:
    attached = adapter.attach(pipe)
    with attached, count_runs(pipe.unet) as runs, FeatureCache(pipe, 4), adapter.use(reference):
        latents(pipe)
    assert [*map(bool, runs)] == [True, False, False, False, True, True, False, False, False, True]


def test_a_change_of_references_or_adapters_makes_a_full_step(pipe: Any, adapter: ImagePromptAdapter) -> None:
    other = tiny.adapter(pipe.unet, seed=3)
    entered: list[Any] = []

    def change(pipe: Any, step: int, timestep: object, tensors: Any) -> Any:
        if step == 1:
            entered.append(adapter.use(tiny.embedding(1, seed=7)))
        if step == 2:
            other.attach(pipe)
            entered.append(other.use(tiny.embedding(1)))
        return tensors

    attached = adapter.attach(pipe)
    with attached, count_runs(pipe.unet) as runs, FeatureCache(pipe, 9), adapter.use(tiny.embedding(1)):
        with pytest.warns(match="another adapter"):
            latents(pipe, callback_on_step_end=change)
        other.detach()
    assert [*map(bool, runs)] == [True, False, True, True, False, False, False, False, False, False]


def test_guidance_that_ends_makes_a_full_step(pipe: Any, adapter: ImagePromptAdapter) -> None:
    settings = Settings(steps=STEPS, feature_cache=9, guidance_interval=(0.0, 0.5))
    with count_runs(pipe.unet) as runs:
        list(generate_each(pipe, [(adapter, [tiny.embedding(1)])], settings, seeds=[0, 1]))
    assert [*map(bool, runs)] == 2 * [True, False, False, False, False, True, False, False, False, False]


def test_a_call_that_fails_leaves_nothing_to_be_used(pipe: Any) -> None:
    def stop(pipe: Any, step: int, timestep: object, tensors: Any) -> Any:
        raise KeyboardInterrupt

    with count_runs(pipe.unet) as runs, FeatureCache(pipe, 5):
        with pytest.raises(KeyboardInterrupt):
            latents(pipe, callback_on_step_end=stop)
        latents(pipe, num_inference_steps=1)
    assert runs == [3, 3]


# Refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_cache": 2, "steps": 8}, "feature_cache needs 9 steps or more, not 8"),
        ({"feature_cache": 0}, r"feature_cache must be 1 \(off\) to 10 steps, not 0"),
        ({"feature_cache": 11}, r"feature_cache must be 1 \(off\) to 10 steps, not 11"),
    ],
)
def test_settings_that_cannot_be_right(
    pipe: Any, adapter: ImagePromptAdapter, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        generate_each(pipe, [(adapter, [tiny.embedding(1)])], Settings(**settings))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2
@pytest.mark.parametrize("sampler", ["euler_a", "euler_a_trailing", "ddpm", "dpm++_2m_sde", "lcm", "tcd"])
def test_samplers_that_add_noise_are_refused(sampler: str) -> None:
    pipe = tiny.sd_pipeline()
    pipe.scheduler = build_scheduler(sampler, pipe.scheduler)
    with pytest.raises(ConfigError, match=r"feature_cache cannot be used with \w+, which adds noise"):
        FeatureCache(pipe, 2)
    assert "forward" not in vars(pipe.unet)


def test_residuals_of_a_controlnet_are_refused(pipe: Any) -> None:
    residuals = torch.zeros(2, 32, 4, 4)

    def add(unet: object, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"mid_block_additional_residual": residuals}

    refused = pytest.raises(ConfigError, match="cannot be used with a ControlNet")
    with pipe.unet.register_forward_pre_hook(add, with_kwargs=True), FeatureCache(pipe, 2), refused:
        latents(pipe)


def test_a_sampling_loop_that_is_not_known_is_refused(pipe: Any) -> None:
    call: Any = tiny.unet_input(pipe.unet)
    with FeatureCache(pipe, 2), pytest.raises(AttachmentError, match="whose sampling loop imprompt knows"):
        pipe.unet(**call)


def test_a_second_cache_is_refused(pipe: Any) -> None:
    with FeatureCache(pipe, 2), pytest.raises(AttachmentError, match="a feature cache is for a U-Net"):
        FeatureCache(pipe, 2)


# Image prompts whose weight is zero


def test_an_image_prompt_costs_nothing_where_its_weight_is_zero(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    """Not one operator more than the base, and its bits, in steps and layers in which λ is 0."""

    def operators(steps: int) -> int:
        with Recording() as recording:
            latents(pipe, num_inference_steps=steps)
        return sum("attention" in str(func) for func, *_ in recording.calls)

    base, base_of_two, base_latents = operators(1), operators(2), latents(pipe)
    with adapter.attach(pipe):
        with adapter.use(Reference(tiny.embedding(1), start=0.5)):
            assert operators(2) == base_of_two + len(adapter.shapes)
        with adapter.use(Reference(tiny.embedding(1), layers={"mid": 1.0})):
            assert operators(1) == base + 1
        with adapter.use(Reference(tiny.embedding(1), scale=0.0)):
            assert operators(1) == base
            assert torch.equal(latents(pipe), base_latents)


# Speeds


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2
def test_speeds_choose_sampler_and_steps_and_leave_the_pipeline_its_own(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    scheduler = pipe.scheduler
    made = {
        speed: generate(pipe, adapter, tiny.embedding(1), speed=speed)[0]
        for speed in ("exact", "balanced", "fast")
    }
    assert pipe.scheduler is scheduler
    assert isinstance(scheduler, DDIMScheduler)
    plain = generate(pipe, adapter, tiny.embedding(1))[0]
    assert made["exact"].tobytes() == plain.tobytes()
    assert len({picture.tobytes() for picture in made.values()}) == 3


def test_an_unknown_speed_is_refused(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with pytest.raises(ConfigError, match="speed must be exact, balanced"):
        generate(pipe, adapter, tiny.embedding(1), speed="warp")
