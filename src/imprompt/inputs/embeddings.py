"""What encoders made of pictures: kept in a file, and several made one.

A file is safetensors: for each input, `inputs.NAME` "images ..." and `blank.NAME` "..."; its metadata hold
"imprompt.kind", "imprompt.version" and "imprompt.inputs" (name → shape, as JSON) beside the user's own.
"""

import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.errors import AdapterMismatch, CheckpointError, InvalidReference, OutputError
from imprompt.inputs.encoder import Input
from imprompt.runtime.files import file_fault, header_fault
from imprompt.runtime.output import check_output, write_atomically
from imprompt.runtime.settings import normalize_spelling

Combine = Literal["concat", "average", "add", "subtract", "normalized average", "interpolate"]
"""What becomes of several pictures in one reference, see `combine_embeddings`."""

VERSION = "1"
"""Of the file format."""

_KIND = "image embeddings"
_OURS = "imprompt."
_OPPOSITE = "the pictures are opposite, so no direction lies between them; combine them by 'average'"
_AXES: dict[Input, str] = {
    "image_embedding": "images d",
    "image_features": "images patches d",
    "face_embedding": "images d",
}


@dataclass(frozen=True, eq=False)
class ImageEmbeddings:
    """Pictures as an adapter's projection takes them.

    Args:
        inputs: image_embedding "images d", image_features "images patches d", face_embedding "images d"; one
            or more, of equally many images
        blank: "no image" for each of them, without the first axis; it stands on the negative branch
        metadata: what the user should know later: "encoder", "variant", ...

    Raises:
        InvalidReference: shapes that do not go together, no images, values that are not finite
    """

    inputs: Mapping[Input, Tensor]
    blank: Mapping[Input, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if problem := _problem(self.inputs, self.blank):
            raise InvalidReference(problem)
        reserved = [key for key in self.metadata if key.startswith(_OURS) or key == "format"]
        if reserved:
            raise InvalidReference(
                f"metadata cannot be named {reserved[0]!r}; the file format uses it itself"
            )

    @property
    def images(self) -> int:
        """How many pictures."""
        return len(next(iter(self.inputs.values())))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.safetensors` file, whole or not at all.

        Raises:
            OutputError: another suffix, a folder that is missing, a disk that is full
        """
        path = Path(path)
        check_output(path, ".safetensors")
        tensors = _named(self.inputs, "inputs.") | _named(self.blank, "blank.")
        ours = {"kind": _KIND, "version": VERSION, "inputs": _shapes(self.inputs)}
        metadata = {**self.metadata, **{_OURS + key: value for key, value in ours.items()}, "format": "pt"}
        with write_atomically(path) as part:
            try:
                safetensors.torch.save_file(tensors, part, metadata)
            except safetensors.SafetensorError as error:  # how it reports a full disk
                raise OutputError(f"{path} cannot be written: {error}") from error

    def check_fits(self, takes: Mapping[Input, int]) -> None:
        """Refuse embeddings that are not, by name and width, what a projection takes.

        Args:
            takes: `ImageProjection.takes`

        Raises:
            AdapterMismatch: an input is missing, is one too many, or has another width
        """
        have, want = ", ".join(sorted(self.inputs)), ", ".join(sorted(takes))
        if set(self.inputs) != set(takes):
            raise AdapterMismatch(
                f"these image embeddings{self._origin} hold {have}; this adapter takes {want}: make them "
                "with this adapter"
            )
        for name, width in takes.items():
            found = self.inputs[name].shape[-1]
            if found != width:
                raise AdapterMismatch(
                    f"{name} is {found} wide in these image embeddings{self._origin}; this adapter takes one "
                    f"{width} wide: make them with this adapter"
                )

    @property
    def _origin(self) -> str:
        return f" of {self.metadata['encoder']}" if "encoder" in self.metadata else ""


def load_embeddings(path: str | os.PathLike[str]) -> ImageEmbeddings:
    """Read a file that `ImageEmbeddings.save` wrote, on the CPU, in its own type (float8 as float16).

    Raises:
        CheckpointError: missing, damaged, of a later version, or a file of another kind (an adapter, ...)
    """
    path = Path(path)
    tensors, metadata = _read(path)
    inputs, blank = (
        {name: tensors[prefix + name] for name in get_args(Input) if prefix + name in tensors}
        for prefix in ("inputs.", "blank.")
    )
    strange = sorted(set(tensors) - set(_named(inputs, "inputs.")) - set(_named(blank, "blank.")))
    if strange:
        raise CheckpointError(f"{path} holds {strange[0]!r}, which has no place among image embeddings")
    problem = _problem(inputs, blank)
    if not problem and metadata.get("imprompt.inputs") != _shapes(inputs):
        problem = f"its tensors are {_shapes(inputs)}, its metadata say {metadata.get('imprompt.inputs')}"
    if problem:
        raise CheckpointError(f"{path} is damaged: {problem}")
    theirs = {key: text for key, text in metadata.items() if not key.startswith(_OURS) and key != "format"}
    return ImageEmbeddings(inputs, blank, theirs)


def combine_embeddings(
    inputs: Float[Tensor, "images ..."], how: Combine | str, weights: Sequence[float | int] | None = None
) -> Float[Tensor, "images_out ..."]:
    """Make one picture of several, as encoders' outputs; x_i: one picture's vectors, w_i: its weight.

        concat              all of them, as they are; weights must be None
        average             Σ w_i x_i / Σ w_i
        add                 Σ w_i x_i
        subtract            w_1 x_1 - mean of w_i x_i over the others
        normalized average  the direction of Σ w_i x_i/|x_i|, as long as the average Σ w_i |x_i| / Σ w_i
        interpolate         of two, weights (1 - t, t): along the arc from x_1/|x_1| to x_2/|x_2|, the share t
                            of its angle, as long as (1 - t) |x_1| + t |x_2|

    Lengths |x| are over the last axis, so each patch of features has its own. Weights are 1 if not given
    (1/2 and 1/2 for "interpolate"). Computed in float64, returned in the type given.

    Raises:
        InvalidReference: an unknown way, too few or too many pictures or weights, weights that are no finite
            numbers or sum to 0 (of "interpolate": to anything but 1), opposite pictures without a direction
    """
    how = str(normalize_spelling(how))
    if how not in get_args(Combine):
        raise InvalidReference(f"combine must be {', '.join(get_args(Combine))}, not {how!r}")
    if how == "concat":
        if weights is not None:
            raise InvalidReference(
                f"combine 'concat' takes no weights, not {list(weights)}; use scale instead"
            )
        return inputs
    x = inputs.double()
    w = _checked_weights(how, len(x), weights).to(x.device).reshape(-1, *[1] * (x.ndim - 1))
    return _WAYS[how](x, w).to(inputs.dtype)


def _mean(x: Tensor, w: Tensor) -> Tensor:
    total = w.sum()
    if abs(total) < 1e-9:
        raise InvalidReference(f"weights {w.flatten().tolist()} sum to 0, so there is no average")
    return (w * x).sum(0, keepdim=True) / total


def _added(x: Tensor, w: Tensor) -> Tensor:
    return (w * x).sum(0, keepdim=True)


def _subtracted(x: Tensor, w: Tensor) -> Tensor:
    weighted = w * x
    return weighted[:1] - weighted[1:].mean(0, keepdim=True)


def _normalized_mean(x: Tensor, w: Tensor) -> Tensor:
    length = x.norm(dim=-1, keepdim=True)
    return _directed(_mean(_unit(x), w), _mean(length, w))


def _interpolated(x: Tensor, w: Tensor) -> Tensor:
    length, unit = x.norm(dim=-1, keepdim=True), _unit(x)
    angle = torch.acos((unit[0] * unit[1]).sum(-1, keepdim=True).clamp(-1, 1))
    if (angle > math.pi - 1e-6).any() and 0 < w[1] < 1:
        raise InvalidReference(_OPPOSITE)
    # On a tiny arc the chord is the arc; a zero vector has no angle, and its share of the chord is none.
    straight = (angle < 1e-6) | (length[0] * length[1] == 0)
    share = torch.where(straight, w, torch.sin(w * angle) / angle.sin())
    return _directed(_added(unit, share), _added(length, w))


_WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "average": _mean,
    "add": _added,
    "subtract": _subtracted,
    "normalized average": _normalized_mean,
    "interpolate": _interpolated,
}


def _unit(x: Tensor) -> Tensor:
    """Each vector at length 1; a zero vector stays zero."""
    return torch.nn.functional.normalize(x, dim=-1, eps=torch.finfo(x.dtype).tiny)


def _directed(direction: Tensor, length: Tensor) -> Tensor:
    lost = (direction.norm(dim=-1, keepdim=True) < 1e-6) & (length > 0)
    if lost.any():
        raise InvalidReference(_OPPOSITE)
    return _unit(direction) * length


def _checked_weights(how: str, images: int, weights: Sequence[float | int] | None) -> Tensor:
    if how == "subtract" and images < 2:
        raise InvalidReference("combine 'subtract' needs at least two pictures, not 1")
    if how == "interpolate" and images != 2:
        raise InvalidReference(f"combine 'interpolate' needs two pictures, not {images}")
    if weights is None:
        return torch.full((images,), 0.5 if how == "interpolate" else 1.0, dtype=torch.float64)
    if len(weights) != images:
        raise InvalidReference(f"{images} pictures need as many weights, not {len(weights)}: {list(weights)}")
    w = torch.tensor([float(weight) for weight in weights], dtype=torch.float64)
    if not w.isfinite().all():
        raise InvalidReference(f"weights must be finite numbers, not {list(weights)}")
    if how == "interpolate" and (abs(w.sum() - 1) > 1e-6 or w.min() < 0):
        raise InvalidReference(
            f"weights of 'interpolate' are (1 - t, t) with t from 0 to 1, not {list(weights)}"
        )
    return w


def _problem(inputs: Mapping[Input, Tensor], blank: Mapping[Input, Tensor]) -> str | None:
    """What is wrong with image embeddings, as half a sentence; None for sound ones."""
    if not inputs:
        return "image embeddings need at least one input"
    if set(inputs) != set(blank):
        return f"inputs are {', '.join(sorted(inputs))}, blanks are {', '.join(sorted(blank)) or 'none'}"
    for name, tensor in inputs.items():
        if problem := _tensor_problem(name, tensor, blank[name]):
            return problem
    if len({len(tensor) for tensor in inputs.values()}) > 1:
        counts = ", ".join(f"{len(tensor)} of {name}" for name, tensor in inputs.items())
        return f"every input must have as many images, not {counts}"
    return None


def _tensor_problem(name: Input, tensor: Tensor, blank: Tensor) -> str | None:
    axes, shape = _AXES[name], tuple(tensor.shape)
    if len(shape) != len(axes.split()) or tensor.numel() == 0 or not tensor.is_floating_point():
        return f"{name} must be a floating-point tensor ({axes}), not {shape} of {tensor.dtype}"
    if tuple(blank.shape) != shape[1:]:
        return f"the blank of {name} must have shape {shape[1:]}, not {tuple(blank.shape)}"
    for kind, values in (("", tensor), ("the blank of ", blank)):
        if not values.is_floating_point() or not values.float().isfinite().all():
            return f"{kind}{name} contains NaN or infinity"
    return None


def _shapes(inputs: Mapping[Input, Tensor]) -> str:
    return json.dumps({name: list(inputs[name].shape) for name in get_args(Input) if name in inputs})


def _named(tensors: Mapping[Input, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        prefix + name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if fault := file_fault(path):
        raise CheckpointError(fault)
    try:
        if not path.stat().st_size:
            raise CheckpointError(f"{path} is empty")
        if fault := header_fault(path):
            raise CheckpointError(fault)
        with safetensors.safe_open(path, framework="pt") as file:
            names, metadata = list(file.keys()), dict(file.metadata() or {})
            _check_kind(path, names, metadata)
            # Copied: mapped tensors die with the file.
            return {name: _wide(file.get_tensor(name).clone()) for name in names}, metadata
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} cannot be read as image embeddings (safetensors): {reason}") from error


def _wide(tensor: Tensor) -> Tensor:
    """float8 as float16, which holds each of its values: nothing is computed in float8."""
    return tensor.half() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def _check_kind(path: Path, names: Collection[str], metadata: Mapping[str, str]) -> None:
    """Refuse a file of another kind or version, and one with more tensors than three inputs have."""
    if metadata.get("imprompt.kind") != _KIND:
        adapter = any(name.startswith(("image_proj.", "ip_adapter.")) for name in names)
        what = "an adapter" if adapter else "something else"
        raise CheckpointError(
            f"{path} holds {what}, not image embeddings; give a file that embeddings.save wrote"
        )
    if len(names) > 2 * len(_AXES):
        raise CheckpointError(
            f"{path} holds {len(names):,} tensors; image embeddings are {2 * len(_AXES)} at most"
        )
    if metadata.get("imprompt.version") != VERSION:
        version = metadata.get("imprompt.version")
        raise CheckpointError(
            f"{path} has version {version} of the format, not {VERSION}; use a later imprompt, or remake it"
        )
