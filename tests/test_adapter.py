"""The adapter: made for a U-Net, asked through references, trained through `condition_on`."""

import functools
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

import tiny
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.layers import find_cross_attention_layers
from imprompt.errors import AdapterMismatch, AmbiguousBatch, AttachmentError, ImageError, InvalidReference
from imprompt.inputs.encoder import ImageEncoder
from imprompt.projection import LinearProjection
from imprompt.reference import Reference

assert_close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return tiny.sd_unet()


@pytest.fixture
def adapter(unet: UNet2DConditionModel) -> ImagePromptAdapter:
    return tiny.adapter(unet)


@torch.no_grad()
def output(unet: UNet2DConditionModel, batch: int = 2, **changes: Any) -> Tensor:
    arguments: dict[str, Any] = tiny.unet_input(unet, batch=batch) | changes
    return unet(**arguments).sample


# Making one


def test_a_new_adapter_starts_from_the_texts_key_and_value(unet: UNet2DConditionModel) -> None:
    adapter = ImagePromptAdapter.for_unet(unet, LinearProjection(tiny.EMBEDDING_DIM, tiny.SD_CONTEXT))
    layers = find_cross_attention_layers(unet)
    assert list(layers) == list(adapter.shapes) == [1, 3, 5, 7]
    for number, (_, attn) in layers.items():
        mine = adapter.key_value(number)
        assert torch.equal(mine.to_key.weight, attn.to_k.weight)  # pyright: ignore
        assert torch.equal(mine.to_value.weight, attn.to_v.weight)  # pyright: ignore
        assert mine.to_key.weight is not attn.to_k.weight  # pyright: ignore
    assert all(parameter.requires_grad for parameter in adapter.parameters())


def test_a_new_adapter_is_float32_for_a_base_in_half_precision(unet: UNet2DConditionModel) -> None:
    adapter = ImagePromptAdapter.for_unet(
        unet.bfloat16(), LinearProjection(tiny.EMBEDDING_DIM, tiny.SD_CONTEXT)
    )
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}


def test_a_projection_of_another_width_is_refused() -> None:
    with pytest.raises(AdapterMismatch, match="layer 1 expects 7-wide tokens; the projection makes 5-wide"):
        ImagePromptAdapter(LinearProjection(3, 5), {1: (7, 4)})


def test_the_image_encoder_is_no_part_of_the_weights(adapter: ImagePromptAdapter) -> None:
    names = list(adapter.state_dict())
    adapter.image_encoder = tiny.vision_model()  # pyright: ignore
    assert isinstance(adapter.image_encoder, ImageEncoder)
    assert list(adapter.state_dict()) == names
    assert [name for name, _ in adapter.named_children()] == ["projection", "layers", "lora"]


# References


def test_a_picture_acts_in_every_form_alike(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, tmp_path: Path
) -> None:
    picture, encoder = tiny.picture(), ImageEncoder(tiny.vision_model())
    adapter.image_encoder = encoder
    picture.save(tmp_path / "it.png")
    embedding = encoder.encode(encoder.pixels([picture]))
    forms = [picture, tmp_path / "it.png", str(tmp_path / "it.png"), np.asarray(picture), embedding]
    outputs = []
    with adapter.attach(unet):
        for form in [*forms, *map(Reference, forms), Reference([picture])]:
            with adapter.references(form):
                outputs.append(output(unet))
    assert all(torch.equal(one, outputs[0]) for one in outputs)
    assert not torch.equal(outputs[0], output(unet))


def test_the_picture_matters(unet: UNet2DConditionModel, adapter: ImagePromptAdapter) -> None:
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    outputs = []
    with adapter.attach(unet):
        for seed in (1, 2):
            with adapter.references(tiny.picture(seed=seed)):
                outputs.append(output(unet))
    assert not torch.allclose(*outputs)


def test_pictures_without_an_encoder_are_refused(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    with adapter.attach(unet), pytest.raises(AdapterMismatch, match="has no image encoder"):
        adapter.references(tiny.picture())


def test_a_missing_file_is_named_and_leaves_nothing(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    base = output(unet)
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    with adapter.attach(unet):
        with pytest.raises(ImageError, match=r"nowhere\.png"):
            adapter.references("nowhere.png")
        assert torch.equal(output(unet), base)


@pytest.mark.parametrize("width", [13, 15])
def test_an_embedding_of_another_encoder_is_refused(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, width: int
) -> None:
    sentence = f"image_embedding is {width} wide.* width of 14|image_embedding 14 wide, not .* {width} wide"
    with adapter.attach(unet):
        with pytest.raises(AdapterMismatch, match=sentence):
            adapter.references(torch.zeros(1, width))
        with pytest.raises(AdapterMismatch, match=sentence):
            adapter.condition_on(torch.zeros(2, 1, width))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "0.5", "abc", None, True, 1j])
