"""What a benchmark is told: one TOML file, typed and closed.

    [data]      the pictures, and how many of them
    [method]    what draws: base and adapter, or a published baseline
    [drawing]   steps, guidance, size; by how many processes
    [judging]   who scores

Pictures follow from `[method]`, `[drawing]` (but for its last two keys) and the data alone. A key that says
who judges, or how many processes draw, may change between two runs into the same folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from imprompt.errors import ConfigError
from imprompt.runtime.settings import ClosedSettings, explain, read_toml

Settings = TypeVar("Settings", bound=ClosedSettings)


class MethodSettings(ClosedSettings):
    """What draws."""

    name: str = "ip-adapter"
    """"ip-adapter", or a published baseline: docs/evaluation.md lists them."""
    model: str = ""
    """The base, or the baseline's pipeline: a folder in diffusers' format or a hub id; "mini" for the
    embedded base. Empty: the published one (Stable Diffusion 1.5 for "ip-adapter")."""
    adapter: str = ""
    """Of "ip-adapter": "mini", "mini-plus", a published one's short name, a file, or "owner/name:file"."""
    image_encoder: str = "known"
    """Of "ip-adapter": as `imprompt generate --image-encoder` takes it."""
    second: str = ""
    """What a baseline needs beside its pipeline: Kandinsky's prior, the ControlNet. Empty: the published."""


class DrawingSettings(ClosedSettings):
    """How pictures are drawn."""

    steps: int = Field(default=50, ge=1)
    """Denoising steps."""
    guidance_scale: float = Field(default=7.5, ge=1)
    """w of classifier-free guidance; 1 for none."""
    sampler: Literal["ddim", "own"] = "ddim"
    """"own": the one that the model comes with. Karlo (unclip) has only its own."""
    negative_prompt: str = ""
    """What the text asks to avoid."""
    size: int = Field(default=0, ge=0, multiple_of=8)
    """Side of the square pictures in pixels; 0 for the model's own."""
    batch_size: int = Field(default=4, ge=1)
    """Samples of one reference that are drawn in one call. A picture follows from it to the last bit."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    """In which models compute on a GPU; on a processor always fp32."""
    workers: int = Field(default=0, ge=0)
    """Processes, or Ray tasks at a time; 0: one for each GPU of this machine, without any one."""
    engine: Literal["processes", "ray"] = "processes"
    """Who draws: processes of this machine, or tasks of a Ray cluster that shares the output and the data."""


class JudgingSettings(ClosedSettings):
    """Who scores."""

    clip: str = "openai/clip-vit-large-patch14"
    """The judge that reads pictures and text: a folder or a hub id; "mini" for the embedded judge."""
    image: tuple[str, ...] = ("facebook/dino-vits16",)
    """Judges that read pictures only."""
    shown: int = Field(default=8, ge=0)
    """How many of the best, of the median and of the worst cases the page shows."""


class CocoData(ClosedSettings):
    """Pictures and captions of COCO2017 val."""

    folder: str
    """With val2017/*.jpg and annotations/captions_val2017.json."""
    images: int = Field(default=5000, ge=2)
    """The first ones by id."""
    samples: int = Field(default=4, ge=1)
    """Pictures drawn of each."""
    scale: float = 1.0
    """λ."""


class CocoSettings(ClosedSettings):
    """The paper's Table 1."""

    data: CocoData
    method: MethodSettings = MethodSettings()
    drawing: DrawingSettings = DrawingSettings()
    judging: JudgingSettings = JudgingSettings()


class DreamBenchData(ClosedSettings):
    """Subjects and prompts of DreamBench."""

    folder: str
    """A clone of github.com/google/dreambooth: dataset/SUBJECT/*.jpg and dataset/prompts_and_classes.txt."""
    subjects: int = Field(default=30, ge=2)
    """The first ones by name."""
    samples: int = Field(default=4, ge=1)
    """Pictures drawn of each subject, prompt and λ."""
    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """Every λ to be drawn at, rising."""


class DreamBenchSettings(ClosedSettings):
    """Subjects in new scenes."""

    data: DreamBenchData
    method: MethodSettings = MethodSettings()
    drawing: DrawingSettings = DrawingSettings()
    judging: JudgingSettings = JudgingSettings()


def load_settings(kind: type[Settings], path: Path, changes: Sequence[str] = ()) -> Settings:
    """Read settings; `changes` are `key=value` that replace what the file says.

    Raises:
        ConfigError: no such file, no TOML, an unknown key (and the nearest known one), a wrong type or range
    """
    values: dict[str, Any] = read_toml(path, changes, kind="file")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error.errors()[0], kind)}") from error
