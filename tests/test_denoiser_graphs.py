"""A U-Net whose inputs are tensors alone: graphs repeat it bit for bit, and nothing in a step is read."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

import tiny
from host_reads import HostReads, capture_recording
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.denoiser_graphs import DenoiserGraphs, use_cuda_graphs
from imprompt.errors import AttachmentError
from imprompt.projection import LinearProjection
from imprompt.reference import Reference

PROMPTS = ["a cat", "a dog", ""]


def latents(pipe: Any, prompt: str = "a cat", **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    settings = {"num_inference_steps": 2, "generator": generator, "output_type": "latent"}
    return pipe(prompt, **(settings | arguments)).images


def random_reference(rng: random.Random, **settings: Any) -> Reference:
    masks = [None, torch.linspace(0, 1, 63).reshape(7, 9), torch.linspace(1, 0, 20).reshape(5, 4)]
    return Reference(
        tiny.embedding(1, seed=rng.randrange(100)),
        scale=rng.choice([0.0, 0.5, 1.0, rng.uniform(-1, 2)]),
        layers=rng.choice(["full", "ease in", "weak middle", {"mid": 1.0}, {"up": 0.5, "down": -1.0}]),
        mask=rng.choice(masks),
        scaling=rng.choice(["value", "key and value", "key and mean value"]),
        **settings,
    )


@contextmanager
def eagerly(unet: nn.Module) -> Iterator[None]:
    """The U-Net's own forward, with the same inputs of the layers."""
    graphs = vars(unet).pop("forward")
    yield
    vars(unet)["forward"] = graphs


@pytest.mark.parametrize(
    ("build", "changes"),
    [
        (tiny.sd_unet, 15),
        pytest.param(tiny.sd_unet, 100, marks=pytest.mark.slow),
        pytest.param(tiny.xl_unet, 100, marks=pytest.mark.slow),
    ],
)
def test_one_graph_serves_random_changes_bit_for_bit(
    build: Callable[[], UNet2DConditionModel], changes: int
) -> None:
    """λ, layers, mask, time step, text, picture: all of them are copied, and nothing is recorded again."""
    unet, rng = build(), random.Random(0)
    adapter = tiny.adapter(unet)
    with adapter.attach(unet), torch.no_grad(), use_cuda_graphs(unet, capture_recording) as graphs:
        for change in range(changes):
            call: Any = tiny.unet_input(unet, seed=change)
            with adapter.use(random_reference(rng), branches=("negative", "positive")):
                replayed = unet(**call).sample
                with eagerly(unet):
                    assert torch.equal(replayed, unet(**call).sample)
        assert graphs.captured == 1


def test_a_pipeline_with_schedules_needs_a_graph_with_guidance_and_one_without() -> None:
    pipe, rng = tiny.sd_pipeline(), random.Random(0)
    adapter = tiny.adapter(pipe.unet)
    with adapter.attach(pipe), use_cuda_graphs(pipe, capture_recording) as graphs:
        for change in range(6):
            bounds = {"start": rng.choice([0.0, 0.5]), "end": rng.choice([0.75, 1.0])}
            with adapter.use(random_reference(rng, **bounds)):
                arguments: Any = {"prompt": PROMPTS[change % 3], "guidance_scale": 1.0 + change % 2}
                replayed = latents(pipe, num_inference_steps=4, **arguments)
                with eagerly(pipe.unet):
                    assert torch.equal(replayed, latents(pipe, num_inference_steps=4, **arguments))
        assert graphs.captured == 2


def test_graphs_are_keyed_by_shape_and_forgotten_when_weights_move() -> None:
    pipe = tiny.sd_pipeline()
    adapter = tiny.adapter(pipe.unet)
    with adapter.attach(pipe), use_cuda_graphs(pipe, capture_recording) as graphs:
        with adapter.use(tiny.embedding(1)):
            for guidance_scale, size in [(5.0, 16), (1.0, 16), (5.0, 32), (5.0, 16)]:
                latents(pipe, guidance_scale=guidance_scale, width=size, height=16)
        assert graphs.captured == 3
        with adapter.use(tiny.embedding(1), tiny.embedding(1, seed=2)):
            latents(pipe)
        assert graphs.captured == 4
        weight = next(pipe.unet.parameters())
        weight.data = 2 * weight.data
        moved = latents(pipe)
        assert graphs.captured == 5
    assert torch.equal(moved, latents(pipe))


