"""The configuration of `imprompt train`: one TOML file, typed, without unknown keys.

    preset = "sd15"              the source of every setting that the file leaves out (presets.py)
    output = "runs/cats"         folder of the run
    [base]      the frozen model             [adapter]   what is trained
    [data]      images and captions          [cache]     their encodings by the frozen models
    [loss]      drops, weighting, times      [training]  steps, batch, learning rate, ...
    [watch]     samples drawn during training

Relative paths begin at the folder in which the command runs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, model_validator

from imprompt.attention.choices import Injection
from imprompt.errors import ConfigError
from imprompt.inputs.choices import Input
from imprompt.runtime.settings import ClosedSettings, explain_fault, normalize_spelling, read_toml
from imprompt.training.conflicts import find_conflict
from imprompt.training.mechanisms import MECHANISMS
from imprompt.training.presets import PRESETS, find_preset, merge_settings
from imprompt.training.settings import LoopSettings
from imprompt.training.synonyms import counterpart
from imprompt.training.variants import TAKES, TRANSFORMER_VARIANTS, MechanismName, Variant


class BaseSettings(ClosedSettings):
    """The frozen base model."""

    model: str = "mini"
    """"mini", "mini:STYLE", a folder in diffusers' format, a hub id, or a single file of Stable Diffusion."""
    image_encoder: str = "known"
    """A folder or "owner/name:subfolder"; "known" means that of the preset or of the embedded model, and
    "mini" that of the embedded model for any base."""


class AdapterSettings(ClosedSettings):
    """The adapter that is trained."""

    variant: Variant = "base"
    """Which embedding of a reference the adapter reads, and so which projection it has. "flux-xlabs" and
    "flux-instantx" are for FLUX.1, "sd35" for Stable Diffusion 3.5, the others for U-Nets."""
    tokens: int = Field(default=4, ge=1)
    """Number of image tokens; "full-face" has one for each patch of the encoder."""
    depth: int = Field(default=4, ge=1)
    """Number of layers of the perceiver that reads the grid of features ("plus" and "faceid-plus")."""
    mechanism: MechanismName = Field(
        default="decoupled", validation_alias=AliasChoices("mechanism", "injection")
    )
    """How the image prompt reaches the base: see `imprompt.training.mechanisms`. All but the first exist for
    comparison. "replaced", "unclip", "two-stream" and "prior-decoder" train the whole U-Net too."""
    hidden: int = Field(default=0, ge=0)
    """Width of a hidden layer in the projection of "concatenated"; 0 means none, as in the paper. In that of
    "flux-instantx" 0 means twice the width of the image embedding, as published."""
    lora_rank: int = Field(default=0, ge=0)
    """Rank of a LoRA on every attention layer of the base, as FaceID adapters have it; 0 means none."""
    face_dim: int = Field(default=512, ge=1)
    """Width of the face embeddings that the data hold; ArcFace's have 512 numbers."""
    face_model: Literal["insightface", "mini"] = "insightface"
    """The model that computed the face embeddings; the adapter file names it."""
    start: str = ""
    """Adapter from which training starts: "mini", "mini-plus", the short name of a published one, a file, or
    "owner/name:file". Empty: new weights."""

    @property
    def injection(self) -> Injection:
        """How the image prompts of a decoupled adapter enter the base."""
        return TRANSFORMER_VARIANTS.get(self.variant, "unet")


class Columns(ClosedSettings):
    """Names of the data's columns (in a WebDataset: the suffixes of the files)."""

    image: str = "image"
    """The target image; tables may also call it image_file or file_name."""
    text: str = "text"
    """The caption; in a folder, the suffix of its file. Empty: the data have no captions."""
    reference: str = "reference"
    """An image, or a list of images, to use as the image prompt in place of the target; optional."""
    mask: str = "mask"
    """A grayscale image; the loss ignores its black areas; optional."""
    face: str = "face"
    """A face embedding: a list of numbers, or a .npy file; FaceID adapters need it."""


