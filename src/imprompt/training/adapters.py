"""`imprompt train`: configuration → frozen base → cache → adapter → run, and a file that generates."""

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
from imprompt.inputs.encoder import Input
from imprompt.projection import (
    FacePlusProjection,
    FaceProjection,
    HiddenProjection,
    ImageProjection,
    LinearProjection,
    PatchProjection,
    PerceiverShape,
    ResamplerProjection,
)
from imprompt.runtime.files import name_fault, shorten
from imprompt.runtime.precision import fastest_precision
from imprompt.runtime.progress import show_running_total
from imprompt.training.batches import PromptBatch, PromptBatches, loader
from imprompt.training.cache import CachedSamples, LiveSamples, build_cache
from imprompt.training.config import AdapterSettings, TrainingConfig, Variant
from imprompt.training.frozen import TAKES, FrozenBase, load_frozen, weights_fingerprint
from imprompt.training.integrity import read_json, write_json
from imprompt.training.loop import Run
from imprompt.training.mechanisms import (
    MECHANISMS,
    DecoupledMechanism,
    Mechanism,
    TimeProjection,
    UnclipMechanism,
    time_width,
)
from imprompt.training.objectives.image_prompting import ImagePromptObjective
from imprompt.training.order import Order
from imprompt.training.ranks import main_process_value, this_process
from imprompt.training.samples import Unreadable
from imprompt.training.watching import write_card, write_page

CONFIG_FILE = "config.json"


def train_adapter(config: TrainingConfig, *, resume: bool = False) -> Path:
    """Train an adapter to its end, or to Ctrl-C / SIGTERM, which save first; return the run's folder.

    Args:
        config: what, on what, with what
        resume: go on from the last checkpoint, if there is one

    Raises:
        ConfigError: a folder with checkpoints, and `resume` not given, or other settings than theirs
        DataError, UnknownModel, AdapterMismatch, OutputError, TrainingError: what they say
    """
    processes, folder = this_process(), Path(config.output)
    check_folder(config, resume)
    if config.training.batch_size % (processes.num_processes * config.training.passes):
        raise ConfigError(
            f"training.batch_size {config.training.batch_size} cannot be shared equally by "
            f"{processes.num_processes} processes in {config.training.passes} passes"
        )
    base = load_frozen(config, processes.device)
    run = adapter_run(config, base)
    frozen = frozen_modules(config, base)
    frozen_before = weights_fingerprint(*frozen)
    if resume:
        run.resume()
    if processes.is_main_process:
        write_config(config, folder)
    try:
        finished = run.go()
    finally:
        if processes.is_main_process and (folder / "log.jsonl").exists():
            write_page(folder)
    if weights_fingerprint(*frozen) != frozen_before:
        raise AssertionError("a frozen model has changed in training: a defect of imprompt")
    if finished and processes.is_main_process:
        write_card(folder)
    return folder


def frozen_modules(config: TrainingConfig, base: FrozenBase) -> list[nn.Module]:
    """What must be the same after a run: everything but what is trained."""
    return [one for one in base.modules if one is not base.unet or not config.trains_base]


def cache_alone(config: TrainingConfig) -> str:
    """Build the cache, and say what it holds."""
    samples = cached(config, load_frozen(config, this_process().device))
    held = f"{len(samples.train):,} samples to train on and {len(samples.held_out):,} held out"
    return "\n".join([f"{held} are in the cache", *samples.notes, *left_out(samples.skipped)])


def cached(config: TrainingConfig, base: FrozenBase) -> CachedSamples | LiveSamples:
    """The run's samples; what is missing of the cache is made, which may take long."""
    with show_running_total("caching") as progress:
        return build_cache(config, base, progress, check=this_process().is_local_main_process)


