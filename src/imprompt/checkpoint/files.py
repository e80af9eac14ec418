"""Adapter files as flat dictionaries of tensors: reading runs no code in them, writing is atomic."""

import dataclasses
import json
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from imprompt.checkpoint.bounds import MAX_NESTING, MAX_TENSORS, check_archive, check_names
from imprompt.errors import CheckpointError, OutputError
from imprompt.runtime.files import find_file_fault, find_header_fault, shorten
from imprompt.runtime.foreign_models import first_line
from imprompt.runtime.output import check_output, write_atomically

_ZIP, _OLD_PICKLE = b"PK\x03\x04", b"\x80\x02"  # what torch.save writes since 1.6, and what it wrote before

_WEIGHT_KEYS = ("module", "state_dict", "model_state_dict")
"""Keys under which trainers store the weights: DeepSpeed, Lightning and others, PyTorch's tutorials."""


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """The content of a file: tensors under flat dotted names, metadata, and "safetensors" or "pickle"."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    container: str


def read_tensors(path: Path) -> TensorFile:
    """Read a safetensors file or a torch pickle of tensors; the content tells which of them it is.

    Pickles are read by torch's restricted loader. It refuses a pickle that holds more than tensors, and runs
    nothing in it.

    Raises:
        CheckpointError: the file is missing, empty or truncated, is of another kind, or exceeds one of the
            limits in `checkpoint.bounds`
    """
    if _is_pickle(path):
        weights = _find_weights(_unpickle(path))
        return TensorFile(_collect_unique(_flatten(weights, path), path), {}, "pickle")
    # A copy, because unaligned tensors of a mapped file give other last bits and do not outlive it.
    return _read_safetensors(path, lambda name, tensor: tensor.clone())


def take_tensors(path: Path, take: Callable[[str, Tensor], Tensor | None]) -> TensorFile:
    """Read a file of any size tensor by tensor, so that only what is taken is in memory.

    Values that are no tensors, such as the step counts of trainers, are left out.

    Args:
        path: a safetensors file or a torch pickle
        take: is called with each name and tensor; returns what the result holds under this name, which is a
            copy, a conversion or a tensor on the meta device, or None for nothing. The tensor that it gets is
            mapped from the file and must not be kept.

    Raises:
        CheckpointError: as `read_tensors`
    """
    if not _is_pickle(path):
        return _read_safetensors(path, take)
    weights = _find_weights(_unpickle(path, mmap=_read_head(path).startswith(_ZIP)))
    named = _flatten(weights, path, only_tensors=False)
    taken = ((name, take(name, tensor)) for name, tensor in named)
    kept = ((name, tensor) for name, tensor in taken if tensor is not None)
    return TensorFile(_collect_unique(kept, path), {}, "pickle")


def flatten_tensors(tensors: object, path: Path | str) -> dict[str, Tensor]:
    """Return the tensors of nested dictionaries under flat dotted names.

    Args:
        tensors: the dictionaries
        path: what messages call them

    Raises:
        CheckpointError: anything else is in them, or too much
    """
    return _collect_unique(_flatten(tensors, path), path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors of the official layout as `.safetensors` (flat, with metadata) or `.bin` (nested,
    without).

    Raises:
        OutputError: the suffix is another one, the folder is missing, or the disk is full
    """
    check_output(path, ".safetensors", ".bin")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_atomically(path) as part:
        if path.suffix == ".bin":
            torch.save(_nest(whole), part)
            return
        try:
            safetensors.torch.save_file(whole, part, {"format": "pt", **metadata})
            _order_metadata(part)
        except safetensors.SafetensorError as error:  # a full disk
            raise OutputError(f"{path} cannot be written: {error}") from error


def _order_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, which its writer shuffles: equal content is equal bytes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # it is never longer; spaces fill the writer's padding
            file.seek(8)
            file.write(text.ljust(length))


