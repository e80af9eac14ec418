"""Image embeddings: the outputs of encoders, saved in a file or combined.

A file is safetensors. For each input it holds `inputs.NAME` "images ..." and `blank.NAME` "...". Its metadata
hold "imprompt.kind", "imprompt.version" and "imprompt.inputs" (name → shape, as JSON), and the user's own.
"""

import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.errors import AdapterMismatch, CheckpointError, InvalidReference, OutputError
from imprompt.inputs.choices import Combine, Input
from imprompt.runtime.files import find_file_fault, find_header_fault
from imprompt.runtime.output import check_output, write_atomically
from imprompt.runtime.settings import normalize_spelling

_SHORT_FACT = 60
"""The most characters of a fact that `repr` shows; the signature of an encoder has more."""

VERSION = "1"
"""The version of the file format."""

_KIND = "image embeddings"
_PREFIX = "imprompt."
_OPPOSITE = (
    "the embeddings of the pictures are opposite, so no direction lies between them; use combine 'average'"
)
_AXES: dict[Input, str] = {
    "image_embedding": "images d",
    "image_features": "images patches d",
    "last_image_features": "images patches d",
    "image_pixels": "images 3 size size",
    "face_embedding": "images d",
}


@dataclass(frozen=True, eq=False, repr=False)
class ImageEmbeddings:
    """Encoded pictures, as an adapter's projection takes them.

    Args:
        inputs: image_embedding "images d", both kinds of features "images patches d", face_embedding
            "images d"; one or more, with the same number of images
        blank: "no image" for each of them, without the first axis; the negative branch takes it
        metadata: facts for the user: "encoder", "variant", ...

    Raises:
        InvalidReference: the shapes do not match, there are no images, or a value is not finite
    """

    inputs: Mapping[Input, Tensor]
    blank: Mapping[Input, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if problem := _find_problem(self.inputs, self.blank):
            raise InvalidReference(problem)
        reserved = [key for key in self.metadata if key.startswith(_PREFIX) or key == "format"]
        if reserved:
            raise InvalidReference(
                f"metadata cannot be named {reserved[0]!r}; the file format uses it itself"
            )

    def __repr__(self) -> str:
        """Name the inputs with their shapes and the metadata, not hundreds of numbers."""
        shapes = [f"{name} {' × '.join(map(str, tensor.shape))}" for name, tensor in self.inputs.items()]
        facts = [f"{key} {text!r}" for key, text in self.metadata.items() if len(text) <= _SHORT_FACT]
        return f"ImageEmbeddings({', '.join(shapes + facts)})"

    @property
    def images(self) -> int:
        """The number of pictures."""
        return len(next(iter(self.inputs.values())))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.safetensors` file atomically.

        Raises:
            OutputError: the suffix is another one, the folder is missing, or the disk is full
        """
        path = Path(path)
        check_output(path, ".safetensors")
        tensors = _prefix_names(self.inputs, "inputs.") | _prefix_names(self.blank, "blank.")
        own = {"kind": _KIND, "version": VERSION, "inputs": _format_shapes(self.inputs)}
        metadata = {**self.metadata, **{_PREFIX + key: value for key, value in own.items()}, "format": "pt"}
        with write_atomically(path) as part:
            try:
                safetensors.torch.save_file(tensors, part, metadata)
            except safetensors.SafetensorError as error:  # a full disk
                raise OutputError(f"{path} cannot be written: {error}") from error

    def check_fits(self, takes: Mapping[Input, int]) -> None:
        """Refuse embeddings whose names or widths are not those that a projection takes.

        Args:
            takes: `ImageProjection.takes`

        Raises:
            AdapterMismatch: an input is missing, is superfluous, or has another width
        """
        have, want = ", ".join(sorted(self.inputs)), ", ".join(sorted(takes))
        if set(self.inputs) != set(takes):
            raise AdapterMismatch(
                f"these image embeddings{self._origin} hold {have}; this adapter takes {want}; encode the "
                "pictures with this adapter"
            )
        for name, width in takes.items():
            actual = self.inputs[name].shape[-1]
            if actual != width:
                raise AdapterMismatch(
                    f"{name} is {actual} wide in these image embeddings{self._origin}; this adapter takes a "
                    f"width of {width}; encode the pictures with this adapter"
                )

    @property
    def _origin(self) -> str:
        return f" of {self.metadata['encoder']}" if "encoder" in self.metadata else ""


def load_embeddings(path: str | os.PathLike[str]) -> ImageEmbeddings:
    """Read a file written by `ImageEmbeddings.save`, on the CPU, in its own type (float8 as float16).

    Raises:
        CheckpointError: the file is missing, damaged, of a later version, or no file of image
            embeddings
    """
    path = Path(path)
    tensors, metadata = _read_file(path)
    inputs, blank = (
        {name: tensors[prefix + name] for name in get_args(Input) if prefix + name in tensors}
        for prefix in ("inputs.", "blank.")
    )
    unknown = sorted(
        set(tensors) - set(_prefix_names(inputs, "inputs.")) - set(_prefix_names(blank, "blank."))
    )
    if unknown:
        raise CheckpointError(f"{path} holds {unknown[0]!r}, which is no part of image embeddings")
    problem = _find_problem(inputs, blank)
    if not problem and metadata.get("imprompt.inputs") != _format_shapes(inputs):
        problem = (
            f"its tensors are {_format_shapes(inputs)}, its metadata say {metadata.get('imprompt.inputs')}"
        )
    if problem:
        raise CheckpointError(f"{path} is damaged: {problem}")
    user_metadata = {
        key: text for key, text in metadata.items() if not key.startswith(_PREFIX) and key != "format"
    }
    return ImageEmbeddings(inputs, blank, user_metadata)


def combine_embeddings(
    inputs: Float[Tensor, "images ..."], how: Combine | str, weights: Sequence[float | int] | None = None
) -> Float[Tensor, "images_out ..."]:
    """Combine the encoded pictures x_i, with weights w_i, into one.

        concat              all pictures, unchanged; weights must be None
        average             Σ w_i x_i / Σ w_i
        add                 Σ w_i x_i
        subtract            w_1 x_1 - mean of w_i x_i over the others
        normalized average  the direction of Σ w_i x_i/|x_i|, with the length Σ w_i |x_i| / Σ w_i
        interpolate         of two, weights (1 - t, t): on the arc from x_1/|x_1| to x_2/|x_2| at the fraction
                            t of its angle, with the length (1 - t) |x_1| + t |x_2|

    Lengths |x| are over the last axis, so each patch of features has its own. The default weights are 1 (1/2
    and 1/2 for "interpolate"). The result is computed in float64 and returned in the type of the inputs.

    Raises:
        InvalidReference: `how` is unknown; there are too few or too many pictures or weights; a weight is not
            finite; the weights sum to 0 (for "interpolate": not to 1); or the pictures are opposite
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
    w = _prepare_weights(how, len(x), weights).to(x.device).reshape(-1, *[1] * (x.ndim - 1))
    return _COMBINERS[how](x, w).to(inputs.dtype)


def _average(x: Tensor, w: Tensor) -> Tensor:
    total = w.sum()
    if abs(total) < 1e-9:
        raise InvalidReference(f"weights {w.flatten().tolist()} sum to 0, so there is no average")
    return (w * x).sum(0, keepdim=True) / total


def _add(x: Tensor, w: Tensor) -> Tensor:
    return (w * x).sum(0, keepdim=True)


def _subtract(x: Tensor, w: Tensor) -> Tensor:
    weighted = w * x
    return weighted[:1] - weighted[1:].mean(0, keepdim=True)


def _normalized_average(x: Tensor, w: Tensor) -> Tensor:
    length = x.norm(dim=-1, keepdim=True)
    return _scale_direction(_average(_normalize(x), w), _average(length, w))


def _interpolate(x: Tensor, w: Tensor) -> Tensor:
    length, unit = x.norm(dim=-1, keepdim=True), _normalize(x)
    angle = torch.acos((unit[0] * unit[1]).sum(-1, keepdim=True).clamp(-1, 1))
    if (angle > math.pi - 1e-6).any() and 0 < w[1] < 1:
        raise InvalidReference(_OPPOSITE)
    # A tiny arc is replaced by its chord. A zero vector has no angle and takes no share of the chord.
    straight = (angle < 1e-6) | (length[0] * length[1] == 0)
    share = torch.where(straight, w, torch.sin(w * angle) / angle.sin())
    return _scale_direction(_add(unit, share), _add(length, w))


_COMBINERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "average": _average,
    "add": _add,
    "subtract": _subtract,
    "normalized average": _normalized_average,
    "interpolate": _interpolate,
}


def _normalize(x: Tensor) -> Tensor:
    """Scale each vector to length 1; a zero vector stays zero."""
    return torch.nn.functional.normalize(x, dim=-1, eps=torch.finfo(x.dtype).tiny)


def _scale_direction(direction: Tensor, length: Tensor) -> Tensor:
    undefined = (direction.norm(dim=-1, keepdim=True) < 1e-6) & (length > 0)
    if undefined.any():
        raise InvalidReference(_OPPOSITE)
    return _normalize(direction) * length


def _prepare_weights(how: str, images: int, weights: Sequence[float | int] | None) -> Tensor:
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


def _find_problem(inputs: Mapping[Input, Tensor], blank: Mapping[Input, Tensor]) -> str | None:
    """Return what is wrong with image embeddings, as a clause; None if nothing is."""
    if not inputs:
        return "image embeddings need at least one input"
    if set(inputs) != set(blank):
        return f"inputs are {', '.join(sorted(inputs))}, blanks are {', '.join(sorted(blank)) or 'none'}"
    for name, tensor in inputs.items():
        if problem := _find_tensor_problem(name, tensor, blank[name]):
            return problem
    if len({len(tensor) for tensor in inputs.values()}) > 1:
        counts = ", ".join(f"{len(tensor)} of {name}" for name, tensor in inputs.items())
        return f"every input must have the same number of images, not {counts}"
    return None


def _find_tensor_problem(name: Input, tensor: Tensor, blank: Tensor) -> str | None:
    axes, shape = _AXES[name], tuple(tensor.shape)
    if len(shape) != len(axes.split()) or tensor.numel() == 0 or not tensor.is_floating_point():
        return f"{name} must be a floating-point tensor ({axes}), not {shape} of {tensor.dtype}"
    if tuple(blank.shape) != shape[1:]:
        return f"the blank of {name} must have shape {shape[1:]}, not {tuple(blank.shape)}"
    for kind, values in (("", tensor), ("the blank of ", blank)):
        if not values.is_floating_point() or not values.float().isfinite().all():
            return f"{kind}{name} contains NaN or infinity"
    return None


def _format_shapes(inputs: Mapping[Input, Tensor]) -> str:
    return json.dumps({name: list(inputs[name].shape) for name in get_args(Input) if name in inputs})


def _prefix_names(tensors: Mapping[Input, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        prefix + name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if fault := find_file_fault(path):
        raise CheckpointError(fault)
    try:
        if not path.stat().st_size:
            raise CheckpointError(f"{path} is empty")
        if fault := find_header_fault(path):
            raise CheckpointError(fault)
        with safetensors.safe_open(path, framework="pt") as file:
            names, metadata = list(file.keys()), dict(file.metadata() or {})
            _check_kind(path, names, metadata)
            # The copy outlives the mapped file.
            return {name: _widen_float8(file.get_tensor(name).clone()) for name in names}, metadata
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} cannot be read as image embeddings (safetensors): {reason}") from error


def _widen_float8(tensor: Tensor) -> Tensor:
    """Convert float8 to float16, which holds each of its values; nothing computes in float8."""
    return tensor.half() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def _check_kind(path: Path, names: Collection[str], metadata: Mapping[str, str]) -> None:
    """Refuse a file of another kind or version, and one with more tensors than three inputs need."""
    if metadata.get("imprompt.kind") != _KIND:
        adapter = any(name.startswith(("image_proj.", "ip_adapter.")) for name in names)
        what = "an adapter" if adapter else "something else"
        raise CheckpointError(
            f"{path} holds {what}, not image embeddings; use a file written by ImageEmbeddings.save"
        )
    if len(names) > 2 * len(_AXES):
        raise CheckpointError(
            f"{path} holds {len(names):,} tensors; image embeddings have at most {2 * len(_AXES)}"
        )
    if metadata.get("imprompt.version") != VERSION:
        version = metadata.get("imprompt.version")
        raise CheckpointError(
            f"{path} has version {version} of the format, not {VERSION}; use a later imprompt, or encode the "
            "pictures again"
        )
