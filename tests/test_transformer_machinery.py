"""Adapters on diffusion transformers beside the rest of diffusers: fusing, backends, offloading, compiling.

Each works as by itself, or is refused with a sentence.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from diffusers.hooks.group_offloading import apply_group_offloading
from diffusers.hooks.layerwise_casting import apply_layerwise_casting
from peft import LoraConfig
from PIL import Image
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from by_hand_transformers import ByHand, HandTerm
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.errors import AttachmentError
from imprompt.reference import Reference
from test_transformers import close, differ, every_kind, run, run_prompted
from tiny_transformers import Kind, adapter, call, embeddings, transformer


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def run_expected(kind: Kind) -> Tensor:
    reference = Reference(embeddings(kind), scale=0.7)
    return run_prompted(transformer(kind), adapter(kind), call(kind), reference)


@pytest.mark.parametrize("kind", ["flux-xlabs", "flux-instantx"])
def test_fused_projections_change_nothing(kind: Kind) -> None:
    model = transformer(kind)
    model.fuse_qkv_projections()
    close(
        run_prompted(model, adapter(kind), call(kind), Reference(embeddings(kind), scale=0.7)),
        run_expected(kind),
    )


def test_fused_projections_of_sd35_are_refused_as_they_leave_out_its_norms() -> None:
    """A fault of diffusers: fusing changes what the base makes."""
    model, inputs = transformer("sd35"), call("sd35")
    base = run(model, inputs)
    model.fuse_qkv_projections()
    differ(run(model, inputs), base)
    with pytest.raises(AttachmentError, match="leaves out the norms of Stable Diffusion"):
        adapter("sd35").attach(model)
    model.unfuse_qkv_projections()
    assert torch.equal(run(model, inputs), base)
    reference = Reference(embeddings("sd35"), scale=0.7)
    close(run_prompted(model, adapter("sd35"), inputs, reference), run_expected("sd35"))


def test_fusing_while_an_adapter_is_attached_works_on_flux_and_is_refused_on_sd35() -> None:
    for kind in ("flux-xlabs", "flux-instantx"):
        model, one = transformer(kind), adapter(kind)
        with one.attach(model), one.use(Reference(embeddings(kind), scale=0.7)):
            model.fuse_qkv_projections()
            close(run(model, call(kind)), run_expected(kind))
    model, one = transformer("sd35"), adapter("sd35")
    with one.attach(model), one.use(embeddings("sd35")):
        model.fuse_qkv_projections()
        with pytest.raises(AttachmentError, match="was given another processor"):
            run(model, call("sd35"))


@pytest.mark.parametrize("kind", ["flux-xlabs", "flux-instantx"])
def test_another_attention_backend_stays_set_and_changes_nothing(kind: Kind) -> None:
    model, one = transformer(kind), adapter(kind)
    model.set_attention_backend("_native_math")
    with one.attach(model), one.use(Reference(embeddings(kind), scale=0.7)):
        backends = {block.attn.processor._attention_backend for block in model.transformer_blocks}
        assert backends == {"_native_math"}
        close(run(model, call(kind)), run_expected(kind))
        model.set_attention_backend("native")
        close(run(model, call(kind)), run_expected(kind))


@every_kind
@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
def test_group_offloading_changes_nothing(kind: Kind, level: str) -> None:
    model, cpu = transformer(kind), torch.device("cpu")
    blocks: Any = {"num_blocks_per_group": 1} if level == "block_level" else {}
    apply_group_offloading(model, onload_device=cpu, offload_device=cpu, offload_type=level, **blocks)
    close(
        run_prompted(model, adapter(kind), call(kind), Reference(embeddings(kind), scale=0.7)),
        run_expected(kind),
    )


@every_kind
def test_layerwise_casting_acts_on_the_base_alone(kind: Kind) -> None:
    """Weights rest as float8; what is computed of them is what a base with such weights computes."""
    model, rounded = transformer(kind), transformer(kind)
    skipped = tuple(model._skip_layerwise_casting_patterns)
    apply_layerwise_casting(model, torch.float8_e4m3fn, torch.float32, skip_modules_pattern=skipped)
    for name, module in rounded.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not any(word in name for word in skipped):
            for weight in module.parameters(recurse=False):
                weight.copy_(weight.to(torch.float8_e4m3fn).float())
    reference = Reference(embeddings(kind), scale=0.7)
    ours = run_prompted(model, adapter(kind), call(kind), reference)
    close(ours, run_prompted(rounded, adapter(kind), call(kind), reference))
    differ(ours, run_expected(kind))


@every_kind
def test_a_users_lora_acts_on_the_query_and_the_output_of_the_image_prompt_too(kind: Kind) -> None:
    model, merged = transformer(kind), transformer(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        targets = ["attn.to_q", "attn.to_out.0"]
        model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets), adapter_name="style")
        for name, weight in model.named_parameters():
            if "lora" in name:
                nn.init.normal_(weight, std=0.2)
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            change = module.lora_B["style"].weight @ module.lora_A["style"].weight
            merged.get_submodule(name).weight.add_(change)
    reference = Reference(embeddings(kind), scale=0.7)
    ours = run_prompted(model, adapter(kind), call(kind), reference)
    close(ours, run_prompted(merged, adapter(kind), call(kind), reference))
    differ(ours, run_expected(kind))


@every_kind
def test_half_precision_bases_get_half_precision_terms(kind: Kind) -> None:
    model = transformer(kind).to(torch.bfloat16)
    inputs = {
        name: value.to(torch.bfloat16) if value.is_floating_point() and "ids" not in name else value
        for name, value in call(kind).items()
    }
    ours = run_prompted(model, adapter(kind), inputs, Reference(embeddings(kind), scale=0.7))
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - run_expected(kind)).abs().max() < 0.5


# torch.compile


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


def compile_transformer(kind: Kind, backend: CompileCounter, *, in_place: bool) -> Any:
    """A transformer whose forward is one graph."""
    model: Any = transformer(kind)
    if not in_place:
        return torch.compile(model, backend=backend, fullgraph=True)
    model.compile(backend=backend, fullgraph=True)
    return model


@pytest.mark.slow
@every_kind
@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_transformer_makes_what_it_makes_uncompiled(
    kind: Kind, in_place: bool, compiling: CompileCounter
) -> None:
    model = compile_transformer(kind, compiling, in_place=in_place)
    one, inputs = adapter(kind), call(kind)
    with one.attach(model), one.use(Reference(embeddings(kind), scale=0.7)):
        close(run(model, inputs), run_expected(kind), 1e-4)


@pytest.mark.slow
@every_kind
def test_nothing_is_compiled_anew_over_a_hundred_random_changes(
    kind: Kind, compiling: CompileCounter
) -> None:
    """λ, layers, mask, picture, prompt: all of them are data, none of them is code."""
    model, plain = torch.compile(transformer(kind), backend=compiling, fullgraph=True), transformer(kind)
    one, other, rng = adapter(kind), adapter(kind), random.Random(0)
    made: list[Tensor] = []
    with one.attach(model), other.attach(plain), torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(100):
            reference, inputs = random_reference(kind, rng), call(kind, seed=rng.randrange(50))
            with one.use(reference):
                made.append(run(model, inputs))
            with other.use(reference):
                close(made[-1], run(plain, inputs), 1e-4)
    assert compiling.frame_count == 1
    assert len({one.sum().item() for one in made}) > 50


def random_reference(kind: Kind, rng: random.Random) -> Reference:
    masks = [None, torch.linspace(0, 1, 63).reshape(7, 9), Image.new("L", (4, 5), 200)]
    return Reference(
        embeddings(kind, seed=rng.randrange(100)),
        scale=rng.choice([0.0, 0.5, 1.0, rng.uniform(-1, 2)]),
        layers=rng.choice(["full", "ease in", {"double": 0.5}, {0: -1.0, 1: 0.3}]),
        mask=rng.choice(masks),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flux-xlabs", "flux-instantx"])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_graph_that_was_made_without_the_adapter_is_noticed(
    kind: Kind, in_place: bool, compiling: CompileCounter
) -> None:
    """PyTorch does not look for hooks that a module has got since; the picture would be the base's."""
    model = compile_transformer(kind, compiling, in_place=in_place)
    one, inputs = adapter(kind), call(kind)
    run(model, inputs)
    with one.attach(model), one.use(embeddings(kind)):
        with pytest.raises(AttachmentError, match=r"torch\.compiler\.reset\(\)"):
            run(model, inputs)
        torch.compiler.reset()
        differ(run(model, inputs), run(transformer(kind), inputs))


