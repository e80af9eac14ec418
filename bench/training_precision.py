"""Pictures per second of a training step in float32 and in bfloat16, and how far their gradients differ.

    python bench/training_precision.py [--batch N] [--rounds N] [--threads N] [--json]

The model is the embedded base's U-Net (19 M weights) with random weights, trained as `imprompt mini train
base` trains it, without torch.compile: what bfloat16 is worth on this machine. Each round times both formats
one after the other; figures are medians, the ratio is the median of the rounds' ratios. "chosen" is what the
trainer's `precision = "auto"` takes here, by a measurement of its own.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from imprompt.lab.making.objectives.base import build_scheduler, build_unet, velocity_error
from imprompt.lab.making.recipe import parse_recipe
from imprompt.runtime.precision import find_fastest_precision

LATENTS = (48, 8, 8)
TEXT = (40, 192)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    recipe: Any = parse_recipe({"stage": "base", "steps": 1}, "this benchmark")
    unet = build_unet(recipe, LATENTS[0], TEXT[1], sample_size=LATENTS[1])
    unet.set_attn_processor(AttnProcessor())
    batch = build_batch(options.batch)
    exact, narrow = (gradients(unet, batch, is_narrow) for is_narrow in (False, True))
    rounds = [
        [time_step(unet, batch, is_narrow) for is_narrow in (False, True)] for _ in range(options.rounds)
    ]
    figures = summarize(rounds, options.batch) | agreement(exact, narrow)
    figures |= {"threads": options.threads, "chosen": find_fastest_precision()}
    print(
        json.dumps(figures, indent=1)
        if options.json
        else "\n".join(f"{k:32} {v}" for k, v in figures.items())
    )
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def build_batch(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(count, *LATENTS, generator=generator),
        "noise": torch.randn(count, *LATENTS, generator=generator),
        "timesteps": torch.randint(0, 1000, (count,), generator=generator),
        "text_embeddings": torch.randn(count, *TEXT, generator=generator),
    }


def take_step(unet: Any, batch: dict[str, Tensor], narrow: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        loss = velocity_error(unet, build_scheduler(), **batch)
    loss.backward()


def time_step(unet: Any, batch: dict[str, Tensor], narrow: bool) -> float:
    start = time.perf_counter()
    take_step(unet, batch, narrow)
    return time.perf_counter() - start


def gradients(unet: Any, batch: dict[str, Tensor], narrow: bool) -> Tensor:
    unet.zero_grad(set_to_none=True)
    take_step(unet, batch, narrow)
    return torch.cat([weight.grad.flatten() for weight in unet.parameters() if weight.grad is not None])


def summarize(rounds: Sequence[Sequence[float]], batch: int) -> dict[str, float]:
    wide, narrow = zip(*rounds, strict=True)
    ratio = statistics.median(one / other for one, other in rounds)
    return {
        "float32, pictures/s": round(batch / statistics.median(wide), 1),
        "bfloat16, pictures/s": round(batch / statistics.median(narrow), 1),
        "bfloat16 / float32": round(ratio, 2),
    }


def agreement(exact: Tensor, narrow: Tensor) -> dict[str, float]:
    # Sums over 19 M numbers: in float32 a cosine came out above 1.
    exact, narrow = exact.double(), narrow.double()
    cosine = torch.nn.functional.cosine_similarity(exact, narrow, dim=0)
    return {
        "cosine of the gradients": round(float(cosine), 6),
        "norm of their difference": round(float((exact - narrow).norm() / exact.norm()), 4),
    }


if __name__ == "__main__":
    raise SystemExit(main())
