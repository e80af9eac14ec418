"""Every pipeline for FLUX.1 and Stable Diffusion 3.5, one law after another; the page shows what passes.

Tolerance: 1e-5 absolute, float32, on the latents of all samples, which reach ±4; "bit for bit" is no
tolerance. "By hand" is the adapter's equation, row by row (by_hand_transformers.py). Text-to-image stands for
all pipelines in the quick run; the others are slow.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
import tiny_transformers
from by_hand_transformers import ByHand, HandTerm
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.errors import AdapterMismatch, AmbiguousBatch, AttachmentError
from imprompt.inputs.embeddings import load_embeddings
from imprompt.inputs.encoder import ImageEncoder
from imprompt.reference import Reference
from test_transformers import official, wide_adapter
from tiny_transformers import Kind
from transformer_pipelines import CASES, HEIGHT, POSITIVE, WIDTH, TransformerCase

pytestmark = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")

TOLERANCE, SCALE = 1e-5, 0.7
KINDS: dict[str, tuple[Kind, ...]] = {"FLUX.1": ("flux-xlabs", "flux-instantx"), "SD3.5": ("sd35",)}
FEATURES: dict[str, Callable[[TransformerCase, Kind], bool]] = {}
"""Feature → whether there is one in a pipeline with a kind of adapter."""


def feature(name: str, has: Callable[[TransformerCase, Kind], bool] = lambda case, kind: True) -> Any:
    """Parametrise a test by all pipelines and kinds of adapters that have a feature."""
    FEATURES[name] = has
    values = [
        pytest.param(case, kind, id=f"{case.title}-{kind}", marks=_marks(case))
        for case in CASES
        for kind in KINDS[case.family]
        if has(case, kind)
    ]
    return pytest.mark.parametrize(("case", "kind"), values)


def _marks(case: TransformerCase) -> tuple[Any, ...]:
    return () if case.title == "text-to-image" else (pytest.mark.slow,)


def guides(case: TransformerCase, kind: Kind) -> bool:
    return case.guided is not None


class Scene:
    """A pipeline with an adapter that fits it, and its pictures."""

    def __init__(self, case: TransformerCase, kind: Kind) -> None:
        self.case = case
        self.kind: Kind = kind
        self.pipe = case.build()
        self.adapter = fitting(kind)

    @functools.cached_property
    def base(self) -> Tensor:
        return self.case.latents(self.pipe)

    @functools.cached_property
    def ours(self) -> Tensor:
        return self.attached(Reference(self.picture(), scale=SCALE))

    def picture(self, seed: int = 0, images: int = 1) -> Tensor:
        return tiny_transformers.embeddings(self.kind, images, seed=seed)

    def term(self, *seeds: int, adapter: ImagePromptAdapter | None = None, **settings: Any) -> HandTerm:
        """A term of by_hand: a picture for each prompt, and what stands for "no image"."""
        positive = torch.stack([self.picture(seed) for seed in seeds or (0,)])
        negative = settings.pop("negative", no_image(self.kind, positive))
        chosen: Any = {"scale": SCALE} | settings
        return HandTerm(adapter or self.adapter, positive, negative, **chosen)

    def attached(self, *references: Any, **arguments: Any) -> Tensor:
        with self.adapter.attach(self.pipe), self.adapter.use(*references):
            return self.case.latents(self.pipe, **arguments)

    def by_hand(self, *terms: HandTerm, **arguments: Any) -> Tensor:
        is_guided = arguments.get("guided", True) and self.case.guided is not None
        layout = self.case.guided if is_guided else (POSITIVE,)
        calls = self.case.calls if is_guided else ()
        hand = ByHand(self.pipe.transformer, terms, layout or (), arguments.get("each", 1), calls)
        with hand.install():
            return self.case.latents(self.pipe, **arguments)

    def check(self, ours: Tensor, expected: Tensor) -> None:
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() <= TOLERANCE
        assert ours.shape != self.base.shape or (ours - self.base).abs().max() > 100 * TOLERANCE


@functools.cache
def scene(case: TransformerCase, kind: Kind) -> Scene:
    return Scene(case, kind)


@functools.cache
def encoder() -> ImageEncoder:
    return ImageEncoder(tiny.vision_model(seed=3))


def fitting(kind: Kind, seed: int = 0) -> ImagePromptAdapter:
    made = tiny_transformers.adapter(kind, seed=seed)
    if kind == "flux-xlabs":  # With guidance it must see a black picture.
        made.image_encoder = encoder()
    return made


def no_image(kind: Kind, positive: Tensor) -> Tensor | None:
    if kind == "flux-instantx":
        return None
    if kind == "sd35":
        return torch.zeros_like(positive)
    return encoder().black("image_embedding").expand_as(positive)


@feature("by hand")
def test_an_adapter_makes_what_its_equation_makes(case: TransformerCase, kind: Kind) -> None:
    it = scene(case, kind)
    it.check(it.ours, it.by_hand(it.term()))


@feature("λ = 0, detach")
def test_scale_zero_and_a_detached_pipeline_are_the_base_bit_for_bit(
    case: TransformerCase, kind: Kind
) -> None:
    it = scene(case, kind)
    processors = dict(it.pipe.transformer.attn_processors)
    assert torch.equal(it.attached(Reference(it.picture(), scale=0.0)), it.base)
    assert not torch.equal(it.ours, it.base)
    assert it.pipe.transformer.attn_processors == processors
    assert "cache_context" not in vars(it.pipe.transformer)
    assert torch.equal(case.latents(it.pipe), it.base)


@feature("no true guidance", guides)
def test_without_true_guidance_every_row_is_positive(case: TransformerCase, kind: Kind) -> None:
    it = scene(case, kind)
    reference = Reference(it.picture(), scale=SCALE)
    it.check(it.attached(reference, guided=False), it.by_hand(it.term(), guided=False))


@feature("negative", guides)
def test_a_negative_picture_is_on_the_negative_branch(case: TransformerCase, kind: Kind) -> None:
    it = scene(case, kind)
    negative = it.picture(9)
    ours = it.attached(Reference(it.picture(), scale=SCALE, negative=negative))
    it.check(ours, it.by_hand(it.term(negative=negative[None])))
    assert (ours - it.ours).abs().max() > 10 * TOLERANCE


@feature("prompts")
def test_several_prompts_with_a_reference_each_equal_each_alone(case: TransformerCase, kind: Kind) -> None:
    it = scene(case, kind)
    prompts = ["a cat", "a red dog"]
    references = [Reference(it.picture(i), scale=0.4 + 0.5 * i) for i in range(2)]
    together = it.attached(references, prompts=prompts)
    for i, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
        it.check(together[i : i + 1], it.attached(reference, prompts=[prompt], seeds=[i]))


@feature("pictures")
def test_all_pictures_of_a_prompt_have_its_reference(case: TransformerCase, kind: Kind) -> None:
    it = scene(case, kind)
    asked: Any = {"prompts": ["a cat", "a red dog"], "each": 2}
    ours = it.attached([Reference(it.picture(i), scale=SCALE) for i in range(2)], **asked)
    it.check(ours, it.by_hand(it.term(0, 1), **asked))


@feature("two references")
def test_two_references_act_together(case: TransformerCase, kind: Kind) -> None:
    it = scene(case, kind)
    ours = it.attached(Reference(it.picture(0), scale=0.5), Reference(it.picture(1), scale=0.9))
    it.check(ours, it.by_hand(it.term(0, scale=0.5), it.term(1, scale=0.9)))


@feature("mask")
def test_a_mask_says_where(case: TransformerCase, kind: Kind) -> None:
    it = scene(case, kind)
    mask = torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    patches = torch.nn.functional.adaptive_avg_pool2d(mask[None], (HEIGHT // 4, WIDTH // 4))[0]
    ours = it.attached(Reference(it.picture(), scale=SCALE, mask=mask))
    it.check(ours, it.by_hand(it.term(where=patches)))


@feature("steps")
def test_step_weights_say_when(case: TransformerCase, kind: Kind) -> None:
    it = scene(case, kind)
    weights = [0.3, 1.2, 0.7][: len(list_timesteps(it))]
    ours = it.attached(Reference(it.picture(), scale=SCALE, step_weights=weights))
    it.check(ours, it.by_hand(it.term(at=lambda step: weights[step])))


def list_timesteps(it: Scene) -> list[float]:
    """The timesteps of a generation, in the scheduler's unit."""
    seen: list[float] = []
    unit = 1000 if it.case.family == "FLUX.1" else 1
    hook = it.pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(unit * float(kwargs["timestep"][0])), with_kwargs=True
    )
    it.case.latents(it.pipe)
    hook.remove()
    return sorted({*seen}, reverse=True)


