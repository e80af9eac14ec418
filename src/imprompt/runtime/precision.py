"""How this machine computes fastest, found by timing: the number format, and the layout in memory.

A CPU with avx512_bf16 or AMX multiplies bfloat16 up to four times as fast as float32. A CPU without them
emulates bfloat16 and is hundreds of times slower. CPU flags say whether there are such instructions, but not
what they are worth, so some layers are timed. Other programs disturb a timing: every way is timed in turns
with the others, in processor time, and its fastest round counts. The result is kept for this processor and
this version of torch.
"""

import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from imprompt.runtime.chunked_attention import attend_in_chunks
from imprompt.runtime.machine import ComputeChoice, Precision, read_choice, read_cpu_flags, write_choice

WORTHWHILE = 1.15
"""The speedup from which on bfloat16 is chosen: a smaller one is not worth the rounding."""

EXPECTED = 1.0
"""The same on a CPU with AMX, which multiplies bfloat16 many times as fast: a timing that shows less than
WORTHWHILE there was disturbed."""

LAYOUT_GAIN = 1.03
"""The speedup from which on another layout, or chunked attention, is chosen."""

HOPELESS = 3.0
"""The slowdown on tiny layers from which on bfloat16 is not timed on larger ones."""

ROUNDS = 9
"""Number of timings of each way, in turns; the fastest counts."""

Times = Mapping[str, float]
"""The seconds of each way, by its name."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""torch's types of the number formats that are timed."""

_FLOAT32: ComputeChoice = ComputeChoice("fp32", channels_last=False, chunked_attention=False, speedup=1.0)


@cache
def choose_computation(device: str = "cpu") -> ComputeChoice:
    """Return how models compute fastest on a device; a CPU is timed once, in half a second.

    Remove `precision.json` from the cache (`IMPROMPT_CACHE`, or `~/.cache/imprompt`) to time it again.

    Args:
        device: any device of torch; a GPU is queried, not timed
    """
    if torch.device(device).type == "cuda":
        return _FLOAT32._replace(precision="bf16" if torch.cuda.is_bf16_supported() else "fp32")
    if torch.device(device).type != "cpu":
        return _FLOAT32
    choice = read_choice()
    if choice is None:
        choice = time_computation()
        write_choice(choice)
    return choice


def find_fastest_precision(device: str = "cpu") -> Precision:
    """Return the number format of `choose_computation`."""
    return choose_computation(device).precision


def resolve_precision(setting: Precision | Literal["auto"], device: str = "cpu") -> Precision:
    """Return the format of a setting on a device: the fastest for "auto", else the setting itself."""
    return find_fastest_precision(device) if setting == "auto" else setting


def time_computation() -> ComputeChoice:
    """Time layers of a U-Net in both formats and both layouts, then its attention, on the CPU."""
    tiny = time_layers(("fp32", "bf16"), width=32, size=4)
    is_hopeless = tiny["bf16"] > HOPELESS * tiny["fp32"]
    ways = [f"{precision}{layout}" for precision in ("fp32", "bf16") for layout in ("", " channels_last")]
    times = time_layers(ways[:2] if is_hopeless else ways, width=96, size=16)
    choice = choose_from(times, read_cpu_flags())
    attention = time_attention(choice.precision)
    is_chunked = attention["chunked"] * LAYOUT_GAIN < attention["fused"]
    return choice._replace(chunked_attention=is_chunked)


def choose_from(times: Times, flags: frozenset[str]) -> ComputeChoice:
    """Return the fastest format and layout, as far as their gains are worth it.

    Args:
        times: of "fp32", "fp32 channels_last" and so on; without bfloat16 where that is hopeless
        flags: the processor's; AMX promises a gain that one disturbed timing does not refute
    """
    layouts = {
        precision: min(
            (f"{precision} channels_last", precision), key=lambda way: times.get(way, float("inf"))
        )
        for precision in ("fp32", "bf16")
    }
    fp32, bf16 = (times.get(layouts[precision], float("inf")) for precision in ("fp32", "bf16"))
    needed = EXPECTED if "amx_bf16" in flags else WORTHWHILE
    precision: Precision = "bf16" if fp32 >= needed * bf16 else "fp32"
    is_last = times[precision] >= LAYOUT_GAIN * times[f"{precision} channels_last"]
    chosen = times[f"{precision} channels_last" if is_last else precision]
    return ComputeChoice(precision, is_last, False, round(times["fp32"] / chosen, 2))


@torch.no_grad()
def time_layers(ways: tuple[str, ...] | list[str], *, width: int, size: int) -> Times:
    """Time layers with `width` channels on pictures of `size` × `size`, in each way."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(2, width, size, size, generator=generator)
    calls: dict[str, Callable[[], Any]] = {}
    for way in ways:
        precision, _, layout = way.partition(" ")
        memory = torch.channels_last if layout else torch.contiguous_format
        layers: Any = build_layers(width).to(DTYPES[precision])
        layers.to(memory_format=memory)
        given = picture.to(DTYPES[precision]).contiguous(memory_format=memory)
        calls[way] = lambda layers=layers, given=given: layers(given)
    return time_in_turns(calls)


@torch.no_grad()
def time_attention(precision: Precision) -> Times:
    """Time PyTorch's "fused" attention and the "chunked" one, for 1024 queries of 8 heads."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 1, 1024, 8, 40, generator=generator).to(DTYPES[precision])
    query, key, value = tokens.transpose(2, 3)
    return time_in_turns(
        {
            "fused": lambda: F.scaled_dot_product_attention(query, key, value),
            "chunked": lambda: attend_in_chunks(query, key, value),
        }
    )


def time_in_turns(calls: Mapping[str, Callable[[], Any]]) -> Times:
    """Return the processor seconds of each call in its fastest round, after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: min(values[1:]) for name, values in times.items()}


class _PerPosition(nn.Module):
    """A feed-forward layer over the channels of every position, as in a transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        tokens = self.layers(picture.permute(0, 2, 3, 1).flatten(1, 2))
        return tokens.transpose(1, 2).unflatten(2, picture.shape[2:])


def build_layers(width: int) -> nn.Module:
    """Build what U-Nets consist of: norms, convolutions, and layers over the channels."""
    parts = [(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)) for _ in range(2)]
    return nn.Sequential(*parts[0], *parts[1], _PerPosition(width))
