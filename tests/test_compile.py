"""torch.compile: one graph without breaks, and none more when λ, picture or prompt change."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounter

import tiny
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.inputs.encoder import ImageEncoder
from imprompt.reference import Reference

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def latents(pipe: Any, prompt: str | list[str] = "a cat", **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    settings = {"num_inference_steps": 2, "generator": generator, "output_type": "latent"}
    return pipe(prompt, **(settings | arguments)).images


def wrap(pipe: Any, counter: CompileCounter) -> None:
    pipe.unet = torch.compile(pipe.unet, backend=counter, fullgraph=True)


def in_place(pipe: Any, counter: CompileCounter) -> None:
    pipe.unet.compile(backend=counter, fullgraph=True)


@pytest.mark.parametrize(
    ("build", "first", "compile_unet"),
    [
        pytest.param(tiny.sd_pipeline, "compile", wrap, id="SD, compile, then attach"),
        pytest.param(tiny.sd_pipeline, "attach", wrap, id="SD, attach, then compile"),
        pytest.param(tiny.sd_pipeline, "compile", in_place, id="SD, compile in place, then attach"),
        pytest.param(tiny.sd_pipeline, "attach", in_place, marks=pytest.mark.slow),
        pytest.param(tiny.xl_pipeline, "compile", wrap, marks=pytest.mark.slow),
        pytest.param(tiny.xl_pipeline, "attach", in_place, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_pipeline_makes_one_graph_for_all_references_and_prompts(
    build: Callable[[], Any], first: str, compile_unet: Callable[[Any, CompileCounter], None]
) -> None:
    pipe, counter = build(), CompileCounter()
    adapter = tiny.adapter(pipe.unet)
    asked = [
        ("a cat", Reference(tiny.embedding(1, seed=1), scale=0.5)),
        ("a cat", Reference(tiny.embedding(1, seed=1), scale=0.0)),
        ("a dog", Reference(tiny.embedding(1, seed=2), scale=1.0)),
    ]
    expected = []
    for prompt, reference in asked:
        with adapter.attach(pipe), adapter.references(reference):
            expected.append(latents(pipe, prompt))

    steps = [lambda: compile_unet(pipe, counter), lambda: adapter.attach(pipe)]
    for step in steps if first == "compile" else reversed(steps):
        step()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for (prompt, reference), alone in zip(asked, expected, strict=True):
            with adapter.references(reference):
                torch.testing.assert_close(latents(pipe, prompt), alone, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_nothing_is_compiled_anew_over_a_hundred_random_changes() -> None:
    """λ, layers, mask, steps, prompt, picture: all of them are data, none of them is code."""
    pipe, counter, rng = tiny.sd_pipeline(), CompileCounter(), random.Random(0)
    adapter = tiny.adapter(pipe.unet)
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    wrap(pipe, counter)
    made: list[Tensor] = []
    with adapter.attach(pipe), torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(100):
            with adapter.references(random_reference(rng)):
                made.append(latents(pipe, rng.choice(["a cat", "a dog", ""])))
    assert counter.frame_count == 1
    assert len({one.sum().item() for one in made}) > 50


def random_reference(rng: random.Random) -> Reference:
    masks = [None, torch.linspace(0, 1, 63).reshape(7, 9), Image.new("L", (4, 5), 200)]
    return Reference(
        tiny.picture(seed=rng.randrange(100), width=rng.randrange(20, 90)),
        scale=rng.choice([0.0, 0.5, 1.0, rng.uniform(-1, 2)]),
        layers=rng.choice(["full", "ease in", "weak middle", {"mid": 1.0}, {"up": 0.5, "down": -1.0}]),
        mask=rng.choice(masks),
        steps=rng.choice([(0.0, 1.0), (0.0, 0.5), (0.5, 1.0), [0.3, 0.7]]),
        crop=rng.choice(["center", "stretch", "pad"]),
        scaling=rng.choice(["value", "key and value", "key and mean value"]),
    )


def test_a_compiled_reference_with_all_settings_is_what_it_is_without_compiling() -> None:
    rng, counter = random.Random(1), CompileCounter()
    pipe = tiny.sd_pipeline()
    adapter = tiny.adapter(pipe.unet)
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    asked = [random_reference(rng) for _ in range(6)]
    expected = []
    for reference in asked:
        with adapter.attach(pipe), adapter.references(reference):
            expected.append(latents(pipe))
    wrap(pipe, counter)
    with adapter.attach(pipe):
        for reference, eager in zip(asked, expected, strict=True):
            with adapter.references(reference):
                torch.testing.assert_close(latents(pipe), eager, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_detaching_from_a_compiled_pipeline_gives_back_the_base() -> None:
    pipe, counter = tiny.sd_pipeline(), CompileCounter()
    adapter = tiny.adapter(pipe.unet)
    wrap(pipe, counter)
    base = latents(pipe)
    with adapter.attach(pipe), adapter.references(tiny.embedding(1)):
        assert not torch.equal(latents(pipe), base)
    assert torch.equal(latents(pipe), base)
    assert not pipe.unet._forward_pre_hooks
    assert not pipe.unet._orig_mod._forward_pre_hooks


def test_a_module_compiled_in_place_gets_its_call_back() -> None:
    pipe = tiny.sd_pipeline()
    adapter = tiny.adapter(pipe.unet)
    in_place(pipe, CompileCounter())
    call = pipe.unet._compiled_call_impl
    with adapter.attach(pipe), adapter.references(tiny.embedding(1)):
        assert pipe.unet._compiled_call_impl is not call
    assert pipe.unet._compiled_call_impl is call


@pytest.mark.slow
def test_compiling_each_block_alone_works() -> None:
    pipe = tiny.sd_pipeline()
    adapter = tiny.adapter(pipe.unet)
    with adapter.attach(pipe), adapter.references(tiny.embedding(1)):
        expected = latents(pipe)
        for module in pipe.unet.modules():
            if type(module).__name__ == "BasicTransformerBlock":
                module.compile(backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(latents(pipe), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_bare_compiled_unet_is_attached_to_as_it_is() -> None:
    unet, counter = tiny.sd_unet(), CompileCounter()
    adapter, call = tiny.adapter(unet), tiny.unet_input(unet)
    with adapter.attach(unet), adapter.references(tiny.embedding(1)):
        expected = unet(**call).sample  # pyright: ignore[reportArgumentType]
    compiled = torch.compile(unet, backend=counter, fullgraph=True)
    assert isinstance(compiled, nn.Module)
    with adapter.attach(compiled), adapter.references(tiny.embedding(1)):
        torch.testing.assert_close(compiled(**call).sample, expected, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_compiling_a_bare_unet_while_references_act_breaks_the_graph_but_not_the_picture() -> None:
    unet = tiny.sd_unet()
    adapter, call = tiny.adapter(unet), tiny.unet_input(unet)
    with adapter.attach(unet), adapter.references(tiny.embedding(1)):
        expected = unet(**call).sample  # pyright: ignore[reportArgumentType]
        broken = torch.compile(unet, backend="eager")
        torch.testing.assert_close(broken(**call).sample, expected, rtol=1e-4, atol=1e-4)
        torch._dynamo.reset()
        with pytest.raises(Unsupported, match=r"compile before adapter\.use"):
            torch.compile(unet, backend="eager", fullgraph=True)(**call)


def compute_gradients(unet: UNet2DConditionModel, adapter: ImagePromptAdapter, seed: int) -> Tensor:
    call: Any = tiny.unet_input(unet, seed=seed)
    with torch.enable_grad(), adapter.condition_on(tiny.embedding(2, 1, seed=seed)):
        unet(**call).sample.square().mean().backward()
    gradients = [parameter.grad for parameter in adapter.parameters()]
    adapter.zero_grad()
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


@pytest.mark.slow
def test_training_through_a_compiled_unet_makes_one_graph_and_the_same_gradients() -> None:
    unet = tiny.sd_unet().requires_grad_(False)
    adapter = tiny.adapter(unet).requires_grad_(True)
    with adapter.attach(unet):
        expected = [compute_gradients(unet, adapter, seed) for seed in range(3)]
        compiled: Any = torch.compile(unet, backend="aot_eager", fullgraph=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for seed in range(3):
                gradients = compute_gradients(compiled, adapter, seed)
                torch.testing.assert_close(gradients, expected[seed], rtol=1e-3, atol=1e-5)
