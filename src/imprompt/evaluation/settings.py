"""The settings of a benchmark: one TOML file, typed and closed.

    [data]      the pictures, and how many of them
    [method]    base and adapter, or a published baseline
    [drawing]   steps, guidance, size; number of processes
    [judging]   the judges

Images follow from `[method]`, from the data, and from `[drawing]` without its last two keys. The judges and
the number of processes may change between two runs into the same folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from imprompt.errors import ConfigError
from imprompt.runtime.settings import ClosedSettings, explain_fault, read_toml

Settings = TypeVar("Settings", bound=ClosedSettings)


class MethodSettings(ClosedSettings):
    """What generates the images."""

    name: str = "ip-adapter"
    """"ip-adapter", or a published baseline: docs/evaluation.md lists them."""
    model: str = ""
    """The base, or the baseline's pipeline: a folder in diffusers' format or a hub id; "mini" for the
    embedded base. Empty: the published one (Stable Diffusion 1.5 for "ip-adapter").
    """
    adapter: str = ""
    """The adapter of "ip-adapter": "mini", "mini-plus", a published one's short name, a file, or
    "owner/name:file".
    """
    image_encoder: str = "known"
    """The image encoder of "ip-adapter", as `imprompt generate --image-encoder` takes it."""
    second: str = ""
    """A second model that a baseline needs: Kandinsky's prior, the ControlNet. Empty: the published one."""


class DrawingSettings(ClosedSettings):
    """How images are generated."""

    steps: int = Field(default=50, ge=1)
    """Number of denoising steps."""
    guidance_scale: float = Field(default=7.5, ge=1)
    """The weight w of classifier-free guidance; 1 for none."""
    sampler: Literal["ddim", "own"] = "ddim"
    """"own" is the sampler that the model comes with. Karlo (unclip) has only its own."""
    negative_prompt: str = ""
    """The negative prompt."""
    size: int = Field(default=0, ge=0, multiple_of=8)
    """Side of the square images in pixels; 0 for the model's own size."""
    batch_size: int = Field(default=4, ge=1)
    """Number of samples of one reference in one call. An image depends on it to the last bit."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """The number format of the models on a GPU; on a processor it is always fp32."""
    workers: int = Field(default=0, ge=0)
    """Number of processes, or of Ray tasks at a time; 0: one for each GPU of this machine, at least one."""
    engine: Literal["processes", "ray"] = "processes"
    """Processes of this machine, or tasks of a Ray cluster that shares the output folder and the data."""


class JudgingSettings(ClosedSettings):
    """The judges."""

    clip: str = "openai/clip-vit-large-patch14"
    """The judge that reads pictures and text: a folder or a hub id; "mini" for the embedded judge."""
    image: tuple[str, ...] = ("facebook/dino-vits16",)
    """Judges that read pictures only."""
    shown: int = Field(default=8, ge=0)
    """Number of the best, of the median and of the worst cases on the page."""


class BenchmarkSettings(ClosedSettings):
    """The settings that both benchmarks share."""

    method: MethodSettings = MethodSettings()
    drawing: DrawingSettings = DrawingSettings()
    judging: JudgingSettings = JudgingSettings()


class CocoData(ClosedSettings):
    """Pictures and captions of COCO2017 val."""

    folder: str
    """The folder with val2017/*.jpg and annotations/captions_val2017.json."""
    images: int = Field(default=5000, ge=2)
    """Number of references, the first ones by id."""
    samples: int = Field(default=4, ge=1)
    """Number of images of each reference."""
    scale: float = 1.0
    """The scale λ of the image prompt."""


class CocoSettings(BenchmarkSettings):
    """The settings of the paper's Table 1."""

    data: CocoData


class DreamBenchData(ClosedSettings):
    """Subjects and prompts of DreamBench."""

    folder: str
    """A clone of github.com/google/dreambooth: dataset/SUBJECT/*.jpg and dataset/prompts_and_classes.txt."""
    subjects: int = Field(default=30, ge=2)
    """Number of subjects, the first ones by name."""
    samples: int = Field(default=4, ge=1)
    """Number of images of each subject, prompt and λ."""
    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """Every λ, in rising order."""


class DreamBenchSettings(BenchmarkSettings):
    """The settings of DreamBench."""

    data: DreamBenchData


def load_settings(kind: type[Settings], path: Path, changes: Sequence[str] = ()) -> Settings:
    """Read settings; `changes` are `key=value` that replace values of the file.

    Raises:
        ConfigError: the file does not exist or is no TOML, a key is unknown (and the nearest known one), or a
            value has a wrong type or range
    """
    values: dict[str, Any] = read_toml(path, changes, kind="file")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain_fault(error, kind)}") from error
