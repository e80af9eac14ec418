"""What a reference asks: where, when and how it acts, each against an independent computation."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import tiny
from imprompt.adapter import ImagePromptAdapter
from imprompt.conditions import _scaled, _strength
from imprompt.encoder import ImageEncoder
from imprompt.encoding import text_embedding
from imprompt.errors import AdapterMismatch, AmbiguousBatch, AttachmentError, InvalidReference
from imprompt.layers import attention_layers, cross_attention_layers, layer_level
from imprompt.matrices import LoraShapes
from imprompt.projection import (
    FacePlusProjection,
    FaceProjection,
    LinearProjection,
    PerceiverShape,
    ResamplerProjection,
)
from imprompt.reference import Reference

STEPS = 4


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return tiny.sd_unet()


@pytest.fixture
def pipe() -> Any:
    return tiny.sd_pipeline()


@pytest.fixture
def adapter() -> ImagePromptAdapter:
    return tiny.adapter(tiny.sd_unet())


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def output(unet: UNet2DConditionModel, batch: int = 2, **changes: Any) -> Tensor:
    arguments: dict[str, Any] = tiny.unet_input(unet, batch=batch) | changes
    return unet(**arguments).sample


def shown(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, *references: Any, **changes: Any
) -> Tensor:
    with adapter.attach(unet), adapter.references(*references):
        return output(unet, **changes)


def latents(pipe: Any, prompt: str | list[str] = "a cat", **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    settings = {"num_inference_steps": STEPS, "output_type": "latent", "generator": generator}
    return pipe(prompt, **(settings | arguments)).images


def made(pipe: Any, adapter: ImagePromptAdapter, *references: Any, **arguments: Any) -> Tensor:
    with adapter.attach(pipe), adapter.references(*references):
        return latents(pipe, **arguments)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def ramp(height: int, width: int) -> Tensor:
    return torch.linspace(0, 1, height * width).reshape(height, width)


# Masks


def test_a_white_mask_is_no_mask_to_the_last_bit(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    embedding = tiny.embedding(2)
    white = Image.new("L", (30, 20), 255)
    assert torch.equal(
        shown(unet, adapter, Reference(embedding, mask=white)), shown(unet, adapter, Reference(embedding))
    )


@pytest.mark.parametrize("size", [(8, 8), (12, 8), (6, 10)])
def test_masks_that_partition_the_picture_make_the_whole(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, size: tuple[int, int]
) -> None:
    embedding, sample = tiny.embedding(1), torch.randn(2, 4, *size)
    soft = ramp(37, 53)
    parts = [Reference(embedding, mask=soft), Reference(embedding, mask=1 - soft)]
    close(
        shown(unet, adapter, *parts, sample=sample), shown(unet, adapter, Reference(embedding), sample=sample)
    )


def test_a_mask_is_the_mean_over_each_positions_part_of_the_picture(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    mask, sample = ramp(24, 48), torch.randn(2, 4, 12, 8)
    with adapter.attach(unet) as attachment, adapter.references(Reference(tiny.embedding(1), mask=mask)):
        output(unet, sample=sample)
        for layer, processor in attachment.processors.items():
            height, width = {0: (12, 8), 1: (6, 4)}[attachment.levels[layer]]
            blocks = mask.reshape(height, 24 // height, width, 48 // width)
            (term,) = processor.images
            assert term.weight is not None
            close(term.weight, blocks.mean((1, 3)).reshape(1, 1, -1, 1).expand(2, 1, -1, 1))


def keep_length(seen: dict[str, int], name: str, module: object, args: tuple[Tensor, ...]) -> None:
    seen[name] = args[0].shape[1]


def test_the_levels_of_layers_are_those_of_the_latents_that_reach_them(unet: UNet2DConditionModel) -> None:
    seen: dict[str, int] = {}
    for name, attn in cross_attention_layers(unet).values():
        attn.register_forward_pre_hook(functools.partial(keep_length, seen, name))
    output(unet, sample=torch.randn(2, 4, 12, 8))
    assert seen == {name: (12 >> layer_level(name, 2)) * (8 >> layer_level(name, 2)) for name in seen}
    assert len(set(seen.values())) == 2


def test_a_mask_is_resized_once_for_each_resolution(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    with (
        patch.object(F, "adaptive_avg_pool2d", wraps=F.adaptive_avg_pool2d) as resize,
        adapter.attach(unet),
        adapter.references(Reference(tiny.embedding(1), mask=ramp(30, 30))),
    ):
        for _ in range(3):
            output(unet)
    assert resize.call_count == 2


def test_where_the_mask_is_black_a_layer_gives_what_it_gives_without_images(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    name, attn = cross_attention_layers(unet)[1]
    hidden, text = torch.randn(2, 64, 16), torch.randn(2, 7, tiny.SD_CONTEXT)
    before = attn(hidden, encoder_hidden_states=text).reshape(2, 8, 8, 16)
    reference = Reference(tiny.embedding(1), mask=left)
    with adapter.attach(unet), adapter.references(reference):
        output(unet)
        after = attn(hidden, encoder_hidden_states=text).reshape(2, 8, 8, 16)
    assert torch.equal(after[:, :, 4:], before[:, :, 4:]), name
    assert (after[:, :, :4] - before[:, :, :4]).abs().min(-1).values.max() > 1e-3


def test_every_prompt_has_its_own_mask(unet: UNet2DConditionModel, adapter: ImagePromptAdapter) -> None:
    references = [Reference(tiny.embedding(1, seed=seed), mask=mask) for seed, mask in
                  [(0, ramp(9, 9)), (1, None)]]  # fmt: skip
    together = shown(unet, adapter, references)
    for row, reference in enumerate(references):
        close(together[row], shown(unet, adapter, reference)[row])


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (torch.zeros(4, 4), "black all over"),
        (torch.full((4, 4), 1.5), "from 0 to 1, not 1.5"),
        (torch.full((4, 4), float("nan")), "from 0 to 1"),
        (torch.ones(1, 4, 4), "must have shape"),
        (Image.new("L", (5, 5), 0), "black all over"),
    ],
)
def test_a_mask_that_cannot_be_is_refused(mask: Any, sentence: str) -> None:
    with pytest.raises(InvalidReference, match=sentence):
        Reference(tiny.embedding(1), mask=mask)


def test_a_transparent_mask_is_black_where_it_is_transparent() -> None:
    mask = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    mask.putpixel((1, 2), (255, 255, 255, 255))
    area = Reference(tiny.embedding(1), mask=mask).area
    assert area is not None
    assert area.nonzero().tolist() == [[2, 1]]


# Steps


@pytest.mark.parametrize("steps", [3, 4, 7])
def test_two_halves_of_the_steps_make_the_whole_to_the_last_bit(
    pipe: Any, adapter: ImagePromptAdapter, steps: int
) -> None:
    embedding = tiny.embedding(1)
    halves = [Reference(embedding, steps=(0.0, 0.5)), Reference(embedding, steps=(0.5, 1.0))]
    whole = made(pipe, adapter, Reference(embedding), num_inference_steps=steps)
    assert torch.equal(made(pipe, adapter, *halves, num_inference_steps=steps), whole)


def test_steps_that_are_off_are_the_base_models_to_the_last_bit(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    seen: dict[str, list[Tensor]] = {"base": [], "ours": []}

    def keep(name: str) -> Callable[..., dict[str, Any]]:
        return lambda pipe, step, time, tensors: seen[name].append(tensors["latents"]) or tensors

    latents(pipe, callback_on_step_end=keep("base"))
    made(pipe, adapter, Reference(tiny.embedding(1), steps=(0.5, 1.0)), callback_on_step_end=keep("ours"))
    same = [torch.equal(a, b) for a, b in zip(seen["base"], seen["ours"], strict=True)]
    assert same == [True, True, False, False]


def test_a_list_of_steps_multiplies_the_scale(pipe: Any, adapter: ImagePromptAdapter) -> None:
    embedding, weights = tiny.embedding(1), [1.0, 0.0, 0.5, 0.25]
    listed = made(pipe, adapter, Reference(embedding, scale=0.8, steps=weights))
    with adapter.attach(pipe):
        adapter.references(Reference(embedding, scale=0.8))

        def change(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            adapter.references(Reference(embedding, scale=0.8 * ([*weights, 0])[step + 1]))
            return tensors

        by_hand = latents(pipe, callback_on_step_end=change)
    close(listed, by_hand)


def test_a_list_of_another_length_than_the_steps_is_refused(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with pytest.raises(InvalidReference, match="steps has 3 multipliers; there are 4 steps"):
        made(pipe, adapter, Reference(tiny.embedding(1), steps=[1.0, 0.5, 0.25]))


@pytest.mark.parametrize("end", [0.1, 0.5, 0.6, 1.0])
def test_noise_is_measured_along_the_timesteps_of_training(
    pipe: Any, adapter: ImagePromptAdapter, end: float
) -> None:
    fractions = [1 - t / 999 for t in (751, 501, 251, 1)]
    weights = [float(fraction < end or end == 1) for fraction in fractions]
    by_noise = Reference(tiny.embedding(1), steps=(0.0, end), measured_in="noise")
    by_hand = (
        Reference(tiny.embedding(1), steps=weights) if any(weights) else Reference(tiny.embedding(1), scale=0)
    )
    assert torch.equal(made(pipe, adapter, by_noise), made(pipe, adapter, by_hand))
    assert torch.equal(pipe.scheduler.timesteps, torch.tensor([751, 501, 251, 1]))


def test_image_to_image_counts_the_steps_that_it_makes(pipe: Any, adapter: ImagePromptAdapter) -> None:
    img2img: Any = AutoPipelineForImage2Image.from_pipe(pipe)
    settings: dict[str, Any] = {"image": tiny.picture(width=16, height=16), "strength": 0.5,
                                "num_inference_steps": 8}  # fmt: skip
    listed = made(img2img, adapter, Reference(tiny.embedding(1), steps=[1.0, 1.0, 0.0, 0.0]), **settings)
    halved = made(img2img, adapter, Reference(tiny.embedding(1), steps=(0.0, 0.5)), **settings)
    assert torch.equal(listed, halved)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_a_scheduler_of_second_order_makes_more_steps_than_asked_for(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    calls = 2 * STEPS - 1
    weights = [1.0] * 3 + [0.0] * (calls - 3)
    listed = made(pipe, adapter, Reference(tiny.embedding(1), steps=weights))
    ranged = made(pipe, adapter, Reference(tiny.embedding(1), steps=(0.0, 3 / calls)))
    assert torch.equal(listed, ranged)
    assert not torch.equal(listed, made(pipe, adapter, Reference(tiny.embedding(1))))


def test_the_next_generation_starts_from_step_0_even_after_an_exception(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    def stop(pipe: Any, step: int, time: Any, tensors: Any) -> Any:
        raise RuntimeError("stopped")

    reference = Reference(tiny.embedding(1), steps=[1.0, 0.0, 0.5, 0.0])
    alone = made(pipe, adapter, reference)
    with adapter.attach(pipe), adapter.references(reference):
        with pytest.raises(RuntimeError, match="stopped"):
            latents(pipe, callback_on_step_end=stop)
        assert torch.equal(latents(pipe), alone)
        assert torch.equal(latents(pipe), alone)


def test_steps_on_a_bare_unet_are_refused(unet: UNet2DConditionModel, adapter: ImagePromptAdapter) -> None:
    with pytest.raises(AttachmentError, match="steps need a pipeline"):
        shown(unet, adapter, Reference(tiny.embedding(1), steps=(0.0, 0.5)))


@pytest.mark.parametrize(
    "steps", [(0.5, 0.5), (0.7, 0.2), (-0.1, 1.0), (0.0, 1.1), [], [0.0, 0.0], "half", (0.0, 0.5, 1.0), ["a"]]
)
@pytest.mark.usefixtures("unchecked")
def test_steps_that_cannot_be_are_refused(steps: Any) -> None:
    with pytest.raises(InvalidReference, match="steps"):
        Reference(tiny.embedding(1), steps=steps)


# Layers


def test_layers_that_are_off_are_as_if_their_values_were_zero(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    weights = {"up": 1.0, "mid": 0.5}
    alike = copy.deepcopy(adapter)
    for number, (name, _) in cross_attention_layers(unet).items():
        section = name.split("_")[0]
        alike.key_value(number).to_value.weight.mul_(weights.get(section, 0.0))
    embedding = tiny.embedding(1)
    close(
        shown(unet, adapter, Reference(embedding, layers=weights)), shown(unet, alike, Reference(embedding))
    )


def test_layers_that_are_off_cost_nothing(unet: UNet2DConditionModel, adapter: ImagePromptAdapter) -> None:
    with (
        adapter.attach(unet) as attachment,
        adapter.references(Reference(tiny.embedding(1), layers={"mid": 1})),
    ):
        output(unet)
        terms = {attachment.names[n].split("_")[0]: len(p.images) for n, p in attachment.processors.items()}
    assert terms == {"down": 0, "up": 0, "mid": 1}


def test_two_references_in_different_layers_are_one_in_both(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    embedding = tiny.embedding(1)
    parts = [Reference(embedding, layers={"down": 1.0}), Reference(embedding, layers={"up": 1.0, "mid": 1.0})]
    close(shown(unet, adapter, *parts), shown(unet, adapter, Reference(embedding)))


def test_every_prompt_has_its_own_layers(unet: UNet2DConditionModel, adapter: ImagePromptAdapter) -> None:
    references = [
        Reference(tiny.embedding(1, seed=0), layers={"down": 1.0}, scale=0.7),
        Reference(tiny.embedding(1, seed=1), layers={"up": 0.5}, scaling="key and mean value", scale=0.7),
    ]
    together = shown(unet, adapter, references)
    for row, reference in enumerate(references):
        close(together[row], shown(unet, adapter, reference)[row])


@pytest.fixture
def precise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny base has no precise modes; this one follows in the middle and avoids going up."""
    from imprompt import conditions
    from imprompt.layer_weights import LayerWeights

    def weights(layers: object, names: dict[int, str], *, convention: str) -> LayerWeights:
        avoid = {number: 0.5 for number, name in names.items() if name.startswith("up")}
        return LayerWeights({number: float(name.startswith("mid")) for number, name in names.items()}, avoid)

    monkeypatch.setattr(conditions, "layer_weights", weights)


