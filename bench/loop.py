"""Seconds of a denoising step in every way that imprompt computes it, beside diffusers with its own adapter.

    python bench/loop.py [--base mini sd15] [--ways WAY ...] [--quick] [--rounds N] [--threads N]
                         [--clock cpu] [--output FILE]

Two bases: the embedded one, and Stable Diffusion 1.5 in its true shapes with random weights (512 px; speed
does not depend on the values). One prompt, one image prompt, guidance on: a batch of two. The ways:

    diffusers           its own IP-Adapter, float32: its default on a CPU
    exact               imprompt's default, float32
    medium              the same with torch.set_float32_matmul_precision("medium")
    auto                `--dtype auto`: the number format and layout that this machine computes fastest
    bfloat16            `--dtype bfloat16`, PyTorch's usual layout
    openvino            `--backend openvino`, float32
    openvino bfloat16   `--backend openvino --dtype bfloat16`

The ways take turns in one process, and a way's ratio is the median over the rounds of that round's ratio to
diffusers' and to the exact way's. The differences are from the exact way's output in the same call. OpenVINO
converts and compiles each base before anything is timed; those seconds are printed too. Stable Diffusion 1.5
needs 16 GB of memory, and half with fewer `--ways`. On a busy machine, `--clock cpu` counts processor time;
`--quick` runs two rounds.
"""

import argparse
import copy
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from imprompt import accelerate, mini
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.backends.acceleration import measure_difference
from imprompt.generation.base_parts import arrange_for_speed
from imprompt.projection import LinearProjection
from imprompt.runtime.environment import describe_environment
from imprompt.runtime.precision import DTYPES, choose_computation

sys.path.append(str(Path(__file__).parent))

from attention_overhead import official  # pyright: ignore[reportMissingImports]
from true_sizes import SD15, build_parts, materialize  # pyright: ignore[reportMissingImports]

DIFFUSERS, EXACT, MEDIUM, AUTO, BFLOAT16 = "diffusers", "exact", "medium", "auto", "bfloat16"
OPENVINO, OPENVINO_BFLOAT16 = "openvino", "openvino bfloat16"
WAYS = (DIFFUSERS, EXACT, MEDIUM, AUTO, BFLOAT16, OPENVINO, OPENVINO_BFLOAT16)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Base(NamedTuple):
    """A U-Net, an adapter that fits it, and the arguments of one call with guidance."""

    unet: Any
    adapter: ImagePromptAdapter
    sample: Tensor
    text: Tensor
    embedding: Tensor
    calls: int
    """How many calls are one measurement."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    rounds = 2 if options.quick else options.rounds
    result: dict[str, Any] = {
        "environment": describe_environment(),
        "clock": options.clock,
        "rounds": rounds,
        "auto": choose_computation().describe(),
        "bases": {},
    }
    for name in options.base:
        figures = measure(BASES[name](), options.ways, rounds, CLOCKS[options.clock])
        result["bases"][name] = figures
        print_table(name, figures)
        gc.collect()
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", nargs="+", choices=BASES, default=[*BASES])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser.parse_args(arguments)


def load_mini() -> Base:
    """The embedded base and its adapter."""
    unet: Any = mini.pipeline().unet
    side, channels = unet.config.sample_size, unet.config.in_channels
    return make_base(unet, mini.adapter(), (2, channels, side, side), 40, calls=20)


def load_sd15() -> Base:
    """Stable Diffusion 1.5 and an adapter for it, in their true shapes with random weights."""
    unet = build_parts(SD15).unet
    with torch.device("meta"):
        adapter = ImagePromptAdapter.for_unet(unet, LinearProjection(1024, 768, 4))
    return make_base(materialize(unet), materialize(adapter), (2, 4, 64, 64), 77, calls=1)


def make_base(
    unet: Any, adapter: ImagePromptAdapter, shape: tuple[int, ...], tokens: int, calls: int
) -> Base:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(shape, generator=generator)
    text = torch.randn(2, tokens, unet.config.cross_attention_dim, generator=generator)
    embedding = torch.randn(1, adapter.projection.takes["image_embedding"], generator=generator)
    return Base(unet.eval(), adapter.float(), sample, text, embedding, calls)


BASES = {"mini": load_mini, "sd15": load_sd15}


@torch.no_grad()
def measure(base: Base, ways: Sequence[str], rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Time every way in turns.

    Returns:
        way → seconds of a step, ratios to diffusers and to the exact way, difference from the exact way,
        seconds to prepare
    """
    with ExitStack() as stack:
        prepared, seconds, outputs = {}, {}, {}
        for way in ways:
            start = clock()
            prepared[way] = prepare(way, base, stack)
            outputs[way] = prepared[way]()  # compiles, and warms up
            seconds[way] = clock() - start
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds):
            for way in [*ways[number % len(ways) :], *ways[: number % len(ways)]]:
                start = clock()
                for _ in range(base.calls):
                    prepared[way]()
                times[way].append((clock() - start) / base.calls)
    return {
        way: {
            "seconds": round(statistics.median(times[way]), 5),
            "times as fast as diffusers": ratio(times, DIFFUSERS, way),
            "times as fast as exact": ratio(times, EXACT, way),
            "difference": measure_difference(outputs[way], outputs[EXACT]) if EXACT in ways else None,
            "seconds to prepare": round(seconds[way], 1),
        }
        for way in ways
    }


