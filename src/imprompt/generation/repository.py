"""Base models on the hub: choose the files that are needed, say how large they are, and fetch them.

Each file is fetched by `imprompt.runtime.hub`: with a bar, resumed after an interruption, and checked.
"""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import huggingface_hub
from diffusers.pipelines.pipeline_loading_utils import variant_compatible_siblings
from huggingface_hub import constants
from rich.console import Console

from imprompt.errors import ConfigError, UnknownModel
from imprompt.runtime.hub import PATIENCE, fetch_file

INDEX = "model_index.json"
HALF = "fp16"
"""The variant's name under which repositories publish float16 weights."""

_WEIGHTS = (".safetensors", ".bin")
_SMALL = (".json", ".txt", ".model")
_MENTIONED = 10_000_000
"""Bytes from which on a download is announced."""

Sizes = Mapping[str, int]
"""Path in the repository → bytes."""


def fetch_base(
    repository: str, *, variant: str | None = None, revision: str | None = None, prefers_half: bool = False
) -> tuple[Path, str | None] | None:
    """Fetch the files of a base in diffusers' format; return their folder and the variant of the weights.

    Args:
        repository: "owner/name"
        variant: the variant of the weights, e.g. "fp16"
        revision: branch, tag or commit
        prefers_half: take the variant "fp16" where the repository has it, if no variant is given

    Returns:
        None if the hub cannot be asked; the cache may have the base all the same

    Raises:
        UnknownModel: a file cannot be fetched, or the disk has no room for it
        ConfigError: the repository has no such variant
    """
    sizes = list_files(repository, revision)
    if sizes is None or INDEX not in sizes:
        return None
    index = json.loads(fetch_file(repository, INDEX, revision).read_text(encoding="utf-8"))
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
    if variant is None and prefers_half and has_variant(sizes, parts, HALF):
        variant = HALF
    if variant is not None and not has_variant(sizes, parts, variant):
        raise ConfigError(f"{repository} has no variant {variant!r} of all its weights; leave it out")
    chosen = choose_files(sizes, parts, variant)
    announce_download(repository, {name: sizes[name] for name in chosen}, revision)
    files = [fetch_file(repository, name, revision) for name in (*chosen, INDEX)]
    return files[-1].parent, variant


def list_files(repository: str, revision: str | None = None) -> Sizes | None:
    """Return the sizes of a repository's files; None if the hub cannot be asked."""
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        information = huggingface_hub.hf_api.api.model_info(
            repository, revision=revision, files_metadata=True, timeout=PATIENCE
        )
    except Exception:  # loading explains what is wrong
        return None
    return {file.rfilename: file.size or 0 for file in information.siblings or ()}


def choose_files(sizes: Sizes, parts: Collection[str], variant: str | None) -> list[str]:
    """Return the files of the parts that loading needs, safetensors before pickles.

    Which weights belong to a variant is diffusers' rule (`variant_compatible_siblings`).
    """
    chosen: list[str] = []
    for part in parts:
        files = [name for name in sizes if name.rpartition("/")[0] == part]
        chosen += [name for name in files if name.endswith(_SMALL) and ".index." not in name]
        chosen += _choose_weights(files, variant)
    return chosen


def has_variant(sizes: Sizes, parts: Collection[str], variant: str) -> bool:
    """Whether every part that has weights has them in a variant."""
    for part in parts:
        files = [name for name in sizes if name.rpartition("/")[0] == part]
        if _choose_weights(files, None) and not any(f".{variant}" in name for name in files):
            return False
    return True


def _choose_weights(files: Collection[str], variant: str | None) -> list[str]:
    for suffix in _WEIGHTS:
        candidates = {name for name in files if suffix in name}
        usable = variant_compatible_siblings(candidates, variant=variant)[0] if candidates else ()
        if usable:
            return sorted(map(str, cast(Collection[str], usable)))
    return []


def announce_download(repository: str, sizes: Sizes, revision: str | None = None) -> None:
    """Say what will be fetched and how large it is, if it is large and not in the cache.

    Raises:
        UnknownModel: the disk of the cache has less room
    """
    missing = [
        size
        for name, size in sizes.items()
        if not isinstance(
            huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or "main"), str
        )
    ]
    if sum(missing) < _MENTIONED:
        return
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < sum(missing):
        raise UnknownModel(
            f"{repository} needs {format_bytes(sum(missing))}, and the disk of {cache} has "
            f"{format_bytes(free)} left: make room, or set HF_HOME to another disk"
        )
    Console(stderr=True).print(
        f"fetching {repository}: {format_bytes(sum(missing))} in {len(missing)} files", highlight=False
    )


def format_bytes(count: int) -> str:
    """Return a number of bytes for people, e.g. "2.6 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