@pytest.mark.usefixtures("precise")
@pytest.mark.parametrize("boost", [None, 1.5])
def test_a_precise_mode_shows_the_picture_to_the_negative_branch_alone(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, boost: float | None
) -> None:
    embedding, scale = tiny.embedding(1), 0.8
    reference = Reference(embedding, scale=scale, boost=boost)
    with adapter.attach(unet), adapter.references(reference, branches=("negative", "positive")):
        both = output(unet)
    pushed, middle = (scale if boost is None else boost) * 0.5, {"mid": 1.0}
    zero = torch.zeros_like(embedding)
    positive = unprecise(unet, adapter, Reference(embedding, scale=scale, layers=middle))
    negative = unprecise(
        unet,
        adapter,
        Reference(zero, scale=scale, layers=middle),
        Reference(embedding, scale=pushed, layers={"up": 1.0}),
    )
    close(both[0], negative[0])
    close(both[1], positive[1])


def unprecise(unet: UNet2DConditionModel, adapter: ImagePromptAdapter, *references: Reference) -> Tensor:
    from imprompt import conditions, layer_weights

    with patch.object(conditions, "layer_weights", layer_weights.layer_weights):
        return shown(unet, adapter, *references)


@pytest.mark.usefixtures("precise")
def test_a_precise_mode_needs_guidance(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with adapter.attach(pipe), adapter.references(Reference(tiny.embedding(1))):
        latents(pipe, guidance_scale=3.0)
        with pytest.raises(InvalidReference, match="guidance is off"):
            latents(pipe, guidance_scale=1.0)


def test_a_boost_without_a_precise_mode_is_refused(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    with pytest.raises(InvalidReference, match="boost has no effect with layers='full'"):
        shown(unet, adapter, Reference(tiny.embedding(1), boost=2.0))


# Scaling


@pytest.mark.parametrize("penalty", [False, True])
@pytest.mark.parametrize("scaling", ["value", "key and value", "key and mean value"])
def test_scaling_follows_its_formula(scaling: Any, penalty: bool) -> None:
    key, value, width, scale = torch.randn(1, 4, 640), torch.randn(1, 4, 640), 640, 0.7
    reference = Reference(tiny.embedding(1), scale=scale, scaling=scaling, width_penalty=penalty)
    w = scale * width / 1280 if penalty else scale
    mean = value.mean(1, keepdim=True)
    expected = {
        "value": (key, w * value),
        "key and value": (w * key, w * value),
        "key and mean value": (w * key, value - mean + w * mean),
    }[scaling]
    scaled = _scaled(key, value, [_strength(reference, scale, width)])
    for ours, theirs in zip(scaled, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("scaling", ["value", "key and value", "key and mean value"])
def test_any_scaling_with_scale_zero_is_the_base_model_to_the_last_bit(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, scaling: Any
) -> None:
    reference = Reference(tiny.embedding(1), scale=0.0, scaling=scaling)
    assert torch.equal(shown(unet, adapter, reference), output(unet))


@pytest.mark.parametrize("scaling", ["value", "key and value", "key and mean value"])
def test_any_scaling_with_scale_one_is_the_same(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, scaling: Any
) -> None:
    close(
        shown(unet, adapter, Reference(tiny.embedding(1), scaling=scaling)),
        shown(unet, adapter, Reference(tiny.embedding(1))),
    )


# Negatives, crops, words


def test_a_negative_stands_on_the_negative_branch(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    picture, other = tiny.embedding(1, seed=1), tiny.embedding(1, seed=2)
    reference = Reference(picture, negative=other)
    with adapter.attach(unet), adapter.references(reference, branches=("negative", "positive")):
        both = output(unet)
    close(both[0], shown(unet, adapter, Reference(other))[0])
    close(both[1], shown(unet, adapter, Reference(picture))[1])


def test_no_negative_is_a_zero_embedding(pipe: Any, adapter: ImagePromptAdapter) -> None:
    embedding = tiny.embedding(2)
    zero = Reference(embedding, negative=torch.zeros(1, tiny.EMBEDDING_DIM))
    close(made(pipe, adapter, zero), made(pipe, adapter, Reference(embedding)))


def test_a_negative_picture_goes_through_the_encoder(pipe: Any, adapter: ImagePromptAdapter) -> None:
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    one, other = tiny.picture(seed=1), tiny.picture(seed=2)
    embeddings = [adapter.image_encoder.encode(adapter.image_encoder.pixels([x])) for x in (one, other)]
    by_picture = made(pipe, adapter, Reference(one, negative=other), guidance_scale=2.0)
    by_hand = Reference(embeddings[0], negative=embeddings[1])
    close(by_picture, made(pipe, adapter, by_hand, guidance_scale=2.0))


def test_an_encoded_reference_acts_as_the_picture_does(pipe: Any, adapter: ImagePromptAdapter) -> None:
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    pictures = [tiny.picture(seed=1), tiny.picture(seed=2, width=60)]
    kept = adapter.encode(Reference(pictures, crop="stretch"))
    assert torch.equal(
        made(pipe, adapter, Reference(kept)), made(pipe, adapter, Reference(pictures, crop="stretch"))
    )


def test_views_are_what_the_encoder_sees(adapter: ImagePromptAdapter) -> None:
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    wide = tiny.picture(width=80, height=40)
    (view,) = adapter.views(Reference(wide, crop="right"))
    values = torch.from_numpy(np.array(view)).permute(2, 0, 1).double() / 255
    mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in
                 (adapter.image_encoder.mean, adapter.image_encoder.std))  # fmt: skip
    assert torch.equal(((values - mean) / std).float(), adapter.image_encoder.pixels([wide], "right")[0])
    assert len(adapter.views(Reference(wide, crop="tiles"))) > 1


def test_tiles_are_references_of_their_own_each_in_its_own_part(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    square, wide = tiny.picture(width=50, height=50), tiny.picture(width=80, height=40)
    assert torch.equal(
        made(pipe, adapter, Reference(square, crop="tiles")), made(pipe, adapter, Reference(square))
    )
    with adapter.attach(pipe) as attachment, adapter.references(Reference(wide, crop="tiles", scale=0.5)):
        latents(pipe)
        for processor in attachment.processors.values():
            weights = [term.weight for term in processor.images]
            assert len(weights) > 1
            assert torch.equal(sum(weights), torch.ones_like(weights[0]))  # pyright: ignore


def test_pictures_in_one_list_have_equally_many_tiles(pipe: Any, adapter: ImagePromptAdapter) -> None:
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    pictures = [Reference(tiny.picture(width=width, height=40), crop="tiles") for width in (40, 80)]
    with adapter.attach(pipe), pytest.raises(AmbiguousBatch, match="tiles"):
        adapter.references(pictures)


def test_words_are_subtracted_where_the_base_has_the_encoders_text_tower() -> None:
    pipe: Any = tiny.xl_pipeline()
    unet = pipe.unet
    adapter = ImagePromptAdapter.for_unet(
        unet, LinearProjection(tiny.XL_CONTEXT_2, tiny.XL_CONTEXT_1 + tiny.XL_CONTEXT_2)
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        embedding = torch.randn(1, tiny.XL_CONTEXT_2)
    ids = pipe.tokenizer_2("a dog", return_tensors="pt").input_ids
    words = pipe.text_encoder_2(ids).text_embeds[0]
    assert torch.equal(text_embedding(pipe, "a dog", tiny.XL_CONTEXT_2), words)
    without = made(pipe, adapter, Reference(embedding, without="a dog"))
    assert torch.equal(without, made(pipe, adapter, Reference(embedding - words)))


def test_words_cannot_be_subtracted_elsewhere(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with adapter.attach(pipe), pytest.raises(InvalidReference, match=r"without='a dog' needs .* 14 wide"):
        adapter.references(Reference(tiny.embedding(1), without="a dog"))


# Features and faces

SMALL = PerceiverShape(width=tiny.SD_CONTEXT, depth=1, head_dim=5)


def resampler(unet: UNet2DConditionModel) -> ImagePromptAdapter:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return randomised(
            ImagePromptAdapter.for_unet(unet, ResamplerProjection(24, tiny.SD_CONTEXT, 5, shape=SMALL))
        )


def randomised(adapter: ImagePromptAdapter) -> ImagePromptAdapter:
    generator = torch.Generator().manual_seed(9)
    for parameter in adapter.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapter


def test_features_act_and_no_image_is_a_grey_picture(pipe: Any) -> None:
    adapter = resampler(pipe.unet)
    adapter.image_encoder = encoder = ImageEncoder(tiny.vision_model())
    picture = tiny.picture()
    features = encoder.features(encoder.pixels([picture]))
    grey = encoder.features(torch.zeros(1, 3, 28, 28))
    by_picture = made(pipe, adapter, picture)
    close(by_picture, made(pipe, adapter, Reference(features, negative=grey)))
    adapter.image_encoder = None
    close(by_picture, made(pipe, adapter, Reference(features, negative=grey)))
    with adapter.attach(pipe), pytest.raises(AdapterMismatch, match="give embeddings with a negative"):
        adapter.references(Reference(features))


def face_adapter(unet: UNet2DConditionModel, projection: Any, rank: int = 2) -> ImagePromptAdapter:
    lora: dict[int, LoraShapes] = {
        number: {
            "q": (attn.query_dim, attn.inner_dim, rank),
            "k": (attn.cross_attention_dim, attn.inner_kv_dim, rank),
            "v": (attn.cross_attention_dim, attn.inner_kv_dim, rank),
            "out": (attn.inner_dim, attn.out_dim, rank),
        }
        for number, (_, attn) in attention_layers(unet).items()
    }
    shapes = ImagePromptAdapter.for_unet(unet, projection).shapes
    return randomised(ImagePromptAdapter(projection, shapes, lora))


def test_a_lora_acts_with_the_reference_and_only_then(unet: UNet2DConditionModel) -> None:
    adapter = face_adapter(unet, FaceProjection(tiny.SD_CONTEXT, embedding_dim=12))
    base, face = output(unet), torch.randn(1, 12)
    merged = copy.deepcopy(unet)
    for number, (_, attn) in attention_layers(merged).items():
        places = {"q": attn.to_q, "k": attn.to_k, "v": attn.to_v, "out": attn.to_out[0]}  # pyright: ignore
        for place, (down, up) in adapter.low_rank(number).items():
            places[place].weight.add_(0.6 * up @ down)  # pyright: ignore
    plain = ImagePromptAdapter(adapter.projection, adapter.shapes)
    plain.load_state_dict({k: v for k, v in adapter.state_dict().items() if not k.startswith("lora")})
    with adapter.attach(unet):
        assert torch.equal(output(unet), base)
        with adapter.references(Reference(face, lora_scale=0.6)):
            with_lora = output(unet)
        assert torch.equal(output(unet), base)
    close(with_lora, shown(merged, plain, Reference(face)))
    assert torch.equal(
        shown(unet, adapter, Reference(face, lora_scale=0)), shown(unet, plain, Reference(face))
    )
    assert torch.equal(output(unet), base)


def test_references_of_one_adapter_agree_on_its_lora(unet: UNet2DConditionModel) -> None:
    adapter = face_adapter(unet, FaceProjection(tiny.SD_CONTEXT, embedding_dim=12))
    faces = [Reference(torch.randn(1, 12), lora_scale=scale) for scale in (0.5, 0.7)]
    with adapter.attach(unet), pytest.raises(InvalidReference, match="lora_scale"):
        adapter.references(*faces)


def test_every_prompt_has_its_own_lora_strength(unet: UNet2DConditionModel) -> None:
    adapter = face_adapter(unet, FaceProjection(tiny.SD_CONTEXT, embedding_dim=12))
    faces = [Reference(torch.randn(1, 12), lora_scale=scale) for scale in (0.5, 0.7)]
    together = shown(unet, adapter, faces)
    for row, face in enumerate(faces):
        close(together[row], shown(unet, adapter, face)[row])


def test_a_face_and_features_act_together_with_a_strength(unet: UNet2DConditionModel) -> None:
    projection = FacePlusProjection(24, tiny.SD_CONTEXT, version=2, embedding_dim=12, shape=SMALL)
    adapter = face_adapter(unet, projection)
    adapter.image_encoder = encoder = ImageEncoder(tiny.vision_model())
    picture, face = tiny.picture(), torch.randn(12)
    adapter.face_embedder = lambda image: face
    tokens = projection(face[None], encoder.features(encoder.pixels([picture])), 0.4)
    by_picture = shown(unet, adapter, Reference(picture, face_scale=0.4))
    assert torch.equal(by_picture, shown(unet, adapter, Reference(picture, face=face[None], face_scale=0.4)))
    with adapter.attach(unet) as attachment, adapter.references(Reference(picture, face_scale=0.4)):
        output(unet)
        for number in adapter.shapes:
            key = attachment.processors[number].images[0].key
            close(key[0].transpose(0, 1).flatten(1), adapter.key_value(number).to_key(tokens)[0])
    assert not torch.equal(by_picture, shown(unet, adapter, Reference(picture)))


def test_adapters_of_several_kinds_act_together_as_a_sum(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    plus, face = (
        resampler(unet),
        randomised(ImagePromptAdapter.for_unet(unet, FaceProjection(tiny.SD_CONTEXT))),
    )
    asked = [
        (adapter, Reference(tiny.embedding(1), scale=0.5)),
        (plus, Reference(torch.randn(1, 4, 24), negative=torch.zeros(1, 4, 24))),
        (face, Reference(torch.randn(2, 512), layers={"down": 1.0})),
    ]
    _, attn = cross_attention_layers(unet)[1]
    hidden, text = torch.randn(2, 64, 16), torch.randn(2, 7, tiny.SD_CONTEXT)
    base = attn(hidden, encoder_hidden_states=text)

    def beside(*some: tuple[ImagePromptAdapter, Reference]) -> Tensor:
        with contextlib.ExitStack() as stack:
            for one, reference in some:
                stack.enter_context(one.attach(unet))
                stack.enter_context(one.references(reference))
            output(unet)
            return attn(hidden, encoder_hidden_states=text) - base

    alone = [beside(one) for one in asked]
    assert all(one.abs().max() > 1e-2 for one in alone)
    close(beside(*asked), sum(alone, torch.zeros_like(base)))
    assert torch.equal(attn(hidden, encoder_hidden_states=text), base)


# Nothing without effect


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"face_scale": 0.5}, "face_scale has no effect"),
        ({"lora_scale": 0.5}, "lora_scale has no effect"),
        ({"face": torch.ones(1, 512)}, "face has no effect"),
        ({"crop": "pad"}, "crop='pad' has no effect on embeddings"),
        ({"layers": {"sideways": 1.0}}, "sideways"),
        ({"layers": "sideways"}, "sideways"),
    ],
)
def test_a_setting_that_an_adapter_cannot_honour_is_refused(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, settings: Any, sentence: str
) -> None:
    with adapter.attach(unet), pytest.raises(InvalidReference, match=sentence):
        adapter.references(Reference(tiny.embedding(1), **settings))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"scaling": "values"}, "scaling must be one of value, key and value"),
        ({"convention": "a1111"}, "convention must be one of comfy"),
        ({"measured_in": "sigma"}, "measured_in must be one of steps, noise, not 'sigma'"),
        ({"combine": "sum"}, "combine must be one of concat"),
        ({"boost": float("nan")}, "boost must be a finite number"),
        ({"crop": "middle"}, "'middle'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_setting_that_does_not_exist_is_refused(settings: Any, sentence: str) -> None:
    with pytest.raises(InvalidReference, match=sentence):
        Reference(tiny.embedding(1), **settings)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users have no jaxtyping hook that would refuse wrong types before we do."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
