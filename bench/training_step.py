"""Seconds per training sample: `imprompt train` against the official script's step, interleaved in one run.

    python bench/training_step.py [--model tiny|embedded|sd15] [--size N] [--batch N] [--rounds N] [--json]
    python bench/training_step.py --model sd15 --batch 8 --steps 10 --rounds 10        on a GPU

The reference (`reference_step.py`) puts pictures through the frozen encoders at every step; ours is the
trainer's own loop, on its cache. Both have the same frozen weights, samples and noise, and start from the
same trained weights, where their gradients must be equal: to 1e-5 of each weight's largest, in float32, or
to twice what the reference's own differ by when the same sums are taken in another order. With `--precision
bf16` both have a frozen base in bfloat16; then the cosine of our gradients with those in float32 is stated,
and how many times as fast our step is as the reference's in float32.

Each round runs the two one after the other, in turns; ratios are medians over rounds of that round's ratio.
"sd15" has the shapes of Stable Diffusion 1.5, CLIP ViT-H/14 and CLIP's text encoder with random weights, for
speed does not depend on them. On a machine that is busy otherwise, `--clock cpu` counts processor time
instead of the clock's.
"""

import argparse
import contextlib
import ctypes
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from reference_step import Reference
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from training_bases import CASES, Case, write_pictures

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.training.adapters import build_run
from imprompt.training.batch_order import BatchOrder
from imprompt.training.batches import PromptBatch, PromptBatches
from imprompt.training.config import TrainingConfig, parse_config
from imprompt.training.frozen_base import FrozenBase, hash_weights
from imprompt.training.loop import Run

REFERENCE, OURS = "reference", "ours"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TOLERANCE = 1e-5
"""How far a gradient may be from the reference's, as a share of the largest of its weight: rounding."""

PEAK = 790e12
"""Dense bfloat16 products of an H100, in FLOP/s, as measured; its data sheet says 989e12."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    results = [measure(name, options) for name in options.model or ["tiny", "embedded"]]
    print(json.dumps(results, indent=1)) if options.json else print_tables(results)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=CASES, action="append", help="may be given several times")
    for name in ("size", "batch", "steps", "rounds"):
        parser.add_argument(f"--{name}", type=int, help="another one than the model's own")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="by default bf16 where there is a GPU")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one base; gradients are compared in float32 in any case."""
    given = {key: value for key in Case._fields if (value := getattr(options, key, None)) is not None}
    case, device = CASES[name]._replace(**given), here()
    precision = options.precision or ("bf16" if device.type == "cuda" else "fp32")
    result = {"model": name, "device": device.type, "precision": precision, "threads": options.threads}
    result |= {"clock": options.clock, "size": case.size, "batch": case.batch, "rounds": case.rounds}
    with duel(case, "fp32") as pair:
        result |= compare(pair)
        if precision == "fp32":
            return result | time_steps(pair, case, options.clock, result["GFLOP"])
        exact = gradients_of_first_step(pair)
        step = {REFERENCE: both(pair, case)[REFERENCE]}
        slow = statistics.median(rounds(step, case, options.clock)[REFERENCE])
    with duel(case, precision) as pair:
        result["agreement with float32"] = agreement(gradients_of_first_step(pair), exact)
        result |= time_steps(pair, case, options.clock, result["GFLOP"])
    fast = result["seconds per sample"][OURS]["median"]
    return result | {"reference in float32/ours": slow / fast}


# The two


class Duel(NamedTuple):
    """Both trainers on one base, and what a step is made of: rows, and the draws of their randomness."""

    run: Run
    reference: Reference
    base: FrozenBase
    batches: PromptBatches

    def rows(self, step: int) -> list[int]:
        return self.batches.order.batch(step)

    def batch(self, step: int) -> PromptBatch:
        (batch,) = self.batches[step]
        return batch


@contextlib.contextmanager
def duel(case: Case, precision: str) -> Iterator[Duel]:
    """Pictures, cache, base, and both trainers at their beginning."""
    torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_pictures(Path(folder, "pictures"), case)
        config = configuration(case, precision, Path(folder))
        base = case.base(config, here())
        run = build_run(config, base)
        samples: Any = run.objective.samples
        order = BatchOrder(samples.buckets, config.training.batch_size, config.training.seed)
        reference = Reference(base, find_adapter(run), pictures, config)
        with contextlib.redirect_stderr(io.StringIO()), run.open_log():
            yield Duel(run, reference, base, PromptBatches(samples, order, config.loss))
        run.objective.mechanism.attachment.detach()  # pyright: ignore


def find_adapter(run: Run) -> ImagePromptAdapter:
    """What the run trains."""
    assert isinstance(run.objective.trained, ImagePromptAdapter)
    return run.objective.trained


