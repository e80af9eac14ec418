"""The layouts of adapter files, and the conversion of each to the official layout.

    official           image_proj.X                                   ip_adapter.N.to_k_ip.weight
    training scripts   image_proj_model.X                             adapter_modules.N.to_k_ip.weight
    ... by accelerate  image_proj_model.X                             unet.PATH.processor.to_k_ip.weight
    ... by hand        image_proj.X                                   ip_adapter.PATH.processor.to_k_ip.weight
    diffusers          encoder_hid_proj.image_projection_layers.0.Y   PATH.processor.to_k_ip.0.weight
    XLabs (FLUX.1)     ip_adapter_proj_model.X                        double_blocks.N.processor.
                                                                          ip_adapter_double_stream_k_proj.weight
    Redux (FLUX.1)     redux_up.weight, redux_down.weight             -

The training scripts and diffusers store the U-Net itself in the same file; its tensors are dropped.
accelerate drops `adapter_modules` from its safetensors files, because they share memory with the U-Net's
processors.

Wrappers of a model in training add their own word to all names: `module.` (DDP, DeepSpeed), `_orig_mod.`
(torch.compile), `_fsdp_wrapped_module.`, or the name of an attribute in a script. It is removed first.

The official number N of a PATH such as `down_blocks.1.attentions.0.transformer_blocks.0.attn2` is its
position among all paths: down, up, then mid, each in natural order. Self-attention of the i-th transformer
block is 2i, cross-attention 2i + 1 (tencent-ailab/IP-Adapter at 62e4af9, `tutorial_train.py`).
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Attribute names of the model inside PyTorch's wrappers that distribute, compile or checkpoint it."""

_PARTS = ("down_blocks", "up_blocks", "mid_block")
_UNET = re.compile(
    r"(?:unet\.)?(?:down_blocks|up_blocks|mid_block|conv_in|conv_norm_out|conv_out|time_embedding|"
    r"add_embedding|class_embedding|encoder_hid_proj|text_encoder_hid_proj)\..+|unet\..+"
)
_PATH = r"(?:ip_adapter\.)?(?:unet\.)?((?:down_blocks|up_blocks|mid_block)\.[\w.]+?)\.attn([12])"
_OF_PATH = re.compile(_PATH + r"\..+")
_PROCESSOR = re.compile(
    _PATH + r"\.processor\.(to_[kv]_ip)(?:\.([0-9]+))?\.weight|"
    rf"{_PATH}\.processor\.(to_(?:q|k|v|out)_lora\.(?:down|up)\.weight)"
)
_PEFT = re.compile(_PATH + r"\.to_(q|k|v|out)(?:\.0)?\.lora_(A|B)\.faceid_[0-9]+\.weight")
_BLOCK = re.compile(
    r"(?:transformer\.)?(transformer_blocks|single_transformer_blocks)\.([0-9]+)\.attn\.processor\."
    r"(to_[kv]_ip|norm_ip|norm_q|norm_k|norm_ip_k)(?:\.([0-9]+))?\.((?:linear\.)?(?:weight|bias))"
)
_XLABS = re.compile(
    r"double_blocks\.([0-9]+)\.processor\.ip_adapter_double_stream_([kv])_proj\.(weight|bias)"
)
_REDUX = re.compile(r"redux_(?:up|down)\.(?:weight|bias)")
_TRANSFORMER = re.compile(
    r"(?:transformer\.)?(?:transformer_blocks|single_transformer_blocks|time_text_embed|context_embedder|"
    r"x_embedder|pos_embed|norm_out|proj_out)\..+"
)
_PREFIXED = re.compile(r"(.+?\.)(?:image_proj|image_proj_model)\..+")
_NUMBERED = re.compile(r"adapter_modules\.([0-9]+\..+)")
_DIFFUSERS = re.compile(r"(?:unet\.)?encoder_hid_proj\.image_projection_layers\.([0-9]+)\.(.+)")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A file's tensors under their official names.

    Attributes:
        tensors: those of the adapter under official names, and unknown ones under their own names
        name: the original layout, as a phrase
        repairs: the changes that made it official, a phrase each; none for an official file
        problems: what makes the file unusable, a sentence each
    """

    tensors: dict[str, Tensor]
    name: str
    repairs: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def convert_layout(tensors: Tensors) -> Layout:
    """Recognize the layout of a file and convert it to the official one."""
    plain, words, problems = _remove_wrappers(tensors)
    if not words:
        return _convert_plain_names(tensors)
    layout = _convert_plain_names(plain)
    repairs = f"removed {' and '.join(words)} from all names", *layout.repairs
    return dataclasses.replace(layout, repairs=repairs, problems=(*problems, *layout.problems))


def _remove_wrappers(tensors: Tensors) -> tuple[Tensors, tuple[str, ...], tuple[str, ...]]:
    """Remove the words of wrappers from all names; return the tensors, these words, and name collisions."""
    words = {f"{part}.": None for name in tensors for part in name.split(".")[:-1] if part in WRAPPERS}
    names = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in tensors}
    prefix = _find_common_prefix(names.values())
    plain, problems = _rename(tensors, lambda own: names[own].removeprefix(prefix))
    return plain, (*words, *([prefix] if prefix else [])), problems


def _find_common_prefix(names: Collection[str]) -> str:
    """Return the prefix of all names, one of them a projection's; empty if there is no common one."""
    prefixes = (match[1] for match in map(_PREFIXED.match, names) if match)
    prefix = next(prefixes, "")
    return prefix if prefix and all(name.startswith(prefix) for name in names) else ""


