"""Find the base that fits an adapter and the adapter that fits a base, before anything large is fetched.

no base, no adapter      the embedded model
an adapter alone         the usual base of the family that it was trained for
a base alone             the usual adapter for its family
both                     their families are compared
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imprompt.attention.choices import FAMILIES, FAMILY_OF_WIDTH
from imprompt.checkpoint import EMBEDDED, describe
from imprompt.checkpoint.published import PUBLISHED
from imprompt.errors import AdapterMismatch, ConfigError, UnknownModel
from imprompt.generation.guidance import USUAL_GUIDANCE
from imprompt.generation.job import Job
from imprompt.generation.single_file import require_base
from imprompt.runtime.foreign_models import is_embedded, is_hub_id
from imprompt.runtime.hub import fetch_file

USUAL_BASES = {
    "mini": "mini",
    "SD1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "SDXL": "stabilityai/stable-diffusion-xl-base-1.0",
    "Kolors": "Kwai-Kolors/Kolors-diffusers",
    "FLUX.1": "black-forest-labs/FLUX.1-dev",
    "SD3.5 Large": "stabilityai/stable-diffusion-3.5-large",
}
"""Family → the base that is used if only the adapter is given."""

USUAL_ADAPTERS = {
    "mini": "mini",
    "SD1.5": "sd15",
    "SDXL": "sdxl",
    "Kolors": "kolors-plus",
    "FLUX.1": "flux-instantx",
    "SD3.5 Large": "sd35",
}
"""Family → the adapter that is used if only the base is given."""


def pair_models(job: Job) -> Job:
    """Return the job with a base and an adapter, each chosen to fit the other if it is not given.

    The guidance scale is the base's usual one, if it is not given either.

    Only names, headers and `config.json` files are read.

    Raises:
        AdapterMismatch: base and adapter are of different families
        ConfigError: only one of them is given, and no usual counterpart is known
        UnknownModel, CheckpointError: a model that cannot be read
    """
    base = _choose_base(job) if job.base is None else job.base
    family = recognize_base(base, job.revision)
    adapter = job.adapter
    if adapter is None and any(one.adapter is None for one in job.references):
        adapter = _choose_adapter(base, family)
    changes: dict[str, Any] = {"base": base, "adapter": adapter}
    if family in USUAL_GUIDANCE and "guidance_scale" not in job.model_fields_set:
        changes["guidance_scale"] = USUAL_GUIDANCE[family]
    job = job.model_copy(update=changes)
    for name in job.by_adapter:
        _compare_families(name, base, family)
    return job


def _choose_base(job: Job) -> str:
    names = [name for name in (job.adapter, *(one.adapter for one in job.references)) if name]
    if not names:
        return USUAL_BASES["mini"]
    family = recognize_adapter(names[0])
    if family not in USUAL_BASES:
        raise ConfigError(
            f"the adapter {names[0]} is for {family or 'an unknown base'}; give one with --base"
        )
    return USUAL_BASES[family]


def _choose_adapter(base: str, family: str | None) -> str:
    if family not in USUAL_ADAPTERS:
        raise ConfigError(
            f"the base {base} is {family or 'of no known family'}, for which no adapter is known; give "
            "one with --adapter"
        )
    return USUAL_ADAPTERS[family]


def _compare_families(adapter: str, base: str, family: str | None) -> None:
    wanted = recognize_adapter(adapter)
    if wanted is not None and family is not None and wanted != family:
        usual = f", for instance {USUAL_ADAPTERS[family]}" if family in USUAL_ADAPTERS else ""
        raise AdapterMismatch(
            f"the adapter {adapter} is for {wanted}, and the base {base} is {family}; give an adapter for "
            f"{family}{usual}, or a base of {wanted}"
        )


def recognize_adapter(name: str) -> str | None:
    """Return the family of bases that an adapter is for, as in `Description.base_family`.

    None for a file of the hub, which is not fetched for this.

    Raises:
        CheckpointError: a file that is no adapter
    """
    if name in EMBEDDED:
        return "mini"
    if name in PUBLISHED:
        return PUBLISHED[name].base_family
    return describe(name).base_family if Path(name).is_file() else None


def recognize_base(name: str, revision: str | None = None) -> str | None:
    """Return the family of a base by its denoiser's configuration; None if it is no well-known one.

    Raises:
        UnknownModel: its configuration cannot be read
        CheckpointError: a single file that is damaged, or no base
    """
    if is_embedded(name):
        return "mini"
    if Path(name).is_file():
        return require_base(Path(name)).family
    config = _find_config(name, revision)
    if config is None:
        return None
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        if config.parent.name == "transformer":
            return _recognize_transformer(values)
        width, text_width = values["cross_attention_dim"], values.get("encoder_hid_dim")
    except (OSError, ValueError, KeyError, TypeError) as error:
        noun = "transformer" if config.parent.name == "transformer" else "U-Net"
        raise UnknownModel(f"{config} cannot be read as the configuration of a {noun}") from error
    return "Kolors" if text_width == 4096 else FAMILY_OF_WIDTH.get(width)


def _recognize_transformer(values: Mapping[str, Any]) -> str | None:
    """Return the family of a base by its transformer's configuration."""
    names = {
        "FluxTransformer2DModel": ("num_layers", "joint_attention_dim"),
        "SD3Transformer2DModel": ("num_layers", "caption_projection_dim"),
    }.get(values["_class_name"], ("", ""))
    layers, width = (values.get(name, 0) for name in names)
    return FAMILIES.get((layers, width))


def _find_config(name: str, revision: str | None) -> Path | None:
    if Path(name).exists():
        places = (Path(name, part, "config.json") for part in ("unet", "transformer"))
        return next((place for place in places if place.is_file()), None)
    if not is_hub_id(name):
        return None
    try:
        return fetch_file(name, "unet/config.json", revision)
    except UnknownModel:
        return fetch_file(name, "transformer/config.json", revision)
