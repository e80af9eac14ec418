"""What `imprompt train` is told: one TOML file, typed and closed.

    preset = "sd15"              everything that is not said comes from there (presets.py)
    output = "runs/cats"         folder of the run
    [base]      the frozen model             [adapter]   what is trained
    [data]      pictures and captions        [cache]     what frozen models made of them
    [loss]      drops, weighting, times      [training]  steps, batch, learning rate, ...
    [watch]     what is looked at meanwhile

Paths are as they stand, from the folder in which the command runs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from imprompt.errors import ConfigError
from imprompt.runtime.settings import ClosedSettings, explain, normalize_spelling, read_toml
from imprompt.training.mechanisms import MECHANISMS
from imprompt.training.presets import PRESETS, overlaid, preset_named
from imprompt.training.settings import LoopSettings
from imprompt.training.synonyms import counterpart

Variant = Literal["base", "plus", "full-face", "faceid", "faceid-plus", "faceid-plusv2"]
Injection = Literal["decoupled", "concatenated", "replaced", "unclip", "two-stream"]

FACES = ("faceid", "faceid-plus", "faceid-plusv2")


class BaseSettings(ClosedSettings):
    """The frozen model."""

    model: str = "mini"
    """"mini", "mini:STYLE", a folder in diffusers' format, or a hub id."""
    image_encoder: str = "known"
    """A folder or "owner/name:subfolder"; "known": the one that a preset names, or the embedded model's."""


class AdapterSettings(ClosedSettings):
    """What is trained."""

    variant: Variant = "base"
    """What the adapter takes of a reference, and so its projection."""
    tokens: int = Field(default=4, ge=1)
    """Image tokens; "full-face" has one for each patch of the encoder."""
    injection: Injection = "decoupled"
    """How the image prompt reaches the base: see `imprompt.training.mechanisms`. All but the first
    are there to be compared with; "replaced", "unclip" and "two-stream" train the whole U-Net too."""
    hidden: int = Field(default=0, ge=0)
    """Width of a layer between, in the projection of "concatenated"; 0 for none, as in the paper."""
    lora_rank: int = Field(default=0, ge=0)
    """Rank of a LoRA of every attention layer of the base, as FaceID adapters have; 0 for none."""
    start: str = ""
    """An adapter to go on from: "mini", "mini-plus", a published one's short name, a file, or
    "owner/name:file"."""


class Columns(ClosedSettings):
    """What the data calls its columns (in a WebDataset: the files' suffixes)."""

    image: str = "image"
    """The target; tables may also say image_file or file_name."""
    text: str = "text"
    """The caption; in a folder, the suffix of its file; empty says that there are none."""
    reference: str = "reference"
    """A picture, or a list of them, to prompt with in place of the target; optional."""
    mask: str = "mask"
    """A grey picture: where it is black, the loss does not look; optional."""
    face: str = "face"
    """A face embedding: a list of numbers, or a .npy file; needed by FaceID adapters."""


class DataSettings(ClosedSettings):
    """Pictures and captions."""

    source: str = ""
    """A folder, a .json, .jsonl, .csv, .tsv or .parquet file, tar files ("s/{000..099}.tar" or "s/*.tar";
    .tar.gz and .tgz too), or "hf:owner/name[:split]", a Hugging Face data set (or "hf:folder", one that was
    saved). Empty: the cache alone."""
    root: str = ""
    """Where relative file names in a table begin; by default the table's own folder."""
    columns: Columns = Columns()
    size: int = Field(default=512, ge=8)
    """Side of the square target in pixels; with buckets, of the square whose area they have."""
    buckets: bool = False
    """Targets keep about their proportions instead of being cut to squares."""
    bucket_step: int = Field(default=64, ge=8)
    """Sides of buckets are multiples of this, in pixels."""
    longest: float = Field(default=2.0, ge=1)
    """The longest bucket's longer side over its shorter one."""
    reference_crop: Annotated[Literal["center", "pad", "stretch"], BeforeValidator(normalize_spelling)] = (
        "center"
    )
    """How the image encoder's square is cut from a reference."""
    held_out: float | str = 0.01
    """A share of the samples, chosen by their content, or another source, for looking at how it goes."""
    held_out_most: int = Field(default=256, ge=2)
    """No more than this many are looked at."""