def _convert_plain_names(tensors: Tensors) -> Layout:
    if problem := _find_several_adapters(tensors):
        return Layout({}, "several adapters", problems=(problem,))
    if any(name.startswith("adapter_modules.") for name in tensors):
        return _convert_training_names(tensors)
    if any(_REDUX.fullmatch(name) for name in tensors):
        return _rename_layout(tensors, "FLUX.1 Redux", _redux_name, "renamed redux_up and redux_down")
    if any(name.startswith(("ip_adapter_proj_model.", "double_blocks.")) for name in tensors):
        return _rename_layout(
            tensors, "XLabs' own names", _xlabs_name, "renamed ip_adapter_proj_model and double_blocks"
        )
    if any(_BLOCK.fullmatch(name) for name in tensors):
        return _convert_blocks(tensors)
    if any(_DIFFUSERS.fullmatch(name) for name in tensors):
        return _convert_paths(tensors, "diffusers' own names", _diffusers_name)
    if any(name.startswith("image_proj_model.") for name in tensors):
        return _convert_paths(tensors, "training checkpoint of the official scripts, as accelerate breaks it")
    if any(_PROCESSOR.fullmatch(name) for name in tensors):
        return _convert_paths(tensors, "official layout with paths for numbers")
    if any(_TIMED_DIFFUSERS.fullmatch(name) for name in tensors):
        repair = "turned diffusers' names of the projection into the official ones"
        return Layout(_convert_diffusers_projection(tensors), "diffusers' names of the projection", (repair,))
    return Layout(dict(tensors), "official layout")


_TIMED_DIFFUSERS = re.compile(r"image_proj\.layers\.[0-9]+\.adaln_(?:norm|proj)\..+")


def _rename_layout(tensors: Tensors, name: str, official: Callable[[str], str | None], repair: str) -> Layout:
    renamed, problems = _rename(tensors, official)
    return Layout(renamed, name, (repair,), problems)


def _redux_name(own: str) -> str:
    return f"image_proj.{own}" if _REDUX.fullmatch(own) else own


def _xlabs_name(own: str) -> str:
    if match := _XLABS.fullmatch(own):
        return f"ip_adapter.{match[1]}.to_{match[2]}_ip.{match[3]}"
    group, _, rest = own.partition(".")
    return f"image_proj.{rest}" if group == "ip_adapter_proj_model" else own


def _convert_blocks(tensors: Tensors) -> Layout:
    """Convert what diffusers stores with a transformer; its blocks' positions are the official numbers."""
    matches = [match for match in map(_BLOCK.fullmatch, tensors) if match]
    doubles = {int(match[2]) for match in matches if match[1] == "transformer_blocks"}
    first_single = max(doubles, default=-1) + 1

    def official(own: str) -> str | None:
        if match := _BLOCK.fullmatch(own):
            number = int(match[2]) + (first_single if match[1].startswith("single") else 0)
            return f"ip_adapter.{number}.{match[3]}.{match[5]}"
        if (projection := _diffusers_name(own.removeprefix("transformer."))) is not None:
            return projection
        if own.startswith("transformer.image_proj."):
            return own.removeprefix("transformer.")
        return None if _TRANSFORMER.fullmatch(own) else own

    renamed, problems = _rename(tensors, official)
    dropped = len(tensors) - len(renamed)
    repairs = ["turned diffusers' names into the official ones"]
    repairs += [f"left out {dropped} tensors of the transformer itself"] if dropped else []
    return Layout(_convert_diffusers_projection(renamed), "diffusers' own names", tuple(repairs), problems)