def check_folder(config: TrainingConfig, resume: bool) -> None:
    """Make sure that no run is overwritten, or taken for another one.

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
        before = config_before(folder)
        changed = [name for name in UNCHANGEABLE if value_at(before, name) != value_at(dumped(config), name)]
        if changed:
            raise ConfigError(
                f"{changed[0]} was {value_at(before, changed[0])!r} when the run in {folder} began and is "
                f"{value_at(dumped(config), changed[0])!r} now: put it back, or begin another run"
            )


def check_name(folder: Path) -> None:
    """Refuse a name that the file system cannot hold, or TensorBoard cannot write.

    Raises:
        OutputError: see above
    """
    fault = name_fault(folder)
    if not fault and any("\ud800" <= character <= "\udfff" for character in str(folder)):
        fault = "its name is not UTF-8, which TensorBoard needs; choose another"
    if fault:
        raise OutputError(f"{shorten(str(folder))} cannot be the folder of a run: {fault}")


def config_before(folder: Path) -> dict[str, Any]:
    """The settings that a run was begun with.

    Raises:
        ConfigError: their file is not as it was written
    """
    before = read_json(folder / CONFIG_FILE)
    try:
        if before is not None:
            before["adapter"] = AdapterSettings.model_validate(before["adapter"]).model_dump(mode="json")
            for name in UNCHANGEABLE:
                value_at(before, name)
            return before
    except (KeyError, TypeError, ValidationError):  # of no run
        pass
    raise ConfigError(
        f"{folder / CONFIG_FILE} is not as it was written, so nothing tells whether these are the settings "
        "that the run began with; delete it to go on without that check"
    )


UNCHANGEABLE = ("base.model", "adapter", "training.seed", "training.batch_size", "training.ema_decay")
"""Settings without which a run would not be the same run any more."""


def value_at(values: Any, name: str) -> Any:
    """A setting by its dotted name."""
    for part in name.split("."):
        values = values[part]
    return values


def dumped(config: TrainingConfig) -> dict[str, Any]:
    """A configuration as JSON holds it."""
    return config.model_dump(mode="json")


def write_config(config: TrainingConfig, folder: Path) -> None:
    """The resolved configuration, beside what it makes.

    Raises:
        OutputError: it cannot be written
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror or error}") from error
    write_json(folder / CONFIG_FILE, dumped(config))


def adapter_run(config: TrainingConfig, base: FrozenBase) -> Run:
    """A run at its beginning: the adapter is made and in its place, the cache is built.

    In this order, for an adapter that does not fit its base should not be found out after days of caching.
    """
    processes, mechanism = this_process(), build_mechanism(config, base)
    with processes.main_process_first():  # one builds the cache, the others find it there
        samples = cached(config, base)
    objective = ImagePromptObjective(config, base, mechanism, samples)
    training = config.training
    if processes.device.type == "cpu" and training.precision == "auto":
        objective.precision = main_process_value(fastest_precision())
    batches = PromptBatches(
        samples,
        Order(samples.buckets, training.batch_size, training.seed),
        config.loss,
        passes=training.passes,
        rank=processes.process_index,
        processes=processes.num_processes,
    )

    def feed(steps: range) -> Iterator[list[PromptBatch]]:
        pin_memory = processes.device.type == "cuda"
        return iter(loader(batches, steps, workers=training.loader_workers, pin_memory=pin_memory))

    run = Run(
        training,
        objective,
        feed,
        Path(config.output),
        config=dumped(config),
        wandb=config.watch.wandb,
        on_look=write_page,
        notes=[*samples.notes, *left_out(samples.skipped)],
        data={"train": len(samples.train), "held_out": len(samples.held_out), "digest": samples.digest},
    )
    objective.steps_taken = lambda: run.step
    return run


def left_out(skipped: Sequence[Unreadable]) -> list[str]:
    """A sentence for each of the first samples that cannot be used, and one for the rest."""
    told = [f"left out: {one.name}: {one.reason}" for one in skipped[:MOST_TOLD]]
    rest = len(skipped) - len(told)
    return [*told, f"left out: {rest} more; all are in the cache's skipped-*.jsonl"] if rest else told


MOST_TOLD = 20
"""How many samples that cannot be used are named in the log."""