def test_a_weight_that_is_changed_in_place_is_read_where_it_is() -> None:
    pipe = tiny.sd_pipeline()
    adapter, embeddings = tiny.adapter(pipe.unet), torch.ones(1, tiny.CONTEXT_LEN, tiny.SD_CONTEXT)
    arguments: Any = {"prompt": None, "prompt_embeds": embeddings, "guidance_scale": 1.0}
    attached = adapter.attach(pipe)
    with attached, use_cuda_graphs(pipe, capture_recording) as graphs, adapter.use(tiny.embedding(1)):
        latents(pipe, **arguments)
        with torch.no_grad():
            for weight in pipe.unet.parameters():
                weight.mul_(1.5)
        changed = latents(pipe, **arguments)
        assert graphs.captured == 1
        with eagerly(pipe.unet):
            assert torch.equal(changed, latents(pipe, **arguments))


def test_a_lora_of_faces_and_its_strength_are_inputs_too() -> None:
    pipe = tiny.sd_pipeline()
    adapter = ImagePromptAdapter.for_unet(
        pipe.unet, LinearProjection(tiny.EMBEDDING_DIM, tiny.SD_CONTEXT, 4), lora_rank=2
    )
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    asked = [Reference(tiny.embedding(1), lora_scale=scale) for scale in (1.0, 0.0, -0.5)]
    expected = []
    for reference in asked:
        with adapter.attach(pipe), adapter.use(reference):
            expected.append(latents(pipe))
    with adapter.attach(pipe), use_cuda_graphs(pipe, capture_recording) as graphs:
        for reference, eager in zip(asked, expected, strict=True):
            with adapter.use(reference):
                assert torch.equal(latents(pipe), eager)
        assert graphs.captured == 1


def test_the_own_forward_returns_and_gradients_take_the_ordinary_way() -> None:
    unet = tiny.sd_unet()
    call: Any = tiny.unet_input(unet)
    with use_cuda_graphs(unet, capture_recording) as graphs:
        assert unet(**call).sample.requires_grad
        assert graphs.captured == 0
    assert "forward" not in vars(unet)


def test_what_cannot_have_graphs_is_refused() -> None:
    unet = tiny.sd_unet()
    with pytest.raises(AttachmentError, match="need a U-Net on a GPU, and this one is on cpu"):
        use_cuda_graphs(unet)
    with pytest.raises(AttachmentError, match="not for Linear"):
        use_cuda_graphs(nn.Linear(1, 1))
    replaced = pytest.raises(AttachmentError, match="is replaced already")
    with use_cuda_graphs(unet, capture_recording), replaced:
        use_cuda_graphs(unet, capture_recording)


def test_more_shapes_than_the_limit_forget_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imprompt.attention.denoiser_graphs.MAX_GRAPHS", 1)
    unet = tiny.sd_unet()
    graphs = DenoiserGraphs(unet, capture_recording)
    one, other = tiny.unet_input(unet, batch=1), tiny.unet_input(unet, batch=2)
    with torch.no_grad():
        for call in (one, other, one):
            graphs(**call)
    assert graphs.captured == 3
    assert len(graphs._graphs) == 1


# Nothing is read


@pytest.mark.parametrize("build", [tiny.sd_pipeline, pytest.param(tiny.xl_pipeline, marks=pytest.mark.slow)])
def test_no_step_reads_a_value_from_the_device(
    build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first call of a generation may: it checks that all keys and values are finite."""
    pipe, rng = build(), random.Random(1)
    adapter, call = tiny.adapter(pipe.unet), UNet2DConditionModel.__call__
    found: list[list[str]] = []

    def watched(unet: UNet2DConditionModel, *args: Any, **kwargs: Any) -> Any:
        with HostReads() as reads:
            output = call(unet, *args, **kwargs)
        found.append(reads.found)
        return output

    monkeypatch.setattr(UNet2DConditionModel, "__call__", watched)
    with adapter.attach(pipe):
        for _ in range(3):
            found.clear()
            steps = [rng.uniform(-1, 2) for _ in range(6)]
            first, second = random_reference(rng), Reference(tiny.embedding(1), step_weights=steps)
            with adapter.use(first, second):
                latents(pipe, rng.choice(PROMPTS), num_inference_steps=6)
            assert [*map(bool, found)] == [True, *[False] * 5]


def test_host_reads_are_found_on_the_cpu() -> None:
    x = torch.ones(3)
    with HostReads() as reads:
        _ = x.tolist(), x[0].item(), bool(x[0]), x.cpu(), torch.equal(x, x), float(x[0])
    assert {"tolist", "item", "__bool__", "cpu", "equal", "__float__"} <= {*reads.found}
    assert "aten::_local_scalar_dense" in reads.found
