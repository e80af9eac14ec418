"""Attaching to whole pipelines: once per generation, exact batches, nothing left behind."""

import contextlib
import copy
import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jaxtyping
import pytest
import torch
from accelerate import cpu_offload
from diffusers.models.attention_processor import AttnAddedKVProcessor2_0, AttnProcessor, AttnProcessor2_0
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.deprecated.stable_diffusion_panorama.pipeline_stable_diffusion_panorama import (
    StableDiffusionPanoramaPipeline,
)
from diffusers.pipelines.pag.pipeline_pag_sd import StableDiffusionPAGPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_instruct_pix2pix import (
    StableDiffusionInstructPix2PixPipeline,
)
from torch import Tensor, nn

import tiny
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.processor import DecoupledAttention
from imprompt.errors import AdapterMismatch, AmbiguousBatch, AttachmentError
from imprompt.inputs.encoder import ImageEncoder
from imprompt.reference import Reference
from test_parity import for_diffusers, official

assert_close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
STEPS = 3


@pytest.fixture
def pipe() -> Any:
    return tiny.sd_pipeline()


@pytest.fixture
def adapter(pipe: Any) -> ImagePromptAdapter:
    return tiny.adapter(pipe.unet)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def latents(pipe: Any, prompt: str | list[str] = "a cat", **arguments: Any) -> Tensor:
    settings = {"num_inference_steps": STEPS, "output_type": "latent", "generator": generators(5)[0]}
    return pipe(prompt, **(settings | arguments)).images


# Once per generation


@contextmanager
def count_calls(**modules: list[nn.Module]) -> Iterator[dict[str, int]]:
    """Count the calls of modules by group; patched on their classes, so nothing of theirs shows it."""
    calls = dict.fromkeys(modules, 0)
    groups = {id(module): name for name, members in modules.items() for module in members}
    with pytest.MonkeyPatch.context() as patch:
        for kind in {type(module) for members in modules.values() for module in members}:

            def counting(self: nn.Module, *args: Any, _forward: Any = kind.forward, **kwargs: Any) -> Any:
                if id(self) in groups:
                    calls[groups[id(self)]] += 1
                return _forward(self, *args, **kwargs)

            patch.setattr(kind, "forward", counting)
        yield calls


def group_modules(pipe: Any, adapter: ImagePromptAdapter) -> dict[str, list[nn.Module]]:
    cross = [module for name, module in pipe.unet.named_modules() if name.endswith("attn2")]
    layers = [adapter.key_value(number) for number in adapter.shapes]
    assert adapter.image_encoder is not None
    return {
        "text": [linear for attn in cross for linear in (attn.to_k, attn.to_v)],
        "query": [attn.to_q for attn in cross],
        "image": [linear for layer in layers for linear in (layer.to_key, layer.to_value)],
        "projection": [adapter.projection],
        "encoder": [adapter.image_encoder.model],
    }


