"""`imprompt train`: configuration → frozen base → cache → adapter → run, and a file that generates."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import nn

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint import load_adapter
from imprompt.errors import ConfigError, OutputError
from imprompt.inputs.choices import Input
from imprompt.projection import (
    FacePlusProjection,
    FaceProjection,
    HiddenProjection,
    ImageProjection,
    LinearProjection,
    PatchProjection,
    PerceiverShape,
    ResamplerProjection,
    TimeResamplerProjection,
)
from imprompt.runtime.files import find_name_fault, shorten
from imprompt.runtime.output import make_folder
from imprompt.runtime.precision import find_fastest_precision
from imprompt.runtime.progress import show_running_total
from imprompt.runtime.settings import find_setting
from imprompt.training.batch_order import BatchOrder
from imprompt.training.batches import PromptBatch, PromptBatches, make_loader
from imprompt.training.cache import CachedSamples, LiveSamples, build_cache
from imprompt.training.config import AdapterSettings, TrainingConfig
from imprompt.training.frozen_base import FrozenBase, hash_weights, load_frozen_base
from imprompt.training.integrity import read_json, write_json
from imprompt.training.loop import Run
from imprompt.training.mechanisms import (
    MECHANISMS,
    DecoupledMechanism,
    Mechanism,
    PriorDecoderMechanism,
    ShuffledControlMechanism,
    StyleAdapterMechanism,
    StyleProjection,
    TimeProjection,
    UnclipMechanism,
    build_controlnet,
    build_prior_decoder,
    time_embedding_width,
)
from imprompt.training.objectives.cached_latents import LatentObjective
from imprompt.training.objectives.few_steps import FewStepObjective
from imprompt.training.objectives.image_prompting import ImagePromptObjective
from imprompt.training.ranks import broadcast_from_main, join_processes
from imprompt.training.samples import Unreadable
from imprompt.training.variants import TAKES, Variant
from imprompt.training.watching import write_card, write_page

CONFIG_FILE = "config.json"


def train_adapter(config: TrainingConfig, *, resume: bool = False) -> Path:
    """Train an adapter to its end, or until Ctrl-C or SIGTERM, which save first; return the run's folder.

    Args:
        config: the run
        resume: continue from the last checkpoint, if there is one

    Raises:
        ConfigError: a folder with checkpoints without `resume`, or with other settings
        DataError, UnknownModel, AdapterMismatch, OutputError, TrainingError: see these classes
    """
    processes, folder = join_processes(), Path(config.output)
    check_folder(config, resume)
    if config.training.batch_size % (processes.num_processes * config.training.passes):
        raise ConfigError(
            f"training.batch_size {config.training.batch_size} cannot be shared equally by "
            f"{processes.num_processes} processes in {config.training.passes} passes"
        )
    base = load_frozen_base(config, processes.device)
    run = build_run(config, base)
    frozen = list_frozen_modules(config, base)
    frozen_before = hash_weights(*frozen)
    if resume:
        run.resume()
    if processes.is_main_process:
        write_config(config, folder)
    try:
        finished = run.train()
    finally:
        if processes.is_main_process and (folder / "log.jsonl").exists():
            write_page(folder)
    if hash_weights(*frozen) != frozen_before:
        raise AssertionError("a frozen model has changed in training: a defect of imprompt")
    if finished and processes.is_main_process:
        write_card(folder)
    return folder


def list_frozen_modules(config: TrainingConfig, base: FrozenBase) -> list[nn.Module]:
    """Return every module that the run must leave unchanged."""
    changes = config.trains_base or config.distills
    return [one for one in base.modules if one is not base.denoiser or not changes]


def build_cache_only(config: TrainingConfig) -> str:
    """Build the cache and describe what it holds."""
    samples = open_samples(config, load_frozen_base(config, join_processes().device))
    held = f"{len(samples.train):,} samples to train on and {len(samples.held_out):,} held out"
    return "\n".join([f"{held} are in the cache", *samples.notes, *describe_skipped(samples.skipped)])


def open_samples(config: TrainingConfig, base: FrozenBase) -> CachedSamples | LiveSamples:
    """Return the run's samples; encode what the cache lacks, which may take long."""
    with show_running_total("caching") as progress:
        return build_cache(config, base, progress, check=join_processes().is_local_main_process)