@pytest.mark.usefixtures("unchecked")
def test_a_scale_that_is_no_finite_number_is_refused(scale: Any) -> None:
    with pytest.raises(InvalidReference, match="scale must be a finite number"):
        Reference("cat.png", scale=scale)


@pytest.mark.parametrize("images", [[], (), 7, None, b"png", [3], [["cat.png"]], ["cat.png", None]])
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_picture_is_refused(images: Any) -> None:
    with pytest.raises(InvalidReference, match="picture"):
        Reference(images)


@pytest.mark.parametrize(
    "embedding",
    [torch.zeros(3), torch.zeros(1, 1, 1, 3), torch.zeros(0, 3), torch.zeros(1, 3, dtype=torch.long)],
)
def test_an_embedding_of_a_wrong_shape_is_refused(embedding: Tensor) -> None:
    with pytest.raises(InvalidReference, match="must be a floating-point tensor"):
        Reference(embedding)


def test_an_embedding_with_nan_is_refused() -> None:
    with pytest.raises(InvalidReference, match="NaN"):
        Reference(torch.tensor([[1.0, float("nan")]]))


@pytest.mark.parametrize("references", [[], [[]]])
def test_no_reference_at_all_is_refused(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, references: list[Any]
) -> None:
    with adapter.attach(unet), pytest.raises(InvalidReference, match="at least one"):
        adapter.references(*references)


def test_references_need_an_attached_adapter(adapter: ImagePromptAdapter) -> None:
    with pytest.raises(AttachmentError, match="not attached"):
        adapter.references(tiny.embedding(1))
    with pytest.raises(AttachmentError, match="not attached"):
        adapter.condition_on(tiny.embedding(1, 1))