class CacheSettings(ClosedSettings):
    """What frozen models make of the data, computed once."""

    enabled: bool = True
    """False: computed anew at every step."""
    folder: str = ""
    """By default `cache` beside the run's folder."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp16"
    """Of what is kept."""
    text: Literal["states", "captions"] = "states"
    """"captions" keeps the text only (a thousandth of the space) and encodes it at every step."""
    shard_size: int = Field(default=512, ge=1)
    """Samples in a file: what is lost if a worker dies."""
    batch_size: int = Field(default=8, ge=1)
    """Pictures that go through a frozen model together."""
    engine: Literal["processes", "ray"] = "processes"
    """Who computes it: processes of this machine, or Ray."""
    workers: int = Field(default=1, ge=1)
    """Processes, or Ray tasks at a time."""


class LossSettings(ClosedSettings):
    """The base's own loss, with conditions dropped now and then so that guidance can be used."""

    image_drop: float = Field(default=0.05, ge=0, le=1)
    """How often the image alone is dropped."""
    text_drop: float = Field(default=0.05, ge=0, le=1)
    """How often the text alone is dropped."""
    both_drop: float = Field(default=0.05, ge=0, le=1)
    """How often both are dropped."""
    weighting: Literal["none", "min-snr"] = "none"
    """Of noise levels (Hang et al. 2023)."""
    min_snr_gamma: float = Field(default=5.0, gt=0)
    """γ of min-SNR."""
    timesteps: Literal["uniform", "logit-normal"] = "uniform"
    """How noise levels are drawn."""
    timestep_location: float = 0.0
    """Center of logit-normal times; above 0 is towards noise."""
    noise_offset: float = Field(default=0.0, ge=0)
    """How much of one number for each channel is added to the noise."""

    @model_validator(mode="after")
    def _drops_fit(self) -> "LossSettings":
        if (drops := self.image_drop + self.text_drop + self.both_drop) > 1:
            raise ValueError(f"image_drop + text_drop + both_drop is {drops:g}; it can be at most 1")
        return self


class AdapterLoop(LoopSettings):
    """The loop's settings, and those of the adapter's optimiser."""

    base_learning_rate: float = Field(default=0.0, ge=0)
    """Of the U-Net's own weights, where adapter.injection trains them; 0 for a tenth of
    training.learning_rate."""
    passes: int = Field(default=1, ge=1)
    """Into how many forward and backward passes each process cuts its share of a batch, to save memory."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the learning rate does between warm-up and cool-down; "cosine" falls to zero at the last step."""
    gradient_checkpointing: bool = False
    """Compute the U-Net's activations again on the way back: less memory, half as much work again."""
    loader_workers: int = Field(default=0, ge=0)
    """Processes that read the cache ahead; 0 reads in this one."""
    check_every: int = Field(default=100, ge=1)
    """Steps between looks at the held-out loss."""


class WatchSettings(ClosedSettings):
    """What is looked at while it trains."""

    references: int = Field(default=8, ge=1)
    """Held-out references in a sample grid."""
    prompts: tuple[str, ...] = Field(default=("",), min_length=1)
    """Each reference is drawn with each prompt; "own" is the sample's own caption."""
    scales: tuple[float, ...] = Field(default=(0.0, 0.5, 1.0), min_length=1)
    """Each prompt is drawn at each λ."""
    sampling_steps: int = Field(default=25, ge=1)
    """Of each picture in a sample grid."""
    guidance_scale: float = 7.5
    """w, of each picture in a sample grid."""
    judge: str = ""
    """A CLIP model (folder or hub id) that measures likeness to reference and prompt; empty: the adapter's
    own image encoder, to the reference only."""
    wandb: str = ""
    """A Weights & Biases project to report to, beside TensorBoard and the log."""