def check_folder(config: TrainingConfig, resume: bool) -> None:
    """Refuse a folder in which this run would overwrite another one or mix with it.

    Raises:
        ConfigError: see `train_adapter`
        OutputError: no run can have a folder of that name
    """
    folder = Path(config.output)
    check_name(folder)
    has_checkpoints = any(folder.glob("checkpoints/[0-9]*"))
    if has_checkpoints and not resume:
        raise ConfigError(
            f"{folder} holds a run already: --resume latest goes on with it, another output begins a new one"
        )
    if has_checkpoints and (folder / CONFIG_FILE).exists():
        before = read_first_config(folder)
        now = dump_config(config)
        for key in FIXED_SETTINGS:
            if (old := find_setting(before, key)) != (new := find_setting(now, key)):
                raise ConfigError(
                    f"{key} was {old!r} when the run in {folder} began and is {new!r} now: put it back, or "
                    "begin another run"
                )


def check_name(folder: Path) -> None:
    """Refuse a name that the file system cannot hold or TensorBoard cannot write.

    Raises:
        OutputError: see above
    """
    fault = find_name_fault(folder)
    if not fault and any("\ud800" <= character <= "\udfff" for character in str(folder)):
        fault = "its name is not UTF-8, which TensorBoard needs; choose another"
    if fault:
        raise OutputError(f"{shorten(str(folder))} cannot be the folder of a run: {fault}")


def read_first_config(folder: Path) -> dict[str, Any]:
    """Return the settings with which the run began.

    Raises:
        ConfigError: their file is not as it was written
    """
    before = read_json(folder / CONFIG_FILE) or {}
    with contextlib.suppress(ValidationError):  # the file of something else
        adapter = AdapterSettings.model_validate(before.get("adapter"))  # an earlier version had fewer keys
        before["adapter"] = adapter.model_dump(mode="json")
        if all(find_setting(before, key) is not None for key in FIXED_SETTINGS):
            return before
    raise ConfigError(
        f"{folder / CONFIG_FILE} is not as it was written, so nothing tells whether these are the settings "
        "that the run began with; delete it to go on without that check"
    )


FIXED_SETTINGS = ("base.model", "adapter", "training.seed", "training.batch_size", "training.ema_decay")
"""Settings that a resumed run may not change."""


def dump_config(config: TrainingConfig) -> dict[str, Any]:
    """Return a configuration as JSON holds it."""
    return config.model_dump(mode="json")


def write_config(config: TrainingConfig, folder: Path) -> None:
    """Write the resolved configuration into the run's folder.

    Raises:
        OutputError: it cannot be written
    """
    write_json(make_folder(folder) / CONFIG_FILE, dump_config(config))


def build_run(config: TrainingConfig, base: FrozenBase) -> Run:
    """Build a run before its first step: the adapter is attached, the cache is complete.

    The adapter comes first, so that one that does not fit its base fails before days of caching.
    """
    processes, mechanism = join_processes(), build_mechanism(config, base)
    with processes.main_process_first():  # one builds the cache, the others find it there
        samples = open_samples(config, base)
    objective = build_objective(config, base, mechanism, samples)
    training = config.training
    if processes.device.type == "cpu" and training.precision in ("auto", "bf16"):
        objective.precision = broadcast_from_main(find_fastest_precision())
    batches = PromptBatches(
        samples,
        BatchOrder(samples.buckets, training.batch_size, training.seed),
        config.loss,
        passes=training.passes,
        rank=processes.process_index,
        processes=processes.num_processes,
    )

    def feed(steps: range) -> Iterator[list[PromptBatch]]:
        pin_memory = processes.device.type == "cuda"
        return iter(make_loader(batches, steps, workers=training.loader_workers, pin_memory=pin_memory))

    run = Run(
        training,
        objective,
        feed,
        Path(config.output),
        config=dump_config(config),
        wandb=config.watch.wandb,
        on_samples=write_page,
        notes=[
            *samples.notes,
            *describe_skipped(samples.skipped),
            *describe_precision(training.precision, objective.precision, processes.device.type),
        ],
        data={"train": len(samples.train), "held_out": len(samples.held_out), "digest": samples.digest},
    )
    objective.steps_taken = lambda: run.step
    return run