def here() -> torch.device:
    """The device that the trainer finds, too."""
    return PartialState().device or torch.device("cpu")


def configuration(case: Case, precision: str, folder: Path) -> TrainingConfig:
    """The preset's, without what the reference has not: averaged weights, other times than uniform ones."""
    settings = {
        "preset": case.preset,
        "output": str(folder / "run"),
        "data": {"source": str(folder / "pictures"), "size": case.size, "held_out": 0.1},
        "cache": {"batch_size": min(case.batch, 8), "precision": "fp32" if precision == "fp32" else "fp16"},
        "loss": {"timesteps": "uniform"},
        "training": {
            "batch_size": case.batch,
            "precision": precision,
            "ema_decay": 0.0,
            **{f"{name}_every": 10**9 for name in ("save", "check", "sample")},
        },
    }
    return parse_config(settings, "bench")


# Figures


def compare(pair: Duel) -> dict[str, Any]:
    """Gradients of both on the first step's samples, and what computing them takes."""
    rows, batch, trained = pair.rows(0), pair.batch(0), find_adapter(pair.run)
    reference = pair.reference
    theirs_flop = count_flop(lambda: reference.differentiate(rows, batch.draws))
    theirs = taken(reference.trained)
    with in_another_order():
        reference.differentiate(rows, batch.draws)
    own = max(deviations(taken(reference.trained), theirs).values())
    ours_flop = count_flop(lambda: pair.run.objective.differentiate(batch, lambda loss: loss.backward()))
    found = deviations(taken(dict(trained.named_parameters())), theirs)
    check(found, max(TOLERANCE, 2 * own))
    return {
        "GFLOP": {REFERENCE: theirs_flop / len(rows) / 1e9, OURS: ours_flop / len(rows) / 1e9},
        "largest deviation of a gradient": {REFERENCE: own, OURS: max(found.values())},
    }


def gradients_of_first_step(pair: Duel) -> dict[str, Tensor]:
    """Our gradients on the first step's samples."""
    pair.run.objective.differentiate(pair.batch(0), lambda loss: loss.backward())
    return taken(dict(find_adapter(pair.run).named_parameters()))


def agreement(rounded: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, float]:
    """How far the directions of gradients in a narrow format are from those in float32.

    Returns:
        The cosine of all gradients as one vector, the lowest one of a weight, and the ratio of the norms.
    """
    pairs = {name: (rounded[name].double().flatten(), one.double().flatten()) for name, one in exact.items()}
    ours, theirs = (torch.cat([pair[side] for pair in pairs.values()]) for side in (0, 1))
    lowest = min(float(torch.cosine_similarity(*pair, dim=0)) for pair in pairs.values())
    return {
        "cosine": float(torch.cosine_similarity(ours, theirs, dim=0)),
        "lowest cosine of a weight": lowest,
        "norm, narrow/float32": float(ours.norm() / theirs.norm()),
    }


@contextlib.contextmanager
def in_another_order() -> Iterator[None]:
    """The same sums, in another order: on one thread, or else with attention written out."""
    threads = torch.get_num_threads()
    is_no_change = threads == 1 or here().type == "cuda"
    torch.set_num_threads(1)
    try:
        with sdpa_kernel(SDPBackend.MATH) if is_no_change else contextlib.nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)


