"""Recipes: the settings of a training run of one of the embedded model's parts, read from one TOML file.

A folder whose name does not begin with `/` or `.` is in the cache (`IMPROMPT_CACHE`, or `~/.cache/imprompt`),
which holds data and unfinished models.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from imprompt.errors import ConfigError
from imprompt.runtime.settings import explain_fault, read_toml
from imprompt.training.settings import LoopSettings


class StageRecipe(LoopSettings):
    """The settings that every part has."""

    data: str = "characters-128"
    """Folder of the drawings, as `imprompt mini build-data` wrote it."""
    output: str = "mini-128"
    """Folder of the model under construction: this part is written to it, and earlier parts are read from it.
    Where it has no base or image encoder, those of the embedded model are read."""


class CodecRecipe(StageRecipe):
    """The autoencoder's linear code, in closed form, from `steps` batches."""

    stage: Literal["codec"]
    patch_size: int = Field(16, ge=2)
    latent_channels: int = Field(48, ge=1)


class DecoderRecipe(StageRecipe):
    """The convolutions that add detail to the linear decoding, trained on noised latents."""

    stage: Literal["decoder"]
    widths: tuple[int, ...] = (192, 128, 64, 32)
    """Channels at 1, 2, 4, ... times the latents' resolution."""
    noise: float = Field(0.15, ge=0)
    """Largest noise on the latents, in standard deviations of each channel."""


class BaseRecipe(StageRecipe):
    """The text-to-image U-Net, and the text encoder that trains with it."""

    stage: Literal["base"]
    widths: tuple[int, ...] = (160, 256)
    heads: int = 4
    layers_per_block: int = 1
    vocabulary: int = 900
    """Most tokens, 512 single bytes among them."""
    text_length: int = 40
    text_width: int = 192
    text_layers: int = 2
    text_learning_rate: float = Field(3e-4, ge=0)
    text_drop: float = Field(0.1, ge=0, le=1)
    compile: bool = False
    """Train with torch.compile, after a minute and a half of compiling."""


class EncoderRecipe(StageRecipe):
    """The image encoder: a CLIP vision tower that recognizes attributes, with a thumbnail reader."""

    stage: Literal["encoder"]
    width: int = Field(256, ge=64)
    layers: int = Field(6, ge=1)
    patch_size: int = Field(16, ge=1)
    embedding_dim: int = Field(256, ge=1)
    thumbnail_weight: float = Field(2.0, ge=0)
    """Weight of reading a thumbnail linearly from the embedding, which preserves what has no word."""
    compile: bool = False
    """Train with torch.compile, after a minute and a half of compiling."""


class JudgeRecipe(StageRecipe):
    """The judge: a convolutional network that reads attributes and distinguishes characters."""

    stage: Literal["judge"]
    widths: tuple[int, ...] = (48, 96, 192)
    depths: tuple[int, ...] = (1, 2, 3)
    patch_size: int = Field(4, ge=1)
    temperature: float = Field(0.1, gt=0)
    identity_weight: float = Field(0.3, ge=0)


class RecognizerRecipe(StageRecipe):
    """The recognizer, which knows a character again in every style by its image embedding."""

    stage: Literal["recognizer"]
    hidden_dim: int = Field(512, ge=1)
    embedding_dim: int = Field(128, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    scale: float = Field(24.0, gt=0)
    """s of ArcFace, which multiplies the cosines."""
    margin: float = Field(0.1, ge=0)
    """m of ArcFace, in radians."""


class ControlRecipe(StageRecipe):
    """The ControlNet of edges, with the frozen base."""

    stage: Literal["control"]
    embedding_widths: tuple[int, ...] = (16, 32, 64, 96, 128)
    """Channels of the edge picture's layers down to latents, each of half the size of the one before."""
    text_drop: float = Field(0.5, ge=0, le=1)


class StyleRecipe(StageRecipe):
    """A fine-tuned base: low-rank changes (LoRA) of the U-Net that turn everything into line drawings."""

    stage: Literal["style"]
    rank: int = Field(12, ge=1)
    text_drop: float = Field(0.3, ge=0, le=1)


class TransformerRecipe(StageRecipe):
    """A second text-to-image model in FLUX.1's architecture, on the base's autoencoder and text encoder."""

    stage: Literal["transformer"]
    heads: int = Field(3, ge=1)
    head_dim: int = Field(64, ge=8, multiple_of=8)
    double_blocks: int = Field(2, ge=1)
    single_blocks: int = Field(4, ge=1)
    text_length: int = Field(32, ge=4)
    """Number of text tokens; the longest caption has 31, and the text encoder has 40 places."""
    text_drop: float = Field(0.1, ge=0, le=1)
    timestep_location: float = -0.3
    """Center of the noise levels' logit."""
    compile: bool = False
    """Train with torch.compile, after two minutes of compiling."""


AnyRecipe = Annotated[
    CodecRecipe
    | DecoderRecipe
    | BaseRecipe
    | EncoderRecipe
    | JudgeRecipe
    | RecognizerRecipe
    | ControlRecipe
    | StyleRecipe
    | TransformerRecipe,
    Field(discriminator="stage"),
]


def load_recipe(path: Path, settings: Sequence[str] = ()) -> StageRecipe:
    """Read a recipe; `settings` are `key=value` (dotted keys, TOML values) that replace values of the file.

    Raises:
        ConfigError: the file does not exist or is no TOML, a key is unknown (and the nearest known one), or a
            value has a wrong type or range
    """
    return parse_recipe(read_toml(path, settings), str(path))


def parse_recipe(values: dict[str, Any], source: str) -> StageRecipe:
    """Validate settings as the part's recipe; the first fault becomes one sentence."""
    try:
        return TypeAdapter(AnyRecipe).validate_python(values)
    except ValidationError as error:
        kinds = {
            get_args(kind.model_fields["stage"].annotation)[0]: kind for kind in StageRecipe.__subclasses__()
        }
        kind = kinds.get(str(values.get("stage")), StageRecipe)
        raise ConfigError(f"{source}: {explain_fault(error, kind)}") from error
