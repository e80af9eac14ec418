"""The laws of the method, on tiny random models and inputs of every shape.

What a law may cost in rounding is said beside it; "to the last bit" means `torch.equal`.
"""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.processor import DecoupledAttention
from imprompt.attention.terms import ImageTerm, split_heads
from imprompt.reference import Reference

pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
EXAMPLES = settings(max_examples=25, deadline=None)
assert_close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)

SIZES = st.integers(1, 9)
SCALES = st.floats(-2, 2, width=32)
SEEDS = st.integers(0, 2**31)
BASES = st.sampled_from([tiny.sd_unet, tiny.xl_unet])


@pytest.fixture(autouse=True, scope="module")
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


class Layer:
    """One random layer with random inputs; `output` runs it."""

    def __init__(self, seed: int, *, batch: int, heads: int, queries: int, words: int, tokens: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.attn = Attention(7, 5, heads=heads, dim_head=3).eval()
            self.hidden = torch.randn(batch, queries, 7)
            self.text = torch.randn(batch, words, 5)
            self.key, self.value = torch.randn(2, batch, tokens, 3 * heads)
            self.permutation = torch.randperm(tokens)

    def output(self, scale: float | None, text: Tensor | None = None, copies: int = 1) -> Tensor:
        """`scale` None: the base layer."""
        heads = self.attn.heads
        processor = DecoupledAttention(AttnProcessor2_0())
        if scale is not None:
            key, value = self.key.repeat(1, copies, 1), scale * self.value.repeat(1, copies, 1)
            processor.set_terms("law", (ImageTerm(split_heads(key, heads), split_heads(value, heads)),))
        self.attn.set_processor(processor)  # pyright: ignore[reportArgumentType]
        return self.attn(self.hidden, self.text if text is None else text)


LAYERS = st.builds(
    Layer,
    SEEDS,
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=SIZES,
    words=SIZES,
    tokens=SIZES,
)


# One layer


@EXAMPLES
@given(LAYERS)
def test_scale_zero_is_the_base_layer_to_the_last_bit(layer: Layer) -> None:
    assert torch.equal(layer.output(0.0), layer.output(None))


@EXAMPLES
@given(LAYERS, SCALES, SCALES)
def test_the_output_is_affine_in_the_scale(layer: Layer, one: float, other: float) -> None:
    middle = layer.output((one + other) / 2)
    assert_close(middle, (layer.output(one) + layer.output(other)) / 2)


@EXAMPLES
@given(LAYERS, SCALES)
def test_what_the_image_adds_does_not_depend_on_the_text(layer: Layer, scale: float) -> None:
    other = layer.text.flip(-1) + 1
    added = layer.output(scale) - layer.output(None)
    assert_close(added, layer.output(scale, other) - layer.output(None, other))


@EXAMPLES
@given(LAYERS)
def test_the_order_of_image_tokens_is_irrelevant(layer: Layer) -> None:
    expected = layer.output(1.0)
    layer.key, layer.value = layer.key[:, layer.permutation], layer.value[:, layer.permutation]
    assert_close(layer.output(1.0), expected)


@EXAMPLES
@given(LAYERS, st.integers(2, 4))
def test_repeating_all_image_tokens_changes_nothing(layer: Layer, copies: int) -> None:
    assert_close(layer.output(1.0, copies=copies), layer.output(1.0))


@EXAMPLES
@given(LAYERS, st.integers(0, 2))
def test_samples_of_a_layers_batch_do_not_influence_each_other(layer: Layer, chosen: int) -> None:
    chosen %= layer.hidden.shape[0]
    before = layer.output(1.0)[chosen].clone()
    for tensor in (layer.hidden, layer.text, layer.key, layer.value):
        others = torch.arange(len(tensor)) != chosen
        tensor[others] = tensor[others].flip(-1) * 3
    assert_close(layer.output(1.0)[chosen], before)


# A whole U-Net


class Model:
    """A random U-Net with its adapter, and one batch for it."""

    def __init__(self, build: Any, seed: int, tokens: int) -> None:
        self.unet = build(seed=seed)
        self.adapter: ImagePromptAdapter = tiny.adapter(self.unet, seed=seed, tokens=tokens)
        self.call: dict[str, Any] = tiny.unet_input(self.unet, seed=seed)
        self.embedding = tiny.embedding(1, seed=seed)

    def output(self, scale: float | None = None, **changes: Any) -> Tensor:
        """`scale` None: without references."""
        if scale is None:
            return self.unet(**(self.call | changes)).sample
        with self.adapter.references(Reference(self.embedding, scale=scale)):
            return self.unet(**(self.call | changes)).sample


MODELS = st.builds(Model, BASES, SEEDS, st.integers(1, 5))
FEW = settings(max_examples=8, deadline=None)


@FEW
@given(MODELS)
def test_scale_zero_is_the_base_model_to_the_last_bit(model: Model) -> None:
    base = model.output()
    with model.adapter.attach(model.unet):
        assert torch.equal(model.output(), base)
        assert torch.equal(model.output(0.0), base)
        assert not torch.equal(model.output(1.0), base)


@FEW
@given(MODELS)
def test_attaching_and_detaching_leaves_the_model_as_it_was(model: Model) -> None:
    def state() -> tuple[object, ...]:
        unet = model.unet
        processors = {name: id(processor) for name, processor in unet.attn_processors.items()}
        hooks = {name: len(m._forward_pre_hooks) for name, m in unet.named_modules()}
        weights = {name: (id(p), p._version) for name, p in unet.named_parameters()}
        return processors, hooks, weights, vars(unet).keys(), repr(unet), [*unet.state_dict()]

    before, base = state(), model.output()
    with model.adapter.attach(model.unet):
        attached = repr(model.unet), [*model.unet.state_dict()]
        model.output(1.0)
    assert attached == before[4:]
    assert state() == before
    assert torch.equal(model.output(), base)


@FEW
@given(MODELS)
def test_samples_of_a_models_batch_do_not_influence_each_other(model: Model) -> None:
    with model.adapter.attach(model.unet):
        before = model.output(1.0)[0].clone()
        changed = {
            name: torch.cat([model.call[name][:1], 2 - model.call[name][1:]])
            for name in ("sample", "encoder_hidden_states")
        }
        after = model.output(1.0, **changed)
    assert_close(after[0], before)
    assert not torch.allclose(after[1], before)


@FEW
@given(MODELS, st.integers(1, 3))
def test_the_order_of_a_references_pictures_is_irrelevant(model: Model, images: int) -> None:
    embeddings = tiny.embedding(images)
    outputs = []
    with model.adapter.attach(model.unet):
        for order in (embeddings, embeddings.flip(0)):
            model.embedding = order
            outputs.append(model.output(1.0))
    assert_close(*outputs)


@FEW
@given(MODELS)
def test_two_references_are_two_terms_and_half_a_scale_twice_is_the_whole(model: Model) -> None:
    half = Reference(model.embedding, scale=0.5)
    with model.adapter.attach(model.unet):
        whole = model.output(1.0)
        with model.adapter.references(half, half):
            assert_close(model.output(), whole)


@FEW
@given(MODELS)
def test_only_the_adapter_learns(model: Model) -> None:
    model.unet.requires_grad_(False)
    model.adapter.requires_grad_(True)
    pair = tiny.embedding(2, 2)  # With a single token, softmax is constant and K' has no gradient.
    with torch.enable_grad(), model.adapter.attach(model.unet), model.adapter.condition_on(pair):
        model.output().square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.adapter.parameters())
    assert all(p.grad is None for p in model.unet.parameters())


@FEW
@given(MODELS, SCALES)
def test_training_and_generating_condition_alike(model: Model, scale: float) -> None:
    with model.adapter.attach(model.unet):
        with model.adapter.condition_on(model.embedding.expand(2, 1, -1), scale):
            trained = model.output()
        assert_close(model.output(scale), trained)