def _find_several_adapters(tensors: Tensors) -> str | None:
    matches = [_DIFFUSERS.fullmatch(name) for name in tensors]
    groups = {f"image_projection_layers.{match[1]}" for match in matches if match}
    groups |= {g for g in ("image_proj", "image_proj_model") if any(n.startswith(f"{g}.") for n in tensors)}
    if len(groups) < 2:
        return None
    return f"it holds {len(groups)} adapters ({', '.join(sorted(groups))}); save each in a file of its own"


def _convert_training_names(tensors: Tensors) -> Layout:
    def official(name: str) -> str | None:
        if match := _NUMBERED.fullmatch(name):
            return f"ip_adapter.{match[1]}"
        return _projection_name(name) or _name_if_unknown(name)

    renamed, problems = _rename(tensors, official)
    repairs = "renamed image_proj_model and adapter_modules", *_report_dropped(tensors, renamed)
    return Layout(renamed, "training checkpoint of the official scripts", repairs, problems)


def _convert_paths(
    tensors: Tensors, name: str, projection_name: Callable[[str], str | None] | None = None
) -> Layout:
    paths = sorted({match[1] for match in map(_OF_PATH.fullmatch, tensors) if match}, key=_sort_key)
    places = {path: index for index, path in enumerate(paths)}
    rename_projection = projection_name or _projection_name

    def official(own: str) -> str | None:
        return rename_projection(own) or _layer_name(own, places) or _name_if_unknown(own)

    renamed, problems = _rename(tensors, official)
    repairs = [*_report_dropped(tensors, renamed)]
    if projection_name:
        renamed = _convert_diffusers_projection(renamed)
        repairs.insert(0, "turned diffusers' names of the projection into the official ones")
    numbers = {name.split(".")[1] for name in renamed if name.startswith("ip_adapter.")}
    repairs.insert(0, f"gave {len(numbers)} attention layers their official numbers, by their paths")
    return Layout(renamed, name, tuple(repairs), (*problems, *_missing_layers(renamed, places)))


def _sort_key(path: str) -> tuple[int, list[int]]:
    """Return the position of a transformer block among all those of the U-Net."""
    return _PARTS.index(path.partition(".")[0]), [int(number) for number in re.findall(r"[0-9]+", path)]


def _projection_name(name: str) -> str | None:
    group, _, rest = name.partition(".")
    return f"image_proj.{rest}" if group in ("image_proj", "image_proj_model") else None


def _diffusers_name(name: str) -> str | None:
    match = _DIFFUSERS.fullmatch(name)
    return f"image_proj.{match[2]}" if match else None


def _layer_name(name: str, places: Mapping[str, int]) -> str | None:
    if match := _PROCESSOR.fullmatch(name):
        path, which, kind = match[1] or match[5], match[2] or match[6], match[7] or f"{match[3]}.weight"
    elif match := _PEFT.fullmatch(name):
        path, which = match[1], match[2]
        kind = f"to_{match[3]}_lora.{'down' if match[4] == 'A' else 'up'}.weight"
    else:
        return None
    return f"ip_adapter.{2 * places[path] + int(which) - 1}.{kind}"


def _name_if_unknown(name: str) -> str | None:
    """Return None for a tensor of the U-Net, which is dropped; the name itself for an unknown one."""
    return None if _UNET.fullmatch(name) else name


