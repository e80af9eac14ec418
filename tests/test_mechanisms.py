"""Ways for an image prompt into a base: what each of them trains, reads and leaves behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from PIL import Image
from torch import Tensor, nn

import tiny
import tiny_bases
from imprompt import mini
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint import load_adapter
from imprompt.checkpoint.files import read_tensors, write_tensors
from imprompt.errors import AdapterMismatch, AmbiguousBatch, CheckpointError, InvalidReference
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.projection import HiddenProjection, LinearProjection
from imprompt.training.mechanisms import (
    MECHANISMS,
    ConcatenatedMechanism,
    DecoupledMechanism,
    Mechanism,
    PriorDecoderMechanism,
    ReplacedMechanism,
    ShuffledControlMechanism,
    StyleAdapterMechanism,
    StyleProjection,
    TimeProjection,
    TwoStreamMechanism,
    UnclipMechanism,
    build_controlnet,
    build_prior_decoder,
    load_mechanism,
    read_metadata,
    time_embedding_width,
)
from imprompt.training.mechanisms.shuffled_control import shuffle_pixels

Make = Callable[[Any], Mechanism]
KINDS = [*MECHANISMS, "concatenated, hidden"]
FEATURES = 16
TRAINING = [name for name in MECHANISMS if MECHANISMS[name].trains_base]


def projection() -> LinearProjection:
    return LinearProjection(
        tiny.EMBEDDING_DIM, tiny.SD_CONTEXT, 3, generator=torch.Generator().manual_seed(0)
    )


def build_mechanism(kind: str, pipe: Any) -> Mechanism:
    """A mechanism on a pipeline, as if trained."""
    if kind == "decoupled":
        return DecoupledMechanism(tiny.adapter(pipe.unet).requires_grad_(True), pipe)
    if kind == "concatenated, hidden":
        sizes = tiny.EMBEDDING_DIM, tiny.SD_CONTEXT, 3
        hidden = HiddenProjection(*sizes, hidden=5, generator=torch.Generator().manual_seed(1))
        return ConcatenatedMechanism(hidden, pipe)
    random = torch.Generator().manual_seed(2)
    if kind == "style-adapter":
        return StyleAdapterMechanism(StyleProjection(FEATURES, tiny.SD_CONTEXT, generator=random), pipe)
    if kind == "shuffled-control":
        controlnet = build_controlnet(pipe)
        for parameter in controlnet.parameters():
            nn.init.normal_(parameter, std=0.3, generator=random)
        return ShuffledControlMechanism(controlnet, pipe)
    added = TimeProjection(tiny.EMBEDDING_DIM, time_embedding_width(pipe.unet))
    nn.init.normal_(added.proj.weight, std=0.5, generator=random)
    if kind == "unclip":
        return UnclipMechanism(added, pipe)
    if kind == "prior-decoder":
        parts = build_prior_decoder(projection(), added, pipe)
        for parameter in parts["prior"].parameters():
            nn.init.normal_(parameter, std=0.3, generator=random)
        return PriorDecoderMechanism(parts, pipe)
    kind_of: Any = MECHANISMS[kind]
    return kind_of(projection(), pipe)


def inputs_of(*seeds: int) -> dict[Any, Tensor]:
    """All that a mechanism may read of one picture each, "batch 1 ..."."""
    rows = [
        {
            "image_embedding": tiny.embedding(1, seed=seed),
            "image_features": tiny_bases.numbers(1, 5, FEATURES, seed=seed),
            "image_pixels": tiny_bases.numbers(1, 3, 16, 16, seed=seed),
        }
        for seed in seeds
    ]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def images(mechanism: Mechanism, *seeds: int) -> list[ImageEmbeddings]:
    each: list[Any] = [{name: inputs_of(seed)[name][0] for name in mechanism.takes} for seed in seeds]
    blanks: list[Any] = [{name: torch.zeros_like(value[0]) for name, value in one.items()} for one in each]
    return [ImageEmbeddings(one, blank) for one, blank in zip(each, blanks, strict=True)]


def call(*prompts: str, seeds: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "prompt": list(prompts),
        "num_inference_steps": 2,
        "generator": [torch.Generator().manual_seed(seeds + row) for row in range(len(prompts))],
        **more,
    }


def draw_with(mechanism: Mechanism, pipe: Any, *seeds: int, scale: float = 1.0, text: str = "") -> np.ndarray:
    return pixels(mechanism.generate(pipe, images(mechanism, *seeds), scale, call(*[text] * len(seeds))))


def pixels(pictures: list[Image.Image]) -> np.ndarray:
    """Values from 0 to 255, signed so that they can be subtracted."""
    return np.stack([np.asarray(picture, int) for picture in pictures])


def plain(pipe: Any, *prompts: str) -> np.ndarray:
    return pixels(pipe(**call(*prompts)).images)


@pytest.fixture
def pipe() -> Any:
    return tiny.sd_pipeline()


def state_of(pipe: Any) -> dict[str, Any]:
    """Everything of a U-Net that could be left behind."""
    unet = pipe.unet
    return {
        "weights": {name: value.clone() for name, value in unet.state_dict().items()},
        "learns": [p.requires_grad for p in unet.parameters()],
        "processors": [id(one) for one in unet.attn_processors.values()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules()],
        "gradients": [p.grad is None for p in unet.parameters()],
    }


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert {k: v for k, v in one.items() if k != "weights"} == {
        k: v for k, v in other.items() if k != "weights"
    }
    assert all(torch.equal(value, other["weights"][name]) for name, value in one["weights"].items())


# What the image and the text do


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_prompt_changes_the_picture_and_each_sample_has_its_own(kind: str, pipe: Any) -> None:
    mechanism = build_mechanism(kind, pipe)
    both = draw_with(mechanism, pipe, 1, 2)
    other = draw_with(mechanism, pipe, 1, 3)
    assert np.abs(both[0] - other[0]).max() <= 1
    assert np.abs(both[1] - other[1]).max() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_acts_beside_the_image_where_it_is_said_to(kind: str, pipe: Any) -> None:
    mechanism = build_mechanism(kind, pipe)
    silent, told = draw_with(mechanism, pipe, 1), draw_with(mechanism, pipe, 1, text="a red cat")
    assert np.array_equal(silent, told) == (not mechanism.works_with_text)


def test_unclip_begins_as_the_base_bit_for_bit(pipe: Any) -> None:
    base = plain(pipe, "a cat", "")
    mechanism = UnclipMechanism(TimeProjection(tiny.EMBEDDING_DIM, time_embedding_width(pipe.unet)), pipe)
    pictures = mechanism.generate(pipe, images(mechanism, 1, 2), 1.0, call("a cat", ""))
    assert np.array_equal(pixels(pictures), base)


def test_without_a_share_two_streams_are_the_text_alone(pipe: Any) -> None:
    base = plain(pipe, "a cat")
    assert np.array_equal(
        draw_with(build_mechanism("two-stream", pipe), pipe, 1, scale=0.0, text="a cat"), base
    )


@pytest.mark.parametrize("kind", ["replaced", "unclip"])
def test_scale_zero_is_no_image(kind: str, pipe: Any) -> None:
    mechanism = build_mechanism(kind, pipe)
    assert np.array_equal(draw_with(mechanism, pipe, 1, scale=0.0), draw_with(mechanism, pipe, 2, scale=0.0))


def test_a_shuffled_picture_has_the_same_colors_in_other_places() -> None:
    halves = torch.cat([torch.full((1, 3, 32, 16), -0.8), torch.full((1, 3, 32, 16), 0.6)], dim=3)
    shuffled = shuffle_pixels(halves)
    assert torch.equal(shuffle_pixels(halves), shuffled)
    assert not torch.equal(shuffled, halves)
    assert -0.81 < shuffled.min() < shuffled.max() < 0.61
    assert not shuffle_pixels(torch.zeros(1, 3, 32, 32)).any()


def test_a_blank_picture_leaves_a_shuffled_control_out(pipe: Any) -> None:
    mechanism = build_mechanism("shuffled-control", pipe)
    given: dict[str, Any] = tiny.unet_input(pipe.unet)
    with torch.no_grad():
        alone = pipe.unet(**given).sample
        with mechanism.condition_on({"image_pixels": torch.zeros(2, 1, 3, 16, 16)}):
            assert torch.equal(pipe.unet(**given).sample, alone)
        with mechanism.condition_on(inputs_of(1, 2)):
            assert not torch.equal(pipe.unet(**given).sample, alone)


def test_the_pictures_place_does_not_matter_to_a_shuffled_control(pipe: Any) -> None:
    """Its outputs are means over all positions, so each channel changes by one number."""
    mechanism: Any = build_mechanism("shuffled-control", pipe)
    given: dict[str, Any] = tiny.unet_input(pipe.unet)
    with torch.no_grad():
        down, middle = mechanism._residuals(inputs_of(1, 2)["image_pixels"][:, 0], given, 1.0)
    assert all(one.shape[-2:] == (1, 1) for one in [*down, middle])


def test_the_prior_learns_the_embedding_of_a_text(pipe: Any) -> None:
    """One text, one image embedding: the prior's loss falls, and what it imagines is that direction."""
    mechanism: Any = build_mechanism("prior-decoder", pipe)
    inputs = inputs_of(3)
    with torch.no_grad():
        text = pipe.encode_prompt(["a cat"], pipe.device, 1, False)[0]
    prior = mechanism.projection["prior"].requires_grad_(True)
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    loss = torch.tensor(torch.inf)
    for step in range(150):
        uniform, noise = torch.rand(1), tiny_bases.numbers(1, tiny.EMBEDDING_DIM, seed=step)
        loss = mechanism.more_loss(inputs, text, uniform, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    with torch.no_grad():
        sides = {"prompt_embeds": text, "negative_prompt_embeds": text}
        imagined = mechanism._imagine(sides, inputs["image_embedding"][:, 0], call("a cat"))
    assert torch.cosine_similarity(imagined, inputs["image_embedding"][:, 0]) > 0.9


def test_at_scale_zero_the_decoder_follows_what_the_prior_makes_of_the_text(pipe: Any) -> None:
    mechanism = build_mechanism("prior-decoder", pipe)
    with_image = draw_with(mechanism, pipe, 1, scale=1.0, text="a cat")
    assert np.abs(draw_with(mechanism, pipe, 1, scale=0.0, text="a cat") - with_image).max() > 1


def test_two_streams_are_the_mean_of_two_attentions(pipe: Any) -> None:
    """At a layer, against its own processor called by hand."""
    mechanism = build_mechanism("two-stream", pipe)
    attn = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    hidden, text = tiny_bases.numbers(1, 6, 16), tiny_bases.numbers(1, 5, tiny.SD_CONTEXT, seed=1)
    image = tiny_bases.numbers(1, 3, tiny.SD_CONTEXT, seed=2)
    with torch.no_grad():
        wanted = (attn(hidden, text) + attn(hidden, image)) / 2
        with mechanism._mix(image, 0.5):  # pyright: ignore[reportAttributeAccessIssue]
            assert torch.allclose(attn(hidden, text), wanted, atol=1e-6)


# Learning


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_exactly_what_is_said_to_be_trained(kind: str, pipe: Any) -> None:
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.requires_grad_(False)
    mechanism = build_mechanism(kind, pipe)
    inputs = inputs_of(1, 2)
    given: dict[str, Any] = tiny.unet_input(pipe.unet)
    with mechanism.condition_on(inputs) as denoise:
        made_of = denoise(given["sample"], given["timestep"], given["encoder_hidden_states"], None)
        text, noise = given["encoder_hidden_states"], given["sample"]
        more = mechanism.more_loss(inputs, text, torch.tensor([0.2, 0.7]), noise)
        (made_of.square().sum() + more).backward()
    assert [n for n, p in mechanism.trained.named_parameters() if p.grad is None or not p.grad.any()] == []
    learning = {id(p) for p in mechanism.trained.parameters()}
    in_base = [id(p) in learning for p in pipe.unet.parameters()]
    assert all(in_base) if mechanism.trains_base else not any(in_base)
    assert all(p.grad is None for part in (pipe.text_encoder, pipe.vae) for p in part.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_drawing_see_the_same(kind: str, pipe: Any) -> None:
    """One step of one sample without guidance, by the pipeline and by hand."""
    mechanism, seen = build_mechanism(kind, pipe), []
    hook = pipe.unet.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((args, kwargs, output)), with_kwargs=True
    )
    more = call("a cat", guidance_scale=1.0) | {"num_inference_steps": 1}
    mechanism.generate(pipe, images(mechanism, 1), 1.0, more)
    hook.remove()
    (args, _, output), *_ = seen
    text = pipe.encode_prompt(["a cat"], pipe.device, 1, False)[0]
    with torch.no_grad(), mechanism.condition_on(inputs_of(1)) as denoise:
        by_hand = denoise(args[0], torch.tensor([int(args[1])]), text, None)
    assert torch.allclose(by_hand, output[0], atol=1e-5)


def test_what_is_trained_on_the_embedded_base_is_counted() -> None:
    pipe = mini.pipeline()
    embedding_dim, context_dim, tokens = 256, int(pipe.unet.config["cross_attention_dim"]), 4

    def counted(kind: Any, module: nn.Module) -> int:
        mechanism: Mechanism = kind(module, pipe)
        mechanism.detach()
        return mechanism.parameters

    linear = LinearProjection(embedding_dim, context_dim, tokens)
    hidden = HiddenProjection(embedding_dim, context_dim, tokens, hidden=755)
    base = sum(p.numel() for p in pipe.unet.parameters())
    inside = 256 * 768 + 768 + 2 * 192
    assert counted(DecoupledMechanism, ImagePromptAdapter.for_unet(pipe.unet, linear)) == 775_296
    assert counted(ConcatenatedMechanism, linear) == inside
    assert abs(counted(ConcatenatedMechanism, hidden) / 775_296 - 1) < 0.01  # what scripts/study compares
    assert counted(ReplacedMechanism, linear) == counted(TwoStreamMechanism, linear) == base + inside
    assert (
        counted(UnclipMechanism, TimeProjection(embedding_dim, time_embedding_width(pipe.unet)))
        == base + 256 * 640
    )


# Files, and what is left behind


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_says_what_it_is_and_draws_the_same_elsewhere(kind: str, pipe: Any, tmp_path: Path) -> None:
    mechanism, path = build_mechanism(kind, pipe), tmp_path / "adapter.safetensors"
    mechanism.save(path, {"seed": "7", "steps": "500"})
    said = read_metadata(path)
    assert said["injection"] == mechanism.name == kind.partition(",")[0]
    assert (said["seed"], said["steps"]) == ("7", "500")
    assert int(said["parameters"]) == sum(value.numel() for value in read_tensors(path).tensors.values())
    other = tiny.sd_pipeline()
    if mechanism.trains_base:  # the file has it all
        nn.init.zeros_(other.unet.conv_in.weight)
    loaded = load_mechanism(path, other)
    assert type(loaded) is type(mechanism)
    assert np.array_equal(
        draw_with(loaded, other, 1, text="a cat"), draw_with(mechanism, pipe, 1, text="a cat")
    )
    loaded.save(tmp_path / "again.safetensors", {"seed": "7", "steps": "500"})
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_detaching_leaves_nothing(kind: str, pipe: Any) -> None:
    before, picture = state_of(pipe), plain(pipe, "a cat")
    mechanism = build_mechanism(kind, pipe)
    draw_with(mechanism, pipe, 1)
    if mechanism.trains_base:
        with torch.no_grad():
            for parameter in pipe.unet.parameters():
                parameter.add_(0.1)
    mechanism.detach()
    mechanism.detach()
    assert_same_state(before, state_of(pipe))
    assert np.array_equal(plain(pipe, "a cat"), picture)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_on_the_way_leaves_no_hook(kind: str, pipe: Any) -> None:
    before = state_of(pipe)
    mechanism = build_mechanism(kind, pipe)

    def fail(*_: object) -> dict[str, Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mechanism.generate(pipe, images(mechanism, 1), 1.0, call("", callback_on_step_end=fail))
    mechanism.detach()
    assert_same_state(before, state_of(pipe))


@pytest.mark.parametrize("kind", KINDS)
def test_every_mechanism_works_beside_a_controlnet(kind: str, pipe: Any) -> None:
    control: Any = tiny_bases.controlnet(pipe.unet)
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    controlled: Any = StableDiffusionControlNetPipeline(
        **parts, controlnet=control, requires_safety_checker=False
    )
    controlled.set_progress_bar_config(disable=True)
    mechanism, edges = build_mechanism(kind, pipe), tiny.picture(seed=5, width=16, height=16)

    def both(strength: float) -> np.ndarray:
        more = call("", "", image=[edges, edges], controlnet_conditioning_scale=strength)
        return pixels(mechanism.generate(controlled, images(mechanism, 1, 2), 1.0, more))

    without = both(0.0)
    assert np.abs(without - draw_with(mechanism, pipe, 1, 2)).max() <= 1
    assert np.abs(both(1.0) - without).max() > 1


# What cannot be


def test_a_pipeline_with_another_unet_is_refused(pipe: Any) -> None:
    mechanism = build_mechanism("unclip", pipe)
    with pytest.raises(AdapterMismatch, match="another U-Net than the one that the unclip adapter is on"):
        draw_with(mechanism, tiny.sd_pipeline(), 1)


@pytest.mark.parametrize("kind", TRAINING)
def test_a_base_that_reads_a_pooled_text_is_refused(kind: str) -> None:
    with pytest.raises(AdapterMismatch, match=f"a {kind} adapter cannot go on a base"):
        build_mechanism(kind, tiny.xl_pipeline())


@pytest.mark.parametrize("kind", ["concatenated", "style-adapter", *TRAINING])
def test_image_prompts_that_are_not_as_many_as_prompts_are_refused(kind: str, pipe: Any) -> None:
    mechanism = build_mechanism(kind, pipe)
    with pytest.raises(InvalidReference, match="2 image prompts need as many prompts"):
        mechanism.generate(pipe, images(mechanism, 1, 2), 1.0, call(""))


@pytest.mark.parametrize("kind", ["unclip", "two-stream", "prior-decoder", "shuffled-control"])
def test_a_batch_of_another_size_is_refused(kind: str, pipe: Any) -> None:
    with (
        build_mechanism(kind, pipe).condition_on(inputs_of(1, 2)),
        pytest.raises(AmbiguousBatch),
    ):
        pipe.unet(**tiny.unet_input(pipe.unet, batch=3))


def damage_file(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], Any]) -> Path:
    """A file with something changed."""
    file = read_tensors(path)
    metadata = {key: value for key, value in file.metadata.items() if key != "format"}
    change(file.tensors, metadata)
    write_tensors(file.tensors, path, metadata)
    return path