def test_keys_values_projection_and_encoder_run_once_per_generation_not_per_step(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    adapter.attach(pipe)
    with count_calls(**group_modules(pipe, adapter)) as calls:
        adapter.references(tiny.picture(), [tiny.picture(seed=1)])
        # Two references, each with its positive and its negative half, on four layers.
        before = {"text": 0, "query": 0, "image": 2 * 2 * 2 * 4, "projection": 2 * 2, "encoder": 1}
        assert calls == before
        latents(pipe)
        assert calls == before | {"text": 2 * 4, "query": STEPS * 4}
        latents(pipe, "a dog")
        assert calls == before | {"text": 2 * 2 * 4, "query": 2 * STEPS * 4}


def test_a_batch_is_laid_out_once_per_generation(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with adapter.attach(pipe), adapter.references(tiny.embedding(1)):
        with pytest.MonkeyPatch.context() as patch:
            shown: list[object] = []
            set_terms = DecoupledAttention.set_terms
            patch.setattr(
                DecoupledAttention, "set_terms", lambda self, *a: [shown.append(a), set_terms(self, *a)]
            )
            latents(pipe)
        assert len(shown) == 4


# Exact batches


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("build", [tiny.sd_pipeline, tiny.xl_pipeline])
def test_several_prompts_with_one_reference_each_equal_each_alone(
    build: Callable[[], Any], guidance_scale: float
) -> None:
    pipe = build()
    adapter = tiny.adapter(pipe.unet)
    prompts = ["a cat", "a red dog", "two hats"]
    references = [Reference(tiny.embedding(1, seed=i), scale=0.4 * i) for i in range(3)]
    settings: dict[str, Any] = {"guidance_scale": guidance_scale, "num_images_per_prompt": 2}
    with adapter.attach(pipe):
        with adapter.references([*references]):
            together = latents(pipe, prompts, generator=generators(*range(6)), **settings)
        for i, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
            with adapter.references(reference):
                alone = latents(pipe, prompt, generator=generators(2 * i, 2 * i + 1), **settings)
            assert_close(together[2 * i : 2 * i + 2], alone)


def test_pictures_of_one_prompt_may_have_a_reference_each(pipe: Any, adapter: ImagePromptAdapter) -> None:
    one, two = tiny.embedding(1, seed=1), tiny.embedding(1, seed=2)
    with adapter.attach(pipe):
        with adapter.references([one, two]):
            both = latents(pipe, num_images_per_prompt=2, generator=generators(1, 2))
        with adapter.references(two):
            assert_close(latents(pipe, generator=generators(2)), both[1:])


@pytest.mark.parametrize(("prompts", "images"), [(["a", "b", "c"], 1), (["a", "b", "c", "d"], 1), (["a"], 3)])
def test_batches_that_references_do_not_fit_are_refused(
    pipe: Any, adapter: ImagePromptAdapter, prompts: list[str], images: int
) -> None:
    base = latents(pipe, prompts, num_images_per_prompt=images)
    with adapter.attach(pipe):
        with adapter.references([tiny.embedding(1), tiny.embedding(1)]), pytest.raises(AmbiguousBatch):
            latents(pipe, prompts, num_images_per_prompt=images)
        assert torch.equal(latents(pipe, prompts, num_images_per_prompt=images), base)


def test_scale_zero_is_the_base_pipeline_to_the_last_bit(pipe: Any, adapter: ImagePromptAdapter) -> None:
    base = latents(pipe, ["a cat", "a dog"])
    with adapter.attach(pipe):
        assert torch.equal(latents(pipe, ["a cat", "a dog"]), base)
        with adapter.references(Reference(tiny.embedding(2), scale=0)):
            assert torch.equal(latents(pipe, ["a cat", "a dog"]), base)


def test_guidance_may_be_switched_off_part_way(pipe: Any, adapter: ImagePromptAdapter) -> None:
    """Against a sampling loop by hand: guided first, positive rows alone afterwards."""
    reference, start = tiny.embedding(1), torch.randn(1, 4, 8, 8)

    def switch_off(pipe: Any, step: int, _: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 0:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        return tensors

    with adapter.attach(pipe), adapter.references(reference):
        ours = latents(
            pipe,
            guidance_scale=4.0,
            latents=start,
            callback_on_step_end=switch_off,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )

    positive, negative = pipe.encode_prompt("a cat", "cpu", 1, True)
    pipe.scheduler.set_timesteps(STEPS)
    x = start
    with adapter.attach(pipe.unet), torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):
            with adapter.references(reference):
                noise = pipe.unet(x, t, positive).sample
            if step == 0:
                with adapter.references(torch.zeros_like(reference)):
                    unconditional = pipe.unet(x, t, negative).sample
                noise = unconditional + 4.0 * (noise - unconditional)
            x = pipe.scheduler.step(noise, t, x).prev_sample
    assert_close(ours, x)


# Other pipelines, against diffusers' own adapter in each


def pag(pipe: Any) -> Any:
    return StableDiffusionPAGPipeline.from_pipe(pipe, pag_applied_layers=["mid"])


def image_to_image(pipe: Any) -> Any:
    return StableDiffusionImg2ImgPipeline.from_pipe(pipe)


def add_controlnet(pipe: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=net)


OTHERS: list[tuple[Callable[[Any], Any], dict[str, Any]]] = [
    (pag, {"pag_scale": 2.0}),
    (pag, {"pag_scale": 2.0, "guidance_scale": 0.0}),
    (pag, {"pag_scale": 0.0}),
    (image_to_image, {"image": tiny.picture(width=16, height=16), "strength": 0.9}),
    (add_controlnet, {"image": tiny.picture(width=16, height=16)}),
]


@pytest.mark.parametrize(("build", "settings"), OTHERS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_other_pipelines_against_diffusers(build: Callable[[Any], Any], settings: dict[str, Any]) -> None:
    base = tiny.sd_pipeline(image_encoder=True)
    adapter, embedding = tiny.adapter(base.unet), tiny.embedding(1)
    pipe = build(base)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"guidance_scale": 2.0, "num_images_per_prompt": 2} | settings
    with adapter.attach(pipe), adapter.references(Reference(embedding)):
        ours = latents(pipe, **arguments)
    pipe.load_ip_adapter(official(adapter), subfolder="", weight_name="", image_encoder_folder=None)
    embeds = for_diffusers(embedding, guided=arguments["guidance_scale"] > 1)
    expected = latents(pipe, ip_adapter_image_embeds=embeds, **arguments)
    assert_close(ours, expected)


def test_instruct_pix2pix_against_diffusers() -> None:
    """It stacks (positive, negative, negative), and takes pictures only."""
    base = tiny.sd_pipeline(image_encoder=True)
    adapter = tiny.adapter(base.unet)
    adapter.image_encoder = ImageEncoder(base.image_encoder)  # pyright: ignore[reportArgumentType]
    base.unet.conv_in = nn.Conv2d(8, 16, 3, padding=1)
    base.unet.register_to_config(in_channels=8)
    pipe = StableDiffusionInstructPix2PixPipeline(**base.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"image": tiny.picture(width=16, height=16), "guidance_scale": 2.0}
    with adapter.attach(pipe), adapter.references(tiny.picture(seed=1)):
        ours = latents(pipe, **arguments)
    pipe.load_ip_adapter(official(adapter), subfolder="", weight_name="", image_encoder_folder=None)
    expected = latents(pipe, ip_adapter_image=tiny.picture(seed=1), **arguments)
    assert_close(ours, expected)


def test_a_pipeline_that_does_not_tell_its_branches_is_refused(adapter: ImagePromptAdapter) -> None:
    class Silent:
        unet = tiny.sd_unet()

    adapter.attach(Silent())
    adapter.references(tiny.embedding(1))
    with pytest.raises(AttachmentError, match="Silent does not tell how it stacks its batch"):
        Silent.unet(**tiny.unet_input(Silent.unet))  # pyright: ignore[reportArgumentType]


def test_a_unet_called_by_no_pipeline_at_all_is_refused(pipe: Any, adapter: ImagePromptAdapter) -> None:
    other = image_to_image(pipe)
    latents(other, image=tiny.picture(width=16, height=16))
    with adapter.attach(other):
        with (
            adapter.references(tiny.embedding(1)),
            pytest.raises(AttachmentError, match="but not by the Stable"),
        ):
            pipe.unet(**tiny.unet_input(pipe.unet))
        with adapter.references(tiny.embedding(1), branches=("negative", "positive")):
            pipe.unet(**tiny.unet_input(pipe.unet))


# Nothing is left


def traces(pipe: Any) -> tuple[object, ...]:
    modules = list(pipe.unet.named_modules())
    processors = [id(processor) for processor in pipe.unet.attn_processors.values()]
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks), m._compiled_call_impl) for _, m in modules]
    return processors, hooks, [sorted(vars(m)) for _, m in modules], id(pipe.unet), sorted(vars(pipe))


