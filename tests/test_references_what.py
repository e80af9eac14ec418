"""What acts: negatives, crops, words, features, faces and their LoRA; nothing without effect."""

import contextlib
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

import tiny
from imprompt.adapter.encode import embed_text
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.layers import find_attention_layers, find_cross_attention_layers
from imprompt.errors import AdapterMismatch, AmbiguousBatch, InvalidReference
from imprompt.inputs.crop import noise_image
from imprompt.inputs.encoder import ImageEncoder
from imprompt.projection import (
    FacePlusProjection,
    FaceProjection,
    LinearProjection,
    PerceiverShape,
    ResamplerProjection,
)
from imprompt.reference import Reference
from showing import close, draw_latents, latents, output, run_unet

pytestmark = pytest.mark.usefixtures("no_grad")


# Negatives, crops, words


def test_a_negative_stands_on_the_negative_branch(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    picture, other = tiny.embedding(1, seed=1), tiny.embedding(1, seed=2)
    reference = Reference(picture, negative=other)
    with adapter.attach(unet), adapter.references(reference, branches=("negative", "positive")):
        both = output(unet)
    close(both[0], run_unet(unet, adapter, Reference(other))[0])
    close(both[1], run_unet(unet, adapter, Reference(picture))[1])


def test_no_negative_is_a_zero_embedding(pipe: Any, adapter: ImagePromptAdapter) -> None:
    embedding = tiny.embedding(2)
    zero = Reference(embedding, negative=torch.zeros(1, tiny.EMBEDDING_DIM))
    close(draw_latents(pipe, adapter, zero), draw_latents(pipe, adapter, Reference(embedding)))


def test_a_negative_picture_goes_through_the_encoder(pipe: Any, adapter: ImagePromptAdapter) -> None:
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    one, other = tiny.picture(seed=1), tiny.picture(seed=2)
    embeddings = [adapter.image_encoder.encode(adapter.image_encoder.pixels([x])) for x in (one, other)]
    by_picture = draw_latents(pipe, adapter, Reference(one, negative=other), guidance_scale=2.0)
    by_hand = Reference(embeddings[0], negative=embeddings[1])
    close(by_picture, draw_latents(pipe, adapter, by_hand, guidance_scale=2.0))


def test_noise_is_a_spoiled_copy_of_each_picture_as_the_negative(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    pictures = [tiny.picture(seed=1), tiny.picture(seed=2)]
    spoiled = [noise_image(one, "fade", 0.5, seed, size=28) for seed, one in enumerate(pictures)]
    by_name = draw_latents(pipe, adapter, Reference(pictures, noise=("fade", 0.5)), guidance_scale=2.0)
    close(by_name, draw_latents(pipe, adapter, Reference(pictures, negative=spoiled), guidance_scale=2.0))
    assert (by_name - draw_latents(pipe, adapter, Reference(pictures), guidance_scale=2.0)).abs().max() > 1e-2


def test_an_encoded_reference_acts_as_the_picture_does(pipe: Any, adapter: ImagePromptAdapter) -> None:
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    pictures = [tiny.picture(seed=1), tiny.picture(seed=2, width=60)]
    kept = adapter.encode(Reference(pictures, crop="stretch"))
    assert torch.equal(
        draw_latents(pipe, adapter, Reference(kept)),
        draw_latents(pipe, adapter, Reference(pictures, crop="stretch")),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_embeddings_of_another_encoder_of_the_same_width_are_refused(
    pipe: Any, adapter: ImagePromptAdapter, dtype: torch.dtype, tmp_path: Path
) -> None:
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    adapter.encode(tiny.picture()).save(tmp_path / "kept.safetensors")
    kept = Reference(str(tmp_path / "kept.safetensors"))
    with adapter.attach(pipe):
        adapter.image_encoder = ImageEncoder(tiny.vision_model()).to(dtype)
        adapter.references(kept)
        adapter.image_encoder = ImageEncoder(tiny.vision_model(seed=1)).to(dtype)
        with pytest.raises(AdapterMismatch, match="made by another image encoder"):
            adapter.references(kept)


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
        draw_latents(pipe, adapter, Reference(square, crop="tiles")),
        draw_latents(pipe, adapter, Reference(square)),
    )
    with adapter.attach(pipe) as attachment, adapter.references(Reference(wide, crop="tiles", scale=0.5)):
        latents(pipe)
        for processor in attachment.layers.terms.values():
            weights = [term.weight for term in processor.state.terms]
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
    assert torch.equal(embed_text(pipe, "a dog", tiny.XL_CONTEXT_2), words)
    without = draw_latents(pipe, adapter, Reference(embedding, without="a dog"))
    assert torch.equal(without, draw_latents(pipe, adapter, Reference(embedding - words)))


def test_words_cannot_be_subtracted_elsewhere(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with adapter.attach(pipe), pytest.raises(InvalidReference, match=r"without='a dog' needs .* 14 wide"):
        adapter.references(Reference(tiny.embedding(1), without="a dog"))


# Features and faces

SMALL = PerceiverShape(width=tiny.SD_CONTEXT, depth=1, head_dim=5)


def resampler(unet: UNet2DConditionModel) -> ImagePromptAdapter:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return randomize(
            ImagePromptAdapter.for_unet(unet, ResamplerProjection(24, tiny.SD_CONTEXT, 5, shape=SMALL))
        )


def randomize(adapter: ImagePromptAdapter) -> ImagePromptAdapter:
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
    by_picture = draw_latents(pipe, adapter, picture)
    close(by_picture, draw_latents(pipe, adapter, Reference(features, negative=grey)))
    adapter.image_encoder = None
    close(by_picture, draw_latents(pipe, adapter, Reference(features, negative=grey)))
    with adapter.attach(pipe), pytest.raises(AdapterMismatch, match="give embeddings with a negative"):
        adapter.references(Reference(features))


def face_adapter(unet: UNet2DConditionModel, projection: Any, rank: int = 2) -> ImagePromptAdapter:
    return randomize(ImagePromptAdapter.for_unet(unet, projection, lora_rank=rank))


def test_a_lora_acts_with_the_reference_and_only_then(unet: UNet2DConditionModel) -> None:
    adapter = face_adapter(unet, FaceProjection(tiny.SD_CONTEXT, embedding_dim=12))
    base, face = output(unet), torch.randn(1, 12)
    merged = copy.deepcopy(unet)
    for number, (_, attn) in find_attention_layers(merged).items():
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
    close(with_lora, run_unet(merged, plain, Reference(face)))
    assert torch.equal(
        run_unet(unet, adapter, Reference(face, lora_scale=0)), run_unet(unet, plain, Reference(face))
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
    together = run_unet(unet, adapter, faces)
    for row, face in enumerate(faces):
        close(together[row], run_unet(unet, adapter, face)[row])


def test_a_face_and_features_act_together_with_a_strength(unet: UNet2DConditionModel) -> None:
    projection = FacePlusProjection(24, tiny.SD_CONTEXT, version=2, embedding_dim=12, shape=SMALL)
    adapter = face_adapter(unet, projection)
    adapter.image_encoder = encoder = ImageEncoder(tiny.vision_model())
    picture, face = tiny.picture(), torch.randn(12)
    adapter.face_embedder = lambda image: face
    tokens = projection(face[None], encoder.features(encoder.pixels([picture])), 0.4)
    by_picture = run_unet(unet, adapter, Reference(picture, face_scale=0.4))
    assert torch.equal(
        by_picture, run_unet(unet, adapter, Reference(picture, face=face[None], face_scale=0.4))
    )
    with adapter.attach(unet) as attachment, adapter.references(Reference(picture, face_scale=0.4)):
        output(unet)
        for number in adapter.shapes:
            key = attachment.layers.terms[number].state.terms[0].key
            close(key[0].transpose(0, 1).flatten(1), adapter.key_value(number).to_key(tokens)[0])
    assert not torch.equal(by_picture, run_unet(unet, adapter, Reference(picture)))


def test_adapters_of_several_kinds_act_together_as_a_sum(
    unet: UNet2DConditionModel, adapter: ImagePromptAdapter
) -> None:
    plus, face = (
        resampler(unet),
        randomize(ImagePromptAdapter.for_unet(unet, FaceProjection(tiny.SD_CONTEXT))),
    )
    asked = [
        (adapter, Reference(tiny.embedding(1), scale=0.5)),
        (plus, Reference(torch.randn(1, 4, 24), negative=torch.zeros(1, 4, 24))),
        (face, Reference(torch.randn(2, 512), layers={"down": 1.0})),
    ]
    _, attn = find_cross_attention_layers(unet)[1]
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
        ({"noise": ("grain", 0.5)}, "noise must be fade, .* not 'grain'"),
        ({"noise": ("fade", 1.5)}, "amount of noise must be .* not 1.5"),
        ({"noise": ("fade", 0.5)}, "needs pictures"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_setting_that_does_not_exist_is_refused(settings: Any, sentence: str) -> None:
    with pytest.raises(InvalidReference, match=sentence):
        Reference(tiny.embedding(1), **settings)