FAULTS: dict[str, tuple[str, Callable[[dict[str, Tensor], dict[str, str]], Any], str]] = {
    "unknown": (
        "unclip",
        lambda t, m: m.update(injection="magic"),
        "of a mechanism 'magic'; those known are",
    ),
    "no projection": (
        "unclip",
        lambda t, m: t.pop("image_proj.proj.weight"),
        "has no image_proj.proj.weight",
    ),
    "no norm": ("replaced", lambda t, m: t.pop("image_proj.norm.weight"), "has no sound projection"),
    "a part of the U-Net": ("replaced", lambda t, m: t.pop("unet.conv_in.bias"), "has no unet.conv_in.bias"),
    "too much": ("concatenated", lambda t, m: t.update(x=torch.ones(1)), "holds x, which has no place"),
    "other shape": (
        "unclip",
        lambda t, m: t.update({"unet.conv_in.bias": torch.ones(3)}),
        r"unet.conv_in.bias has shape \(3,\), and \(16,\) on this base",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_file_is_refused_and_leaves_the_base_alone(name: str, pipe: Any, tmp_path: Path) -> None:
    kind, change, message = FAULTS[name]
    path = tmp_path / "adapter.safetensors"
    mechanism = build_mechanism(kind, pipe)
    mechanism.save(path, {})
    mechanism.detach()
    before = state_of(pipe)
    with pytest.raises(CheckpointError, match=message):
        load_mechanism(damage_file(path, change), pipe)
    assert_same_state(before, state_of(pipe))


def test_a_file_of_another_base_is_refused(pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    build_mechanism("concatenated", pipe).save(path, {})
    with pytest.raises(
        AdapterMismatch, match="whose text embedding is 20 wide; that of this base is 28 wide"
    ):
        load_mechanism(path, tiny.xl_pipeline())


def test_a_published_adapter_is_decoupled(pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    build_mechanism("decoupled", pipe).save(path, {})
    damage_file(path, lambda tensors, metadata: metadata.pop("injection"))
    assert read_metadata(path)["injection"] == "decoupled"
    assert isinstance(load_mechanism(path, tiny.sd_pipeline()), DecoupledMechanism)


@pytest.mark.parametrize("kind", ["concatenated", "replaced"])
def test_what_is_no_decoupled_adapter_is_not_taken_for_one(kind: str, pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    build_mechanism(kind, pipe).save(path, {})
    with pytest.raises(CheckpointError):
        load_adapter(path, image_encoder=None)