def describe_precision(setting: str, used: str, device: str) -> list[str]:
    """Return a sentence where a CPU computes in float32 though a narrower format was asked for."""
    if device != "cpu" or used != "fp32" or setting not in ("bf16", "fp16"):
        return []
    return [f'training.precision "{setting}" has no effect: this processor computes in float32']


def build_objective(
    config: TrainingConfig, base: FrozenBase, mechanism: Mechanism | None, samples: Any
) -> LatentObjective:
    """Build the loss of an adapter, or of a LoRA for few steps."""
    if config.distills:
        assert mechanism is None or isinstance(mechanism, DecoupledMechanism)
        return FewStepObjective(config, base, mechanism, samples)
    assert mechanism is not None
    return ImagePromptObjective(config, base, mechanism, samples)


def describe_skipped(skipped: Sequence[Unreadable]) -> list[str]:
    """Return a sentence for each of the first unusable samples, and one for all others."""
    sentences = [f"left out: {one.name}: {one.reason}" for one in skipped[:MAX_NAMED]]
    rest = len(skipped) - len(sentences)
    return (
        [*sentences, f"left out: {rest} more; all are in the cache's skipped-*.jsonl"] if rest else sentences
    )


MAX_NAMED = 20
"""Number of unusable samples that the log names."""


