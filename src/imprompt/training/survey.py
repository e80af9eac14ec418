"""`imprompt train --check`: examine the data and estimate what the run will need, before any work."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import AutoTokenizer

from imprompt import mini
from imprompt.errors import ImageError, ImpromptError
from imprompt.inputs.image import decode_image
from imprompt.runtime.devices import choose_device
from imprompt.runtime.foreign_models import is_embedded
from imprompt.training.config import TrainingConfig
from imprompt.training.estimates import (
    Work,
    count_work,
    estimate_memory,
    estimate_sample_bytes,
    measure_speed,
    read_shapes,
)
from imprompt.training.presets import PRESETS
from imprompt.training.samples import Part, Sample, Unreadable, open_source
from imprompt.training.targets import Size, make_mask, plan_crop
from imprompt.training.variants import FACES

MAX_EXAMINED = 20_000
"""Largest number of samples to examine; of more, evenly spread parts are read."""

PART_SIZE = 256
FEW = 1_000
"""Fewer samples than these do not train new weights; a trained adapter is the better start."""

MAX_NAMED_FAULTS = 10
"""Number of damaged samples that are named."""


@dataclass
class Survey:
    """Result of examining the data.

    Attributes:
        source: the data source
        count: number of samples
        looked_at: samples that were read and decoded
        faults: unusable samples with the reasons
        sizes: width and height of the images → their number
        enlarged: number of images smaller than their target
        buckets: size of the target → number
        without_caption: number of empty captions
        cut_captions: number of captions too long for the text encoder; None without its tokenizer
        references: images to use as prompts, without the targets
        masks: number of samples with a mask
        without_face: number of samples without a face embedding
        duplicates: number of samples equal to an earlier one
        estimates: name of a resource → words
    """

    source: str
    count: int = 0
    examined: int = 0
    faults: list[Unreadable] = field(default_factory=list)
    sizes: Counter[Size] = field(default_factory=Counter)
    enlarged: int = 0
    buckets: Counter[Size] = field(default_factory=Counter)
    without_caption: int = 0
    cut_captions: int | None = None
    references: int = 0
    masks: int = 0
    without_face: int = 0
    duplicates: int = 0
    estimates: dict[str, str] = field(default_factory=dict)


def survey_data(config: TrainingConfig, on_progress: Callable[[int, int], None] | None = None) -> Survey:
    """Read and decode the data, or an even share of it, and estimate what the run will need.

    Args:
        config: the run
        on_progress: called with the number of examined samples and of samples to examine

    Raises:
        DataError: the source cannot be opened
        MissingExtra: a package for this source is not installed
    """
    parts = open_source(config.data.source, config.data, PART_SIZE)
    result = Survey(config.data.source, count=sum(map(len, parts)))
    examined_parts = _spread(parts)
    total = sum(map(len, examined_parts))
    tokenizer = _tokenizer(config)
    result.cut_captions = None if tokenizer is None else 0
    known_keys: set[int] = set()
    for sample in (sample for part in examined_parts for sample in part.samples()):
        result.examined += 1
        fault = sample if isinstance(sample, Unreadable) else _examine(sample, config, result)
        if fault is not None:
            result.faults.append(fault)
        elif isinstance(sample, Sample):
            _count(sample, result, known_keys, tokenizer)
        if on_progress is not None:
            on_progress(result.examined, total)
    result.estimates = dict(_estimates(config, result))
    return result


def _spread(parts: Sequence[Part]) -> list[Part]:
    """Return parts with about `MAX_EXAMINED` samples, evenly spaced, the first and the last included."""
    wanted = max(2, MAX_EXAMINED // PART_SIZE)
    if len(parts) <= wanted:
        return list(parts)
    return [parts[round(number * (len(parts) - 1) / (wanted - 1))] for number in range(wanted)]


def _examine(sample: Sample, config: TrainingConfig, result: Survey) -> Unreadable | None:
    """Decode every image of a sample as the cache will, and note its size."""
    try:
        picture = decode_image(sample.image, "the picture")
        window = plan_crop(picture.size, config.data)
        for reference in sample.references:
            decode_image(reference, "a reference")
        if sample.mask is not None:
            make_mask(decode_image(sample.mask, "the mask"), picture.size, config.data)
    except ImageError as error:
        return Unreadable(sample.name, str(error))
    if config.adapter.variant in FACES and sample.face is None:
        result.without_face += 1
    result.sizes[picture.size] += 1
    result.buckets[window.target] += 1
    result.enlarged += window.resized[0] > picture.width
    return None


def _count(sample: Sample, result: Survey, known_keys: set[int], tokenizer: Any) -> None:
    key = int.from_bytes(sample.key[:8])  # enough of it: two of 20,000 are alike once in 10¹¹ times
    result.duplicates += key in known_keys
    known_keys.add(key)
    result.without_caption += not sample.text
    result.references += len(sample.references)
    result.masks += sample.mask is not None
    if tokenizer is not None and result.cut_captions is not None:
        tokens = tokenizer(sample.text, verbose=False)["input_ids"]
        result.cut_captions += len(tokens) > tokenizer.model_max_length


def _tokenizer(config: TrainingConfig) -> Any:
    """Load the first tokenizer of the base; return None if it is not on this machine."""
    model = config.base.model
    folder = str(mini.WEIGHTS / "base") if is_embedded(model) else model
    try:
        return AutoTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
    except Exception:  # a foreign folder: this may fail in any way, and the count of long captions is no need
        return None


def _estimates(config: TrainingConfig, result: Survey) -> Iterator[tuple[str, str]]:
    """Yield what the run will need; if files of the base cannot be read, yield why."""
    training = config.training
    samples = training.steps * training.batch_size
    usable = max(1, result.count - round(len(result.faults) / max(1, result.examined) * result.count))
    yield (
        "training",
        f"{training.steps:,} steps of {training.batch_size} samples: {samples / usable:.3g} times the data",
    )
    if usable < FEW and not config.adapter.start:
        yield "advice", _advise_start(config.preset)
    try:
        shapes = read_shapes(config)
        work = count_work(config, shapes)
    except ImpromptError as error:
        yield "memory, time", f"not known: {error}"
        return
    per_target = (
        1 if not result.references else max(1, result.references / max(1, sum(result.sizes.values())))
    )
    per_sample = estimate_sample_bytes(config, shapes, references=per_target)
    yield "cache", f"{size_in_words(per_sample * usable)}: {size_in_words(per_sample)} a sample"
    yield from _work_in_words(config, work)


def _advise_start(preset: str) -> str:
    """Say how to start from a trained adapter, because the samples are few."""
    name = f"{preset}-fine-tune"
    start = f'preset = "{name}"' if name in PRESETS else "adapter.start"
    return f"fewer than {FEW:,} samples train new weights badly; start from a trained adapter ({start})"


def _work_in_words(config: TrainingConfig, work: Work) -> Iterator[tuple[str, str]]:
    """Describe memory and time on the device of this machine."""
    training, device = config.training, choose_device().type
    memory = size_in_words(estimate_memory(config, work, on_cpu=device == "cpu"))
    less = "; less with gradient checkpointing" if training.gradient_checkpointing else ""
    yield (
        "memory",
        f"{memory} for {_parts_in_words(config, work)} and a pass of "
        f"{training.batch_size // training.passes}{less}; the encoders and the projection come on top",
    )
    speed = measure_speed(device)
    least = time_in_words(work.operations * training.steps * training.batch_size / speed)
    yield (
        "time",
        f"at least {least} on this machine's {device.upper()}, at the {speed / 1e9:,.0f} GFLOP/s that a "
        "matrix product reaches now; the cache comes on top",
    )


def _parts_in_words(config: TrainingConfig, work: Work) -> str:
    denoiser = "the U-Net" if config.adapter.injection == "unet" else "the transformer"
    if not work.frozen:
        return f"{denoiser}, all of it trained ({work.trained:,} parameters),"
    layers = f", K' and V' ({work.trained:,})" if work.trained else ""
    return f"{denoiser} ({work.frozen:,} parameters){layers}"


def size_in_words(size: float | int) -> str:
    """Write a number of bytes in a unit that leaves few digits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def time_in_words(seconds: float | int) -> str:
    """Write a number of seconds in a unit that leaves few digits."""
    for unit, length in (("seconds", 60), ("minutes", 60), ("hours", 48)):
        if seconds < length:
            return f"{seconds:.2g} {unit}"
        seconds /= 60 if unit != "hours" else 24
    return f"{seconds:.2g} days"


