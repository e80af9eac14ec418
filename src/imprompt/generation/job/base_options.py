"""The settings of a job that change its base model: parts that are added to it, sampler, device, memory."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from imprompt.generation.job.reference import Name, Number, as_tuple
from imprompt.generation.job.samplers import SAMPLERS
from imprompt.runtime.settings import ClosedSettings

DType = Literal["float32", "float16", "bfloat16", "auto"]
"""The number formats in which a base can compute; "auto" is the fastest of a CPU."""
Backend = Literal["torch", "openvino"]
"""What computes a U-Net."""
Offload = Literal["model", "sequential", "group"]
"""diffusers' ways to keep a base in main memory while it computes on a GPU."""


def _check_sampler(name: str) -> str:
    if name not in SAMPLERS:
        raise ValueError(f"{name!r} is no scheduler; the schedulers are {', '.join(SAMPLERS)}")
    return name


def _split_weight(value: object) -> object:
    """Read "file:0.8" as a LoRA with its weight; a colon that no number follows belongs to the name."""
    if not isinstance(value, str):
        return value
    file, _, weight = value.rpartition(":")
    try:
        return {"file": file, "weight": float(weight)} if file else {"file": value}
    except ValueError:
        return {"file": value}


def _split_token(value: object) -> object:
    """Read "token=file" as a textual inversion with its token."""
    if not isinstance(value, str):
        return value
    token, _, file = value.rpartition("=")
    return {"file": file, "token": token} if token else {"file": file}


class JobLora(ClosedSettings):
    """A LoRA that changes the base; in short "file:weight"."""

    file: Name
    """A file in the layout of diffusers, kohya or peft, or owner/name:file on the hub."""
    weight: Number = 1.0


class JobEmbedding(ClosedSettings):
    """A textual inversion: a word with learned token embeddings; in short "token=file"."""

    file: Name
    token: Annotated[str, Field(min_length=1)] | None = None
    """The word for prompts; by default the file's name without its suffix."""


class BaseOptions(ClosedSettings):
    """How the base is loaded, changed and run."""

    loras: Annotated[
        tuple[Annotated[JobLora, BeforeValidator(_split_weight)], ...], BeforeValidator(as_tuple)
    ] = ()
    """LoRAs, fused into the base's weights one after another."""
    vae: Name | None = None
    """Another autoencoder: a folder in diffusers' format, a file, or a hub id."""
    embeddings: Annotated[
        tuple[Annotated[JobEmbedding, BeforeValidator(_split_token)], ...], BeforeValidator(as_tuple)
    ] = ()
    """Textual inversions."""
    scheduler: Annotated[str, BeforeValidator(_check_sampler)] | None = None
    """The sampler, by one of the names of `SAMPLERS`; by default the base's own."""
    clip_skip: Annotated[int, Field(strict=True, ge=1, le=12)] | None = None
    """The text encoder's layer that is read, counted from its end as in A1111: 1 is the last one."""
    prompt_weighting: Annotated[bool, Field(strict=True)] = False
    """Read weights in prompts, such as "(red)1.3 hair--", and prompts of any length, by compel."""
    device: str | None = None
    """cuda, mps, xpu or cpu, with a number for one of several; by default the fastest there is."""
    dtype: DType | None = None
    """By default float16 on a GPU, and float32 on the CPU; auto times a CPU and takes the fastest way."""
    backend: Backend = "torch"
    """What computes the U-Net: torch, or OpenVINO, faster on a CPU."""
    variant: str | None = None
    """The variant of the base's files, e.g. "fp16"."""
    revision: str | None = None
    """The branch, tag or commit of the base's repository."""
    offload: Offload | None = None
    tiling: Annotated[bool, Field(strict=True)] = False
    """Decode the picture in tiles, for sizes that do not fit into the GPU's memory otherwise."""