def build_mechanism(config: TrainingConfig, base: FrozenBase) -> Mechanism | None:
    """Build the adapter, with new weights or from a file, in float32 on the base's device.

    A run that distills has one only if `adapter.start` names it, and leaves it unchanged.

    Raises:
        ConfigError: the file has another variant, number of tokens, or width
    """
    adapter = config.adapter
    if adapter.start:
        started = load_start_adapter(config, base).to(base.device)
        return DecoupledMechanism(started.requires_grad_(not config.distills), base.pipe)
    if config.distills:
        return None
    if adapter.mechanism != "decoupled":
        mechanism_class: Any = MECHANISMS[adapter.mechanism]
        return mechanism_class(build_compared_modules(config, base).to(base.device), base.pipe)
    projection = build_projection(config, base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        if adapter.injection == "unet":
            new_adapter = ImagePromptAdapter.for_unet(base.unet, projection, lora_rank=adapter.lora_rank)
        else:
            new_adapter = ImagePromptAdapter.for_transformer(base.denoiser, projection, adapter.injection)
    return DecoupledMechanism(new_adapter, base.pipe)


def build_compared_modules(config: TrainingConfig, base: FrozenBase) -> nn.Module:
    """Build the new modules of a mechanism that exists for comparison."""
    adapter, seed = config.adapter, config.training.seed
    random, widths = torch.Generator().manual_seed(seed), encoder_widths(base)
    embedding_dim, context_dim = widths.get("image_embedding", 0), int(base.unet.config.cross_attention_dim)
    if adapter.mechanism == ShuffledControlMechanism.name:
        return build_controlnet(base.pipe, seed)
    if adapter.mechanism == StyleAdapterMechanism.name:
        return StyleProjection(widths.get("image_features", 0), context_dim, generator=random)
    if adapter.hidden:
        sizes = embedding_dim, context_dim, adapter.tokens
        return HiddenProjection(*sizes, hidden=adapter.hidden, generator=random)
    time = TimeProjection(embedding_dim, time_embedding_width(base.unet))
    if adapter.mechanism == UnclipMechanism.name:
        return time
    projection = build_projection(config, base)
    if adapter.mechanism == PriorDecoderMechanism.name:
        return build_prior_decoder(projection, time, base.pipe, seed=seed)
    return projection


def load_start_adapter(config: TrainingConfig, base: FrozenBase) -> ImagePromptAdapter:
    """Load the adapter that `adapter.start` names, in float32, with all weights trainable."""
    wanted, version = config.adapter, FACE_PLUS_VERSIONS.get(config.adapter.variant)
    adapter = load_adapter(wanted.start, image_encoder=None, face_plus_version=version).float()
    takes, tokens = tuple(adapter.projection.takes), adapter.projection.tokens
    if set(takes) != set(TAKES[wanted.variant]) or tokens != wanted.tokens:
        raise ConfigError(
            f"adapter.start {wanted.start} takes {' and '.join(takes)} and makes {tokens} tokens; the "
            f'variant "{wanted.variant}" takes {" and ".join(TAKES[wanted.variant])}, and adapter.tokens is '
            f"{wanted.tokens}"
        )
    widths = encoder_widths(base)
    for name, width in adapter.projection.takes.items():
        if widths.get(name, width) != width:
            raise ConfigError(
                f"adapter.start {wanted.start} takes {name} {width} wide; that of base.image_encoder "
                f"{config.base.image_encoder} is {widths[name]} wide"
            )
    return adapter.requires_grad_(True)


FACE_PLUS_VERSIONS: dict[Variant, Literal[1, 2]] = {"faceid-plus": 1, "faceid-plusv2": 2}
"""The version of the variants that have one."""


def encoder_widths(base: FrozenBase) -> dict[Input, int]:
    """Return the widths of the image encoder's outputs."""
    encoder = base.image_encoder
    if encoder is None:
        return {}
    return {"image_embedding": encoder.embedding_dim, "image_features": encoder.feature_dim}


def build_projection(config: TrainingConfig, base: FrozenBase) -> ImageProjection:
    """Build a new projection of the configured variant, in the published sizes."""
    adapter, context_dim = config.adapter, base.context_dim
    random = torch.Generator().manual_seed(config.training.seed)
    widths = encoder_widths(base)
    embedding_dim, feature_dim = widths.get("image_embedding", 0), widths.get("image_features", 0)
    # As published: 768 wide inside for SD1.5, 1280 for the wider text of SDXL and Kolors; heads 64 wide.
    width = min(context_dim, 1280)
    shape = PerceiverShape(width=width, depth=adapter.depth, head_dim=math.gcd(width, 64))
    if adapter.variant == "flux-instantx":
        hidden = adapter.hidden or 2 * embedding_dim
        return HiddenProjection(embedding_dim, context_dim, adapter.tokens, hidden=hidden, generator=random)
    if adapter.variant == "sd35":
        return TimeResamplerProjection(
            feature_dim, context_dim, adapter.tokens, shape=shape, generator=random
        )
    if adapter.variant in ("base", "flux-xlabs"):
        return LinearProjection(embedding_dim, context_dim, adapter.tokens, generator=random)
    if adapter.variant == "plus":
        return ResamplerProjection(feature_dim, context_dim, adapter.tokens, shape=shape, generator=random)
    if adapter.variant == "full-face":
        return PatchProjection(feature_dim, context_dim, adapter.tokens, generator=random)
    if adapter.variant == "faceid":
        return FaceProjection(context_dim, adapter.tokens, embedding_dim=adapter.face_dim, generator=random)
    version = FACE_PLUS_VERSIONS[adapter.variant]
    # A FaceID-Plus perceiver is as wide as the text: its queries are tokens.
    shape = PerceiverShape(width=context_dim, depth=adapter.depth, head_dim=math.gcd(context_dim, 64))
    return FacePlusProjection(
        feature_dim,
        context_dim,
        adapter.tokens,
        version=version,
        embedding_dim=adapter.face_dim,
        shape=shape,
        generator=random,
    )
