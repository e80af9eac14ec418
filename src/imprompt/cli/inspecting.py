"""What a file is, and where a mode acts; imports the library, so commands import this late."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imprompt.checkpoint import describe
from imprompt.checkpoint.files import read_tensors
from imprompt.cli.pictures import picture_facts
from imprompt.errors import CheckpointError
from imprompt.generation.job import EMBEDDINGS_SUFFIX, has_settings, load_job, read_settings
from imprompt.inputs.image import is_picture
from imprompt.runtime.files import file_fault


class Findings(NamedTuple):
    """What a file is, and why it is no use, a sentence each."""

    facts: Mapping[str, Any]
    problems: Sequence[str] = ()


_FOREIGN = {
    "a LoRA, not an image-prompt adapter; load it with pipe.load_lora_weights": (
        "lora_unet_",
        "lora_te",
        ".lora_A.",
        ".lora_B.",
        ".lora.up.",
        ".lora.down.",
        "_lora.up.",
        "_lora.down.",
        ".lora_up.",
        ".lora_down.",
    ),
    "a whole base model in one file, not an image-prompt adapter": ("model.diffusion_model.",),
    "a ControlNet, not an image-prompt adapter; give its folder to --control-model": (
        "control_model.",
        "controlnet_cond_embedding.",
        "controlnet_down_blocks.",
    ),
    "an image encoder, not an image-prompt adapter; give its folder to --image-encoder": (
        "vision_model.",
        "visual.",
    ),
    "the U-Net of a base model, not an image-prompt adapter": ("down_blocks.0.resnets.", "input_blocks.0."),
    "an autoencoder, not an image-prompt adapter": ("decoder.conv_in.", "first_stage_model."),
    "a text encoder, not an image-prompt adapter": ("text_model.",),
    "a textual inversion, not an image-prompt adapter": ("emb_params", "clip_l", "clip_g"),
}
"""What else a file of tensors may be → beginnings or parts of its tensors' names, the most telling first."""


def findings(file: Path) -> Findings:
    """Say what a file or folder is.

    Raises:
        ImageError, CheckpointError, ConfigError: it cannot be read
    """
    if fault := file_fault(file):
        raise CheckpointError(fault)
    if file.is_dir():
        return _folder(file)
    if is_picture(_head(file)):
        return Findings(read_settings(file) if has_settings(file) else picture_facts(file))
    if file.suffix == ".toml":
        return Findings(load_job(file).model_dump(mode="json", exclude_defaults=True))
    if file.suffix == EMBEDDINGS_SUFFIX and (embeddings := _embeddings(file)) is not None:
        return Findings(embeddings)
    return _tensors(file)


def _folder(folder: Path) -> Findings:
    """A model in diffusers' or transformers' format, by its index; anything else is no adapter."""
    for index, key in (("model_index.json", "_class_name"), ("config.json", "_class_name")):
        content = _json(folder / index)
        kind = content.get(key) or next(iter(content.get("architectures", ())), None)
        if kind:
            return Findings({"kind": "a model in a folder", "class": str(kind)})
    raise CheckpointError(f"{folder} is a folder, not an adapter file")


def _tensors(file: Path) -> Findings:
    description = describe(file)
    if description.variant is None and (foreign := _foreign(read_tensors(file).tensors)):
        facts = {"kind": foreign.partition(",")[0], "parameters": description.parameters}
        return Findings(facts | {"metadata": description.metadata}, [f"it is {foreign}"])
    return Findings({**dataclasses.asdict(description), "limit": description.limit}, description.problems)


def _foreign(names: Iterable[str]) -> str | None:
    names = list(names)
    for kind, parts in _FOREIGN.items():
        if any(part in name for name in names for part in parts):
            return kind
    return None


def _head(file: Path) -> bytes:
    """Its first bytes; none of a safetensors file, whose length may look like the beginning of a picture."""
    try:
        with file.open("rb") as content:
            head = content.read(64)
            return b"" if head[4:9] == b"\0\0\0\0{" else head
    except (OSError, ValueError):
        return b""


def _json(file: Path) -> dict[str, Any]:
    try:
        content = {} if file_fault(file) else json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _embeddings(file: Path) -> dict[str, Any] | None:
    """What an embedding file holds; None if it is another kind of file."""
    from imprompt.inputs.embeddings import load_embeddings

    try:
        embeddings = load_embeddings(file)
    except CheckpointError:
        return None
    inputs = {name: " × ".join(map(str, tensor.shape)) for name, tensor in embeddings.inputs.items()}
    return {"kind": "image embeddings", "inputs": inputs, "metadata": dict(embeddings.metadata)}
