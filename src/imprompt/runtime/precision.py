"""Which number format a machine trains fastest in, found by trying.

A CPU with avx512_bf16 or AMX multiplies bfloat16 up to four times as fast as float32; one without them
emulates bfloat16 and is hundreds of times slower. A flag does not tell how much either is worth, so a small
network is timed.
"""

import time
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16", "fp16"]
"""A number format for products."""

WORTHWHILE = 1.15
"""bfloat16 is chosen if it is at least so many times as fast: less is not worth its rounding."""

HOPELESS = 3.0
"""If bfloat16 takes so many times as long on a layer of microseconds, nothing larger is tried."""

ROUNDS = 4
"""How often each format is timed, in turns; the fastest time counts. The first one warms up."""


class TrialTimes(NamedTuple):
    """Seconds that one forward and backward pass of the same layers takes in each format."""

    fp32: float
    bf16: float

    @property
    def speedup(self) -> float:
        """How many times as fast bfloat16 is."""
        return self.fp32 / self.bf16


@cache
def fastest_precision(device: str = "cpu") -> Precision:
    """The format in which models train fastest on a device; measured once per process, in about 0.2 s.

    Args:
        device: "cpu", or anything that torch takes as a device; a GPU is asked, not timed
    """
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if torch.device(device).type != "cpu":
        return "fp32"
    return "bf16" if measure_precisions().speedup >= WORTHWHILE else "fp32"


def resolve_precision(wanted: Precision | Literal["auto"], device: str = "cpu") -> Precision:
    """The format that a setting means on a device: "auto" is the fastest, anything else is taken as it is."""
    return fastest_precision(device) if wanted == "auto" else wanted


def measure_precisions() -> TrialTimes:
    """Time one block of convolutions and products in float32 and under bfloat16 autocast, on the CPU."""
    tiny = time_block(width=32, size=4)
    if tiny.bf16 > HOPELESS * tiny.fp32:
        return tiny
    return time_block(width=96, size=16)


def time_block(*, width: int, size: int) -> TrialTimes:
    """The fastest of `ROUNDS` steps of a block with `width` channels on pictures of `size` × `size`."""
    generator = torch.Generator().manual_seed(0)
    block = build_block(width, size)
    pixels = torch.randn(4, width, size, size, generator=generator)
    times = [[time_step(block, pixels, narrow=narrow) for narrow in (False, True)] for _ in range(ROUNDS)]
    wide, narrow = (min(column) for column in zip(*times[1:], strict=True))
    return TrialTimes(wide, narrow)


def build_block(width: int, size: int) -> nn.Module:
    """Two convolutions, and a linear layer over the places of each channel."""
    convolutions = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
    block = nn.Sequential(*convolutions, nn.Flatten(2), nn.Linear(size**2, 4 * size**2))
    return block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def time_step(block: nn.Module, pixels: Tensor, *, narrow: bool) -> float:
    """Seconds of one forward and backward pass."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        loss = block(pixels).float().square().mean()
    loss.backward()
    return time.perf_counter() - start