class TrainingConfig(ClosedSettings):
    """One run of `imprompt train`."""

    preset: str
    """What everything that is not said comes from."""
    output: str
    """The run's folder."""
    base: BaseSettings = BaseSettings()
    adapter: AdapterSettings = AdapterSettings()
    data: DataSettings = DataSettings()
    cache: CacheSettings = CacheSettings()
    loss: LossSettings = LossSettings()
    training: AdapterLoop
    watch: WatchSettings = WatchSettings()

    @model_validator(mode="after")
    def _goes_together(self) -> "TrainingConfig":
        for impossible, why in _conflicts(self):
            if impossible:
                raise ValueError(why)
        return self

    @property
    def trains_base(self) -> bool:
        """Whether the U-Net's own weights are trained too."""
        return MECHANISMS[self.adapter.injection].trains_base

    @property
    def cache_folder(self) -> Path:
        """Where the cache is."""
        return Path(self.cache.folder) if self.cache.folder else Path(self.output).parent / "cache"


def _conflicts(config: TrainingConfig) -> list[tuple[bool, str]]:
    """Settings that do not go together, and what to do about it."""
    adapter, data, training = config.adapter, config.data, config.training
    return [
        (
            adapter.injection != "decoupled" and adapter.variant != "base",
            f'adapter.injection "{adapter.injection}" goes with the variant "base", not "{adapter.variant}"',
        ),
        (
            adapter.injection != "decoupled" and bool(adapter.start),
            f'adapter.start goes with adapter.injection "decoupled", not with "{adapter.injection}"',
        ),
        (
            adapter.hidden > 0 and adapter.injection != "concatenated",
            f'adapter.hidden goes with adapter.injection "concatenated", not with "{adapter.injection}"',
        ),
        (
            training.base_learning_rate > 0 and not config.trains_base,
            f'training.base_learning_rate has no effect: adapter.injection "{adapter.injection}" leaves the '
            "base as it is",
        ),
        (
            config.trains_base and training.precision not in ("auto", "fp32"),
            f'adapter.injection "{adapter.injection}" trains the U-Net: training.precision must be '
            f'"fp32", not "{training.precision}"',
        ),
        (
            adapter.lora_rank > 0 and adapter.variant not in FACES,
            f'adapter.lora_rank goes with a face variant ({", ".join(FACES)}), not with "{adapter.variant}"',
        ),
        (
            adapter.lora_rank > 0 and bool(adapter.start),
            "adapter.lora_rank comes from the file that adapter.start names; leave it out",
        ),
        (
            training.batch_size % training.passes != 0,
            f"training.batch_size {training.batch_size} cannot be cut into {training.passes} equal passes",
        ),
        (
            not data.source and not config.cache.enabled,
            "data.source is empty and cache.enabled is false: there is nothing to train on",
        ),
        (
            training.loader_workers > 0 and not config.cache.enabled,
            f"training.loader_workers {training.loader_workers} cannot read ahead while cache.enabled is "
            "false: only this process has the frozen models; set it to 0",
        ),
        (
            data.buckets and data.size % data.bucket_step != 0,
            f"data.size {data.size} is no multiple of data.bucket_step {data.bucket_step}",
        ),
        (
            isinstance(data.held_out, float | int) and not 0 < data.held_out < 1,
            f"data.held_out is a share between 0 and 1, or another source, not {data.held_out}",
        ),
        (
            training.schedule == "cosine" and training.cooldown_steps > 0,
            "training.schedule cosine has its own end; leave out training.cooldown_steps",
        ),
    ]


def load_config(path: Path, settings: Sequence[str] = ()) -> TrainingConfig:
    """Read a run's configuration; `settings` are `key=value` that replace what the file says.

    Raises:
        ConfigError: no such file, no TOML, an unknown key or preset (and the nearest known one), a wrong type
            or range, or settings that do not go together
    """
    return parse_config(read_toml(path, settings), str(path))


def parse_config(values: Mapping[str, Any], source: str) -> TrainingConfig:
    """Check settings, laid over those of their preset; the first fault becomes one sentence."""
    if "preset" not in values:
        raise ConfigError(f"{source}: preset is missing; the presets are: {', '.join(PRESETS)}")
    try:
        return TrainingConfig.model_validate(overlaid(preset_named(values["preset"], source), values))
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error.errors()[0], TrainingConfig, counterpart)}") from error