class DataSettings(ClosedSettings):
    """Images and captions."""

    source: str = ""
    """A folder, a .json, .jsonl, .csv, .tsv or .parquet file, tar files ("s/{000..099}.tar" or "s/*.tar";
    .tar.gz and .tgz too), or a Hugging Face dataset ("hf:owner/name[:split]"; "hf:folder" for one that was
    saved to disk). Empty: only the cache is read."""
    root: str = ""
    """Folder at which relative file names in a table begin; by default the folder of the table."""
    columns: Columns = Columns()
    size: int = Field(default=512, ge=8)
    """Side of the square target in pixels; with buckets, the side of the square that has their area."""
    buckets: bool = False
    """Whether targets keep about their aspect ratio instead of being cropped to squares."""
    bucket_step: int = Field(default=64, ge=8)
    """Sides of buckets are multiples of this number of pixels."""
    longest: float = Field(default=2.0, ge=1)
    """Largest aspect ratio of a bucket, longer side over shorter side."""
    reference_crop: Annotated[Literal["center", "pad", "stretch"], BeforeValidator(normalize_spelling)] = (
        "center"
    )
    """How a reference is made square for the image encoder."""
    held_out: float | str = 0.01
    """Share of the samples to hold out for evaluation, chosen by their content, or a separate source."""
    held_out_most: int = Field(default=256, ge=2)
    """Largest number of held-out samples."""


class CacheSettings(ClosedSettings):
    """Encodings of the data by the frozen models, computed once."""

    enabled: bool = True
    """Whether to keep encodings; if false, they are computed again at every step."""
    folder: str = ""
    """Folder of the cache; by default `cache` next to the folder of the run."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp16"
    """Number format of the cached tensors."""
    text: Literal["states", "captions"] = "states"
    """What is cached of captions: text embeddings, or only the text, which takes a thousandth of the space
    and is encoded at every step."""
    shard_size: int = Field(default=512, ge=1)
    """Samples per file, which is the work that is lost if a worker dies."""
    batch_size: int = Field(default=8, ge=1)
    """Images that go through a frozen model together."""
    engine: Literal["processes", "ray"] = "processes"
    """What computes the cache: processes of this machine, or Ray."""
    workers: int = Field(default=1, ge=1)
    """Number of processes, or of Ray tasks at a time."""


class LossSettings(ClosedSettings):
    """The training loss of the base, with conditions dropped at random so that guidance can be used."""

    image_drop: float = Field(default=0.05, ge=0, le=1)
    """Probability of dropping the image alone."""
    text_drop: float = Field(default=0.05, ge=0, le=1)
    """Probability of dropping the text alone."""
    both_drop: float = Field(default=0.05, ge=0, le=1)
    """Probability of dropping both."""
    weighting: Literal["none", "min-snr"] = "none"
    """Weighting of noise levels in the loss (min-SNR: Hang et al. 2023)."""
    min_snr_gamma: float = Field(default=5.0, gt=0)
    """γ of min-SNR weighting."""
    timesteps: Literal["uniform", "logit-normal"] = "uniform"
    """Distribution of the noise levels."""
    timestep_location: float = 0.0
    """Location of the logit-normal distribution; values above 0 mean more noise."""
    noise_offset: float = Field(default=0.0, ge=0)
    """Scale of a random constant per channel that is added to the noise."""
    guidance_scale: float = Field(default=1.0, ge=0)
    """Guidance scale that a distilled base, FLUX.1 [dev], is given in training and in sample grids. Other
    bases take none."""

    @model_validator(mode="after")
    def _drops_fit(self) -> "LossSettings":
        if (drops := self.image_drop + self.text_drop + self.both_drop) > 1:
            raise ValueError(f"image_drop + text_drop + both_drop is {drops:g}; it can be at most 1")
        return self


class DistillationSettings(ClosedSettings):
    """A LoRA with which the base needs few steps, trained in place of an adapter."""

    rank: int = Field(default=0, ge=0)
    """Rank of the LoRA; 0 means that an adapter is trained."""
    method: Literal["consistency", "progressive"] = "consistency"
    """What one step of the LoRA learns: the picture at the end (LCM-LoRA, for any number of steps), or the
    state at the next of solver_steps times (for exactly this number of steps)."""
    guidance_min: float = Field(default=5.0, ge=1)
    """Smallest guidance scale that is distilled; each sample has one between the two, drawn uniformly."""
    guidance_max: float = Field(default=15.0, ge=1)
    """Largest guidance scale that is distilled."""
    solver_steps: int = Field(default=50, ge=2)
    """Number of times at which the LoRA is trained; diffusers' LCMScheduler assumes 50."""
    solver_substeps: int = Field(default=1, ge=1)
    """Number of guided DDIM steps of the base from one of these times to the next."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "DistillationSettings":
        if self.guidance_min > self.guidance_max:
            raise ValueError(
                f"guidance_min {self.guidance_min:g} is larger than guidance_max {self.guidance_max:g}"
            )
        return self


class AdapterLoop(LoopSettings):
    """Settings of the training loop and of the optimizer."""

    base_learning_rate: float = Field(default=0.0, ge=0)
    """Learning rate of the U-Net's own weights, where adapter.mechanism trains them; 0 means a tenth of
    training.learning_rate."""
    passes: int = Field(default=1, ge=1)
    """Number of passes into which each process splits its share of a batch, to save memory."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate between warm-up and cool-down; "cosine" falls to zero at the last step."""
    gradient_checkpointing: bool = False
    """Whether to recompute the U-Net's activations in the backward pass: less memory, half as much work
    again."""
    checkpoint_every: int = Field(default=1, ge=1)
    """With gradient_checkpointing, recompute every n-th block of the U-Net only: faster, with more memory."""
    compile: bool = False
    """Whether to compile the U-Net's transformer blocks: faster steps, after a minute or two at the start."""
    loader_workers: int = Field(default=0, ge=0)
    """Number of processes that read the cache ahead; 0 reads in the training process."""
    check_every: int = Field(default=100, ge=1)
    """Number of steps between evaluations of the held-out loss."""