@pytest.mark.slow
@every_kind
def test_compiling_each_block_alone_works(kind: Kind, compiling: CompileCounter) -> None:
    model, one = transformer(kind), adapter(kind)
    with one.attach(model), one.use(Reference(embeddings(kind), scale=0.7)):
        for block in [*model.transformer_blocks, *getattr(model, "single_transformer_blocks", ())]:
            block.compile(backend="eager", fullgraph=True)
        close(run(model, call(kind)), run_expected(kind), 1e-4)


# Gradients


@every_kind
def test_gradient_checkpointing_changes_no_gradient(kind: Kind) -> None:
    model, one = transformer(kind).requires_grad_(False), adapter(kind).requires_grad_(True)
    rows, gradients = embeddings(kind, 2)[:, None], []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
            model.train()
        with one.attach(model):
            gradients.append(differentiate(kind, model, one, lambda: one.condition_on(rows, 0.7)))
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, other)


@every_kind
def test_a_training_step_by_flow_matching_has_the_gradients_of_the_equation(kind: Kind) -> None:
    """x_σ = (1 - σ) x + σ ε, the target is ε - x, and each sample has its own time and picture."""
    model, one = transformer(kind).requires_grad_(False), adapter(kind).requires_grad_(True)
    rows = embeddings(kind, 2)[:, None]
    with one.attach(model):
        ours = differentiate(kind, model, one, lambda: one.condition_on(rows, 0.7))
    by_hand = ByHand(model, [HandTerm(one, rows, scale=0.7)])
    for mine, other in zip(ours, differentiate(kind, model, one, by_hand.install), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


def differentiate(kind: Kind, model: Any, one: ImagePromptAdapter, prompt: Callable[[], Any]) -> list[Tensor]:
    """The gradients of one step by flow matching, for every weight of the adapter."""
    inputs, noise = call(kind), call(kind, seed=1)["hidden_states"]
    unit = 1000 if kind == "sd35" else 1
    sigma = inputs["timestep"] / unit
    shape = (-1, *[1] * (noise.ndim - 1))
    clean = inputs["hidden_states"]
    noisy = (1 - sigma.reshape(shape)) * clean + sigma.reshape(shape) * noise
    with torch.enable_grad(), prompt():
        predicted = model(**inputs | {"hidden_states": noisy}).sample
        (predicted - (noise - clean)).square().mean().backward()
    made = [parameter.grad.clone() for parameter in one.parameters() if parameter.grad is not None]
    one.zero_grad()
    assert len(made) == len([*one.parameters()])
    return made