def build_mechanism(config: TrainingConfig, base: FrozenBase) -> Mechanism:
    """What is trained: new, or from a file, in float32 on the base's device.

    Raises:
        ConfigError: the file is of another variant, has another number of tokens, or takes other widths
    """
    adapter = config.adapter
    if adapter.start:
        return DecoupledMechanism(started_adapter(config, base).to(base.device), base.pipe)
    if adapter.mechanism != "decoupled":
        made_by: Any = MECHANISMS[adapter.mechanism]
        return made_by(build_token_maker(config, base).to(base.device), base.pipe)
    projection = build_projection(config, base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        made = ImagePromptAdapter.for_unet(base.unet, projection, lora_rank=adapter.lora_rank)
    return DecoupledMechanism(made, base.pipe)


def build_token_maker(config: TrainingConfig, base: FrozenBase) -> nn.Module:
    """A new projection for a mechanism that is there to be compared with."""
    adapter, random = config.adapter, torch.Generator().manual_seed(config.training.seed)
    embedding_dim = input_widths(base).get("image_embedding", 0)
    if adapter.mechanism == UnclipMechanism.name:
        return TimeProjection(embedding_dim, time_width(base.unet))
    if adapter.hidden:
        context_dim = int(base.unet.config.cross_attention_dim)
        sizes = embedding_dim, context_dim, adapter.tokens
        return HiddenProjection(*sizes, hidden=adapter.hidden, generator=random)
    return build_projection(config, base)


def started_adapter(config: TrainingConfig, base: FrozenBase) -> ImagePromptAdapter:
    """The adapter that `adapter.start` names, in float32, all of it trainable."""
    wanted, version = config.adapter, FACE_PLUS_VERSIONS.get(config.adapter.variant)
    adapter = load_adapter(wanted.start, image_encoder=None, face_plus_version=version).float()
    takes, tokens = tuple(adapter.projection.takes), adapter.projection.tokens
    if set(takes) != set(TAKES[wanted.variant]) or tokens != wanted.tokens:
        raise ConfigError(
            f"adapter.start {wanted.start} takes {' and '.join(takes)} and makes {tokens} tokens; the "
            f'variant "{wanted.variant}" takes {" and ".join(TAKES[wanted.variant])}, and adapter.tokens is '
            f"{wanted.tokens}"
        )
    given = input_widths(base)
    for name, width in adapter.projection.takes.items():
        if given.get(name, width) != width:
            raise ConfigError(
                f"adapter.start {wanted.start} takes {name} {width} wide; that of base.image_encoder "
                f"{config.base.image_encoder} is {given[name]} wide"
            )
    return adapter.requires_grad_(True)


FACE_PLUS_VERSIONS: dict[Variant, Literal[1, 2]] = {"faceid-plus": 1, "faceid-plusv2": 2}
"""Of the variants that have a version, which one."""


def input_widths(base: FrozenBase) -> dict[Input, int]:
    """How wide what the image encoder makes is."""
    encoder = base.image_encoder
    if encoder is None:
        return {}
    return {"image_embedding": encoder.embedding_dim, "image_features": encoder.feature_dim}


def build_projection(config: TrainingConfig, base: FrozenBase) -> ImageProjection:
    """A new projection of the variant, in the published sizes."""
    adapter, context_dim = config.adapter, int(base.unet.config.cross_attention_dim)
    random = torch.Generator().manual_seed(config.training.seed)
    given = input_widths(base)
    embedding_dim, feature_dim = given.get("image_embedding", 0), given.get("image_features", 0)
    # As published: 768 wide inside for SD1.5, 1280 for the wider text of SDXL and Kolors; heads 64 wide.
    width = min(context_dim, 1280)
    shape = PerceiverShape(width=width, head_dim=math.gcd(width, 64))
    if adapter.variant == "base":
        return LinearProjection(embedding_dim, context_dim, adapter.tokens, generator=random)
    if adapter.variant == "plus":
        return ResamplerProjection(feature_dim, context_dim, adapter.tokens, shape=shape, generator=random)
    if adapter.variant == "full-face":
        return PatchProjection(feature_dim, context_dim, adapter.tokens, generator=random)
    if adapter.variant == "faceid":
        return FaceProjection(context_dim, adapter.tokens, generator=random)
    version = FACE_PLUS_VERSIONS[adapter.variant]
    # A FaceID-Plus perceiver is as wide as the text: its queries are tokens.
    shape = PerceiverShape(width=context_dim, head_dim=math.gcd(context_dim, 64))
    return FacePlusProjection(
        feature_dim, context_dim, adapter.tokens, version=version, shape=shape, generator=random
    )