def _rename(
    tensors: Tensors, official: Callable[[str], str | None]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    renamed, origin, problems = dict[str, Tensor](), dict[str, str](), []
    for own, tensor in tensors.items():
        name = official(own)
        if name in origin:
            problems.append(f"{origin[name]} and {own} both stand for {name}")
        elif name is not None:
            renamed[name], origin[name] = tensor, own
    return renamed, tuple(problems)


def _report_dropped(tensors: Tensors, renamed: Collection[str]) -> Iterator[str]:
    if count := len(tensors) - len(renamed):
        yield f"left out {count} tensors of the U-Net itself"


def _missing_layers(renamed: Tensors, places: Mapping[str, int]) -> Iterator[str]:
    """Yield the layers of the U-Net in the file that the adapter lacks."""
    if any(name.endswith(("to_k_ip.weight", "to_v_ip.weight")) for name in renamed):
        for path, place in places.items():
            names = [f"ip_adapter.{2 * place + 1}.{kind}.weight" for kind in ("to_k_ip", "to_v_ip")]
            if not any(name in renamed for name in names):  # a single missing one is reported later
                yield f"{path}.attn2.processor.to_k_ip.weight ({names[0]}) is missing"


# From diffusers' names of the projections (diffusers/loaders/unet.py) to the official ones

_LINEAR = ((r"image_embeds\.(.+)", r"proj.\1"),)
_FULL_FACE = (
    (r"ff\.net\.0\.proj\.(.+)", r"proj.0.\1"),
    (r"ff\.net\.2\.(.+)", r"proj.2.\1"),
    (r"norm\.(.+)", r"proj.3.\1"),
)
_FACE = _FULL_FACE[:2]
_PERCEIVER = (
    (r"layers\.(\d+)\.ln0\.(.+)", r"layers.\1.0.norm1.\2"),
    (r"layers\.(\d+)\.ln1\.(.+)", r"layers.\1.0.norm2.\2"),
    (r"layers\.(\d+)\.attn\.to_(q|kv)\.weight", r"layers.\1.0.to_\2.weight"),
    (r"layers\.(\d+)\.attn\.to_out\.0\.weight", r"layers.\1.0.to_out.weight"),
    (r"layers\.(\d+)\.ff\.0\.(.+)", r"layers.\1.1.0.\2"),
    (r"layers\.(\d+)\.ff\.1\.net\.0\.proj\.weight", r"layers.\1.1.1.weight"),
    (r"layers\.(\d+)\.ff\.1\.net\.2\.weight", r"layers.\1.1.3.weight"),
)
_TIME_RESAMPLER = (
    *_PERCEIVER[:4],
    (r"layers\.(\d+)\.adaln_norm\.(.+)", r"layers.\1.1.0.\2"),
    (r"layers\.(\d+)\.ff\.net\.0\.proj\.weight", r"layers.\1.1.1.weight"),
    (r"layers\.(\d+)\.ff\.net\.2\.weight", r"layers.\1.1.3.weight"),
    (r"layers\.(\d+)\.adaln_proj\.(.+)", r"layers.\1.2.1.\2"),
)
_FACE_PERCEIVER = (
    (r"proj\.net\.0\.proj\.(.+)", r"proj.0.\1"),
    (r"proj\.net\.2\.(.+)", r"proj.2.\1"),
    (r"((?:proj_in|proj_out|norm_out)\..+)", r"perceiver_resampler.\1"),
    *((pattern, f"perceiver_resampler.{template}") for pattern, template in _PERCEIVER),
)


def _convert_diffusers_projection(tensors: Tensors) -> dict[str, Tensor]:
    projection = {
        name.removeprefix("image_proj."): tensor
        for name, tensor in tensors.items()
        if name.startswith("image_proj.")
    }
    rules = _choose_diffusers_rules(projection)
    others = {name: tensor for name, tensor in tensors.items() if not name.startswith("image_proj.")}
    converted = {
        _apply_rules(name, rules): tensor for name, tensor in _join_keys_with_values(projection).items()
    }
    return {f"image_proj.{name}": tensor for name, tensor in converted.items()} | others


def _choose_diffusers_rules(projection: Tensors) -> tuple[tuple[str, str], ...]:
    if any("adaln_proj" in name for name in projection):
        return _TIME_RESAMPLER
    if any(name.startswith("image_embeds.") for name in projection):
        return _LINEAR
    if any(name.startswith("proj.net.") for name in projection):
        return _FACE_PERCEIVER
    if "ff.net.2.weight" not in projection or "norm.weight" not in projection:
        return _PERCEIVER
    # Both have the same names. Full-Face maps a feature to one token, FaceID maps a face to several.
    rows, width = len(projection["ff.net.2.weight"]), len(projection["norm.weight"])
    return _FULL_FACE if rows == width else _FACE


def _join_keys_with_values(projection: Tensors) -> dict[str, Tensor]:
    """Join W_k and W_v of each perceiver layer, which are one matrix in the official layout."""
    joined = dict(projection)
    for name in projection:
        value = re.sub(r"attn\.to_k\.weight$", "attn.to_v.weight", name)
        if value != name and value in projection:
            both = joined.pop(name), joined.pop(value)
            joined[name.replace("attn.to_k.", "attn.to_kv.")] = torch.cat(both)
    return joined


def _apply_rules(name: str, rules: Collection[tuple[str, str]]) -> str:
    for pattern, template in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(template)
    return name
