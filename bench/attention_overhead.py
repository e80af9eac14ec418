"""Seconds per denoising step with no adapter, with ours, and with diffusers' own, interleaved in one run.

    python bench/attention_overhead.py [--weights FOLDER] [--steps N] [--rounds N] [--clock cpu] [--json]
    python bench/attention_overhead.py --base flux-xlabs | flux-instantx | sd35 ...

One prompt, one image prompt, guidance on: a batch of two. Each round runs the three one after another, in an
order that moves on from round to round, so that a busy machine disturbs all alike; a step's time is taken
between the callbacks of the first and the last step. Ratios are medians over rounds of that round's ratio.
Without the embedded model's weights the tests' tiny random model takes its place: there fixed costs weigh
most. On a machine that is busy otherwise, `--clock cpu` counts processor time instead of the clock's.

With `--base` the base is a transformer with random weights, FLUX.1 or Stable Diffusion 3.5 but narrower and
with fewer blocks; a step is one call of it. diffusers has no adapter of InstantX' kind for FLUX.1. In its
place stands the memory of K' and V', which are all that a generation needs, and that of the weights from
which they are computed: here, and at the published sizes.
"""

import argparse
import copy
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from rich.console import Console
from rich.table import Table
from torch import Tensor

from imprompt import mini
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.choices import Injection
from imprompt.checkpoint import to_official
from imprompt.projection import HiddenProjection, LinearProjection, PerceiverShape, TimeResamplerProjection
from imprompt.training.denoising import number_places

NONE, OURS, THEIRS = "none", "ours", "diffusers"
GUIDANCE = 4.0
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


BASES = ("mini", "flux-xlabs", "flux-instantx", "sd35")
HEADS, HEAD_DIM, SIDE, TEXT_LENGTH, CONTEXT, POOLED = 6, 64, 16, 128, 512, 128
"""Sizes of the transformers; the latents have SIDE × SIDE tokens."""
EMBEDDING, PATCHES = 256, 196
"""Width and number of what the image encoder returns."""
TOKENS: dict[Injection, int] = {"flux-xlabs": 4, "flux-instantx": 128, "sd35": 64}
INSTANTX = {"layers": 57, "tokens": 128, "context": 4096, "inner": 3072, "bytes": 2}
"""The published adapter of InstantX for FLUX.1, in bfloat16."""

Contestant = Callable[[int, str], float]
"""Runs so many steps and returns the seconds of one, by a clock."""


class Arm(NamedTuple):
    """A pipeline, what is entered before it runs, and what it is called with."""

    pipe: Any
    prepared: Callable[[], AbstractContextManager[object]]
    arguments: dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, default=mini.WEIGHTS, help="folder of the embedded model")
    parser.add_argument("--base", choices=BASES, default="mini")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    model, contestants, memory = prepare(options.base, options.weights)
    seconds = measure(contestants, steps=options.steps, rounds=options.rounds, clock=options.clock)
    result = {
        "model": model,
        "steps": options.steps,
        "rounds": options.rounds,
        "threads": options.threads,
        "clock": options.clock,
        **summarise(seconds),
        **memory,
    }
    print(json.dumps(result, indent=1)) if options.json else print_table(result)
    return 0


def prepare(base: str, weights: Path) -> tuple[str, dict[str, Contestant], dict[str, float]]:
    """What is measured, its arms, and the megabytes of its K' and V' where they are to be told."""
    if base != "mini":
        kind = cast("Injection", base)
        transformer, adapter = random_transformer(kind)
        memory = compare_memory(adapter) if kind == "flux-instantx" else {}
        return f"random {base}", transformer_arms(kind, transformer, adapter), memory
    is_there = (weights / "adapter").is_dir()
    pipe, adapter = load_embedded(weights) if is_there else tiny_models()
    return "embedded" if is_there else "tiny random", pipeline_arms(pipe, adapter), {}


def load_embedded(weights: Path) -> tuple[Any, ImagePromptAdapter]:
    """The embedded model and its adapter."""
    return mini.pipeline(weights=weights), mini.adapter(weights=weights)


