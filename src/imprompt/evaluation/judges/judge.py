"""What every judge has: features of pictures, of captions where it reads text, and who it is."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig
from transformers.utils import logging

from imprompt.errors import ConfigError, UnknownModel

PICTURES_AT_ONCE = 64
CAPTIONS_AT_ONCE = 256


class Judge:
    """A frozen encoder of pictures, and perhaps of captions in the same space.

    A kind of judge says how a picture becomes pixels (`pixels`) and pixels features (`encode`); one that
    reads text, how captions become token ids and these features (`tokenize`, `encode_text`).

    Args:
        network: what encodes pictures; put into evaluation mode and frozen, in place
        name: what tables call it

    Attributes:
        cut_captions: how many captions so far were longer than the text encoder can read
    """

    def __init__(self, network: nn.Module, *, name: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.cut_captions = 0

    # Pictures

    def features(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "pictures dim"]:
        """Features of RGB pictures, of length one, float32 on the CPU.

        Raises:
            ValueError: no pictures
        """
        if not pictures:
            raise ValueError("there are no pictures to judge")
        pieces = []
        for start in range(0, len(pictures), PICTURES_AT_ONCE):
            pixels = [self.pixels(picture) for picture in pictures[start : start + PICTURES_AT_ONCE]]
            pieces.append(self.unit(self.encode(self.placed(torch.stack(pixels)))))
        return torch.cat(pieces)

    def pixels(self, picture: Image.Image) -> Float[Tensor, "3 height width"]:
        """One picture as the network takes it."""
        raise NotImplementedError

    def encode(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """The network's features of pixels on its device, of any length."""
        raise NotImplementedError

    # Captions

    @property
    def reads_text(self) -> bool:
        """Whether captions have features too."""
        return False

    def text_features(self, captions: Sequence[str]) -> Float[Tensor, "captions dim"]:
        """Features of captions, of length one, float32 on the CPU, in the pictures' space.

        What is longer than the text encoder can read is cut, counted in `cut_captions` and told in `remarks`.

        Raises:
            ConfigError: this judge reads no text
            ValueError: no captions
        """
        if not self.reads_text:
            raise ConfigError(f"the judge {self.name} reads no text; use a CLIP judge for it")
        if not captions:
            raise ValueError("there are no captions to judge")
        pieces = []
        for start in range(0, len(captions), CAPTIONS_AT_ONCE):
            tokens, cut = self.tokenize(list(captions[start : start + CAPTIONS_AT_ONCE]))
            self.cut_captions += cut
            tokens = {name: rows.to(self.device) for name, rows in tokens.items()}
            pieces.append(self.unit(self.encode_text(tokens)))
        return torch.cat(pieces)

    def tokenize(self, captions: list[str]) -> tuple[dict[str, Tensor], int]:
        """The captions' `input_ids` and `attention_mask`, and how many captions had to be cut."""
        raise NotImplementedError

    def encode_text(self, tokens: dict[str, Tensor]) -> Float[Tensor, "captions dim"]:
        """The features of token ids on the network's device, of any length."""
        raise NotImplementedError

    def remarks(self) -> list[str]:
        """What whoever reports this judge's figures must say beside them."""
        if not self.cut_captions:
            return []
        return [f"{self.cut_captions:,} captions were longer than {self.name} reads and were cut"]

    # Who and where it is

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> "Judge":
        """Move the judge, in place; features come back on the CPU all the same."""
        self.network.to(device)
        return self

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that depend on the network's weights alone (SHA-256, as float32)."""
        digest = hashlib.sha256()
        for name, weights in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(weights.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def placed(self, pixels: Tensor) -> Tensor:
        """Pixels where the network is, in its number format."""
        return pixels.to(self.device, next(self.network.parameters()).dtype)

    def unit(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Features at length one, float32 on the CPU."""
        return F.normalize(features.detach().float(), dim=-1).cpu()


def place_of(source: str | Path) -> tuple[str, dict[str, Any]]:
    """A folder as it is; of "owner/name:subfolder" the repository, and the subfolder as an option."""
    if Path(source).is_dir():
        return str(source), {}
    repository, _, subfolder = str(source).partition(":")
    return repository, {"subfolder": subfolder} if subfolder else {}


def loaded(kind: str, source: str | Path, load: Callable[[], Any]) -> Any:
    """What `load` loads.

    Raises:
        UnknownModel: it cannot; the sentence names what was to be loaded, and whence
    """
    try:
        return load()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnknownModel(f"no {kind} at {source}: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers log errors only."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_config(kind: str, source: str | Path) -> Any:
    """A model's configuration; see `load_whole`.

    Raises:
        UnknownModel: none there
    """
    place, where = place_of(source)
    return loaded(kind, source, lambda: AutoConfig.from_pretrained(place, **where))


def load_whole(
    kind: str, source: str | Path, load: Callable[..., Any], *, model_type: str | None = None, **options: Any
) -> Any:
    """A transformers model, for float32, with all its weights from the file: none made up.

    Args:
        kind: what it is to be, for the error
        source: a folder, or "owner/name[:subfolder]" on the hub
        load: its class' `from_pretrained`
        model_type: what the configuration must say, if only that will do
        **options: for `load`

    Raises:
        UnknownModel: not there, not such a model, or weights are missing
    """
    found = load_config(kind, source).model_type
    if model_type not in (None, found):
        raise UnknownModel(f"no {kind} at {source}: what is there is of type {found}, not {model_type}")
    place, where = place_of(source)
    options |= {**where, "dtype": torch.float32, "output_loading_info": True}
    with quiet():  # transformers' table of what is missing; the error below says it in a line
        model, report = loaded(kind, source, lambda: load(place, **options))
    if missing := sorted(report["missing_keys"]):
        raise UnknownModel(
            f"no {kind} at {source}: {len(missing)} of its weights are not there, {missing[0]} for one"
        )
    return model