def print_survey(result: Survey, console: Console | None = None) -> None:
    """Print the result as a table, followed by the first faults."""
    console = console or Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (*_facts(result), *result.estimates.items()):
        table.add_row(name, escape(value))
    console.print(table)
    for fault in result.faults[:MAX_NAMED_FAULTS]:
        console.print(f"[red]cannot be used[/red] {escape(fault.name)}: {escape(fault.reason)}")
    if len(result.faults) > MAX_NAMED_FAULTS:
        console.print(f"and {len(result.faults) - MAX_NAMED_FAULTS:,} more")


def _facts(result: Survey) -> Iterator[tuple[str, str]]:
    part = "" if result.examined == result.count else f"; looked at {result.examined:,}, evenly spread"
    yield "source", result.source
    yield "samples", f"{result.count:,}{part}"
    share = len(result.faults) / max(1, result.examined)
    yield "unusable", f"{len(result.faults):,} ({share:.2%}; above 1 % training stops)"
    yield "sizes", _sizes(result.sizes)
    yield "targets", ", ".join(f"{w} × {h}: {n:,}" for (w, h), n in sorted(result.buckets.items()))
    counts = {
        "enlarged": result.enlarged,
        "empty captions": result.without_caption,
        "captions cut off": result.cut_captions,
        "equal to others": result.duplicates,
        "without a face embedding": result.without_face,
        "references": result.references,
        "masks": result.masks,
    }
    for name, count in counts.items():
        if count is None:
            yield name, "not counted: the base's tokenizer is not here"
        elif count:
            yield name, f"{count:,}"


def _sizes(sizes: Counter[Size]) -> str:
    if not sizes:
        return "none could be read"
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    smallest, largest = (f"{width} × {height}" for width, height in (ordered[0], ordered[-1]))
    return smallest if len(ordered) == 1 else f"{smallest} to {largest}, {len(ordered):,} different ones"
