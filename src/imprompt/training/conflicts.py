"""Settings of a training run that do not go together."""

from typing import TYPE_CHECKING

from imprompt.training.variants import FACES

if TYPE_CHECKING:
    from imprompt.training.config import TrainingConfig


def find_conflict(config: "TrainingConfig") -> str | None:
    """Return a sentence about the first settings that do not go together, with the remedy; None if all do."""
    conflicts = (*_adapter_conflicts(config), *_data_conflicts(config), *_training_conflicts(config))
    return next((sentence for is_present, sentence in conflicts if is_present), None)


def _adapter_conflicts(config: "TrainingConfig") -> list[tuple[bool, str]]:
    """Return whether the adapter has each forbidden combination, and a sentence with the remedy."""
    adapter = config.adapter
    return [
        (
            adapter.mechanism != "decoupled" and adapter.variant != "base",
            f'adapter.mechanism "{adapter.mechanism}" goes with the variant "base", not "{adapter.variant}"',
        ),
        (
            adapter.mechanism != "decoupled" and bool(adapter.start),
            f'adapter.start goes with adapter.mechanism "decoupled", not with "{adapter.mechanism}"',
        ),
        (
            adapter.hidden > 0 and adapter.mechanism != "concatenated" and adapter.variant != "flux-instantx",
            'adapter.hidden goes with adapter.mechanism "concatenated" or with the variant "flux-instantx", '
            f'not with "{adapter.mechanism}" and "{adapter.variant}"',
        ),
        (
            config.distills and adapter.injection != "unet",
            f'distillation.rank goes with a variant for U-Nets, not with "{adapter.variant}"',
        ),
        (
            config.distills and adapter.mechanism != "decoupled",
            f'distillation.rank goes with adapter.mechanism "decoupled", not with "{adapter.mechanism}"',
        ),
        (
            adapter.lora_rank > 0 and adapter.variant not in FACES,
            f'adapter.lora_rank goes with a face variant ({", ".join(FACES)}), not with "{adapter.variant}"',
        ),
        (
            adapter.lora_rank > 0 and bool(adapter.start),
            "adapter.lora_rank comes from the file that adapter.start names; leave it out",
        ),
    ]


def _data_conflicts(config: "TrainingConfig") -> list[tuple[bool, str]]:
    """Return whether the data have each forbidden combination, and a sentence with the remedy."""
    data = config.data
    return [
        (
            not data.source and not config.cache.enabled,
            "data.source is empty and cache.enabled is false: there is nothing to train on",
        ),
        (
            data.buckets and data.size % data.bucket_step != 0,
            f"data.size {data.size} is no multiple of data.bucket_step {data.bucket_step}",
        ),
        (
            isinstance(data.held_out, float | int) and not 0 < data.held_out < 1,
            f"data.held_out is a share between 0 and 1, or another source, not {data.held_out}",
        ),
    ]


def _training_conflicts(config: "TrainingConfig") -> list[tuple[bool, str]]:
    """Return whether the loop has each forbidden combination, and a sentence with the remedy."""
    adapter, training = config.adapter, config.training
    return [
        (
            training.base_learning_rate > 0 and not config.trains_base,
            f'training.base_learning_rate has no effect: adapter.mechanism "{adapter.mechanism}" leaves the '
            "base as it is",
        ),
        (
            config.trains_base and training.precision not in ("auto", "fp32"),
            f'adapter.mechanism "{adapter.mechanism}" trains the U-Net: training.precision must be '
            f'"fp32", not "{training.precision}"',
        ),
        (
            training.batch_size % training.passes != 0,
            f"training.batch_size {training.batch_size} cannot be cut into {training.passes} equal passes",
        ),
        (
            training.loader_workers > 0 and not config.cache.enabled,
            f"training.loader_workers {training.loader_workers} cannot read ahead while cache.enabled is "
            "false: only this process has the frozen models; set it to 0",
        ),
        (
            training.checkpoint_every > 1 and not training.gradient_checkpointing,
            f"training.checkpoint_every {training.checkpoint_every} has no effect without "
            "training.gradient_checkpointing",
        ),
        (
            training.compile and training.gradient_checkpointing,
            "training.compile and training.gradient_checkpointing cannot be used together; leave out one",
        ),
        (
            training.compile and config.trains_base,
            f'training.compile is for a frozen base, and adapter.mechanism "{adapter.mechanism}" trains it',
        ),
        (
            training.schedule == "cosine" and training.cooldown_steps > 0,
            "training.schedule cosine has its own end; leave out training.cooldown_steps",
        ),
    ]