def _is_pickle(path: Path) -> bool:
    """Tell a torch pickle from a safetensors file; refuse files of other kinds, and archives that grow."""
    head = _read_head(path)
    if not head:
        raise CheckpointError(f"{path} is empty")
    if other := _recognize_other_file(path):
        raise CheckpointError(f"{path} is {other}")
    # A safetensors file starts with the length of its header, which may look like the old pickle's start.
    if head.startswith(_ZIP) or (head.startswith(_OLD_PICKLE) and head[8:] != b"{"):
        check_archive(path)
        return True
    return False


def _read_head(path: Path) -> bytes:
    if fault := find_file_fault(path):
        raise CheckpointError(fault)
    try:
        with path.open("rb") as file:
            return file.read(9)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, not an adapter file") from None
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _recognize_other_file(path: Path) -> str | None:
    """Say what a file is that was downloaded instead of an adapter, and what to do; None for other files."""
    with path.open("rb") as file:
        start = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"gguf"):
        return "a GGUF file of quantized weights, which imprompt does not read: use a .safetensors file"
    if start.startswith(b"version https://git-lfs"):
        return (
            "a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, or download the file"
        )
    if start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "a web page, not the file itself: download that (on the hub by /resolve/ in place of /blob/)"
    return None


def _read_safetensors(path: Path, take: Callable[[str, Tensor], Tensor | None]) -> TensorFile:
    try:
        if fault := find_header_fault(path):
            raise CheckpointError(fault)
        with safetensors.safe_open(path, framework="pt") as file:
            names = check_names(file.keys(), path)
            taken = ((name, take(name, file.get_tensor(name))) for name in names)
            tensors = {name: tensor for name, tensor in taken if tensor is not None}
            return TensorFile(tensors, dict(file.metadata() or {}), "safetensors")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or no adapter file: it is neither safetensors nor a torch pickle ({error})"
        ) from error


def _unpickle(path: Path, *, mmap: bool = False) -> object:
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # torch warns of pickles of other protocols, which fail anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, perhaps code; it was refused, and nothing in it was run"
        ) from error
    except Exception as error:  # a damaged archive may fail in any way
        raise CheckpointError(f"{path} is truncated or damaged: {first_line(error)}") from error


def _find_weights(value: object) -> object:
    """Return the weights in a trainer's file, which also holds step counts and the state of the optimizer."""
    candidates = (value.get(key) for key in _WEIGHT_KEYS) if isinstance(value, Mapping) else ()
    return next((weights for weights in candidates if isinstance(weights, Mapping) and weights), value)


def _flatten(value: object, path: Path | str, *, only_tensors: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor with its dotted name, in order; refuse a dictionary that contains itself.

    Other values are refused, or with `only_tensors=False` left out.
    """
    pending, visited = [("", value, 0)], 0
    while pending:
        name, value, depth = pending.pop()
        visited += 1
        if depth > MAX_NESTING or visited > 2 * MAX_TENSORS:
            extent = f"more than {MAX_NESTING} deep" if depth > MAX_NESTING else f"{visited:,} times"
            raise CheckpointError(
                f"{path} holds dictionaries in dictionaries, {extent}: it is no adapter file"
            )
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            inner = [(f"{name}.{key}" if name else str(key), one, depth + 1) for key, one in value.items()]
            pending += reversed(inner)
        elif only_tensors:
            raise CheckpointError(
                f"{path} is no adapter: {shorten(name) or 'it'} is a {type(value).__name__}, not a tensor"
            )


def _collect_unique(named: Iterator[tuple[str, Tensor]], path: Path | str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in named:
        check_names([name], path)
        if name in tensors:
            raise CheckpointError(f"{path} holds {name} twice")
        tensors[name] = tensor
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(f"{path} holds more than {MAX_TENSORS:,} tensors, so it is no adapter file")
    return tensors


def _nest(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, key = name.partition(".")
        groups.setdefault(group, {})[key] = tensor
    return groups
