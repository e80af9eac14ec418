"""What a file is; only files of tensors import torch, so that pictures and jobs are inspected quickly."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imprompt.cli.pictures import read_picture_facts
from imprompt.errors import CheckpointError
from imprompt.generation.job import EMBEDDINGS_SUFFIX, Job, has_settings, read_settings
from imprompt.inputs.image import is_picture
from imprompt.runtime.files import find_file_fault


class Inspection(NamedTuple):
    """What a file is, and what makes it unusable as an image prompt, a sentence each."""

    facts: Mapping[str, Any]
    problems: Sequence[str] = ()


def inspect_file(file: Path) -> Inspection:
    """Report what a file or folder is.

    Raises:
        ImageError, CheckpointError, ConfigError: it cannot be read
    """
    if fault := find_file_fault(file):
        raise CheckpointError(fault)
    if file.is_dir():
        return _inspect_folder(file)
    if is_picture(_read_head(file)):
        return Inspection(read_settings(file) if has_settings(file) else read_picture_facts(file))
    if file.suffix == ".toml":
        return Inspection(Job.from_toml(file).model_dump(mode="json", exclude_defaults=True))
    if file.suffix == EMBEDDINGS_SUFFIX and (embeddings := _inspect_embeddings(file)) is not None:
        return Inspection(embeddings)
    return _inspect_tensors(file)


def _inspect_folder(folder: Path) -> Inspection:
    """Recognize a model in diffusers' or transformers' format by its index file."""
    for index in ("model_index.json", "config.json"):
        content = _read_json(folder / index)
        kind = content.get("_class_name") or next(iter(content.get("architectures", ())), None)
        if kind:
            return Inspection({"kind": "a model in a folder", "class": str(kind)})
    raise CheckpointError(f"{folder} is a folder, not an adapter file")


def _inspect_tensors(file: Path) -> Inspection:
    from imprompt.checkpoint import describe
    from imprompt.generation.single_file import recognize_checkpoint

    found = recognize_checkpoint(file)
    if found.role in ("base", "other"):
        facts: dict[str, Any] = {"kind": found.name, "parameters": found.parameters}
        facts |= dataclasses.asdict(found.base) if found.base else {}
        problem = f"it is {found.name}, not an image-prompt adapter: {found.use}"
        return Inspection(facts | {"metadata": found.metadata}, [problem])
    description = describe(file)
    return Inspection({**dataclasses.asdict(description), "limit": description.limit}, description.problems)


def _read_head(file: Path) -> bytes:
    """Return the first bytes; none of a safetensors file, whose length may look like a picture's start."""
    try:
        with file.open("rb") as content:
            head = content.read(64)
            return b"" if head[4:9] == b"\0\0\0\0{" else head
    except (OSError, ValueError):
        return b""


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = {} if find_file_fault(file) else json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _inspect_embeddings(file: Path) -> dict[str, Any] | None:
    """Report what an embedding file holds; return None if it is another kind of file."""
    from imprompt.inputs.embeddings import load_embeddings

    try:
        embeddings = load_embeddings(file)
    except CheckpointError:
        return None
    inputs = {name: " × ".join(map(str, tensor.shape)) for name, tensor in embeddings.inputs.items()}
    return {"kind": "image embeddings", "inputs": inputs, "metadata": dict(embeddings.metadata)}