def tiny_models() -> tuple[Any, ImagePromptAdapter]:
    """The tests' random model, which needs no weights."""
    tests = str(Path(__file__).parent.parent / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    import tiny  # pyright: ignore[reportMissingImports]

    pipe = tiny.sd_pipeline()
    return pipe, tiny.adapter(pipe.unet)


def measure(
    contestants: dict[str, Contestant], *, steps: int = 20, rounds: int = 15, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds per step of each arm, one figure per round; the first round warms up and is not counted.

    Args:
        contestants: the arms, by name
        steps: at least 2 to a run
        rounds: how often each arm runs
        clock: one of `CLOCKS`
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken = contestants[name](steps, clock)
            if number:
                seconds[name].append(taken)
    return seconds


def pipeline_arms(pipe: Any, adapter: ImagePromptAdapter) -> dict[str, Contestant]:
    """The three arms, on the same weights and the same image embedding; diffusers' has a U-Net of its own."""
    embedding = torch.randn(
        1, adapter.projection.takes["image_embedding"], generator=torch.Generator().manual_seed(0)
    )
    theirs = type(pipe)(
        **{**pipe.components, "unet": copy.deepcopy(pipe.unet)}, requires_safety_checker=False
    )
    theirs.set_progress_bar_config(disable=True)
    theirs.load_ip_adapter(official(adapter), subfolder="", weight_name="", image_encoder_folder=None)
    theirs.set_ip_adapter_scale(1.0)
    guided = torch.cat([torch.zeros_like(embedding), embedding])[:, None]

    @contextmanager
    def ours() -> Iterator[None]:
        with adapter.attach(pipe), adapter.use(embedding):
            yield

    every = {
        NONE: Arm(pipe, nullcontext, {}),
        OURS: Arm(pipe, ours, {}),
        THEIRS: Arm(theirs, nullcontext, {"ip_adapter_image_embeds": [guided]}),
    }
    return {name: functools.partial(seconds_per_step, arm) for name, arm in every.items()}


def official(adapter: ImagePromptAdapter) -> dict[str, dict[str, Tensor]]:
    """The adapter's weights as the two dictionaries of an official file."""
    layers = {number: adapter.key_value(number) for number in adapter.shapes}
    keys = {f"{n}.to_k_ip.weight": layer.to_key.weight.detach() for n, layer in layers.items()}
    values = {f"{n}.to_v_ip.weight": layer.to_value.weight.detach() for n, layer in layers.items()}
    return {"image_proj": adapter.projection.state_dict(), "ip_adapter": keys | values}


def seconds_per_step(arm: Arm, steps: int, clock: str = "wall") -> float:
    """One run: from the end of its first step to the end of its last, divided."""
    ends: list[float] = []

    def note(pipe: object, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        ends.append(CLOCKS[clock]())
        return tensors

    with arm.prepared():
        arm.pipe(
            "a cat",
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=note,
            **arm.arguments,
        )
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def random_transformer(kind: Injection) -> tuple[Any, ImagePromptAdapter]:
    """A transformer of a family with random weights, and an adapter of this kind for it."""
    torch.manual_seed(0)
    inner = HEADS * HEAD_DIM
    shared: dict[str, Any] = {
        "attention_head_dim": HEAD_DIM,
        "num_attention_heads": HEADS,
        "joint_attention_dim": CONTEXT,
    }
    if kind == "sd35":
        transformer: Any = SD3Transformer2DModel(
            sample_size=2 * SIDE, num_layers=9, caption_projection_dim=inner, pooled_projection_dim=POOLED,
            pos_embed_max_size=2 * SIDE, qk_norm="rms_norm", **shared,
        )  # fmt: skip
        shape = PerceiverShape(width=EMBEDDING, depth=4, head_dim=64)
        projection: Any = TimeResamplerProjection(EMBEDDING, inner, TOKENS[kind], shape=shape)
    else:
        transformer = FluxTransformer2DModel(
            in_channels=64, num_layers=3, num_single_layers=6, pooled_projection_dim=POOLED,
            axes_dims_rope=(8, 28, 28), **shared,
        )  # fmt: skip
        projection = (
            LinearProjection(EMBEDDING, CONTEXT, TOKENS[kind])
            if kind == "flux-xlabs"
            else HiddenProjection(EMBEDDING, CONTEXT, TOKENS[kind], hidden=2 * EMBEDDING)
        )
    adapter = ImagePromptAdapter.for_transformer(transformer.eval(), projection, kind)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return transformer.requires_grad_(False), adapter.requires_grad_(False)


def transformer_arms(kind: Injection, transformer: Any, adapter: ImagePromptAdapter) -> dict[str, Contestant]:
    """The arms of a transformer; diffusers' has a copy of its own, where diffusers has such an adapter."""
    call, generator = transformer_call(kind), torch.Generator().manual_seed(1)
    shape = (1, PATCHES, EMBEDDING) if kind == "sd35" else (1, EMBEDDING)
    embedding = torch.randn(shape, generator=generator)

    @contextmanager
    def ours() -> Iterator[None]:
        with adapter.attach(transformer), adapter.use(embedding):
            yield

    every = {
        NONE: functools.partial(seconds_per_call, transformer, nullcontext, call),
        OURS: functools.partial(seconds_per_call, transformer, ours, call),
    }
    if kind == "flux-instantx":
        return every
    copied = copy.deepcopy(transformer)
    copied._load_ip_adapter_weights(
        [nest_tensors(adapter)] if kind == "flux-xlabs" else nest_tensors(adapter)
    )
    prompts = {"ip_adapter_image_embeds": [embedding[:, None]] if kind == "flux-xlabs" else embedding}
    theirs = functools.partial(
        seconds_per_call, copied, nullcontext, call | {"joint_attention_kwargs": prompts}
    )
    return every | {THEIRS: theirs}


def transformer_call(kind: Injection) -> dict[str, Any]:
    """The arguments of one call, with one row."""
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Any] = {
        "encoder_hidden_states": torch.randn(1, TEXT_LENGTH, CONTEXT, generator=generator),
        "pooled_projections": torch.randn(1, POOLED, generator=generator),
        "timestep": torch.full((1,), 500.0 if kind == "sd35" else 0.5),
    }
    if kind == "sd35":
        return inputs | {"hidden_states": torch.randn(1, 16, 2 * SIDE, 2 * SIDE, generator=generator)}
    return inputs | {
        "hidden_states": torch.randn(1, SIDE**2, 64, generator=generator),
        "img_ids": number_places(SIDE, SIDE),
        "txt_ids": torch.zeros(TEXT_LENGTH, 3),
    }


def nest_tensors(adapter: ImagePromptAdapter) -> dict[str, dict[str, Tensor]]:
    """The adapter's file as diffusers' loaders take it."""
    groups: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in to_official(adapter.state_dict()).items():
        group, _, rest = name.partition(".")
        groups[group][rest] = tensor.clone()
    return groups


def seconds_per_call(
    transformer: Any,
    prepared: Callable[[], AbstractContextManager[object]],
    call: dict[str, Any],
    steps: int,
    clock: str = "wall",
) -> float:
    """One run: from the end of its first call to the end of its last, divided."""
    ends: list[float] = []
    with prepared(), torch.no_grad():
        for _ in range(steps):
            transformer(**copy.copy(call))
            ends.append(CLOCKS[clock]())
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def compare_memory(adapter: ImagePromptAdapter) -> dict[str, float]:
    """Megabytes of K' and V' of one picture and of the weights they come from, here and as published."""
    embedding = torch.zeros(1, 1, EMBEDDING)
    computed = [tensor for pair in adapter({"image_embedding": embedding}).values() for tensor in pair]
    weights = [parameter for layer in adapter.layers.values() for parameter in layer.parameters()]
    published = INSTANTX
    each = published["layers"] * 2 * published["inner"] * published["bytes"] / 1e6
    return {
        "MB of K' and V'": sum(tensor.nbytes for tensor in computed) / 1e6,
        "MB of their weights": sum(parameter.nbytes for parameter in weights) / 1e6,
        "MB of K' and V', as published": each * published["tokens"],
        "MB of their weights, as published": each * published["context"],
    }


def summarise(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, quartiles and paired ratios."""
    pairs = [(OURS, NONE), (OURS, THEIRS), (THEIRS, NONE)]
    return {
        "milliseconds per step": {
            name: quartiles([1000 * s for s in values]) for name, values in seconds.items()
        },
        **{
            f"{one}/{other}": quartiles(ratios(seconds[one], seconds[other]))
            for one, other in pairs
            if one in seconds and other in seconds
        },
    }


def ratios(ours: list[float], others: list[float]) -> list[float]:
    """Round by round."""
    return [one / other for one, other in zip(ours, others, strict=True)]


def quartiles(values: list[float]) -> dict[str, float]:
    """The median, and where the middle half lies."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values * 3
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def print_table(result: dict[str, Any]) -> None:
    """The result for people."""
    run = f"{result['rounds']} rounds of {result['steps']} steps, {result['threads']} threads"
    title = f"{result['model']} model, {run}, {result['clock']} time"
    table = Table("", "median", "middle half", title=title, title_justify="left")
    rows = {f"{name}, ms per step": row for name, row in result["milliseconds per step"].items()}
    for name, row in (rows | {name: result[name] for name in result if "/" in name}).items():
        table.add_row(name, f"{row['median']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}")
    for name in (name for name in result if name.startswith("MB")):
        table.add_row(name, f"{result[name]:.1f}", "")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
