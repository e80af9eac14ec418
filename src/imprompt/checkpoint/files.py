"""Adapter files as flat dictionaries of tensors: read without running code, written whole or not at all."""

import dataclasses
import json
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from imprompt.checkpoint.bounds import MAX_NESTING, MAX_TENSORS, check_archive, check_names
from imprompt.errors import CheckpointError, OutputError
from imprompt.runtime.files import file_fault, header_fault, shorten
from imprompt.runtime.output import check_output, write_atomically

_ZIP, _OLD_PICKLE = b"PK\x03\x04", b"\x80\x02"  # what torch.save writes, and wrote before 1.6

_HOLDERS = ("module", "state_dict", "model_state_dict")
"""Where trainers keep the weights: DeepSpeed, Lightning and others, PyTorch's tutorials."""


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """What a file holds: tensors under flat dotted names, its metadata, and "safetensors" or "pickle"."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    container: str


def read_tensors(path: Path) -> TensorFile:
    """Read a safetensors file or a torch pickle of tensors, told apart by content.

    Pickles go through torch's restricted loader: a pickle that holds more than tensors is refused, and
    nothing in it is run.

    Raises:
        CheckpointError: the file is missing, empty, truncated, holds something else, or more than
            `checkpoint.bounds` allow.
    """
    head = _head(path)
    if not head:
        raise CheckpointError(f"{path} is empty")
    if stranger := _stranger(path):
        raise CheckpointError(f"{path} is {stranger}")
    # A safetensors file starts with the length of its header, which may look like the old pickle's start.
    if head.startswith(_ZIP) or (head.startswith(_OLD_PICKLE) and head[8:] != b"{"):
        check_archive(path)
        return TensorFile(_unique(_flattened(_weights(_unpickled(path)), path), path), {}, "pickle")
    return _read_safetensors(path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write official-layout tensors as `.safetensors` (flat, with metadata) or `.bin` (nested, without).

    Raises:
        OutputError: another suffix, a folder that is missing, a disk that is full.
    """
    check_output(path, ".safetensors", ".bin")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_atomically(path) as part:
        if path.suffix == ".bin":
            torch.save(_nested(whole), part)
            return
        try:
            safetensors.torch.save_file(whole, part, {"format": "pt", **metadata})
            _order_metadata(part)
        except safetensors.SafetensorError as error:  # how it reports a full disk
            raise OutputError(f"{path} cannot be written: {error}") from error


def _order_metadata(path: Path) -> None:
    """Sort a safetensors file's metadata, which its writer shuffles: equal content shall be equal bytes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # the writer escapes no more than we do; spaces fill up what it padded
            file.seek(8)
            file.write(text.ljust(length))


def _head(path: Path) -> bytes:
    if fault := file_fault(path):
        raise CheckpointError(fault)
    try:
        with path.open("rb") as file:
            return file.read(9)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, not an adapter file") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _stranger(path: Path) -> str | None:
    """What a file is that was saved in an adapter's place, and what to do; None for any other."""
    with path.open("rb") as file:
        start = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return (
            "a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, or download the file"
        )
    if start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "a web page, not the file itself: download that (on the hub by /resolve/ in place of /blob/)"
    return None


def _read_safetensors(path: Path) -> TensorFile:
    try:
        if fault := header_fault(path):
            raise CheckpointError(fault)
        with safetensors.safe_open(path, framework="pt") as file:
            names = check_names(file.keys(), path)
            # Copied: tensors that lie unaligned in a mapped file give other last bits, and die with the file.
            tensors = {name: file.get_tensor(name).clone() for name in names}
            return TensorFile(tensors, dict(file.metadata() or {}), "safetensors")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or no adapter file: it is neither safetensors nor a torch pickle ({error})"
        ) from error


def _unpickled(path: Path) -> object:
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles of other protocols: they fail anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, perhaps code; it was refused and nothing in it was run"
        ) from error
    except Exception as error:  # a damaged archive may fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is truncated or damaged: {reason}") from error


def _weights(value: object) -> object:
    """The weights in a trainer's own file, which holds counts and its optimizer's state beside them."""
    held = (value.get(key) for key in _HOLDERS) if isinstance(value, Mapping) else ()
    return next((weights for weights in held if isinstance(weights, Mapping) and weights), value)


def _flattened(value: object, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its dotted name, in order; what holds itself or doubles at each level is refused."""
    pending, visited = [("", value, 0)], 0
    while pending:
        name, value, depth = pending.pop()
        visited += 1
        if depth > MAX_NESTING or visited > 2 * MAX_TENSORS:
            what = f"more than {MAX_NESTING} deep" if depth > MAX_NESTING else f"{visited:,} times"
            raise CheckpointError(f"{path} holds dictionaries in dictionaries, {what}: it is no adapter file")
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            inner = [(f"{name}.{key}" if name else str(key), one, depth + 1) for key, one in value.items()]
            pending += reversed(inner)
        else:
            raise CheckpointError(
                f"{path} is no adapter: {shorten(name) or 'it'} is a {type(value).__name__}, not a tensor"
            )


def _unique(named: Iterator[tuple[str, Tensor]], path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in named:
        check_names([name], path)
        if name in tensors:
            raise CheckpointError(f"{path} holds {name} twice")
        tensors[name] = tensor
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(f"{path} holds more than {MAX_TENSORS:,} tensors: it is no adapter file")
    return tensors


def _nested(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, key = name.partition(".")
        groups.setdefault(group, {})[key] = tensor
    return groups
