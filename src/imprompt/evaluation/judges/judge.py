"""What every judge has: features of pictures, features of captions if it reads text, and a fingerprint."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig

from imprompt.errors import ConfigError, UnknownModel
from imprompt.runtime.foreign_models import explain_failure, log_errors_only, parse_source

PICTURES_AT_ONCE = 64
CAPTIONS_AT_ONCE = 256


class Judge:
    """A frozen image encoder, and perhaps a text encoder of the same space.

    A subclass says how a picture becomes pixels (`pixels`) and pixels become features (`encode`). One that
    reads text also says how captions become tokens (`tokenize`) and tokens become features (`encode_text`).

    Args:
        network: encodes pictures; it is put into evaluation mode and frozen, in place
        name: the judge's name in tables

    Attributes:
        cut_captions: how many captions so far were longer than the text encoder can read
    """

    def __init__(self, network: nn.Module, *, name: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.cut_captions = 0

    # Pictures

    def features(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "pictures dim"]:
        """Return the features of RGB pictures, of length one, float32 on the CPU.

        Raises:
            ValueError: there are no pictures
        """
        if not pictures:
            raise ValueError("there are no pictures to judge")
        pieces = []
        for start in range(0, len(pictures), PICTURES_AT_ONCE):
            pixels = [self.pixels(picture) for picture in pictures[start : start + PICTURES_AT_ONCE]]
            pieces.append(self.normalize(self.encode(self.to_network(torch.stack(pixels)))))
        return torch.cat(pieces)

    def pixels(self, picture: Image.Image) -> Float[Tensor, "3 height width"]:
        """Return one picture as the network's input."""
        raise NotImplementedError

    def encode(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Return the network's features of pixels on its device, of any length."""
        raise NotImplementedError

    # Captions

    @property
    def reads_text(self) -> bool:
        """Whether captions have features too."""
        return False

    def text_features(self, captions: Sequence[str]) -> Float[Tensor, "captions dim"]:
        """Return the features of captions in the pictures' space, of length one, float32 on the CPU.

        A caption that is longer than the text encoder can read is cut, counted in `cut_captions`, and
        reported by `remarks`.

        Raises:
            ConfigError: this judge reads no text
            ValueError: there are no captions
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
            pieces.append(self.normalize(self.encode_text(tokens)))
        return torch.cat(pieces)

    def tokenize(self, captions: list[str]) -> tuple[dict[str, Tensor], int]:
        """Return the captions' tokens by name, and how many captions had to be cut."""
        raise NotImplementedError

    def encode_text(self, tokens: dict[str, Tensor]) -> Float[Tensor, "captions dim"]:
        """Return the features of tokens on the network's device, of any length."""
        raise NotImplementedError

    def remarks(self) -> list[str]:
        """Return the sentences that a report of this judge's scores must contain."""
        if not self.cut_captions:
            return []
        return [f"{self.cut_captions:,} captions were longer than {self.name} reads and were cut"]

    # Device and fingerprint

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> "Judge":
        """Move the judge, in place; features are returned on the CPU all the same."""
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

    def to_network(self, pixels: Tensor) -> Tensor:
        """Move pixels to the network's device and number format."""
        return pixels.to(self.device, next(self.network.parameters()).dtype)

    def normalize(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Return features of length one, float32 on the CPU."""
        return F.normalize(features.detach().float(), dim=-1).cpu()


# Loading


def load_part(kind: str, source: str | Path, load: Callable[..., Any], **options: Any) -> Any:
    """Load a model, or a part of one, with transformers.

    Args:
        kind: names the part in the error
        source: a folder, or "owner/name[:subfolder]" on the hub
        load: the `from_pretrained` of the part's class
        **options: of `load`

    Raises:
        UnknownModel: it cannot be loaded; the message names the part and the source
    """
    place = parse_source(source)
    with explain_failure(f"no {kind} at {source}"):
        return load(place.name, **options, **place.options)


def load_config(kind: str, source: str | Path) -> Any:
    """Load a model's configuration; see `load_part`."""
    return load_part(kind, source, AutoConfig.from_pretrained)


def load_complete_model(
    kind: str, source: str | Path, load: Callable[..., Any], *, model_type: str | None = None, **options: Any
) -> Any:
    """Load a transformers model in float32, all of whose weights are in its file.

    Args:
        kind: names the model in the error
        source: a folder, or "owner/name[:subfolder]" on the hub
        load: the `from_pretrained` of the model's class
        model_type: the only type that is accepted; None for any
        **options: of `load`

    Raises:
        UnknownModel: it cannot be found, it is of another type, or weights are missing
    """
    found = load_config(kind, source).model_type
    if model_type not in (None, found):
        raise UnknownModel(f"no {kind} at {source}: what is there is of type {found}, not {model_type}")
    options |= {"dtype": torch.float32, "output_loading_info": True}
    with log_errors_only(
        "transformers"
    ):  # it would print a table of missing weights; the error below has one line
        model, report = load_part(kind, source, load, **options)
    if missing := sorted(report["missing_keys"]):
        raise UnknownModel(
            f"no {kind} at {source}: {len(missing)} of its weights are not there, {missing[0]} for one"
        )
    return model
