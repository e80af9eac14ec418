"""Adapters on diffusion transformers: the laws of the method, and parity with diffusers and with equations.

Tolerance 1e-5 absolute, float32, on outputs that reach ±2; "bit for bit" is no tolerance.
"""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
import tiny_transformers
from by_hand_transformers import ByHand, HandTerm
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.errors import AdapterMismatch, AmbiguousBatch, AttachmentError, InvalidReference
from imprompt.projection import PerceiverShape, TimeResamplerProjection
from imprompt.reference import Reference
from tiny_transformers import (
    FEATURE_DIM,
    HEAD_DIM,
    HEADS,
    KINDS,
    Kind,
    adapter,
    call,
    embeddings,
    transformer,
)

TOLERANCE = 1e-5
every_kind = pytest.mark.parametrize("kind", KINDS)
EXAMPLES = settings(max_examples=10, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def close(one: Tensor, other: Tensor, within: float = TOLERANCE) -> None:
    assert one.shape == other.shape
    assert (one - other).abs().max() <= within


def differ(one: Tensor, other: Tensor) -> None:
    assert (one - other).abs().max() > 1000 * TOLERANCE


def run(model: Any, inputs: dict[str, Any]) -> Tensor:
    return model(**inputs).sample


def run_prompted(model: Any, one: ImagePromptAdapter, inputs: dict[str, Any], *references: Any) -> Tensor:
    with one.attach(model), one.use(*references):
        return run(model, inputs)


# Laws


@every_kind
def test_scale_zero_is_the_base_bit_for_bit(kind: Kind) -> None:
    model, one, inputs = transformer(kind), adapter(kind), call(kind)
    base = run(model, inputs)
    assert torch.equal(run_prompted(model, one, inputs, Reference(embeddings(kind), scale=0.0)), base)
    with one.attach(model):
        assert torch.equal(run(model, inputs), base)
    differ(run_prompted(model, one, inputs, Reference(embeddings(kind))), base)


@every_kind
def test_attaching_and_detaching_leaves_nothing(kind: Kind) -> None:
    model, one, inputs = transformer(kind), adapter(kind), call(kind)
    base = run(model, inputs)
    before = {name: {**vars(module)} for name, module in model.named_modules()}
    hooks = {name: [*module._forward_hooks.values()] for name, module in model.named_modules()}
    with one.attach(model), one.use(embeddings(kind)):
        assert [*model.state_dict()] == [*transformer(kind).state_dict()]
        run(model, inputs)
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert all(vars(module)[key] is value for key, value in before[name].items())
        assert [*module._forward_hooks.values()] == hooks[name]
        assert not module._forward_pre_hooks
    assert torch.equal(run(model, inputs), base)


@every_kind
def test_detaching_after_an_error_leaves_nothing(kind: Kind) -> None:
    model, one, inputs = transformer(kind), adapter(kind), call(kind, batch=3)
    base = run(model, inputs)
    with pytest.raises(AmbiguousBatch, match="2 references, one per prompt, do not fit a batch of 3"):
        run_prompted(model, one, inputs, [Reference(embeddings(kind)), Reference(embeddings(kind, seed=1))])
    assert torch.equal(run(model, inputs), base)


@every_kind
def test_copies_and_pickles_of_an_attached_transformer_are_not_attached(kind: Kind) -> None:
    model, one, inputs = transformer(kind), adapter(kind), call(kind)
    base = run(model, inputs)
    with one.attach(model), one.use(embeddings(kind)):
        copied = copy.deepcopy(model)
        differ(run(model, inputs), base)
        assert torch.equal(run(copied, inputs), base)
    with one.attach(model):
        assert torch.equal(run(pickle.loads(pickle.dumps(model)), inputs), base)
    if kind != "sd35":
        with copied.cache_context("cond"):
            assert torch.equal(run(copied, inputs), base)


@every_kind
@EXAMPLES
@given(scale=st.floats(-2, 2, width=32), seed=st.integers(0, 1000))
def test_a_blocks_output_is_affine_in_the_scale(kind: Kind, scale: float, seed: int) -> None:
    model, one, inputs = transformer(kind), adapter(kind, seed=seed), call(kind)

    def attention(scale: float) -> Tensor:
        """The output of the first block's attention; XLabs adds its term to the block's output."""
        reference, seen = Reference(embeddings(kind), scale=scale), []
        with one.attach(model), one.use(reference):
            hook = model.transformer_blocks[0].attn.register_forward_hook(lambda *args: seen.append(args[2]))
            run(model, inputs)
            hook.remove()
        output = seen[0]
        return output[0] + sum(output[2:]) if isinstance(output, tuple) else output

    nothing, whole = attention(0.0), attention(1.0)
    differ(nothing, whole)
    close(attention(scale), nothing + scale * (whole - nothing), 1e-4)


@every_kind
def test_samples_of_a_batch_are_independent(kind: Kind) -> None:
    model, one, inputs = transformer(kind), adapter(kind), call(kind, batch=3)
    references = [Reference(embeddings(kind, seed=seed), scale=0.5 + seed) for seed in range(3)]
    together = run_prompted(model, one, inputs, references)
    for row in range(3):
        alone = {
            name: value[row : row + 1] if len(value) == 3 and not name.endswith("ids") else value
            for name, value in inputs.items()
        }
        close(together[row : row + 1], run_prompted(model, one, alone, references[row]))


@every_kind
def test_the_order_of_the_pictures_does_not_matter(kind: Kind) -> None:
    model, one, inputs, both = transformer(kind), adapter(kind), call(kind), embeddings(kind, 2)
    close(run_prompted(model, one, inputs, both), run_prompted(model, one, inputs, both.flip(0)))


@every_kind
def test_two_references_add_up_block_by_block(kind: Kind) -> None:
    """A reference that is given twice at half the strength is the reference."""
    model, one, inputs = transformer(kind), adapter(kind), call(kind)
    whole = run_prompted(model, one, inputs, Reference(embeddings(kind), scale=0.8))
    halves = [Reference(embeddings(kind), scale=0.4)] * 2
    close(run_prompted(model, one, inputs, *halves), whole)


@every_kind
def test_masks_that_add_up_to_one_are_the_reference_everywhere(kind: Kind) -> None:
    model, one, inputs = transformer(kind), adapter(kind), call(kind)
    mask = torch.rand(9, 7)
    parts = [Reference(embeddings(kind), mask=mask), Reference(embeddings(kind), mask=1 - mask)]
    close(run_prompted(model, one, inputs, *parts), run_prompted(model, one, inputs, embeddings(kind)))
    differ(run_prompted(model, one, inputs, parts[0]), run_prompted(model, one, inputs, embeddings(kind)))


# Parity


def official(one: ImagePromptAdapter) -> dict[str, dict[str, Tensor]]:
    """The two dictionaries that diffusers loads."""
    names = {"to_key": "to_k_ip", "to_value": "to_v_ip"}
    layers: dict[str, Tensor] = {}
    for name, weight in one.layers.state_dict().items():
        number, part, rest = name.split(".", 2)
        layers[f"{number}.{names.get(part, part)}.{rest}"] = weight
    return {"image_proj": one.projection.state_dict(), "ip_adapter": layers}


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_xlabs_on_flux_makes_what_diffusers_makes(scale: float, images: int) -> None:
    model, one, inputs = transformer("flux-xlabs"), adapter("flux-xlabs"), call("flux-xlabs")
    given_images = embeddings("flux-xlabs", images)
    ours = run_prompted(model, one, inputs, Reference(given_images, scale=scale))
    model._load_ip_adapter_weights(official(one))
    for processor in model.attn_processors.values():
        processor.scale = [scale]
    # diffusers takes a picture's tokens from a row of its own; several pictures share one softmax.
    rows = given_images[None].expand(2, -1, -1)
    theirs = run(model, inputs | {"joint_attention_kwargs": {"ip_adapter_image_embeds": [rows]}})
    close(ours, theirs)


@tiny.seeded
def wide_adapter(*, seed: int = 0) -> ImagePromptAdapter:
    """Its resampler has the depth and the width of heads that diffusers takes for granted."""
    shape = PerceiverShape(width=64, depth=4, head_dim=64)
    projection = TimeResamplerProjection(FEATURE_DIM, HEADS * HEAD_DIM, 4, shape=shape, waves=6)
    layers = tiny_transformers.layers_of("sd35")
    made = ImagePromptAdapter(projection, layers, injection="sd35", head_dim=HEAD_DIM)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.requires_grad_(False)


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_sd35_makes_what_diffusers_makes(scale: float) -> None:
    model, one, inputs = transformer("sd35"), wide_adapter(), call("sd35")
    features = embeddings("sd35")
    base = run(model, inputs)
    ours = run_prompted(model, one, inputs, Reference(features, scale=scale))
    differ(ours, base)
    model._load_ip_adapter_weights(official(one))
    for processor in model.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = scale
    rows = features.expand(2, -1, -1)
    theirs = run(model, inputs | {"joint_attention_kwargs": {"ip_adapter_image_embeds": rows}})
    close(ours, theirs)


def test_the_time_resampler_makes_what_diffusers_makes() -> None:
    one, model = wide_adapter(), transformer("sd35")
    model._load_ip_adapter_weights(official(one))
    features, times = embeddings("sd35", 3), torch.tensor([0.0, 437.5, 1000.0])
    ours, theirs = one.projection(features, times), model.image_proj(features, times)
    for mine, other in zip(ours, theirs, strict=True):
        close(mine, other)


@every_kind
@pytest.mark.parametrize("images", [1, 2])
def test_an_adapter_is_its_equation(kind: Kind, images: int) -> None:
    model, one, inputs = transformer(kind), adapter(kind), call(kind)
    pictures = embeddings(kind, images)
    ours = run_prompted(model, one, inputs, Reference(pictures, scale=0.7))
    differ(ours, run(model, inputs))
    term = HandTerm(one, pictures.expand(2, *pictures.shape), scale=0.7)
    with ByHand(model, [term]).install():
        close(ours, run(model, inputs))


def test_two_kinds_of_adapters_on_one_flux_are_both_equations() -> None:
    model, inputs = transformer("flux-xlabs"), call("flux-xlabs")
    several = [adapter("flux-xlabs"), adapter("flux-instantx", seed=5), adapter("flux-xlabs", seed=6)]
    pictures = [embeddings("flux-xlabs", seed=seed) for seed in range(3)]
    scales = [0.7, 0.9, 0.3]
    terms = [
        HandTerm(one, picture.expand(2, 1, -1), scale=scale)
        for one, picture, scale in zip(several, pictures, scales, strict=True)
    ]
    contexts = [one.attach(model) for one in several]
    active = [
        one.use(Reference(picture, scale=scale))
        for one, picture, scale in zip(several, pictures, scales, strict=True)
    ]
    ours = run(model, inputs)
    for one in [*active, *contexts]:
        one.__exit__()
    with ByHand(model, terms).install():
        close(ours, run(model, inputs))


# Layers


def test_layers_are_named_by_module_section_and_number() -> None:
    model, one, inputs = transformer("flux-instantx"), adapter("flux-instantx"), call("flux-instantx")
    picture = embeddings("flux-instantx")

    def with_layers(layers: Any) -> Tensor:
        return run_prompted(model, one, inputs, Reference(picture, layers=layers))

    close(with_layers({"single": 1.0}), with_layers({"single_transformer_blocks": 1.0}))
    close(with_layers({"double": 0.5}), with_layers({0: 0.5, "transformer_blocks.1": 0.5}))
    close(with_layers({3: 1.0}), with_layers({"single_transformer_blocks.1.attn": 1.0}))
    close(with_layers("ease out"), with_layers({t: 0.05 + 0.95 * t / 5 for t in range(5)}))
    differ(with_layers({"single": 1.0}), with_layers({"double": 1.0}))


@pytest.mark.parametrize("mode", ["style", "composition", "weak input"])
def test_modes_of_which_nothing_is_known_are_refused(mode: str) -> None:
    model, one = transformer("flux-xlabs"), adapter("flux-xlabs")
    with one.attach(model), pytest.raises(InvalidReference, match="full, ease in, ease out"):
        one.use(Reference(embeddings("flux-xlabs"), layers=mode))


# What cannot be honored


@every_kind
def test_a_schedule_on_a_bare_transformer_is_refused(kind: Kind) -> None:
    model, one = transformer(kind), adapter(kind)
    with one.attach(model), pytest.raises(AttachmentError, match="not to its transformer"):
        one.use(Reference(embeddings(kind), start=0.5))


@every_kind
def test_an_adapter_for_another_kind_of_base_is_refused(kind: Kind) -> None:
    other = "flux-xlabs" if kind == "sd35" else "sd35"
    with pytest.raises(AdapterMismatch, match="denoiser of this base is of another kind"):
        adapter(kind).attach(transformer(other))
    with pytest.raises(AdapterMismatch, match=r"of another kind \(UNet2DConditionModel\)"):
        adapter(kind).attach(tiny.sd_unet())
    with pytest.raises(AdapterMismatch, match="of another kind"):
        tiny.adapter(tiny.sd_unet()).attach(transformer(kind))


def test_a_base_with_heads_of_another_width_is_refused_and_left_as_it_was() -> None:
    model = transformer("flux-instantx")
    projection = tiny_transformers.projection("flux-instantx")
    one = ImagePromptAdapter(
        projection, tiny_transformers.layers_of("flux-instantx"), injection="flux-instantx"
    )
    with pytest.raises(AdapterMismatch, match="normalizes heads 128 wide; those of this base are 8 wide"):
        one.attach(model)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"scaling": "key and value"}, "is not defined for this adapter"),
        ({"width_penalty": True}, "width_penalty has no effect"),
        ({"boost": 2.0}, "boost has no effect"),
        ({"face_scale": 2.0}, "face_scale has no effect"),
        ({"lora_scale": 2.0}, "lora_scale has no effect"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], sentence: str) -> None:
    model, one = transformer("sd35"), adapter("sd35")
    with one.attach(model), pytest.raises(InvalidReference, match=sentence):
        one.use(Reference(embeddings("sd35"), **settings))


def test_prompts_with_different_numbers_of_pictures_are_refused_on_sd35_and_exact_on_flux() -> None:
    model, one, inputs = transformer("sd35"), adapter("sd35"), call("sd35")
    with (
        one.attach(model),
        pytest.raises(AmbiguousBatch, match="prompts with 1 and 2 pictures each cannot share a batch"),
    ):
        one.use([embeddings("sd35"), embeddings("sd35", 2)])
    model, one, inputs = transformer("flux-xlabs"), adapter("flux-xlabs"), call("flux-xlabs")
    pair = [embeddings("flux-xlabs"), embeddings("flux-xlabs", 2, seed=4)]
    together = run_prompted(model, one, inputs, pair)
    for row in range(2):
        close(together[row], run_prompted(model, one, inputs, pair[row])[row])


def test_an_unknown_processor_on_sd35_is_refused() -> None:
    model = transformer("sd35")
    model.transformer_blocks[1].attn.processor = AttnProcessor2_0()
    with pytest.raises(AttachmentError, match=r"blocks\.1\.attn has the attention processor AttnP"):
        adapter("sd35").attach(model)
    assert not any("JointDecoupled" in type(one).__name__ for one in model.attn_processors.values())