def taken(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the gradients off the weights."""
    gradients = {}
    for name, weight in weights.items():
        assert weight.grad is not None, f"{name} has no gradient"
        gradients[name], weight.grad = weight.grad, None
    return gradients


def deviations(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """How far each gradient is from the reference's, as a share of its largest entry."""
    assert ours.keys() == theirs.keys()
    return {name: float((ours[name] - one).abs().max() / one.abs().max()) for name, one in theirs.items()}


def check(found: Mapping[str, float], tolerance: float) -> None:
    """Name a gradient that is another one.

    Raises:
        AssertionError: a deviation above `tolerance`, or none that is a number
    """
    for name, value in found.items():
        assert value <= tolerance, f"the gradient of {name} deviates by {value:.1e}"


def count_flop(work: Callable[[], object]) -> int:
    """FLOP of products and convolutions, and of attention on the CPU, which torch's counter leaves out."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, **more: sdpa_flop_count(
            q, k, v
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *rest, **more: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        work()
    return counter.get_total_flops()


def time_steps(pair: Duel, case: Case, clock: str, gflop: Mapping[str, float]) -> dict[str, Any]:
    """Seconds, memory, files; and that what is frozen stays so."""
    before = hash_weights(*pair.base.modules)
    steps = both(pair, case)
    seconds = rounds(steps, case, clock)
    memory = {name: peak_memory(step, pair.base.device) for name, step in steps.items()}
    pair.run.save()
    files = (file.stat().st_size for file in pair.run.checkpoints.folder.glob("*/*"))
    frozen = [weight for module in pair.base.modules for weight in module.parameters()]
    result = {
        "seconds per sample": {name: quartiles(values) for name, values in seconds.items()},
        "reference/ours": quartiles([a / b for a, b in zip(seconds[REFERENCE], seconds[OURS], strict=True)]),
        "MB per sample": {k: None if v is None else v / case.batch / 1e6 for k, v in memory.items()},
        "MB of a checkpoint": {REFERENCE: pair.reference.checkpoint_bytes() / 1e6, OURS: sum(files) / 1e6},
        "frozen weights unchanged": hash_weights(*pair.base.modules) == before,
        "frozen weights": before,
        "frozen weights with a gradient": sum(w.requires_grad or w.grad is not None for w in frozen),
    }
    if pair.base.device.type == "cuda":
        result["share of peak"] = {
            name: 1e9 * gflop[name] / statistics.median(values) / PEAK for name, values in seconds.items()
        }
    return result


def both(pair: Duel, case: Case) -> dict[str, Callable[[], None]]:
    """One step of each; the reference goes round in a few whose randomness is drawn beforehand."""
    plan = [(pair.rows(step), pair.batch(step).draws) for step in range(min(case.steps, 8))]
    place = iter(range(sys.maxsize))
    batches = pair.run.feed(range(pair.run.settings.steps))
    return {
        REFERENCE: lambda: pair.reference.step(*plan[next(place) % len(plan)]),
        OURS: lambda: pair.run.advance(batches),
    }


def rounds(steps: Mapping[str, Callable[[], None]], case: Case, clock: str) -> dict[str, list[float]]:
    """Seconds per sample of each, one figure per round; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(case.rounds + 1):
        for name in list(steps)[:: 1 if number % 2 else -1]:
            synchronize()
            begun = CLOCKS[clock]()
            for _ in range(case.steps):
                steps[name]()
            synchronize()
            if number:
                seconds[name].append((CLOCKS[clock]() - begun) / case.steps / case.batch)
    return seconds


def synchronize() -> None:
    if here().type == "cuda":
        torch.cuda.synchronize()


def peak_memory(step: Callable[[], None], device: torch.device) -> int | None:
    """Bytes that a step needs beyond what is there before it; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest resident size so far
        before = resident("VmRSS")
        step()
        return resident("VmHWM") - before
    except (OSError, AttributeError):
        return None


def resident(name: str) -> int:
    """Bytes, as Linux says."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


def quartiles(values: list[float]) -> dict[str, float]:
    """The median, and where the middle half lies."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values * 3
    return {"median": middle, "low": low, "high": high}


def print_tables(results: Sequence[Mapping[str, Any]]) -> None:
    """The results for people."""
    for result in results:
        about = f"{result['size']} px, batch {result['batch']}, {result['precision']} on {result['device']}"
        rest = f"{result['threads']} threads, {result['rounds']} rounds, {result['clock']} time"
        table = Table("", REFERENCE, OURS, "ratio", title=f"{result['model']}: {about}, {rest}")
        for row in table_rows(result):
            table.add_row(*row)
        Console(width=110).print(table)


def table_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    seconds = {name: value["median"] for name, value in result["seconds per sample"].items()}
    ratio = result["reference/ours"]
    spread = f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
    yield "seconds per sample", *(f"{seconds[name]:.4g}" for name in (REFERENCE, OURS)), spread
    yield "samples/s", *(f"{1 / seconds[name]:.4g}" for name in (REFERENCE, OURS)), ""
    for name in ("GFLOP", "MB per sample", "MB of a checkpoint", "share of peak"):
        if name in result:
            one, other = (result[name][side] for side in (REFERENCE, OURS))
            values = (f"{one:.4g}", f"{other:.4g}", f"{one / other:.2f}") if one and other else ("?", "?", "")
            yield f"{name} per sample" if name == "GFLOP" else name, *values
    if "agreement with float32" in result:
        same = result["agreement with float32"]
        cosines = f"{same['cosine']:.4f}, lowest {same['lowest cosine of a weight']:.4f}"
        yield "cosine of the gradients with float32's", "", cosines, ""
        yield "reference in float32 / ours", "", "", f"{result['reference in float32/ours']:.2f}"
    own, found = (result["largest deviation of a gradient"][side] for side in (REFERENCE, OURS))
    yield "largest deviation of a gradient", f"{own:.1e} from itself", f"{found:.1e}", ""
    same = "unchanged" if result["frozen weights unchanged"] else "CHANGED"
    yield f"frozen weights ({result['frozen weights'][:12]}…)", "", same, ""
    yield "frozen weights with a gradient", "", str(result["frozen weights with a gradient"]), ""


if __name__ == "__main__":
    sys.exit(main())
