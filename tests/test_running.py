"""The running pipeline: its steps with every scheduler, its rows, and what part of a picture it paints."""

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_panorama.pipeline_stable_diffusion_panorama import (
    StableDiffusionPanoramaPipeline,
)
from diffusers.pipelines.deprecated.stable_diffusion_sag.pipeline_stable_diffusion_sag import (
    StableDiffusionSAGPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from PIL import Image
from torch import Tensor

import tiny
from imprompt.attention import batch
from imprompt.attention.batch import _average_mask
from imprompt.attention.diffusers_internals import Branches
from imprompt.attention.pipeline_state import Clock, Moment, find_picture_box
from imprompt.attention.processor import DecoupledAttention
from imprompt.errors import AmbiguousBatch, AttachmentError, InvalidReference
from imprompt.reference import Reference
from showing import close, latents
from tiny_pipelines import CASES, Case, kind_of

N = 6
PICTURE = tiny.picture(width=16, height=16)


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> list[Moment]:
    """What the clock says, call after call."""
    said: list[Moment] = []
    moment = Clock.moment
    monkeypatch.setattr(Clock, "moment", lambda self, t: said.append(moment(self, t)) or said[-1])
    return said


def draw_scheduled(pipe: Any, weights: Sequence[float] | None = None, **settings: Any) -> Tensor:
    adapter = tiny.adapter(pipe.unet)
    pipe.set_progress_bar_config(disable=True)
    reference = Reference(tiny.embedding(1, seed=1), step_weights=weights, end=1.0 if weights else 0.5)
    with adapter.attach(pipe), adapter.references(reference):
        return latents(pipe, **(dict[str, Any](num_inference_steps=N) | settings))


def of_kind(kind: Any, **changes: Any) -> Any:
    base = tiny.sd_pipeline()
    pipe = kind(**base.components, requires_safety_checker=False)
    pipe.scheduler = DDIMScheduler.from_config(base.scheduler.config, **changes)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Steps


def runs(kind: Any) -> bool:
    """Whether Stable Diffusion itself can be sampled with it."""
    pipe = tiny.sd_pipeline()
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
        latents(pipe, num_inference_steps=N)
        return True
    return False


def schedulers() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [getattr(diffusers, name) for name in sorted(dir(diffusers)) if "Scheduler" in name]
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, SchedulerMixin)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_scheduler_of_diffusers_goes_through_each_of_the_users_steps(moments: list[Moment]) -> None:
    tried: list[str] = []
    for kind in filter(runs, schedulers()):
        pipe, calls = tiny.sd_pipeline(), [0]
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
        pipe.unet.register_forward_pre_hook(lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1))
        moments.clear()
        draw_scheduled(pipe)
        assert [(m.step, m.steps) for m in moments] == [(i, calls[0]) for i in range(calls[0])], kind
        steps = [m.sampler_step for m in moments]
        assert sorted(set(steps)) == list(range(N)), kind
        assert steps == sorted(steps), kind
        assert {m.sampler_steps for m in moments} == {N}, kind
        tried.append(kind.__name__)
    assert len(tried) >= 23, tried
    assert {"HeunDiscreteScheduler", "PNDMScheduler", "LCMScheduler", "UniPCMultistepScheduler"} <= {*tried}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strength", [0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize(
    "kind", [HeunDiscreteScheduler, KDPM2DiscreteScheduler, PNDMScheduler, DDIMScheduler]
)
def test_image_to_image_begins_at_step_0_of_those_that_it_makes(
    kind: Any, strength: float, moments: list[Moment]
) -> None:
    pipe = of_kind(StableDiffusionImg2ImgPipeline)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, skip_prk_steps=True)
    draw_scheduled(pipe, image=PICTURE, strength=strength)
    count = pipe.num_timesteps
    assert [(m.step, m.steps) for m in moments] == [(i, count) for i in range(count)]
    moments.clear()
    draw_scheduled(pipe, [1.0] * count, image=PICTURE, strength=strength)
    assert len(moments) == count


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, KDPM2DiscreteScheduler, PNDMScheduler])
def test_a_sampler_that_calls_twice_takes_a_factor_for_each_of_the_users_steps(kind: Any) -> None:
    pipe = tiny.sd_pipeline()
    pipe.scheduler = kind.from_config(pipe.scheduler.config, skip_prk_steps=True)
    by_step = draw_scheduled(pipe, [1.0, 0.5, 0.0], num_inference_steps=3)
    doubled = [1.0, 1.0, 0.5, 0.0] if kind is PNDMScheduler else [1.0, 1.0, 0.5, 0.5, 0.0]
    assert torch.equal(by_step, draw_scheduled(pipe, doubled, num_inference_steps=3))
    with pytest.raises(InvalidReference, match="there are 2 step_weights"):
        draw_scheduled(pipe, [1.0, 0.5], num_inference_steps=3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, DDIMScheduler])