def prepare(way: str, base: Base, stack: ExitStack) -> Callable[[], Tensor]:
    """Return the call of the U-Net in one way, on a U-Net of its own."""
    if way == DIFFUSERS:
        return prepare_diffusers(base)
    unet, dtype = build_unet(base.unet, way)
    if way in (OPENVINO, OPENVINO_BFLOAT16):
        accelerate(unet, dtype=way.partition(" ")[2] or "float32")
    adapter = copy.copy(base.adapter)
    stack.enter_context(adapter.attach(unet))
    stack.enter_context(adapter.use(base.embedding, branches=("negative", "positive")))
    sample, text = base.sample.to(dtype), base.text.to(dtype)

    def call() -> Tensor:
        torch.set_float32_matmul_precision("medium" if way == MEDIUM else "highest")
        try:
            return unet(sample, 500, text).sample
        finally:
            torch.set_float32_matmul_precision("highest")

    return call


def build_unet(unet: Any, way: str) -> tuple[Any, torch.dtype]:
    """Copy a U-Net for one way; in float32 the copies share their weights."""
    choice = choose_computation()
    dtype = {BFLOAT16: torch.bfloat16, AUTO: DTYPES[choice.precision]}.get(way, torch.float32)
    if way not in (BFLOAT16, AUTO):
        return copy.deepcopy(unet, {id(one): one for one in unet.parameters()}), dtype
    copied = copy.deepcopy(unet).to(dtype)
    if way == AUTO:
        arrange_for_speed(SimpleNamespace(unet=copied, vae=torch.nn.Identity()), choice)
    return copied, dtype


def prepare_diffusers(base: Base) -> Callable[[], Tensor]:
    """Return the call with diffusers' own adapter, of the same weights."""
    unet, _ = build_unet(base.unet, DIFFUSERS)
    unet._load_ip_adapter_weights([official(base.adapter)], low_cpu_mem_usage=False)
    pictures = [torch.cat([torch.zeros_like(base.embedding), base.embedding])[:, None]]
    return lambda: unet(base.sample, 500, base.text, added_cond_kwargs={"image_embeds": pictures}).sample


def ratio(times: dict[str, list[float]], slower: str, way: str) -> float | None:
    """The median over the rounds of how many times as fast a way is."""
    if slower not in times:
        return None
    return round(statistics.median(a / b for a, b in zip(times[slower], times[way], strict=True)), 2)


def print_table(name: str, figures: dict[str, dict[str, Any]]) -> None:
    """The figures of one base for people."""
    titles = list(next(iter(figures.values())))
    table = Table("", *titles, title=name, title_justify="left")
    for way, row in figures.items():
        table.add_row(way, *("" if value is None else f"{value:.3g}" for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
