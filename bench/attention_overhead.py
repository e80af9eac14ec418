"""Seconds per denoising step with no adapter, with ours, and with diffusers' own, interleaved in one run.

    python bench/attention_overhead.py [--weights FOLDER] [--steps N] [--rounds N] [--clock cpu] [--json]

One prompt, one image prompt, guidance on: a batch of two. Each round runs the three one after another, in an
order that moves on from round to round, so that a busy machine disturbs all alike; a step's time is taken
between the callbacks of the first and the last step. Ratios are medians over rounds of that round's ratio.
Without the embedded model's weights the tests' tiny random model takes its place: there fixed costs weigh
most. On a machine that is busy otherwise, `--clock cpu` counts processor time instead of the clock's.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from imprompt import mini
from imprompt.adapter.module import ImagePromptAdapter

NONE, OURS, THEIRS = "none", "ours", "diffusers"
GUIDANCE = 4.0
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Arm(NamedTuple):
    """A pipeline, what is entered before it runs, and what it is called with."""

    pipe: Any
    prepared: Callable[[], AbstractContextManager[object]]
    arguments: dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, default=mini.WEIGHTS, help="folder of the embedded model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    is_there = (options.weights / "adapter").is_dir()
    pipe, adapter = embedded(options.weights) if is_there else tiny_models()
    seconds = measure(pipe, adapter, steps=options.steps, rounds=options.rounds, clock=options.clock)
    result = {
        "model": "embedded" if is_there else "tiny random",
        "steps": options.steps,
        "rounds": options.rounds,
        "threads": options.threads,
        "clock": options.clock,
        **summarise(seconds),
    }
    print(json.dumps(result, indent=1)) if options.json else print_table(result)
    return 0


def embedded(weights: Path) -> tuple[Any, ImagePromptAdapter]:
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
    pipe: Any, adapter: ImagePromptAdapter, *, steps: int = 20, rounds: int = 15, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds per step of each arm, one figure per round; the first round warms up and is not counted.

    Args:
        pipe: a Stable Diffusion pipeline without an adapter
        adapter: ours, with the weights that both adapters have
        steps: at least 2 to a run
        rounds: how often each arm runs
        clock: one of `CLOCKS`
    """
    contestants = arms(pipe, adapter)
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names[number % 3 :] + names[: number % 3]:
            taken = seconds_per_step(contestants[name], steps, clock)
            if number:
                seconds[name].append(taken)
    return seconds


def arms(pipe: Any, adapter: ImagePromptAdapter) -> dict[str, Arm]:
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

    return {
        NONE: Arm(pipe, nullcontext, {}),
        OURS: Arm(pipe, ours, {}),
        THEIRS: Arm(theirs, nullcontext, {"ip_adapter_image_embeds": [guided]}),
    }


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


def summarise(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, quartiles and paired ratios."""
    return {
        "milliseconds per step": {
            name: quartiles([1000 * s for s in values]) for name, values in seconds.items()
        },
        "ours/none": quartiles(ratios(seconds[OURS], seconds[NONE])),
        "ours/diffusers": quartiles(ratios(seconds[OURS], seconds[THEIRS])),
        "diffusers/none": quartiles(ratios(seconds[THEIRS], seconds[NONE])),
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
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