@pytest.mark.parametrize("part", [{"denoising_end": 0.5}, {"denoising_start": 0.5}])
def test_a_part_of_the_denoising_counts_its_own_steps(
    kind: Any, part: dict[str, Any], moments: list[Moment]
) -> None:
    base = tiny.xl_pipeline()
    pipe: Any = base
    if "denoising_start" in part:
        pipe = StableDiffusionXLImg2ImgPipeline.from_pipe(base)
        part = part | {"image": torch.randn(1, 4, 8, 8)}
    pipe.scheduler = kind.from_config(base.scheduler.config)
    draw_scheduled(pipe, **part)
    count = pipe.num_timesteps
    assert 0 < count < 2 * N - 1
    assert [(m.step, m.steps) for m in moments] == [(i, count) for i in range(count)]


class OwnLoop(StableDiffusionPipeline):
    """A sampling loop of somebody's own, that starts somewhere in the scheduler's list."""

    @torch.no_grad()
    def __call__(self, start: int = 0, separately: bool = False, **_: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        text = self.encode_prompt("a cat", "cpu", 1, False)[0]
        self.scheduler.set_timesteps(N)
        x = torch.zeros(1, 4, 8, 8)
        for moment in self.scheduler.timesteps[start:]:
            if separately:
                self.unet(x, moment, encoder_hidden_states=text)
            noise = self.unet(x, moment, encoder_hidden_states=text).sample
            x = self.scheduler.step(noise, moment, x).prev_sample
        return x


@pytest.mark.parametrize("fast", [False, True])
def test_every_restart_of_free_init_begins_at_its_first_step(fast: bool, moments: list[Moment]) -> None:
    (case,) = (case for case in CASES if case.kind == "AnimateDiffPipeline")
    pipe = case.build()
    pipe.enable_free_init(num_iters=3, use_fast_sampling=fast)
    adapter = tiny.adapter(pipe.unet)
    with adapter.attach(pipe), adapter.references(Reference(tiny.embedding(1), end=0.5)):
        case.latents(pipe, num_inference_steps=N)
    restarts = (2, 4, 6) if fast else (N, N, N)  # fast sampling makes a third, two thirds, all of the steps
    assert [(m.sampler_step, m.sampler_steps) for m in moments] == [
        (i, n) for n in restarts for i in range(n)
    ]


def draw_own_loop(kind: Any, **arguments: Any) -> Any:
    pipe = of_kind(OwnLoop)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, skip_prk_steps=True)
    adapter = tiny.adapter(pipe.unet)
    reference = Reference(tiny.embedding(1, seed=1), end=0.5)
    with adapter.attach(pipe), adapter.references(reference, branches=("positive",)):
        return pipe(**arguments)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("separately", [False, True])
@pytest.mark.parametrize("start", [0, 2, 4])
@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, KDPM2DiscreteScheduler, DDIMScheduler])
def test_a_loop_of_ones_own_is_followed_by_the_schedulers_own_count(
    kind: Any, start: int, separately: bool, moments: list[Moment]
) -> None:
    draw_own_loop(kind, start=start, separately=separately)
    calls = (N if kind is DDIMScheduler else 2 * N - 1) - start
    expected = [i for i in range(calls) for _ in range(2 if separately else 1)]
    assert [m.step for m in moments] == expected
    assert {m.steps for m in moments} == {calls}


@pytest.mark.filterwarnings("ignore")
def test_a_step_that_nothing_tells_is_refused() -> None:
    with pytest.raises(AttachmentError, match="is twice in the list of PNDMScheduler"):
        draw_own_loop(PNDMScheduler, start=1)


# Rows