class WatchSettings(ClosedSettings):
    """Samples and measurements during training."""

    references: int = Field(default=8, ge=1)
    """Number of held-out references in a sample grid."""
    prompts: tuple[str, ...] = Field(default=("",), min_length=1)
    """Prompts of the sample grid, each with every reference; "own" stands for the sample's own caption."""
    scales: tuple[float, ...] = Field(default=(0.0, 0.5, 1.0), min_length=1)
    """Scales λ of the sample grid, each with every prompt."""
    sampling_steps: int = Field(default=25, ge=1)
    """Number of denoising steps of an image in a sample grid."""
    guidance_scale: float = 7.5
    """Guidance scale w of the images in a sample grid."""
    judge: str = ""
    """A CLIP model (folder or hub id) that measures similarity to the reference and to the prompt. Empty: the
    adapter's own image encoder measures similarity to the reference only."""
    wandb: str = ""
    """A Weights & Biases project to which the run reports as well as to TensorBoard and the log."""


class TrainingConfig(ClosedSettings):
    """One run of `imprompt train`."""

    preset: str
    """Name of the preset that supplies all settings left out."""
    output: str
    """Folder of the run."""
    base: BaseSettings = BaseSettings()
    adapter: AdapterSettings = AdapterSettings()
    data: DataSettings = DataSettings()
    cache: CacheSettings = CacheSettings()
    loss: LossSettings = LossSettings()
    distillation: DistillationSettings = DistillationSettings()
    training: AdapterLoop
    watch: WatchSettings = WatchSettings()

    @model_validator(mode="after")
    def _goes_together(self) -> "TrainingConfig":
        if conflict := find_conflict(self):
            raise ValueError(conflict)
        return self

    @property
    def trains_base(self) -> bool:
        """Whether the U-Net's own weights are trained too."""
        return MECHANISMS[self.adapter.mechanism].trains_base

    @property
    def distills(self) -> bool:
        """Whether the run trains a LoRA for few steps."""
        return self.distillation.rank > 0

    @property
    def takes(self) -> tuple[Input, ...]:
        """What the adapter reads of a picture; nothing if there is none."""
        if self.distills and not self.adapter.start:
            return ()
        if self.adapter.mechanism == "decoupled":
            return TAKES[self.adapter.variant]
        return MECHANISMS[self.adapter.mechanism].takes

    @property
    def needs_encoder(self) -> bool:
        """Whether an image encoder reads the references; face embeddings come with the data."""
        return not set(self.takes) <= {"face_embedding"}

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache."""
        return Path(self.cache.folder) if self.cache.folder else Path(self.output).parent / "cache"


def load_config(path: Path, settings: Sequence[str] = ()) -> TrainingConfig:
    """Read a run's configuration; `settings` are `key=value` texts that override the file.

    Raises:
        ConfigError: no such file, no TOML, an unknown key or preset (and the nearest known one), a wrong type
            or range, or settings that do not go together
    """
    return parse_config(read_toml(path, settings), str(path))


def parse_config(values: Mapping[str, Any], source: str) -> TrainingConfig:
    """Merge settings into those of their preset and check them; the first fault becomes one sentence."""
    if "preset" not in values:
        raise ConfigError(f"{source}: preset is missing; the presets are: {', '.join(PRESETS)}")
    try:
        return TrainingConfig.model_validate(merge_settings(find_preset(values["preset"], source), values))
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain_fault(error, TrainingConfig, counterpart)}") from error
