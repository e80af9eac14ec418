"""Milliseconds per denoising step on a GPU, rung by rung, in at most eight minutes: U-Net calls and training.

    python bench/gpu.py [--minutes 8] [--output gpu.json]      on a GPU
    python bench/gpu.py --tiny [--output gpu.json]             on a CPU, as a test of this script

A step is one call of the U-Net with both halves of guidance, in the shapes of Stable Diffusion 1.5 (512 px)
and SDXL (1024 px), with random weights, as speed does not depend on them. It runs without an adapter, with
diffusers' own, and with imprompt's: eager, where K and V of text and picture are cached; by CUDA graphs;
compiled. Each rung has the median of its rounds, its distance from diffusers' output, the number of times
that a step waits for the device, and how many graphs it made when λ, layers, mask and picture changed. Rungs
run in the order of their worth; those that no time is left for are named. Training is that of
bench/training_step.py.
"""

import argparse
import copy
import json
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import training_step
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from training_bases import tests_models

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.denoiser_graphs import capture_cuda_graph, use_cuda_graphs
from imprompt.projection import LinearProjection
from imprompt.reference import Reference

CHANGES = 20
"""Changes of the image prompt after which no rung may record or compile anything again."""

BRANCHES = ("negative", "positive")

SDXL: Mapping[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD15: Mapping[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}


class Bench(NamedTuple):
    """A base, an adapter for it, and the arguments of one step.

    Args:
        name: the base
        unet: without an adapter
        adapter: imprompt's
        options: the arguments of the U-Net, by name
        embedding: the image embedding, "1 width"
        is_tiny: whether this is a test on a CPU
    """

    name: str
    unet: UNet2DConditionModel
    adapter: ImagePromptAdapter
    options: dict[str, Any]
    embedding: Tensor
    is_tiny: bool


Step = Callable[[], Tensor]
Rung = Callable[[Bench], AbstractContextManager[tuple[Step, Callable[[], dict[str, Any]]]]]
"""Enters one way of computing a step; gives the step, and what else is counted after it was timed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=50, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="tiny models, on any device")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    if not (options.tiny or torch.cuda.is_available()):
        parser.error("there is no GPU here; --tiny tests the script on a CPU")
    deadline = time.monotonic() + 60 * options.minutes
    result: dict[str, Any] = {"device": name_device(), "torch": torch.__version__}
    for name in ("sd15", "sdxl"):
        with torch.no_grad():
            result[name] = measure_base(build_bench(name, options.tiny), options, deadline)
        print(json.dumps({name: result[name]}, indent=1), flush=True)
    result["training"] = measure_training(options, deadline)
    text = json.dumps(result, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")
    return 0


def name_device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


# Models


def build_bench(name: str, is_tiny: bool) -> Bench:
    """Build a base with random weights, an adapter, and the arguments of a step."""
    torch.manual_seed(0)
    if is_tiny:
        tiny = tests_models()
        unet = tiny.sd_unet() if name == "sd15" else tiny.xl_unet()
        adapter, options = tiny.adapter(unet), tiny.unet_input(unet)
        return Bench(name, unet, adapter, options, tiny.embedding(1), True)
    with torch.device("cuda"):
        unet: Any = UNet2DConditionModel(**(SD15 if name == "sd15" else SDXL))
        unet.to(torch.bfloat16).eval().requires_grad_(False).to(memory_format=torch.channels_last)
        width, side = unet.config.cross_attention_dim, unet.config.sample_size
        adapter = ImagePromptAdapter.for_unet(unet, LinearProjection(1024, width, 4)).requires_grad_(False)
        options: dict[str, Any] = {
            "sample": torch.randn(2, 4, side, side, dtype=torch.bfloat16),
            "timestep": torch.tensor(501),
            "encoder_hidden_states": torch.randn(2, 77, width, dtype=torch.bfloat16),
        }
        if name == "sdxl":
            added = {"text_embeds": torch.randn(2, 1280), "time_ids": torch.rand(2, 6)}
            options["added_cond_kwargs"] = {key: x.bfloat16() for key, x in added.items()}
        return Bench(name, unet, adapter, options, torch.randn(1, 1024), False)


@contextmanager
def enter_none(bench: Bench) -> Iterator[Any]:
    """No adapter."""
    yield lambda: bench.unet(**bench.options).sample, dict


@contextmanager
def enter_diffusers(bench: Bench) -> Iterator[Any]:
    """diffusers' own adapter, on a U-Net of its own, with the same weights and embedding."""
    unet, options = load_diffusers(bench)
    yield lambda: unet(**options).sample, dict


@contextmanager
def enter_diffusers_compiled(bench: Bench) -> Iterator[Any]:
    unet, options = load_diffusers(bench)
    compiled: Any = compile_unet(unet, bench)
    yield lambda: compiled(**options).sample, dict


def load_diffusers(bench: Bench) -> tuple[Any, dict[str, Any]]:
    unet: Any = copy.deepcopy(bench.unet)
    unet._load_ip_adapter_weights([make_official(bench.adapter)])
    unet.to(bench.unet.device, bench.unet.dtype)
    embedding = torch.cat([torch.zeros_like(bench.embedding), bench.embedding])[:, None]
    added = {**bench.options.get("added_cond_kwargs", {}), "image_embeds": [embedding.to(unet.dtype)]}
    return unet, bench.options | {"added_cond_kwargs": added}


def make_official(adapter: ImagePromptAdapter) -> dict[str, dict[str, Tensor]]:
    """Return the adapter's weights as the two dictionaries of an official file."""
    layers = {number: adapter.key_value(number) for number in adapter.shapes}
    weights = {f"{n}.to_k_ip.weight": one.to_key.weight for n, one in layers.items()}
    weights |= {f"{n}.to_v_ip.weight": one.to_value.weight for n, one in layers.items()}
    return {"image_proj": adapter.projection.state_dict(), "ip_adapter": weights}


@contextmanager
def enter_ours(bench: Bench) -> Iterator[Any]:
    """imprompt's adapter, eager: K and V of text and picture are cached."""
    with attach(bench, bench.unet) as step:
        yield step, dict


@contextmanager
def enter_graphs(bench: Bench) -> Iterator[Any]:
    """imprompt's adapter, by CUDA graphs."""
    with use_cuda_graphs(bench.unet, find_capture(bench)) as graphs, attach(bench, bench.unet) as step:
        yield step, lambda: change(bench, step) | {"graphs": graphs.captured}


@contextmanager
def enter_none_graphs(bench: Bench) -> Iterator[Any]:
    """No adapter, by CUDA graphs."""
    with use_cuda_graphs(bench.unet, find_capture(bench)):
        yield lambda: bench.unet(**bench.options).sample, dict


@contextmanager
def enter_none_compiled(bench: Bench) -> Iterator[Any]:
    compiled: Any = compile_unet(bench.unet, bench)
    yield lambda: compiled(**bench.options).sample, dict


@contextmanager
def enter_compiled(bench: Bench) -> Iterator[Any]:
    """imprompt's adapter in a compiled U-Net."""
    with attach(bench, compile_unet(bench.unet, bench)) as step:
        yield step, lambda: change(bench, step)


@contextmanager
def enter_regional(bench: Bench) -> Iterator[Any]:
    """imprompt's adapter, every transformer block compiled alone, which takes a fraction of the time."""
    blocks = [one for one in bench.unet.modules() if type(one).__name__ == "BasicTransformerBlock"]
    with attach(bench, bench.unet) as step:
        for block in blocks:
            block.compile(backend="eager" if bench.is_tiny else "inductor")
        try:
            yield step, dict
        finally:
            for block in blocks:
                block._compiled_call_impl = None


def compile_unet(unet: Any, bench: Bench) -> Any:
    torch._dynamo.reset()
    return torch.compile(unet, backend="eager" if bench.is_tiny else "inductor", fullgraph=True)


def find_capture(bench: Bench) -> Any:
    if not bench.is_tiny:
        return capture_cuda_graph
    from host_reads import capture_recording  # pyright: ignore[reportMissingImports]

    return capture_recording


@contextmanager
def attach(bench: Bench, unet: Any) -> Iterator[Step]:
    with bench.adapter.attach(unet), ExitStack() as active:
        active.enter_context(bench.adapter.use(bench.embedding, branches=BRANCHES))
        yield lambda: unet(**bench.options).sample


def change(bench: Bench, step: Step) -> dict[str, Any]:
    """Change λ, layers, mask and picture; anything that is compiled again is an error."""
    rng = random.Random(0)
    seconds = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(CHANGES):
            reference = Reference(
                torch.randn_like(bench.embedding),
                scale=rng.choice([0.0, 1.0, rng.uniform(-1, 2)]),
                layers=rng.choice(["full", "ease in", {"mid": 1.0}]),
                mask=rng.choice([None, torch.rand(9, 7).cpu()]),
            )
            started = time.perf_counter()
            with bench.adapter.use(reference, branches=BRANCHES):
                step()
            synchronize()
            seconds.append(time.perf_counter() - started)
    return {"changes": CHANGES, "ms of a change and its step": round(1000 * statistics.median(seconds), 3)}


RUNGS: Mapping[str, Rung] = {
    "none": enter_none,
    "diffusers": enter_diffusers,
    "ours": enter_ours,
    "ours, CUDA graph": enter_graphs,
    "none, CUDA graph": enter_none_graphs,
    "ours, blocks compiled": enter_regional,
    "ours, compiled": enter_compiled,
    "diffusers, compiled": enter_diffusers_compiled,
    "none, compiled": enter_none_compiled,
}
"""In the order of their worth. Compiling a whole U-Net takes one or two minutes."""


# Measuring


def measure_base(bench: Bench, options: argparse.Namespace, deadline: float) -> dict[str, Any]:
    """Measure all rungs of a base; half of the time that is left is for what comes after it."""
    own_deadline = time.monotonic() + (deadline - time.monotonic()) / 2
    figures: dict[str, Any] = {}
    expected: Tensor | None = None
    for name, enter in RUNGS.items():
        if time.monotonic() > own_deadline and len(figures) >= 4:
            figures[name] = "not measured: no time left"
            continue
        try:
            with enter(bench) as (step, count):
                started = time.perf_counter()
                output = step().clone()
                synchronize()
                first = time.perf_counter() - started
                expected = output if name == "diffusers" else expected
                figures[name] = {
                    "first step, s": round(first, 2),
                    **time_steps(step, options),
                    "waits in a step": count_waits(step),
                    **({} if expected is None or "none" in name else compare(output, expected)),
                    **count(),
                }
        except Exception as error:
            figures[name] = f"failed: {type(error).__name__}: {str(error)[:300]}"
    return figures | {"ratios": find_ratios(figures)}


def time_steps(step: Step, options: argparse.Namespace) -> dict[str, float]:
    """Return the median milliseconds of a step over rounds, and the fastest and the slowest round."""
    milliseconds = []
    for number in range(options.rounds + 1):
        synchronize()
        started = time.perf_counter()
        for _ in range(options.steps):
            step()
        synchronize()
        if number:
            milliseconds.append(1000 * (time.perf_counter() - started) / options.steps)
    middle = statistics.median(milliseconds)
    spread = {"fastest": min(milliseconds), "slowest": max(milliseconds)}
    return {name: round(value, 4) for name, value in {"ms per step": middle, **spread}.items()}


def count_waits(step: Step) -> int | None:
    """Return how often one step waits for the device, as CUDA tells; None without CUDA."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
        return sum("synchroniz" in str(one.message) for one in caught)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def compare(output: Tensor, expected: Tensor) -> dict[str, float]:
    distance = (output.float() - expected.float()).abs().max() / expected.float().abs().max()
    return {"largest difference from diffusers": float(distance)}


def find_ratios(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return how many times as fast as diffusers, eager and compiled, and as no adapter, each rung is."""
    times = {name: one["ms per step"] for name, one in figures.items() if isinstance(one, dict)}
    pairs = [
        (other, name)
        for other in ("diffusers", "diffusers, compiled", "none", "none, CUDA graph")
        for name in times
        if other in times and name.startswith("ours")
    ]
    return {f"{other} / {name}": round(times[other] / times[name], 3) for other, name in pairs}


def measure_training(options: argparse.Namespace, deadline: float) -> Any:
    """Return the official step against ours, with their samples per second."""
    if time.monotonic() > deadline and not options.tiny:
        return "not measured: no time left"
    size = ("tiny", 4, 1, 1) if options.tiny else ("sd15", 8, 5, 3)
    model, batch, steps, rounds = size
    words = f"--model {model} --batch {batch} --steps {steps} --rounds {rounds}".split()
    try:
        return training_step.measure(model, training_step.parse(words))
    except Exception as error:
        return f"failed: {type(error).__name__}: {str(error)[:300]}"


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