class FourConditions(StableDiffusionPipeline):
    """Stacks (negative, condition, condition, condition)."""

    count = 4

    @torch.no_grad()
    def __call__(self, **_: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._guidance_scale = 3.0
        text = self.encode_prompt("a cat", "cpu", self.count, False)[0]
        self.scheduler.set_timesteps(2)
        x = torch.zeros(1, 4, 8, 8)
        for i, t in enumerate(self.scheduler.timesteps):  # noqa: B007
            noise = self.unet(torch.cat([x] * self.count), t, encoder_hidden_states=text).sample.mean(0, True)
            x = self.scheduler.step(noise, t, x).prev_sample
        return x


@pytest.mark.parametrize("count", [2, 3, 4, 6])
@pytest.mark.parametrize("bare", [False, True])
def test_a_pipeline_with_a_loop_of_its_own_is_asked_for_branches(count: int, bare: bool) -> None:
    pipe = of_kind(FourConditions)
    pipe.count = count
    adapter = tiny.adapter(pipe.unet)
    positive: Branches = ("positive",)
    stacked: Branches = ("negative", *positive * (count - 1))
    with adapter.attach(pipe.unet if bare else pipe):
        with adapter.references(tiny.embedding(1)), pytest.raises(AttachmentError, match="branches="):
            pipe()
        with adapter.references(tiny.embedding(1), branches=stacked):
            pipe()


class Prepared(StableDiffusionPipeline):
    """Prepares something, then samples as diffusers does."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.prepared = True
        return super().__call__(*args, **kwargs)


def test_a_subclass_that_samples_as_diffusers_does_is_known() -> None:
    pipes = [of_kind(kind) for kind in (StableDiffusionPipeline, Prepared)]
    made = []
    for pipe in pipes:
        adapter = tiny.adapter(pipe.unet)
        with adapter.attach(pipe), adapter.references(tiny.embedding(1)):
            made.append(latents(pipe))
    assert torch.equal(*made)


class TwoEach(StableDiffusionPipeline):
    """Encodes every prompt twice without saying so to the loop that it inherits."""

    def prepare_latents(self, batch_size: int, *args: Any, **kwargs: Any) -> Tensor:
        return super().prepare_latents(2 * batch_size, *args, **kwargs)

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        texts: Any = super().encode_prompt(*args, **kwargs)
        return [text if text is None else text.repeat_interleave(2, 0) for text in texts]


def test_other_rows_than_the_pipelines_own_are_refused() -> None:
    pipe = of_kind(TwoEach)
    adapter = tiny.adapter(pipe.unet)
    with (
        adapter.attach(pipe),
        adapter.references(tiny.embedding(1)),
        pytest.raises(AmbiguousBatch, match=r"makes 1 pictures in 2 branches .* with 4 rows"),
    ):
        latents(pipe)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pictures", [1, 2, 4])
def test_self_attention_guidance_calls_with_other_rows_and_is_refused(pictures: int) -> None:
    pipe = of_kind(StableDiffusionSAGPipeline)
    adapter = tiny.adapter(pipe.unet)
    with adapter.attach(pipe):
        choices: list[Branches | None] = [None, ("negative", "positive")]
        for branches in choices:
            with (
                adapter.references(tiny.embedding(1), branches=branches),
                pytest.raises((AttachmentError, AmbiguousBatch)),
            ):
                latents(pipe, num_images_per_prompt=pictures, sag_scale=0.5, height=128, width=128)


@pytest.mark.parametrize("first", [True, False])
def test_a_pipeline_made_from_an_attached_one_follows_its_unet(first: bool) -> None:
    pipe = tiny.sd_pipeline()
    adapter = tiny.adapter(pipe.unet)
    settings: dict[str, Any] = {"image": PICTURE, "strength": 0.9}
    with contextlib.ExitStack() as stack:
        if first:
            stack.enter_context(adapter.attach(pipe))
        other: Any = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
        other.set_progress_bar_config(disable=True)
        if not first:
            stack.enter_context(adapter.attach(other))
        with adapter.references(Reference(tiny.embedding(1), end=0.5)):
            ours = [latents(pipe), latents(other, **settings)]
    expected = []
    for one, options in ((pipe, {}), (other, settings)):
        with adapter.attach(one), adapter.references(Reference(tiny.embedding(1), end=0.5)):
            expected.append(latents(one, **options))
    for mine, alone in zip(ours, expected, strict=True):
        assert torch.equal(mine, alone)


# What part of a picture is painted


@contextlib.contextmanager
def record_weights() -> Iterator[list[Tensor]]:
    kept: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        set_terms = DecoupledAttention.set_terms

        def keep(self: Any, owner: object, images: Any, lora: Any = None) -> None:
            kept.extend(term.weight for term in images)
            set_terms(self, owner, images, lora)

        patch.setattr(DecoupledAttention, "set_terms", keep)
        yield kept


@pytest.mark.parametrize("repaint", [(44, 44, 60, 60), (0, 0, 9, 30), (10, 20, 40, 30), (50, 0, 64, 64)])
def test_a_mask_is_cut_as_inpainting_cuts_the_picture(repaint: tuple[int, int, int, int]) -> None:
    """Against diffusers' own cutting of the same mask, as what it inpaints."""
    pipe = of_kind(StableDiffusionInpaintPipeline)
    adapter = tiny.adapter(pipe.unet)
    white = Image.new("L", (64, 64))
    white.paste(255, repaint)
    area = tiny.picture(seed=3, width=64, height=64).convert("L")
    seen: list[Any] = []
    region = pipe.mask_processor.get_crop_region
    pipe.mask_processor.get_crop_region = lambda *a, **k: seen.append(region(*a, **k)) or seen[-1]
    with (
        record_weights() as weights,
        adapter.attach(pipe),
        adapter.references(Reference(tiny.embedding(1), mask=area)),
    ):
        pipe(
            "a cat", image=tiny.picture(width=64, height=64), mask_image=white, padding_mask_crop=4,
            height=16, width=16, num_inference_steps=2,
        )  # fmt: skip
    left, top, right, bottom = seen[0]
    assert right - left == bottom - top
    cut = torch.tensor(list(area.get_flattened_data())).reshape(64, 64)[top:bottom, left:right].float() / 255
    side = right - left
    fine = cut.repeat_interleave(8, 0).repeat_interleave(8, 1)  # 8 parts of each of `side` pixels
    expected = fine.reshape(8, side, 8, side).mean((1, 3))
    by_level = [w for w in weights if w is not None and w.shape[2] == 64]
    assert by_level
    close(by_level[0][0, 0, :, 0], expected.flatten())


def takes_crop(case: Case) -> bool:
    # diffusers 0.42 mixes up this one's arguments: it says that output_type is None, whatever it is.
    if case.kind == "StableDiffusionPAGInpaintPipeline":
        return False
    return "padding_mask_crop" in inspect.signature(kind_of(case.kind).__call__).parameters


@pytest.mark.parametrize("case", [case for case in CASES if takes_crop(case)], ids=str)
def test_every_pipeline_that_paints_a_part_of_the_picture_tells_which(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, white = case.build(), Image.new("L", (64, 64))
    white.paste(255, (10, 20, 40, 30))
    boxes: list[Any] = []
    monkeypatch.setattr(
        batch, "find_picture_box", lambda call: boxes.append(find_picture_box(call)) or boxes[-1]
    )
    cuts: list[Any] = []
    region = pipe.mask_processor.get_crop_region
    pipe.mask_processor.get_crop_region = lambda *a, **k: cuts.append(region(*a, **k)) or cuts[-1]
    adapter, area = tiny.adapter(pipe.unet), tiny.picture(seed=3, width=64, height=64).convert("L")
    with adapter.attach(pipe), adapter.references(Reference(tiny.embedding(1), mask=area)):
        replace(case, listed=()).latents(
            pipe, image=tiny.picture(width=64, height=64), mask_image=white, padding_mask_crop=4,
            height=16, width=16, output_type="pil",
        )  # fmt: skip
    assert boxes
    assert {tuple(side * 64 for side in box) for box in boxes} == {tuple(map(float, cuts[0]))}


def test_a_mask_cut_to_the_whole_picture_is_the_mask() -> None:
    area = torch.rand(24, 32)
    close(_average_mask(area, 6, 4, (0.0, 0.0, 1.0, 1.0)), _average_mask(area, 6, 4))


def test_beyond_the_picture_a_masks_edge_goes_on() -> None:
    area = torch.tensor([[0.0, 1.0]])
    close(_average_mask(area, 1, 4, (-0.5, 0.0, 1.5, 1.0)), torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_a_mask_on_a_pipeline_that_works_in_tiles_is_refused() -> None:
    pipe = of_kind(StableDiffusionPanoramaPipeline)
    adapter = tiny.adapter(pipe.unet)
    mask = Image.new("L", (4, 4))
    mask.paste(255, (0, 0, 2, 4))
    with (
        adapter.attach(pipe),
        adapter.references(Reference(tiny.embedding(1), mask=mask), branches=("negative", "positive")),
        pytest.raises(AmbiguousBatch, match="64 × 64 of 64 × 80 latent pixels at a time"),
    ):
        latents(pipe, height=128, width=160)