@feature("start, end")
def test_a_reference_acts_between_its_start_and_its_end(case: TransformerCase, kind: Kind) -> None:
    it = scene(case, kind)
    times = list_timesteps(it)
    positions = {"steps": [i / len(times) for i in range(len(times))], "noise": [1 - t / 1000 for t in times]}
    axis: Any
    for axis, places in positions.items():
        end = places[-1] - 0.01
        ours = it.attached(Reference(it.picture(), scale=SCALE, end=end, measured_in=axis))
        acts = [float(place < end) for place in places]
        assert acts[0]
        assert not acts[-1]
        it.check(ours, it.by_hand(it.term(at=lambda step, acts=acts: acts[step])))


@feature("layers")
def test_layers_are_weighted_by_name(case: TransformerCase, kind: Kind) -> None:
    it = scene(case, kind)
    layers = {"transformer_blocks.0": 0.4, "transformer_blocks.1": 1.3}
    if kind == "flux-instantx":
        layers["single"] = 0.7
    ours = it.attached(Reference(it.picture(), scale=SCALE, layers=layers))

    def weight(name: str) -> float:
        if name.startswith("single"):
            return layers.get("single", 0.0)
        return layers.get(name.removesuffix(".attn"), 0.0)

    it.check(ours, it.by_hand(it.term(on=weight)))


