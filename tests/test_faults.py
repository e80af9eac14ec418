"""Known faults of the reference implementations, and what imprompt does instead.

Each fault was seen in diffusers 0.40 or read in its source. Its number stands beside the tests, which hold
imprompt to the correct result, computed in another way, or to an error that names the value. How many of the
26 are passed is printed at the end of `pytest tests/test_faults.py`.
"""

import ast
import copy
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from diffusers.models.embeddings import ImageProjection as TheirProjection
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

import test_parity
import tiny
import tiny_transformers
from faults import (
    COUNTS,
    FAULTS,
    assert_close,
    assert_differ,
    attentions,
    draw_normal,
    face_file,
    fault,
    flat,
    merge_loras,
    of_diffusers,
    other_vision_model,
    resample_features,
    write_tensors,
)
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint import describe, load_adapter, save_adapter
from imprompt.errors import (
    AdapterMismatch,
    AttachmentError,
    CheckpointError,
    ImpromptError,
    InvalidReference,
)
from imprompt.inputs.encoder import ImageEncoder
from imprompt.projection import FacePlusProjection, LinearProjection, PerceiverShape, ResamplerProjection
from imprompt.reference import Reference
from test_documents import blocks
from test_parity import for_diffusers, official


def test_every_fault_has_a_test() -> None:
    numbers = {number for number in FAULTS.values() if isinstance(number, int)}
    assert sorted(numbers) == list(range(1, COUNTS["test_faults"] + 1))


def latents(pipe: Any, **arguments: Any) -> Tensor:
    return test_parity.latents(pipe, **({"num_inference_steps": 2} | arguments))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture
def pipe() -> Any:
    return tiny.sd_pipeline(image_encoder=True)


@pytest.fixture
def adapter(pipe: Any) -> ImagePromptAdapter:
    return tiny.adapter(pipe.unet)


ONE, TWO = tiny.embedding(1, seed=1), tiny.embedding(1, seed=2)


@pytest.fixture
def their_adapters(pipe: Any) -> Iterator[Callable[..., None]]:
    """Puts adapters on the pipeline in diffusers' way, until the test ends."""

    def load(*adapters: ImagePromptAdapter) -> None:
        blanks = [""] * len(adapters)
        files = [official(adapter) for adapter in adapters]
        pipe.load_ip_adapter(files, subfolder=blanks, weight_name=blanks, image_encoder_folder=None)

    yield load
    pipe.unload_ip_adapter()


# Batches


@fault(1)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_every_prompt_of_a_batch_has_its_own_reference(
    pipe: Any, adapter: ImagePromptAdapter, guidance_scale: float
) -> None:
    prompts, references = ["a cat", "a dog"], [ONE, TWO]
    with adapter.attach(pipe):
        with adapter.references(references):
            batch = latents(pipe, prompt=prompts, generator=generators(1, 2), guidance_scale=guidance_scale)
        for row, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
            alone = {"prompt": prompt, "guidance_scale": guidance_scale}
            with adapter.references(reference):
                assert_close(batch[row : row + 1], latents(pipe, generator=generators(row + 1), **alone))
            with adapter.references(references[1 - row]):
                assert_differ(batch[row : row + 1], latents(pipe, generator=generators(row + 1), **alone))


@fault(2)
def test_embeddings_without_guidance_have_no_negative_that_could_act(
    pipe: Any, adapter: ImagePromptAdapter, their_adapters: Callable[..., None]
) -> None:
    with adapter.attach(pipe):
        with adapter.references(ONE):
            ours = latents(pipe, guidance_scale=1.0)
        packed = torch.stack([torch.zeros_like(ONE), ONE])  # (2, 1, width): what diffusers takes for guidance
        with pytest.raises(ImpromptError, match="image_embedding"):
            adapter.references(packed)
    their_adapters(adapter)
    only_positive = for_diffusers(ONE, guided=False)
    assert_close(ours, latents(pipe, guidance_scale=1.0, ip_adapter_image_embeds=only_positive))
    both = for_diffusers(ONE, guided=True)
    assert_differ(ours, latents(pipe, guidance_scale=1.0, ip_adapter_image_embeds=both))


# Files


