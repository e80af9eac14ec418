"""The number format in which a machine trains fastest, found by timing.

A CPU with avx512_bf16 or AMX multiplies bfloat16 up to four times as fast as float32. A CPU without them
emulates bfloat16 and is hundreds of times slower. CPU flags do not reveal the speed, so a small network is
timed.
"""

import time
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from imprompt.runtime.machine import write_precision

Precision = Literal["fp32", "bf16", "fp16"]
"""A number format of matrix products."""

WORTHWHILE = 1.15
"""The speedup from which on bfloat16 is chosen: a smaller one is not worth the rounding."""

HOPELESS = 3.0
"""The slowdown on a tiny layer from which on no larger layer is timed."""

ROUNDS = 4
"""Number of timings of each format, in turns. The first is a warm-up; the fastest of the others counts."""


class TrialTimes(NamedTuple):
    """Seconds of one forward and backward pass of the same layers in each format."""

    fp32: float
    bf16: float

    @property
    def speedup(self) -> float:
        """The speed of bfloat16 relative to float32."""
        return self.fp32 / self.bf16


@cache
def find_fastest_precision(device: str = "cpu") -> Precision:
    """Return the format in which models train fastest on a device; measured once per process, in 0.2 s.

    The result is also recorded for `imprompt --version`.

    Args:
        device: any device of torch; a GPU is queried, not timed
    """
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if torch.device(device).type != "cpu":
        return "fp32"
    speedup = measure_precisions().speedup
    fastest: Precision = "bf16" if speedup >= WORTHWHILE else "fp32"
    write_precision(fastest, speedup)
    return fastest


def resolve_precision(setting: Precision | Literal["auto"], device: str = "cpu") -> Precision:
    """Return the format of a setting on a device: the fastest for "auto", else the setting itself."""
    return find_fastest_precision(device) if setting == "auto" else setting


def measure_precisions() -> TrialTimes:
    """Time one block of convolutions and products in float32 and under bfloat16 autocast, on the CPU."""
    tiny = time_block(width=32, size=4)
    if tiny.bf16 > HOPELESS * tiny.fp32:
        return tiny
    return time_block(width=96, size=16)


def time_block(*, width: int, size: int) -> TrialTimes:
    """Time a block with `width` channels on pictures of `size` × `size`; return the fastest steps."""
    generator = torch.Generator().manual_seed(0)
    block = build_block(width, size)
    pixels = torch.randn(4, width, size, size, generator=generator)
    times = [[time_step(block, pixels, narrow=narrow) for narrow in (False, True)] for _ in range(ROUNDS)]
    wide, narrow = (min(column) for column in zip(*times[1:], strict=True))
    return TrialTimes(wide, narrow)


def build_block(width: int, size: int) -> nn.Module:
    """Build two convolutions, and a linear layer over the positions of each channel."""
    convolutions = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
    block = nn.Sequential(*convolutions, nn.Flatten(2), nn.Linear(size**2, 4 * size**2))
    return block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def time_step(block: nn.Module, pixels: Tensor, *, narrow: bool) -> float:
    """Return the seconds of one forward and backward pass."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        loss = block(pixels).float().square().mean()
    loss.backward()
    return time.perf_counter() - start