@feature("two adapters")
def test_two_adapters_act_together(case: TransformerCase, kind: Kind) -> None:
    it, other = scene(case, kind), fitting(kind, seed=4)
    with other.attach(it.pipe), other.use(Reference(it.picture(2), scale=0.5)):
        ours = it.attached(Reference(it.picture(), scale=SCALE))
    it.check(ours, it.by_hand(it.term(), it.term(2, adapter=other, scale=0.5)))


@feature("file")
def test_embeddings_in_a_file_give_the_pictures_result_bit_for_bit(
    case: TransformerCase, kind: Kind, tmp_path: Any
) -> None:
    it = scene(case, kind)
    saved = it.adapter.encode(Reference(it.picture()))
    saved.save(tmp_path / "a.safetensors")
    loaded = load_embeddings(tmp_path / "a.safetensors")
    assert torch.equal(it.attached(Reference(loaded, scale=SCALE)), it.ours)


@feature("several pictures")
def test_several_pictures_of_one_reference_share_one_softmax(case: TransformerCase, kind: Kind) -> None:
    it = scene(case, kind)
    both = it.picture(5, images=2)
    negative = no_image(kind, both)
    term = HandTerm(it.adapter, both[None], None if negative is None else negative[None], SCALE)
    it.check(it.attached(Reference(both, scale=SCALE)), it.by_hand(term))


@feature("diffusers", lambda case, kind: case.theirs and kind != "flux-instantx")
def test_an_adapter_makes_what_diffusers_makes(case: TransformerCase, kind: Kind) -> None:
    it = Scene(case, kind)
    assert len(it.base)  # made before diffusers' own adapter is loaded
    if kind == "sd35":
        it.adapter = wide_adapter()
    ours = it.attached(Reference(it.picture(), scale=SCALE))
    it.pipe.transformer._load_ip_adapter_weights(official(it.adapter))
    if kind == "sd35":
        for processor in it.pipe.transformer.attn_processors.values():
            if hasattr(processor, "scale"):
                processor.scale = SCALE
        both = torch.cat([torch.zeros_like(it.picture()), it.picture()])
        theirs = case.latents(it.pipe, ip_adapter_image_embeds=both)
    else:
        it.pipe.set_ip_adapter_scale(SCALE)
        black = encoder().black("image_embedding")[None]
        given: Any = {"ip_adapter_image_embeds": [it.picture()[None]]}
        given |= {"negative_ip_adapter_image_embeds": [black[None]]}
        theirs = case.latents(it.pipe, **given)
    it.check(ours, theirs)


# What cannot be honored


def flux_scene() -> Scene:
    return Scene(CASES[0], "flux-xlabs")