def test_inner_references_act_instead_of_outer_ones_and_these_come_back(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    one, two = tiny.embedding(1, seed=1), tiny.embedding(1, seed=2)
    with adapter.attach(unet):
        with adapter.references(one):
            alone = output(unet)
        with adapter.references(two):
            expected = output(unet)
            with adapter.references(one):
                assert torch.equal(output(unet), alone)
            assert torch.equal(output(unet), expected)


def test_references_without_with_stay_until_replaced_or_detached(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    base = output(unet)
    adapter.attach(unet)
    adapter.references(tiny.embedding(1, seed=1))
    first = output(unet)
    adapter.references(tiny.embedding(1, seed=2))
    assert not torch.equal(output(unet), first)
    adapter.detach()
    assert torch.equal(output(unet), base)


def test_replaced_references_are_not_kept_alive(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    one, two, three = (tiny.embedding(1, seed=seed) for seed in range(3))
    with adapter.attach(unet):
        with adapter.references(two):
            expected = output(unet)
        first = weakref.ref(adapter.references(one))
        adapter.references(two)
        with adapter.references(three):
            assert first() is None
        assert torch.equal(output(unet), expected)


def test_references_set_inside_a_context_end_with_it(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    base = output(unet)
    with adapter.attach(unet):
        with adapter.references(tiny.embedding(1)):
            adapter.references(tiny.embedding(1, seed=1))
            stale = adapter.references(tiny.embedding(1, seed=2))
            adapter.references(tiny.embedding(1, seed=3))
            with pytest.raises(AttachmentError, match="were replaced"):
                stale.__enter__()
        assert torch.equal(output(unet), base)


# Batches of a bare U-Net


def test_one_reference_per_prompt_equals_each_alone(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    one, two = Reference(tiny.embedding(1, seed=1), scale=0.5), Reference(tiny.embedding(1, seed=2))
    with adapter.attach(unet):
        with adapter.references([one, two]):
            both = output(unet)
        for row, reference in enumerate([one, two]):
            with adapter.references(reference):
                assert_close(output(unet)[row], both[row])


def test_references_with_unequally_many_pictures_share_a_batch(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    two, three = Reference(tiny.embedding(2, seed=1)), Reference(tiny.embedding(3, seed=2), scale=0.3)
    with adapter.attach(unet):
        with adapter.references([two, three]):
            both = output(unet)
        for row, reference in enumerate([two, three]):
            with adapter.references(reference):
                assert_close(output(unet)[row], both[row])


def test_one_for_all_and_one_each_act_together(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    every, one, two = (Reference(tiny.embedding(1, seed=seed), scale=0.5) for seed in range(3))
    with adapter.attach(unet):
        with adapter.references(every, [one, two]):
            both = output(unet)
        for row, reference in enumerate([one, two]):
            with adapter.references(every, reference):
                assert_close(output(unet)[row], both[row])


def test_lists_of_different_lengths_are_refused(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    it = tiny.embedding(1)
    with adapter.attach(unet), pytest.raises(AmbiguousBatch, match="different lengths: 2, 3"):
        adapter.references([it] * 2, [it] * 3)


def test_more_references_than_samples_are_refused(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    references: list[Any] = [tiny.embedding(1)] * 3
    adapter.attach(unet)
    adapter.references(references)
    with pytest.raises(AmbiguousBatch, match="3 references, one per prompt, do not fit a batch of 2"):
        output(unet)


def test_samples_of_one_reference_must_share_their_text(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    references: list[Any] = [tiny.embedding(1, seed=1), tiny.embedding(1, seed=2)]
    text = torch.randn(2, tiny.CONTEXT_LEN, tiny.SD_CONTEXT)
    with adapter.attach(unet), adapter.references(references):
        output(unet, 4, encoder_hidden_states=text.repeat_interleave(2, 0))
        with pytest.raises(AmbiguousBatch, match="not 2 prompts with 2 pictures each"):
            output(unet, 4, encoder_hidden_states=text.repeat(2, 1, 1))


def test_a_text_checked_once_is_checked_again_when_written_to(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    references: list[Any] = [tiny.embedding(1, seed=1), tiny.embedding(1, seed=2)]
    text = torch.ones(4, tiny.CONTEXT_LEN, tiny.SD_CONTEXT)
    with adapter.attach(unet), adapter.references(references):
        output(unet, 4, encoder_hidden_states=text)
        text[1] = 2
        with pytest.raises(AmbiguousBatch):
            output(unet, 4, encoder_hidden_states=text)


def test_branches_of_a_bare_unet_can_be_named(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    zero, it = torch.zeros(1, tiny.EMBEDDING_DIM), tiny.embedding(1)
    with adapter.attach(unet):
        with adapter.references(it, branches=("negative", "positive")):
            pair = output(unet)
        for row, embedding in enumerate([zero, it]):
            with adapter.references(embedding):
                assert_close(output(unet)[row], pair[row])


def test_a_batch_that_branches_do_not_divide_is_refused(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    adapter.attach(unet)
    adapter.references(tiny.embedding(1), branches=("negative", "positive"))
    with pytest.raises(AmbiguousBatch, match="batch of 3 cannot be divided among 2 branches"):
        output(unet, 3)


# Training


def test_every_sample_has_its_own_image_and_scale(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    embeddings, scales = tiny.embedding(2, 1), torch.tensor([0.0, 0.7])
    base = output(unet)
    with adapter.attach(unet):
        with adapter.condition_on(embeddings, scales):
            both = output(unet)
        with adapter.references(Reference(embeddings[1], scale=0.7)):
            assert_close(output(unet)[1], both[1])
    assert torch.equal(both[0], base[0])


def test_conditions_for_another_batch_are_refused(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    adapter.attach(unet)
    adapter.condition_on(tiny.embedding(1, 1))
    with pytest.raises(AmbiguousBatch, match="2 samples, but the image prompts are for 1"):
        output(unet)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_finite_differences(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter, checkpointing: bool
) -> None:
    unet, adapter = unet.double(), adapter.double().requires_grad_(True)
    if checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()
    call: dict[str, Any] = tiny.unet_input(unet)
    call |= {name: call[name].double() for name in ("sample", "encoder_hidden_states")}
    embeddings = tiny.embedding(2, 2).double()
    weight = adapter.key_value(7).to_value.weight
    step = torch.randn_like(weight) * 1e-5

    def loss() -> Tensor:
        return unet(**call).sample.square().mean()

    with adapter.attach(unet):
        with adapter.condition_on(embeddings):
            loss().backward()
        with torch.no_grad():
            losses = []
            for sign in (1, -1):
                weight.add_(sign * step)
                with adapter.condition_on(embeddings):
                    losses.append(loss())
                weight.sub_(sign * step)
    assert weight.grad is not None
    torch.testing.assert_close((losses[0] - losses[1]) / 2, (weight.grad * step).sum(), rtol=1e-5, atol=1e-12)


def test_references_is_another_name_of_use() -> None:
    assert ImagePromptAdapter.references is ImagePromptAdapter.use