def test_an_exception_in_a_generation_leaves_nothing(pipe: Any, adapter: ImagePromptAdapter) -> None:
    base, before = latents(pipe), traces(pipe)

    def fail(*_: Any) -> dict[str, Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), adapter.attach(pipe), adapter.references(tiny.embedding(1)):
        latents(pipe, callback_on_step_end=fail)
    assert not adapter.is_attached
    assert traces(pipe) == before
    assert torch.equal(latents(pipe), base)


def live_objects() -> tuple[int, int]:
    gc.collect()
    objects = gc.get_objects()
    return len(objects), sum(issubclass(type(one), Tensor) for one in objects)


@pytest.mark.slow
def test_four_hundred_attachments_leave_nothing_behind(
    pipe: Any, adapter: ImagePromptAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither processors, hooks nor memory, whether the use of it ended well or by an exception."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arguments, before = tiny.unet_input(pipe.unet), traces(pipe)
    base = pipe.unet(**arguments).sample
    reference = Reference(tiny.embedding(1), mask=torch.eye(8), layers={"mid": 1.0})

    def use(times: int) -> None:
        for time in range(times):
            with (
                contextlib.suppress(ZeroDivisionError),
                adapter.attach(pipe.unet),
                adapter.references(reference),
                torch.no_grad(),
            ):
                if time % 5 == 0:  # a leak of one object in a call would be seen four times over
                    pipe.unet(**arguments)
                _ = 1 / (time % 3)

    use(20)
    objects, tensors = live_objects()
    use(400)
    assert traces(pipe) == before
    assert torch.equal(pipe.unet(**arguments).sample, base)
    objects_now, tensors_now = live_objects()
    assert tensors_now <= tensors
    assert objects_now <= objects + 50


def test_contexts_may_end_in_any_order(pipe: Any, adapter: ImagePromptAdapter) -> None:
    before = traces(pipe)
    attachment = adapter.attach(pipe)
    shown = adapter.references(tiny.embedding(1))
    attachment.detach()
    shown.__exit__()
    attachment.detach()
    assert traces(pipe) == before
    with pytest.raises(AttachmentError, match="not attached"):
        adapter.detach()


@pytest.mark.parametrize("first", [0, 1])
def test_two_adapters_share_a_base_and_leave_it_in_any_order(pipe: Any, first: int) -> None:
    base, before = latents(pipe), traces(pipe)
    adapters = [tiny.adapter(pipe.unet, seed=seed) for seed in (1, 2)]
    alone = []
    for adapter in adapters:
        with adapter.attach(pipe), adapter.references(tiny.embedding(1)):
            alone.append(latents(pipe))
    for adapter in adapters:
        adapter.attach(pipe)
    for adapter in adapters:
        adapter.references(tiny.embedding(1))
    assert not torch.allclose(latents(pipe), alone[1 - first])
    adapters[first].detach()
    assert torch.equal(latents(pipe), alone[1 - first])
    adapters[1 - first].detach()
    assert traces(pipe) == before
    assert torch.equal(latents(pipe), base)


def test_an_adapter_moves_from_one_base_to_another(pipe: Any, adapter: ImagePromptAdapter) -> None:
    other = tiny.sd_pipeline(seed=7)
    with adapter.attach(pipe), pytest.raises(AttachmentError, match="attached already"):
        adapter.attach(other)
    with adapter.attach(other):
        assert adapter.is_attached


def test_a_detached_adapter_does_not_keep_the_base_alive(adapter: ImagePromptAdapter) -> None:
    pipe = tiny.sd_pipeline()
    with adapter.attach(pipe), adapter.references(tiny.embedding(1)):
        latents(pipe)
    unet = weakref.ref(pipe.unet)
    del pipe
    gc.collect()
    assert unet() is None


def test_copies_are_not_attached(pipe: Any, adapter: ImagePromptAdapter) -> None:
    base = latents(pipe)
    with adapter.attach(pipe), adapter.references(tiny.embedding(1)):
        other, unet = copy.deepcopy(adapter), copy.deepcopy(pipe.unet)
        assert not other.is_attached
        assert {type(processor) for processor in unet.attn_processors.values()} == {AttnProcessor2_0}
        shown = latents(pipe)
    pipe.unet = unet
    assert torch.equal(latents(pipe), base)
    with other.attach(pipe), other.references(tiny.embedding(1)):
        assert torch.equal(latents(pipe), shown)


# What is refused


def test_a_base_of_another_family_is_refused(adapter: ImagePromptAdapter) -> None:
    pipe = tiny.xl_pipeline()
    before = traces(pipe)
    sentence = "for a model with 4 layers, 20-wide text; this base is a model with 8 layers, 28-wide text"
    with pytest.raises(AdapterMismatch, match=sentence):
        adapter.attach(pipe)
    assert traces(pipe) == before
    assert not adapter.is_attached


def test_a_base_with_other_widths_inside_is_refused(pipe: Any, adapter: ImagePromptAdapter) -> None:
    shapes = dict(adapter.shapes) | {5: (20, 24)}
    with pytest.raises(AdapterMismatch, match=r"layer 5 has .* \(20, 24\) in the adapter"):
        ImagePromptAdapter(adapter.projection, shapes).attach(pipe)


def slice_attention_of(pipe: Any) -> None:
    pipe.enable_attention_slicing(1)


def plain(pipe: Any) -> None:
    pipe.unet.set_default_attn_processor()
    pipe.unet.set_attn_processor(AttnProcessor())


def fuse_projections(pipe: Any) -> None:
    pipe.fuse_qkv_projections(vae=False)


@pytest.mark.parametrize("change", [slice_attention_of, plain, fuse_projections])
def test_other_ways_to_compute_the_same_attention_stay_in_use(
    pipe: Any, adapter: ImagePromptAdapter, change: Callable[[Any], None]
) -> None:
    with adapter.attach(pipe), adapter.references(tiny.embedding(1)):
        usual = latents(pipe)
    change(pipe)
    base, before = latents(pipe), traces(pipe)
    with adapter.attach(pipe):
        with adapter.references(tiny.embedding(1)):
            assert_close(latents(pipe), usual)
        with adapter.references(Reference(tiny.embedding(1), scale=0.0)):
            assert torch.equal(latents(pipe), base)
    assert traces(pipe) == before


def test_other_attention_processors_are_refused_by_name(pipe: Any, adapter: ImagePromptAdapter) -> None:
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(AttnAddedKVProcessor2_0())
    before = traces(pipe)
    with pytest.raises(AttachmentError, match=r"mid_block.* processor AttnAddedKVProcessor2_0,"):
        adapter.attach(pipe)
    assert traces(pipe) == before


def test_diffusers_own_adapter_is_refused_by_name(adapter: ImagePromptAdapter) -> None:
    pipe = tiny.sd_pipeline(image_encoder=True)
    pipe.load_ip_adapter(official(adapter), subfolder="", weight_name="", image_encoder_folder=None)
    with pytest.raises(AttachmentError, match="IPAdapterAttnProcessor2_0"):
        adapter.attach(pipe)


def test_options_that_the_image_branch_is_not_defined_for_are_refused(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.rescale_output_factor = 2.0
    with pytest.raises(AttachmentError, match="uses rescale_output_factor"):
        adapter.attach(pipe)


@pytest.mark.parametrize("target", [nn.Linear(1, 1), object(), None])
def test_what_has_no_unet_is_refused(adapter: ImagePromptAdapter, target: object) -> None:
    with pytest.raises(AttachmentError):
        adapter.attach(target)


def test_processors_replaced_after_attaching_are_noticed(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with adapter.attach(pipe):
        with adapter.references(tiny.embedding(1)):
            pipe.unet.set_attn_processor(AttnProcessor2_0())
            with pytest.raises(AttachmentError, match=r"layer 1 was given another processor \(Attn"):
                latents(pipe)
        with pytest.raises(AttachmentError, match="another processor"):
            adapter.references(tiny.embedding(1))
    assert {type(processor) for processor in pipe.unet.attn_processors.values()} == {AttnProcessor2_0}


def test_a_unet_replaced_after_attaching_is_noticed(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with adapter.attach(pipe):
        pipe.unet = tiny.sd_unet(seed=9)
        with pytest.raises(AttachmentError, match="another U-Net"):
            adapter.references(tiny.embedding(1))


# Types and devices


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_half_precision_takes_an_adapter_in_single(
    pipe: Any, adapter: ImagePromptAdapter, dtype: torch.dtype
) -> None:
    with adapter.attach(pipe), adapter.references(Reference(tiny.embedding(1), scale=0.5)):
        exact = latents(pipe)
    pipe.to(dtype)
    base = latents(pipe)
    with adapter.attach(pipe):
        with adapter.references(Reference(tiny.embedding(1), scale=0)):
            assert torch.equal(latents(pipe), base)
        with adapter.references(Reference(tiny.embedding(1), scale=0.5)):
            rounded = latents(pipe)
    assert rounded.dtype == dtype
    assert (rounded.float() - exact).std() < 0.1 * exact.std()
    assert (rounded.float() - exact).std() < 0.2 * (base.float() - exact).std()


def test_an_adapter_in_half_precision_works_on_a_base_in_single(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    """Its K' and V' are made in single precision, as if its weights had been saved so."""
    with adapter.to(torch.bfloat16).attach(pipe), adapter.references(tiny.embedding(1)):
        narrow = latents(pipe)
    assert next(adapter.parameters()).dtype == torch.bfloat16
    with adapter.float().attach(pipe), adapter.references(tiny.embedding(1)):
        assert torch.equal(narrow, latents(pipe))


def test_autocast_lays_images_out_in_its_own_type(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with adapter.attach(pipe), adapter.references(tiny.embedding(1)):
        exact = latents(pipe)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = latents(pipe)
        assert torch.equal(latents(pipe), exact)
    assert (rounded - exact).std() < 0.2 * exact.std()


def test_inference_mode_gives_the_same(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with adapter.attach(pipe), adapter.references(tiny.embedding(1)):
        expected = latents(pipe)
        with torch.inference_mode():
            assert torch.equal(latents(pipe), expected)
    with torch.inference_mode(), adapter.attach(pipe), adapter.references([tiny.embedding(1)] * 2):
        latents(pipe, num_images_per_prompt=4)


def test_a_unet_whose_weights_are_offloaded_gives_the_same(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with adapter.attach(pipe), adapter.references(tiny.embedding(1)):
        expected = latents(pipe)
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    assert pipe.unet.conv_in.weight.is_meta
    with adapter.attach(pipe), adapter.references(tiny.embedding(1)):
        assert torch.equal(latents(pipe), expected)


def test_offloading_after_attaching_gives_the_same(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with adapter.attach(pipe), adapter.references(tiny.embedding(1)):
        expected = latents(pipe)
        cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
        assert torch.equal(latents(pipe), expected)


def test_a_pipeline_that_misleads_about_its_batch_is_refused(pipe: Any, adapter: ImagePromptAdapter) -> None:
    """Panorama stacks (negative, positive) for every view and says that it is not guided."""
    panorama: Any = StableDiffusionPanoramaPipeline(**pipe.components, requires_safety_checker=False)
    panorama.set_progress_bar_config(disable=True)
    with (
        adapter.attach(panorama),
        adapter.references(tiny.embedding(1)),
        pytest.raises(AttachmentError, match=r"Panorama.* does not tell how it stacks its batch"),
    ):
        latents(panorama, height=16, width=16)
