"""Resolve the name of a mode, or a mapping of weights, to the weight of every layer of a base."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import NamedTuple

from imprompt.attention.layer_weights.modes import (
    CONVENTIONS,
    CURVES,
    OWN_MODES,
    WEAK_SECTIONS,
    Convention,
    Mode,
)
from imprompt.attention.layer_weights.transformers import (
    SECTIONS,
    LayerNames,
    SpatialTransformer,
    family,
    find_spatial_transformers,
    list_layers,
)
from imprompt.errors import InvalidReference

Weights = Mapping[str, float | int] | Mapping[int, float | int] | Mapping[str | int, float | int]
Layers = str | Weights
"""A mode or a curve by its name; or weights by module name, section or transformer number."""

Transformers = Sequence[SpatialTransformer]


class LayerWeights(NamedTuple):
    """The weights of every layer, by official number N."""

    follow: dict[int, float]
    """Every layer → the factor on λ; 0 is off."""
    avoid: dict[int, float]
    """The layers that push away from the reference → the factor on the boost; they follow with 0."""


def layer_weights(
    layers: Layers, layer_names: LayerNames, *, convention: Convention = "comfy"
) -> LayerWeights:
    """Return the weights of every layer of a base for a mode, a curve or free weights.

    The keys of free weights are module names of any depth ("up_blocks.1", "down_blocks.2.attentions.1", a
    whole layer name), the sections "down", "mid" and "up", or transformer numbers t (6 or "6"); the values
    are factors on λ. If several keys name a layer, the longest name counts. A layer that no key names is off.

    Args:
        layers: the name of a mode or curve; or free weights, which are finite and not 0 for all layers
        layer_names: official number N → module name of every cross-attention layer of the base
        convention: the system that defines "style", "composition", ...; see
            `imprompt.attention.layer_weights.modes`

    Raises:
        InvalidReference: a mode that this convention does not have or not on this base, a name or number that
            is not in this base, a weight that is no finite number, or every layer off
    """
    transformers = find_spatial_transformers(layer_names)
    modes = _find_modes(transformers, convention)
    if isinstance(layers, Mapping):
        return LayerWeights(_free_weights(layers, layer_names, transformers), {})
    if not isinstance(layers, str):
        raise InvalidReference(f"layers must be the name of a mode or a mapping of weights, not {layers!r}")
    mode = _compute_mode(layers, transformers) or modes.get(layers)
    if mode is None:
        raise InvalidReference(_explain_missing_mode(layers, transformers, convention, modes))
    follow = {number: mode.follow.get(t, 0.0) for t, number in list_layers(transformers)}
    avoid = {number: mode.avoid[t] for t, number in list_layers(transformers) if t in mode.avoid}
    return LayerWeights(follow, avoid)


def list_modes(layer_names: LayerNames, *, convention: Convention = "comfy") -> list[str]:
    """Return the names that `layer_weights` accepts for this base: "full", the curves, then its modes.

    Raises:
        InvalidReference: no such convention
    """
    transformers = find_spatial_transformers(layer_names)
    return [*_list_formulas(transformers), *_find_modes(transformers, convention)]


# Modes


def _compute_mode(name: str, transformers: Transformers) -> Mode | None:
    """Return a mode that every base has; None for any other name."""
    if name == "full":
        return Mode(dict.fromkeys(range(len(transformers)), 1.0))
    if name in CURVES:
        return Mode({t: CURVES[name](t / len(transformers)) for t in range(len(transformers))})
    if name in WEAK_SECTIONS and _has_unet_sections(transformers):
        weak = WEAK_SECTIONS[name]
        return Mode({t: 0.2 if one.section in weak else 1.0 for t, one in enumerate(transformers)})
    return None


def _has_unet_sections(transformers: Transformers) -> bool:
    return any(one.section in ("down", "mid", "up") for one in transformers)


def _list_formulas(transformers: Transformers) -> list[str]:
    """Return the modes that are formulas for this base; a diffusion transformer has no weak sections."""
    return ["full", *CURVES, *(WEAK_SECTIONS if _has_unet_sections(transformers) else ())]


def _find_modes(transformers: Transformers, convention: Convention) -> Mapping[str, Mode]:
    """Return the modes of this base in this convention; none for an unknown base."""
    if convention not in CONVENTIONS:
        near = _did_you_mean(str(convention), CONVENTIONS)
        raise InvalidReference(f"no convention {convention!r}{near}; there are {', '.join(CONVENTIONS)}")
    base = family(transformers)
    return OWN_MODES.get(base) or CONVENTIONS[convention].get(base, {})


def _explain_missing_mode(
    name: str, transformers: Transformers, convention: str, modes: Iterable[str]
) -> str:
    """Name the missing mode, its base, a similar mode and the existing ones, in one sentence."""
    base = family(transformers)
    known = [*_list_formulas(transformers), *modes]
    available = ", ".join(known)
    kind = "spatial transformers" if _has_unet_sections(transformers) else "transformer blocks"
    if not base and any(name in one for bases in CONVENTIONS.values() for one in bases.values()):
        return (
            f"which layers are {name!r} is not known for a base of {len(transformers)} {kind}; "
            f"give weights by block name or number, or one of {available}"
        )
    where = f"{base} in the convention {convention!r}" if base else "this base"
    return f"no mode {name!r} for {where}{_did_you_mean(name, known)}; there are {available}"


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


# Free weights


def _free_weights(weights: Weights, layer_names: LayerNames, transformers: Transformers) -> dict[int, float]:
    by_key: dict[str | int, float | int] = dict(weights.items())
    for key, weight in by_key.items():
        _check_weight(key, weight)
    prefixes = _prefixes(by_key, layer_names, transformers)
    follow: dict[int, float] = {}
    for number, name in sorted(layer_names.items()):
        # All of them are prefixes of one name, so the longest is the most specific.
        longest = max((prefix for prefix in prefixes if _is_inside(name, prefix)), key=len, default=None)
        follow[number] = 0.0 if longest is None else float(by_key[prefixes[longest]])
    if not any(follow.values()):
        raise InvalidReference(
            f"layers={by_key!r} switches every layer off; give a weight other than 0, or scale=0"
        )
    return follow


def _check_weight(key: object, weight: object) -> None:
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
        raise InvalidReference(f"the weight of layers {key!r} must be a finite number, not {weight!r}")


def _prefixes(
    keys: Iterable[str | int], layer_names: LayerNames, transformers: Transformers
) -> dict[str, str | int]:
    """Return the prefix of module names that each key stands for → that key."""
    prefixes: dict[str, str | int] = {}
    for key in keys:
        prefix = _prefix(key, layer_names, transformers)
        if prefix in prefixes:
            raise InvalidReference(
                f"layers {prefixes[prefix]!r} and {key!r} are both {prefix}; give one of them"
            )
        prefixes[prefix] = key
    return prefixes


def _prefix(key: str | int, layer_names: LayerNames, transformers: Transformers) -> str:
    if isinstance(key, str) and not key.isdecimal():
        return _module_prefix(key, layer_names)
    if isinstance(key, bool) or not isinstance(key, Integral | str):
        raise InvalidReference(f"layers are named by words or transformer numbers, not {key!r}")
    if not 0 <= int(key) < len(transformers):
        last = len(transformers) - 1
        raise InvalidReference(f"this base has no spatial transformer {key!r}; it has 0 to {last}")
    return transformers[int(key)].name


def _module_prefix(key: str, layer_names: LayerNames) -> str:
    prefix = next((begin for section, begin in SECTIONS.items() if section == key), key)
    if any(_is_inside(name, prefix) for name in layer_names.values()):
        return prefix
    parts = [name.split(".") for name in layer_names.values()]
    known = {".".join(name[:end]) for name in parts for end in range(1, len(name) + 1)}
    blocks = {".".join(name[: 1 if name[0] == "mid_block" else 2]) for name in parts}
    raise InvalidReference(
        f"this base has no layers {key!r}{_did_you_mean(key, sorted(known))}; "
        f"its blocks are {', '.join(sorted(blocks))}"
    )


def _is_inside(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
