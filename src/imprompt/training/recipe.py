"""Recipes: what a training run of one of the embedded model's stages is, read from one TOML file.

Folders named without a leading `/` or `.` lie in the cache (`IMPROMPT_CACHE`, or `~/.cache/imprompt`), where
data and unfinished models belong.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from imprompt.errors import ConfigError
from imprompt.settings import Closed, explain, in_cache, read_toml
from imprompt.training.settings import LoopSettings

__all__ = ["Recipe", "in_cache", "load_recipe", "parse_recipe"]


class Mixture(Closed):
    """How often a drawing is small in a corner, or has a neighbour; or the reference has another ground; or
    the caption does not say what it shows."""

    placed: float = Field(default=0.05, ge=0, le=1)
    paired: float = Field(default=0.05, ge=0, le=1)
    changed_ground: float = Field(default=0.0, ge=0, le=1)
    nameless: float = Field(default=0.0, ge=0, le=1)


class Recipe(LoopSettings):
    """What every stage has."""

    data: str = "emoji-64"
    """Folder of the pictures, as `imprompt mini build-data` wrote it."""
    output: str = "mini-64"
    """Folder of the model under construction: earlier stages are read from it, this one is written to it."""
    mixture: Mixture = Mixture()


class CodecRecipe(Recipe):
    """The autoencoder in closed form: `steps` batches are looked at, once."""

    stage: Literal["codec"]
    latent_channels: int = Field(32, ge=1)


class DecoderRecipe(Recipe):
    """The convolutions after the linear code, on noised latents."""

    stage: Literal["decoder"]
    width: int = Field(48, ge=1)
    noise: float = Field(0.3, ge=0)
    """Noise on the latents has a deviation between zero and this."""


class PairRecipe(Recipe):
    """Text encoder and image encoder, trained contrastively (CLIP), with a thumbnail reader."""

    stage: Literal["pair"]
    vocabulary: int = 2048
    text_length: int = 24
    text_width: int = 192
    text_layers: int = 3
    image_width: int = 256
    image_layers: int = 4
    image_patch: int = 16
    embedding_dim: int = 256
    thumbnail_weight: float = 3.0
    """Weight of reading a thumbnail linearly off the image embedding, which keeps layout and colour in it."""


class BaseRecipe(Recipe):
    """The text-to-image U-Net, and the text encoder with it."""

    stage: Literal["base"]
    widths: tuple[int, ...] = (96, 192)
    heads: int = 4
    layers_per_block: int = 1
    text_learning_rate: float = Field(3e-4, ge=0)
    text_drop: float = Field(0.1, ge=0, le=1)
    compile: bool = False
    """Train through torch.compile: a fifth faster on two cores, after a minute and a half of compiling."""


class StyleRecipe(Recipe):
    """A fine-tuned base: low-rank changes (LoRA) of the U-Net that put everything it draws in one style."""

    stage: Literal["style"]
    style: str = "blueprint"
    """A filter of training/styles.py; the files go to `styles/<style>`."""
    rank: int = Field(12, ge=1)
    text_drop: float = Field(0.3, ge=0, le=1)


class ControlRecipe(Recipe):
    """The ControlNet on edges, beside the frozen base."""

    stage: Literal["control"]
    embedding_widths: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the edge picture's way down to latents: half the size from each to the next."""
    text_drop: float = Field(0.5, ge=0, le=1)


class JudgeRecipe(Recipe):
    """The judge: a convolutional encoder, apart from all others, that recognises concepts in pictures."""

    stage: Literal["judge"]
    widths: tuple[int, ...] = (48, 96, 192)
    depths: tuple[int, ...] = (1, 2, 3)
    patch_size: int = Field(4, ge=1)
    embedding_dim: int = 128
    temperature: float = Field(0.1, gt=0)
    other_style: float = Field(0.6, ge=0, le=1)
    """How often the second view is another set's drawing, not the same one once more."""


class JudgeTextRecipe(Recipe):
    """The judge's text encoder, trained to the locked judge's features."""

    stage: Literal["judge-text"]
    weights: str = ""
    """Folder of the judge; by default the one in `output`."""
    vocabulary: int = 2048
    text_length: int = Field(24, ge=4)
    width: int = Field(128, ge=1)
    layers: int = Field(2, ge=1)
    grounds: int = Field(2, ge=1)
    """On how many grounds the judge sees each drawing: white, and others by chance."""


AnyRecipe = Annotated[
    CodecRecipe
    | DecoderRecipe
    | PairRecipe
    | BaseRecipe
    | StyleRecipe
    | ControlRecipe
    | JudgeRecipe
    | JudgeTextRecipe,
    Field(discriminator="stage"),
]


def load_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `settings` are `key=value` (dotted keys, TOML values) that replace what the file says.

    Raises:
        ConfigError: no such file, no TOML, an unknown key (and the nearest known one), a wrong type or range.
    """
    return parse_recipe(read_toml(path, settings), str(path))


def parse_recipe(values: dict[str, Any], source: str) -> Recipe:
    """Check settings against the stage's recipe; the first fault becomes one sentence."""
    try:
        return TypeAdapter(AnyRecipe).validate_python(values)
    except ValidationError as error:
        kinds = {get_args(kind.model_fields["stage"].annotation)[0]: kind for kind in Recipe.__subclasses__()}
        fault: Any = error.errors()[0]
        fault["loc"] = [part for part in fault["loc"] if part != values.get("stage")]
        raise ConfigError(
            f"{source}: {explain(fault, kinds.get(str(values.get('stage')), Recipe))}"
        ) from error