def test_guidance_without_a_black_picture_is_refused_and_without_guidance_needs_none() -> None:
    it = flux_scene()
    it.adapter.image_encoder = None
    reference = Reference(it.picture(), scale=SCALE)
    it.check(it.attached(reference, guided=False), it.by_hand(it.term(negative=None), guided=False))
    with pytest.raises(AdapterMismatch, match="takes a black picture for no image"):
        it.attached(reference)


def test_the_same_tensor_as_both_texts_is_told_apart_by_its_context_only() -> None:
    it = flux_scene()
    reference = Reference(it.picture(), scale=SCALE)
    text = it.case._texts(["a cat"], True)
    both = {"negative_prompt_embeds": text["prompt_embeds"]}
    both |= {"prompt_embeds": text["prompt_embeds"]}
    ours = it.attached(reference, **both)  # FluxPipeline names its calls
    it.check(ours, it.by_hand(it.term(), **both))
    other = Scene(CASES[1], "flux-xlabs")  # image-to-image does not
    with pytest.raises(AmbiguousBatch, match="the two branches of guidance cannot be told apart"):
        other.attached(reference, **both)


def test_a_loop_of_ones_own_names_its_calls() -> None:
    it = flux_scene()
    inputs = tiny_transformers.call("flux-xlabs", batch=1) | {"guidance": torch.ones(1)}
    model = it.pipe.transformer
    reference = Reference(it.picture(), scale=SCALE, negative=it.picture(1))
    with torch.no_grad(), it.adapter.attach(model), it.adapter.use(reference):
        with model.cache_context("cond"):
            positive = model(**inputs).sample
        with model.cache_context("uncond"):
            negative = model(**inputs).sample
        unnamed = model(**inputs).sample
        other = it.adapter.use(Reference(it.picture(1), scale=SCALE))
        with other:
            swapped = model(**inputs).sample
    assert torch.equal(positive, unnamed)
    assert torch.equal(negative, swapped)
    assert not torch.equal(positive, negative)


def test_an_unknown_loop_with_a_pipeline_is_refused() -> None:
    it = flux_scene()
    inputs = tiny_transformers.call("flux-xlabs", batch=1) | {"guidance": torch.ones(1)}
    with (
        it.adapter.attach(it.pipe),
        it.adapter.use(it.picture()),
        pytest.raises(AttachmentError, match="the transformer is called, but not by the FluxPipeline"),
    ):
        it.pipe.transformer(**inputs)


@pytest.mark.parametrize("name", ["load_ip_adapter", "set_ip_adapter_scale", "unload_ip_adapter"])
def test_diffusers_own_calls_are_refused_while_an_adapter_is_attached(name: str) -> None:
    it = flux_scene()
    with it.adapter.attach(it.pipe):
        with pytest.raises(AttachmentError, match="an adapter of imprompt is attached to this pipeline"):
            getattr(it.pipe, name)(1.0)
        with pytest.raises(AttachmentError, match="it takes no ip_adapter_image"):
            it.case.latents(it.pipe, ip_adapter_image=tiny.picture())
    assert name not in vars(it.pipe)
    assert "encoder_hid_proj" not in vars(it.pipe.transformer)


def test_a_picture_for_diffusers_own_adapter_is_refused_on_sd35() -> None:
    """diffusers would ignore it silently, as its own adapter is not loaded."""
    it = scene(next(case for case in CASES if case.family == "SD3.5"), "sd35")
    with (
        it.adapter.attach(it.pipe),
        it.adapter.use(it.picture()),
        pytest.raises(AttachmentError, match="it takes no ip_adapter_image"),
    ):
        it.case.latents(it.pipe, ip_adapter_image=tiny.picture())


# The page


def table() -> str:
    """The table of docs/transformers.md: ✓ is a test of this file, – is what diffusers' pipeline lacks."""
    lines = [["pipeline", "adapter", *FEATURES], ["---"] * 2 + [":-:"] * len(FEATURES)]
    for case in CASES:
        for kind in KINDS[case.family]:
            marks = ["✓" if has(case, kind) else "–" for has in FEATURES.values()]
            lines.append([str(case).replace(", ", ": ", 1), kind, *marks])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def test_the_page_says_what_these_tests_show() -> None:
    page = Path(__file__).parents[1] / "docs" / "transformers.md"
    assert table() in page.read_text()