@fault(3)
@pytest.mark.parametrize("tokens", [1, 7, 16])
def test_any_number_of_tokens_is_read_from_the_file(pipe: Any, tokens: int, tmp_path: Path) -> None:
    made = tiny.adapter(pipe.unet, tokens=tokens)
    file = write_tensors(flat(official(made)), tmp_path)
    loaded = load_adapter(file, image_encoder=None)
    assert describe(file).tokens == loaded.projection.tokens == tokens
    theirs = TheirProjection(tiny.EMBEDDING_DIM, tiny.SD_CONTEXT, tokens)
    renamed = {name.replace("proj.", "image_embeds."): x for name, x in made.projection.state_dict().items()}
    theirs.load_state_dict(renamed)
    assert_close(loaded.projection(ONE), theirs(ONE).detach())


@fault(4)
@pytest.mark.parametrize("depth", [2, 6])
def test_a_resampler_of_any_depth_and_width_keeps_all_its_layers(depth: int, tmp_path: Path) -> None:
    unet = tiny.sd_unet()
    shape = PerceiverShape(width=24, depth=depth, attention_width=128, feed_forward_width=40)
    projection = ResamplerProjection(10, tiny.SD_CONTEXT, 5, shape=shape)
    made = ImagePromptAdapter.for_unet(unet, projection)
    for seed, parameter in enumerate(made.parameters()):
        parameter.data = draw_normal(*parameter.shape, seed=seed)
    tensors = flat(official(made))
    loaded = load_adapter(write_tensors(tensors, tmp_path), image_encoder=None)
    features = draw_normal(2, 7, 10)
    assert_close(loaded.projection(features).detach(), resample_features(tensors, features, heads=2))
    assert len(loaded.projection.state_dict()) == 7 + 11 * depth


@fault(5)
@pytest.mark.parametrize(
    "extra",
    ["image_proj.extra.weight", "ip_adapter.1.to_q_ip.weight", "ip_adapter.1.to_q_lora.down.weight", "x"],
)
def test_a_tensor_too_many_is_named(adapter: ImagePromptAdapter, extra: str, tmp_path: Path) -> None:
    file = write_tensors(flat(official(adapter)) | {extra: draw_normal(2, 2)}, tmp_path)
    with pytest.raises(CheckpointError, match=f"{re.escape(extra)} does not belong in a base adapter"):
        load_adapter(file, image_encoder=None)


@fault(5)
@pytest.mark.parametrize(
    "missing", ["image_proj.norm.bias", "ip_adapter.3.to_k_ip.weight", "ip_adapter.3.to_v_ip.weight"]
)
def test_a_missing_tensor_is_named(adapter: ImagePromptAdapter, missing: str, tmp_path: Path) -> None:
    tensors = flat(official(adapter))
    del tensors[missing]
    with pytest.raises(CheckpointError, match=f"{re.escape(missing)} is missing"):
        load_adapter(write_tensors(tensors, tmp_path), image_encoder=None)


@fault(6)
@pytest.mark.parametrize(("kept", "missing"), [("image_proj", "ip_adapter"), ("ip_adapter", "image_proj")])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_half_an_adapter_is_refused_by_the_half_that_is_missing(
    adapter: ImagePromptAdapter, kept: str, missing: str, suffix: str, tmp_path: Path
) -> None:
    half = {kept: official(adapter)[kept]}
    file = tmp_path / "half.bin"
    torch.save(half, file) if suffix == ".bin" else write_tensors(flat(half), tmp_path, "half.safetensors")
    with pytest.raises(CheckpointError, match=missing):
        load_adapter(file.with_suffix(suffix), image_encoder=None)


@fault(6)
def test_the_order_of_a_files_tensors_does_not_matter(adapter: ImagePromptAdapter, tmp_path: Path) -> None:
    groups = reversed(official(adapter).items())
    turned = {group: dict(reversed(inner.items())) for group, inner in groups}
    torch.save(turned, tmp_path / "turned.bin")
    loaded = load_adapter(tmp_path / "turned.bin", image_encoder=None).state_dict()
    assert loaded.keys() == adapter.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in adapter.state_dict().items())


# Attaching


