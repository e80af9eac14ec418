"""Image prompts belong to who lets them act: threads, tasks, notebooks; and to adapters that are held."""

import asyncio
import gc
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers.pipelines.pag.pipeline_pag_sd import StableDiffusionPAGPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

import tiny
from imprompt.attention.processor import DecoupledAttention
from imprompt.errors import AttachmentError
from imprompt.reference import Reference
from showing import latents

STEPS = 6
Drawing = Callable[..., Tensor]


@pytest.fixture
def pipe() -> Any:
    made = tiny.sd_pipeline()
    made.scheduler = DDIMScheduler.from_config(made.scheduler.config)  # which keeps nothing between steps
    return made


def encode_prompt(pipe: Any) -> dict[str, Any]:
    """The text, encoded once: threads in one tokenizer change each other's padding, without adapters too."""
    positive, negative = pipe.encode_prompt("a cat", "cpu", 1, True)
    return {"prompt": None, "prompt_embeds": positive, "negative_prompt_embeds": negative}


def embedding(name: str) -> Tensor:
    return tiny.embedding(1, seed=ord(name))


def in_step(barrier: threading.Barrier) -> Callable[..., Any]:
    """A callback that lets all threads go on only together, so that their steps alternate."""

    def wait(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
        barrier.wait(60)
        return tensors

    return wait


@pytest.mark.parametrize("when", [{}, {"end": 0.5}, {"step_weights": [1.0, 0.0, 0.5, 1.0, 0.0, 0.25]}])
@pytest.mark.parametrize("count", [2, 3])
def test_threads_on_one_pipeline_each_get_their_own_picture(pipe: Any, count: int, when: Any) -> None:
    adapter = tiny.adapter(pipe.unet)
    references = [Reference(embedding(name), **when) for name in "abc"[:count]]
    barrier, text = threading.Barrier(count), encode_prompt(pipe)

    def draw(reference: Reference) -> Tensor:
        with adapter.references(reference):
            barrier.wait(60)
            wait = in_step(barrier)
            return latents(pipe, **text, num_inference_steps=STEPS, callback_on_step_end=wait)

    with adapter.attach(pipe):
        alone = []
        for reference in references:
            with adapter.references(reference):
                alone.append(latents(pipe, **text, num_inference_steps=STEPS))
        with ThreadPoolExecutor(count) as pool:
            together = list(pool.map(draw, references))
    for mine, expected in zip(together, alone, strict=True):
        assert torch.equal(mine, expected)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


def test_a_thread_that_sets_its_own_half_way_does_not_change_the_others_picture(pipe: Any) -> None:
    adapter = tiny.adapter(pipe.unet)

    def other() -> Tensor:
        with adapter.references(embedding("b")):
            return latents(pipe)

    def interrupt(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
        if step == 1:
            with ThreadPoolExecutor(1) as pool:
                assert torch.equal(pool.submit(other).result(), alone["b"])
        return tensors

    alone = {}
    with adapter.attach(pipe):
        for name in "ab":
            with adapter.references(embedding(name)):
                alone[name] = latents(pipe)
        with adapter.references(embedding("a")):
            assert torch.equal(latents(pipe, callback_on_step_end=interrupt), alone["a"])


def test_a_thread_without_image_prompts_of_its_own_is_refused_while_others_act(pipe: Any) -> None:
    adapter, base = tiny.adapter(pipe.unet), latents(pipe)
    with adapter.attach(pipe), ThreadPoolExecutor(1) as pool:
        with (
            adapter.references(embedding("a")),
            pytest.raises(AttachmentError, match="thread MainThread has set them, not thread ThreadPool"),
        ):
            pool.submit(latents, pipe).result()
        assert torch.equal(pool.submit(latents, pipe).result(), base)


def test_tasks_of_asyncio_each_get_their_own_picture(pipe: Any) -> None:
    adapter = tiny.adapter(pipe.unet)

    async def draw(name: str, turn: asyncio.Event, then: asyncio.Event) -> Tensor:
        with adapter.references(embedding(name)):
            await turn.wait()
            made = latents(pipe)
            then.set()
            await asyncio.sleep(0)
            return made

    async def both() -> list[Tensor]:
        turns = [asyncio.Event(), asyncio.Event(), asyncio.Event()]
        tasks = [asyncio.create_task(draw(name, *turns[i : i + 2])) for i, name in enumerate("ab")]
        await asyncio.sleep(0)
        turns[0].set()
        return list(await asyncio.gather(*tasks))

    with adapter.attach(pipe):
        together = asyncio.run(both())
        for name, made in zip("ab", together, strict=True):
            with adapter.references(embedding(name)):
                assert torch.equal(made, latents(pipe))


def test_what_one_cell_of_a_notebook_sets_the_next_one_draws_with(pipe: Any) -> None:
    """Each cell is a task of its own, and the earlier one has ended."""
    adapter = tiny.adapter(pipe.unet)

    async def first() -> None:
        adapter.references(embedding("a"))

    async def second() -> Tensor:
        return latents(pipe)

    with adapter.attach(pipe):
        with adapter.references(embedding("a")):
            expected = latents(pipe)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(first())
        assert torch.equal(loop.run_until_complete(second()), expected)
        loop.close()


def test_a_compiled_unet_refuses_the_image_prompts_of_a_second_thread(pipe: Any) -> None:
    adapter = tiny.adapter(pipe.unet)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with (
        adapter.attach(pipe),
        adapter.references(embedding("a")),
        ThreadPoolExecutor(1) as pool,
        pytest.raises(AttachmentError, match="compiled, so image prompts of one thread at a time"),
    ):
        pool.submit(adapter.references, embedding("b")).result()


# An adapter that nobody holds


def test_a_cell_of_a_notebook_run_again_makes_the_same_picture(pipe: Any) -> None:
    base = latents(pipe)
    made = []
    for _ in range(3):
        adapter = tiny.adapter(pipe.unet)
        adapter.attach(pipe)
        adapter.references(embedding("a"))
        made.append(latents(pipe))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    del adapter  # pyright: ignore[reportPossiblyUnboundVariable]
    assert torch.equal(latents(pipe), base)
    assert not any(isinstance(one, DecoupledAttention) for one in pipe.unet.attn_processors.values())


@pytest.mark.slow
def test_two_hundred_adapters_attached_and_forgotten_leave_no_term(pipe: Any) -> None:
    arguments: Any = tiny.unet_input(pipe.unet)
    with torch.no_grad():
        base = pipe.unet(**arguments).sample
    before = {name: id(one) for name, one in pipe.unet.attn_processors.items()}
    gc.disable()  # reference counts alone must do
    try:
        for time in range(200):
            adapter = tiny.adapter(pipe.unet)
            adapter.attach(pipe.unet)
            adapter.references(embedding("a"))
            (layer,) = {len(p.owners) for p in pipe.unet.attn_processors.values() if hasattr(p, "owners")}
            assert layer == 1
            if time % 100 == 0:
                with torch.no_grad():
                    assert not torch.equal(pipe.unet(**arguments).sample, base)
            del adapter
    finally:
        gc.enable()
    assert {name: id(one) for name, one in pipe.unet.attn_processors.items()} == before
    assert not pipe.unet._forward_pre_hooks
    assert not pipe.unet._forward_hooks
    with torch.no_grad():
        assert torch.equal(pipe.unet(**arguments).sample, base)


def test_what_references_returned_keeps_an_adapter_attached(pipe: Any) -> None:
    def prepared() -> Any:
        adapter = tiny.adapter(pipe.unet)
        adapter.attach(pipe)
        return adapter.references(embedding("a"))

    base = latents(pipe)
    with prepared():
        assert not torch.equal(latents(pipe), base)
    assert torch.equal(latents(pipe), base)


def test_attaching_beside_image_prompts_that_act_for_good_warns(pipe: Any) -> None:
    first, second = (tiny.adapter(pipe.unet, seed=seed) for seed in (1, 2))
    with first.attach(pipe):
        with first.references(embedding("a")), warnings.catch_warnings():
            warnings.simplefilter("error")
            second.attach(pipe).detach()
        first.references(embedding("a"))
        with pytest.warns(UserWarning, match="another adapter act on this U-Net already"):
            second.attach(pipe)
        second.detach()


# What diffusers' own adapter offers


def test_diffusers_own_calls_are_refused_on_an_attached_pipeline() -> None:
    for pipe in (tiny.sd_pipeline(image_encoder=True), tiny.xl_pipeline(image_encoder=True)):
        adapter, other = tiny.adapter(pipe.unet), tiny.adapter(pipe.unet, seed=1)
        with adapter.attach(pipe):
            other.attach(pipe).detach()
            with pytest.raises(AttachmentError, match="set_ip_adapter_scale has no effect"):
                pipe.set_ip_adapter_scale(0.5)
            with pytest.raises(AttachmentError, match="it takes no ip_adapter_image and no"):
                latents(pipe, ip_adapter_image=tiny.picture())
            with pytest.raises(AttachmentError, match="it takes no ip_adapter_image and no"):
                latents(pipe, ip_adapter_image_embeds=[tiny.embedding(2, 1)])
        assert "set_ip_adapter_scale" not in vars(pipe)
        assert "prepare_ip_adapter_image_embeds" not in vars(pipe)
        pipe.set_ip_adapter_scale(0.5)


def pag(pipe: Any) -> Any:
    return StableDiffusionPAGPipeline.from_pipe(pipe, pag_applied_layers=["mid"])


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (StableDiffusionPipeline.from_pipe, {}),
        (pag, {}),
        (StableDiffusionImg2ImgPipeline.from_pipe, {"image": tiny.picture(), "strength": 0.9}),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_diffusers_own_image_prompts_are_refused_by_a_pipeline_that_shares_the_unet(
    make: Callable[[Any], Any], settings: dict[str, Any], is_first: bool
) -> None:
    pipe = tiny.sd_pipeline(image_encoder=True)
    adapter = tiny.adapter(pipe.unet)
    embeds = [tiny.embedding(2, 1)]
    other = make(pipe) if is_first else None
    with adapter.attach(pipe):
        other = other or make(pipe)
        other.set_progress_bar_config(disable=True)
        with adapter.references(embedding("a")):
            with pytest.raises(AttachmentError, match="it takes no ip_adapter_image and no"):
                latents(other, ip_adapter_image_embeds=embeds, **settings)
            latents(other, **settings)
            for arguments in ({"ip_adapter_image": tiny.picture()}, {"ip_adapter_image_embeds": embeds}):
                with pytest.raises(AttachmentError, match="it takes no ip_adapter_image and no"):
                    latents(other, **arguments, **settings)
            with pytest.raises(AttachmentError, match="set_ip_adapter_scale has no effect"):
                other.set_ip_adapter_scale(0.5)
    assert not vars(other).keys() & {"set_ip_adapter_scale", "prepare_ip_adapter_image_embeds"}
    other.set_ip_adapter_scale(0.5)


def test_a_pipeline_that_shares_the_unet_and_is_gone_is_not_held(pipe: Any) -> None:
    adapter = tiny.adapter(pipe.unet)
    with adapter.attach(pipe), adapter.references(embedding("a")):
        other = StableDiffusionPipeline.from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        latents(other)
        watched = weakref.ref(other)
        del other
        gc.collect()
        assert watched() is None
        latents(pipe)