@fault(7)
def test_attention_slicing_before_attaching_gives_the_same_picture(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    with adapter.attach(pipe), adapter.references(ONE):
        whole = latents(pipe)
    pipe.enable_attention_slicing(1)
    with adapter.attach(pipe), adapter.references(ONE):
        assert_close(latents(pipe), whole)
    assert {type(x) for x in pipe.unet.attn_processors.values()} == {SlicedAttnProcessor}


@fault(7)
def test_attention_slicing_after_attaching_is_refused_by_name(pipe: Any, adapter: ImagePromptAdapter) -> None:
    with adapter.attach(pipe), adapter.references(ONE):
        pipe.enable_attention_slicing(1)
        with pytest.raises(
            AttachmentError, match=r"SlicedAttnProcessor.* after the adapter; detach, then attach"
        ):
            latents(pipe)


@fault(8)
@pytest.mark.parametrize("references", [(), (Reference(ONE, scale=0.0),)])
def test_an_attached_adapter_without_a_picture_is_the_base_model(
    pipe: Any, adapter: ImagePromptAdapter, references: tuple[Reference, ...]
) -> None:
    base = latents(pipe)
    with adapter.attach(pipe):
        if references:
            adapter.references(*references)
        assert torch.equal(latents(pipe), base)


@fault(9)
def test_two_adapters_have_each_a_scale_and_stop_part_way_for_one_generation_only(
    pipe: Any, adapter: ImagePromptAdapter, their_adapters: Callable[..., None]
) -> None:
    other = tiny.adapter(pipe.unet, seed=9)
    settings: dict[str, Any] = {"num_inference_steps": 4}
    with adapter.attach(pipe), other.attach(pipe):
        with (
            adapter.references(Reference(ONE, scale=0.5, end=0.5)),
            other.references(Reference(TWO, scale=0.8, end=0.5)),
        ):
            ours, again = latents(pipe, **settings), latents(pipe, **settings)
        with adapter.references(Reference(ONE, scale=0.5)), other.references(Reference(TWO, scale=0.8)):
            to_the_end = latents(pipe, **settings)

    their_adapters(adapter, other)
    settings |= {"ip_adapter_image_embeds": for_diffusers(ONE, guided=True) + for_diffusers(TWO, guided=True)}
    pipe.set_ip_adapter_scale([0.5, 0.8])
    assert_close(to_the_end, latents(pipe, **settings))

    def cut_off(pipe: Any, step: int, _: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 1:
            pipe.set_ip_adapter_scale([0.0, 0.0])
        return tensors

    assert_close(ours, latents(pipe, **settings, callback_on_step_end=cut_off))
    assert torch.equal(ours, again)
    assert_differ(ours, to_the_end)


@fault(10)
@pytest.mark.parametrize(
    ("layers", "name"),
    [({"up_blocks.7": 1.0}, "'up_blocks.7'"), ({"down": 1.0, "upp": 0.5}, "'upp'"), ({4: 1.0}, "4")],
)
def test_a_block_that_is_not_there_is_named(
    pipe: Any, adapter: ImagePromptAdapter, layers: dict[str | int, float], name: str
) -> None:
    with adapter.attach(pipe), pytest.raises(InvalidReference, match=f"this base has no .*{name}"):
        adapter.references(Reference(ONE, layers=layers))


@fault(11)
def test_every_picture_may_have_a_scale_of_its_own_without_masks(
    pipe: Any, adapter: ImagePromptAdapter, their_adapters: Callable[..., None]
) -> None:
    with adapter.attach(pipe), adapter.references(Reference(ONE, scale=0.3), Reference(TWO, scale=0.8)):
        ours = latents(pipe)
    their_adapters(adapter)
    pipe.set_ip_adapter_scale([[0.3, 0.8]])
    everywhere = {"ip_adapter_masks": [torch.ones(1, 2, 8, 8)]}
    embeds = for_diffusers(torch.cat([ONE, TWO]), guided=True)
    expected = latents(pipe, ip_adapter_image_embeds=embeds, cross_attention_kwargs=everywhere)
    assert_close(ours, expected)


# Masks

LEFT, RIGHT = torch.zeros(8, 8), torch.zeros(8, 8)
LEFT[:, :4], RIGHT[:, 4:] = 1.0, 0.6


@fault(12)
def test_every_prompt_of_a_guided_batch_has_its_own_mask(pipe: Any, adapter: ImagePromptAdapter) -> None:
    prompts = ["a cat", "a dog"]
    references = [Reference(ONE, mask=LEFT), Reference(TWO, mask=RIGHT)]
    with adapter.attach(pipe):
        with adapter.references(references):
            batch = latents(pipe, prompt=prompts, generator=generators(1, 2))
        for row, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
            with adapter.references(reference):
                alone = latents(pipe, prompt=prompt, generator=generators(row + 1))
            assert_close(batch[row : row + 1], alone)


@fault(13)
def test_two_pictures_of_one_adapter_have_each_a_mask(
    pipe: Any, adapter: ImagePromptAdapter, their_adapters: Callable[..., None]
) -> None:
    # Without the middle block, whose grid is coarser: diffusers shrinks masks in another way than ours.
    outer: Any = {"down": 1.0, "up": 1.0}
    with (
        adapter.attach(pipe),
        adapter.references(Reference(ONE, mask=LEFT, layers=outer), Reference(TWO, mask=RIGHT, layers=outer)),
    ):
        ours = latents(pipe)
    their_adapters(adapter)
    pipe.set_ip_adapter_scale(outer)
    masks = {"ip_adapter_masks": [torch.stack([LEFT, RIGHT])[None]]}  # reshaped by hand, as it must be there
    embeds = for_diffusers(torch.cat([ONE, TWO]), guided=True)
    expected = latents(pipe, ip_adapter_image_embeds=embeds, cross_attention_kwargs=masks)
    assert_close(ours, expected)


@fault(22)
@pytest.mark.parametrize("grey", [1 / 3, 0.1, 0.9999])
def test_a_mask_is_as_precise_as_the_pictures(pipe: Any, adapter: ImagePromptAdapter, grey: float) -> None:
    """A grey mask all over is a scale; in float16 a third is wrong by 8e-5."""
    with adapter.attach(pipe):
        with adapter.references(Reference(ONE, mask=torch.full((5, 7), grey))):
            masked = latents(pipe)
        with adapter.references(Reference(ONE, scale=grey)):
            assert_close(masked, latents(pipe), within=2e-6)


# Detaching


FACE = Reference(draw_normal(1, 6), scale=0.0)
"""A face that acts through the LoRA alone."""


@fault(14)
def test_detaching_leaves_encoder_and_processors_as_they_were(pipe: Any) -> None:
    for attn in attentions(pipe.unet)[:4]:
        attn.set_processor(AttnProcessor())
    encoder, processors = pipe.image_encoder, dict(pipe.unet.attn_processors)
    base, adapter = latents(pipe), tiny.adapter(pipe.unet)
    adapter.image_encoder = ImageEncoder(encoder)
    own = adapter.image_encoder
    with adapter.attach(pipe), adapter.references(tiny.picture()):
        assert_differ(latents(pipe), base)
    assert pipe.image_encoder is encoder
    assert adapter.image_encoder is own
    assert all(pipe.unet.attn_processors[name] is processor for name, processor in processors.items())
    assert torch.equal(latents(pipe), base)


@fault(14)
def test_detaching_takes_the_lora_of_a_face_adapter_along(pipe: Any, tmp_path: Path) -> None:
    file, _ = face_file(pipe.unet, tmp_path)
    base, before = latents(pipe), copy.deepcopy(pipe.unet.state_dict())
    face = load_adapter(file, image_encoder=None)
    with face.attach(pipe), face.references(FACE):
        assert_differ(latents(pipe), base)
    assert torch.equal(latents(pipe), base)
    assert all(torch.equal(before[name], tensor) for name, tensor in pipe.unet.state_dict().items())


@fault(15)
def test_adapters_are_added_and_taken_away_one_at_a_time(pipe: Any, adapter: ImagePromptAdapter) -> None:
    other = tiny.adapter(pipe.unet, seed=9)
    base = latents(pipe)
    adapter.attach(pipe)
    adapter.references(ONE)
    first = latents(pipe)
    with pytest.warns(UserWarning, match="image prompts of another adapter act on this U-Net already"):
        other.attach(pipe)
    other.references(TWO)
    both = latents(pipe)
    adapter.detach()
    second = latents(pipe)
    other.detach()
    assert torch.equal(latents(pipe), base)
    for one, another in ((base, first), (first, both), (both, second), (first, second)):
        assert_differ(one, another)
    with other.attach(pipe), other.references(TWO):
        assert torch.equal(latents(pipe), second)
    with other.attach(pipe), adapter.attach(pipe), other.references(TWO), adapter.references(ONE):
        assert_close(latents(pipe), both)


@fault(16)
def test_face_adapters_leave_the_users_lora_alone_and_add_up(pipe: Any, tmp_path: Path) -> None:
    files = [face_file(pipe.unet, tmp_path, seed=seed) for seed in (1, 2, 3)]
    one, two, three = (load_adapter(file, image_encoder=None) for file, _ in files)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "mine")
    with_mine = latents(pipe)
    with one.attach(pipe), two.attach(pipe), one.references(FACE), two.references(FACE):
        both = latents(pipe)
        assert pipe.unet.active_adapters() == ["mine"]
    assert_close(both, latents(merge_loras(pipe, files[0][1], files[1][1])))
    with three.attach(pipe), three.references(FACE):  # the first two leave no trace
        assert_close(latents(pipe), latents(merge_loras(pipe, files[2][1])))
    assert torch.equal(latents(pipe), with_mine)
    assert list(pipe.unet.peft_config) == ["mine"]


@fault(17)
def test_kolors_keeps_its_text_projection_however_often_an_adapter_comes_and_goes() -> None:
    """Its U-Net projects the text first; one that does not, given projected text, must do the same."""
    plain = tiny.sd_unet()
    config = {name: value for name, value in plain.config.items() if not name.startswith("_")}
    unet: Any = UNet2DConditionModel.from_config(
        config | {"encoder_hid_dim": 9, "encoder_hid_dim_type": "text_proj"}
    )
    assert not unet.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    projection, text = unet.eval().encoder_hid_proj, draw_normal(2, tiny.CONTEXT_LEN, 9)
    inputs = tiny.unet_input(plain)
    projected = inputs | {"encoder_hidden_states": projection(text)}
    adapter = tiny.adapter(plain)
    with torch.no_grad():
        base = unet(**inputs | {"encoder_hidden_states": text}).sample
        with adapter.attach(plain), adapter.references(ONE):
            expected = plain(**projected).sample  # pyright: ignore[reportArgumentType]
        for _ in range(3):
            with adapter.attach(unet), adapter.references(ONE):
                assert_close(unet(**inputs | {"encoder_hidden_states": text}).sample, expected)
            assert torch.equal(unet(**inputs | {"encoder_hidden_states": text}).sample, base)
    assert unet.encoder_hid_proj is projection


# Pipelines


@fault(18)
def test_instruct_pix2pix_takes_embeddings_without_a_picture(adapter: ImagePromptAdapter) -> None:
    base = tiny.sd_pipeline(image_encoder=True)
    base.unet.conv_in = nn.Conv2d(8, 16, 3, padding=1)
    base.unet.register_to_config(in_channels=8)
    kind = of_diffusers("StableDiffusionInstructPix2PixPipeline")
    pipe = kind(**base.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    encoder = ImageEncoder(pipe.image_encoder)
    embedding = encoder.encode(encoder.pixels([tiny.picture(seed=1)]))
    settings: dict[str, Any] = {"image": tiny.picture(width=16, height=16), "guidance_scale": 2.0}
    with adapter.attach(pipe), adapter.references(embedding):
        ours = latents(pipe, **settings)
    assert_differ(ours, latents(pipe, **settings))
    pipe.load_ip_adapter(official(adapter), subfolder="", weight_name="", image_encoder_folder=None)
    assert_close(ours, latents(pipe, ip_adapter_image=tiny.picture(seed=1), **settings))


@fault(19)
def test_the_base_is_saved_without_the_adapter_and_the_adapter_by_itself(
    pipe: Any, adapter: ImagePromptAdapter, tmp_path: Path
) -> None:
    clean = set(pipe.unet.state_dict())
    with adapter.attach(pipe), adapter.references(ONE):
        ours = latents(pipe)
        pipe.unet.save_pretrained(tmp_path / "unet")
        save_adapter(adapter, tmp_path / "adapter.safetensors")
    assert set(safetensors.torch.load_file(next((tmp_path / "unet").glob("*.safetensors")))) == clean
    pipe.unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    loaded = load_adapter(tmp_path / "adapter.safetensors", image_encoder=None)
    with loaded.attach(pipe), loaded.references(ONE):
        assert torch.equal(latents(pipe), ours)


@fault(20)
def test_every_adapter_has_an_image_encoder_of_its_own(pipe: Any, adapter: ImagePromptAdapter) -> None:
    other = ImagePromptAdapter.for_unet(pipe.unet, LinearProjection(10, tiny.SD_CONTEXT)).requires_grad_(
        False
    )
    encoders = ImageEncoder(pipe.image_encoder), ImageEncoder(other_vision_model())
    embeddings = [encoder.encode(encoder.pixels([tiny.picture(seed=1)])) for encoder in encoders]
    with adapter.attach(pipe), other.attach(pipe):
        with adapter.references(embeddings[0]), other.references(embeddings[1]):
            expected = latents(pipe)
        adapter.image_encoder, other.image_encoder = encoders
        with adapter.references(tiny.picture(seed=1)), other.references(tiny.picture(seed=1)):
            assert_close(latents(pipe), expected)
    other.image_encoder = encoders[0]
    with other.attach(pipe), pytest.raises(AdapterMismatch, match="10 wide"):
        other.references(tiny.picture(seed=1))


@fault(21)
@pytest.mark.parametrize("version", [1, 2])
def test_features_and_face_stand_in_the_reference_and_batches_are_exact(pipe: Any, version: Any) -> None:
    shape = PerceiverShape(width=tiny.SD_CONTEXT, depth=2, head_dim=5)
    projection = FacePlusProjection(24, tiny.SD_CONTEXT, version=version, embedding_dim=6, shape=shape)
    adapter = ImagePromptAdapter.for_unet(pipe.unet, projection).requires_grad_(False)
    for seed, parameter in enumerate(adapter.parameters()):
        parameter.data = draw_normal(*parameter.shape, seed=seed)
    adapter.image_encoder = ImageEncoder(pipe.image_encoder)
    pictures, faces = (
        [tiny.picture(seed=seed) for seed in (1, 2)],
        [draw_normal(1, 6, seed=seed) for seed in (3, 4)],
    )
    references = [Reference(picture, face=face) for picture, face in zip(pictures, faces, strict=True)]
    alone = []
    with adapter.attach(pipe):
        for row, prompt in enumerate(("a cat", "a dog", "a cat")):  # the first once more: nothing is kept
            with adapter.references(references[row % 2]):
                alone.append(latents(pipe, prompt=prompt, generator=generators(row % 2)))
        with adapter.references(references):
            batch = latents(pipe, prompt=["a cat", "a dog"], generator=generators(0, 1))
        with adapter.references(Reference(pictures[0], face=faces[1])):
            assert_differ(latents(pipe, prompt="a cat", generator=generators(0)), alone[0])
        with adapter.references(Reference(pictures[1], face=faces[0])):
            assert_differ(latents(pipe, prompt="a cat", generator=generators(0)), alone[0])
    assert torch.equal(alone[0], alone[2])
    assert_close(batch, torch.cat(alone[:2]))


@fault(23)
def test_masks_act_on_flux_instead_of_being_ignored() -> None:
    model, one = tiny_transformers.transformer("flux-xlabs"), tiny_transformers.adapter("flux-xlabs")
    inputs = tiny_transformers.call("flux-xlabs")
    picture, made = tiny_transformers.embeddings("flux-xlabs"), []
    for mask in (None, torch.eye(4)):
        with torch.no_grad(), one.attach(model), one.references(Reference(picture, mask=mask)):
            made.append(model(**inputs).sample)
    assert_differ(*made)


@fault(24)
def test_an_adapter_for_stable_diffusion_3_loads_and_acts(tmp_path: Path) -> None:
    one, model = tiny_transformers.adapter("sd35"), tiny_transformers.transformer("sd35")
    save_adapter(one, tmp_path / "a.safetensors")
    loaded = load_adapter(tmp_path / "a.safetensors", image_encoder=None)
    inputs = tiny_transformers.call("sd35")
    with torch.no_grad():
        base = model(**inputs).sample
        with loaded.attach(model), loaded.references(tiny_transformers.embeddings("sd35")):
            assert_differ(model(**inputs).sample, base)


def imports(code: str) -> Iterator[tuple[str, str | None]]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


@fault(25)
def test_what_the_documents_import_is_where_they_say() -> None:
    """That their examples run is in test_documents."""
    found = [place for _, code in blocks("python") for place in imports(code)]
    assert found
    for module, name in found:
        assert name is None or hasattr(importlib.import_module(module), name)


@fault(25)
def test_at_scale_one_the_text_acts_in_full_and_nobody_says_otherwise(
    pipe: Any, adapter: ImagePromptAdapter
) -> None:
    with adapter.attach(pipe), adapter.references(Reference(ONE, scale=1.0)):
        assert_differ(latents(pipe, prompt="a cat"), latents(pipe, prompt="a dog"))
    attn, seen = attentions(pipe.unet)[1], draw_normal(1, 9, 16)
    texts, added = [draw_normal(1, 5, tiny.SD_CONTEXT, seed=seed) for seed in (1, 2)], []
    with torch.no_grad():
        for text in texts:
            alone = attn(seen, encoder_hidden_states=text)
            with adapter.attach(pipe.unet), adapter.condition_on(ONE[None]):
                added.append(attn(seen, encoder_hidden_states=text) - alone)
    assert_close(added[0], added[1])
    root = Path(__file__).parents[1]
    said = [path.read_text() for path in (root / "README.md", *(root / "docs").glob("*.md"))]
    assert not re.search(r"only the (image|picture)|ignores? the (text|prompt)", " ".join(said))


@fault(26)
@pytest.mark.parametrize("kind", ["LEditsPPPipelineStableDiffusion", "LEditsPPPipelineStableDiffusionXL"])
def test_a_pipeline_that_stacks_its_batch_in_an_unknown_way_is_refused_by_name(kind: str) -> None:
    base: Any = tiny.xl_pipeline() if kind.endswith("XL") else tiny.sd_pipeline()
    parts = {name: part for name, part in base.components.items() if name != "image_encoder"}
    pipe = of_diffusers(kind)(**parts)
    adapter = tiny.adapter(pipe.unet)
    unclear = pytest.raises(AttachmentError, match=f"{kind} does not tell how it stacks its batch")

    def sample(self: Any) -> None:
        self.unet(**tiny.unet_input(self.unet))

    with adapter.attach(pipe), adapter.references(ONE), unclear:
        sample(pipe)
    outside = pytest.raises(AttachmentError, match=f"is called, but not by the {kind} that the adapter")
    with adapter.attach(pipe), adapter.references(ONE), outside:
        pipe.unet(**tiny.unet_input(pipe.unet))


@fault(26)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Safety checker disabled")
def test_embeddings_go_into_a_pipeline_that_has_no_argument_for_them(
    pipe: Any, adapter: ImagePromptAdapter, their_adapters: Callable[..., None]
) -> None:
    """Without its safety guidance this one must do what Stable Diffusion does."""
    safe = of_diffusers("StableDiffusionPipelineSafe")(**pipe.components, requires_safety_checker=False)
    safe.set_progress_bar_config(disable=True)

    def picture(pipe: Any, **arguments: Any) -> Tensor:
        settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
        return torch.from_numpy(pipe("a cat", generator=generators(5)[0], **settings, **arguments).images)

    with adapter.attach(safe), adapter.references(ONE, branches=("negative", "positive")):
        ours = picture(safe, sld_guidance_scale=0.0)
    assert_differ(ours, picture(safe, sld_guidance_scale=0.0))
    their_adapters(adapter)
    assert_close(ours, picture(pipe, ip_adapter_image_embeds=for_diffusers(ONE, guided=True)))
