"""The layouts that files come in: each is read as it is, and `convert` makes it the official one."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from variants import UNETS, meta_unet

import adapter_files
import tiny
from imprompt.checkpoint import convert_adapter, describe, load_adapter
from imprompt.checkpoint.files import read_tensors
from imprompt.checkpoint.layouts import convert_layout
from imprompt.errors import CheckpointError

Tensors = dict[str, Tensor]
UNET = tiny.xl_unet()  # two transformer blocks per attention: order matters
PATHS = adapter_files.paths(UNET)


@functools.cache
def file_of(variant: str) -> Tensors:
    return adapter_files.official(adapter_files.adapter(UNET, variant))


def by_path(name: str, prefix: str) -> str:
    """`ip_adapter.N.X` → `{prefix}PATH.processor.X`."""
    _, number, rest = name.split(".", 2)
    return f"{prefix}{PATHS[int(number)]}.{rest}"


def training(official: Tensors) -> Tensors:
    """What the official scripts save: the whole U-Net with its processors, and these once more."""
    names = {
        name: name.replace("image_proj.", "image_proj_model.").replace("ip_adapter.", "adapter_modules.")
        for name in official
    }
    inside = {by_path(k, "unet."): v for k, v in official.items() if k.startswith("ip_adapter.")}
    base = {f"unet.{name}": tensor for name, tensor in UNET.state_dict().items()}
    return base | inside | {names[name]: tensor for name, tensor in official.items()}


def by_accelerate(official: Tensors) -> Tensors:
    """The same as safetensors: tensors that share memory are saved once, under the U-Net's name."""
    return {k: v for k, v in training(official).items() if not k.startswith("adapter_modules.")}


def remove_unet_prefix(official: Tensors) -> Tensors:
    return {name.removeprefix("unet."): tensor for name, tensor in by_accelerate(official).items()}


def by_hand(official: Tensors) -> Tensors:
    """What a well-known snippet makes of it: layers under `ip_adapter` and their paths."""
    return {by_path(k, "ip_adapter.") if k.startswith("ip_adapter.") else k: v for k, v in official.items()}


def by_diffusers(official: Tensors) -> Tensors:
    """The U-Net that diffusers' own loader fills, as `save_pretrained` would write it."""
    pipe: Any = tiny.xl_pipeline()
    pipe.load_ip_adapter(
        adapter_files.nest_tensors(official), subfolder="", weight_name="", image_encoder_folder=None
    )
    return {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}


LAYOUTS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "training": (training, "training checkpoint of the official scripts"),
    "accelerate": (by_accelerate, "training checkpoint of the official scripts, as accelerate breaks it"),
    "no unet.": (remove_unet_prefix, "training checkpoint of the official scripts, as accelerate breaks it"),
    "by hand": (by_hand, "official layout with paths for numbers"),
    "diffusers": (by_diffusers, "diffusers' own names"),
}


@pytest.mark.parametrize("variant", adapter_files.PROJECTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_every_variant_becomes_the_official_file(variant: str, layout: str) -> None:
    official = file_of(variant)
    arrange, name = LAYOUTS[layout]
    found = convert_layout(arrange(official))
    assert (found.name, found.problems) == (name, ())
    assert set(found.tensors) == set(official)
    assert all(torch.equal(tensor, official[name]) for name, tensor in found.tensors.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_convert_repairs_and_says_so(layout: str, suffix: str, tmp_path: Path) -> None:
    official = file_of("base")
    source = tmp_path / f"source{suffix}"
    tensors = LAYOUTS[layout][0](official)
    if suffix == ".bin":
        torch.save(tensors, source)
    else:
        safetensors.torch.save_file({k: v.clone() for k, v in tensors.items()}, source)
    said = convert_adapter(source, tmp_path / "a.safetensors")
    assert said == f"it was a {LAYOUTS[layout][1]} ({read_tensors(source).container}): " + ", ".join(
        describe(source).repairs
    )
    repaired = read_tensors(tmp_path / "a.safetensors").tensors
    assert set(repaired) == set(official)
    assert all(torch.equal(repaired[name], official[name]) for name in official)
    assert describe(tmp_path / "a.safetensors").repairs == ()
    assert convert_adapter(tmp_path / "a.safetensors", tmp_path / "b.bin") == "nothing had to be repaired"


def test_what_was_repaired_is_counted(tmp_path: Path) -> None:
    torch.save(by_accelerate(file_of("base")), tmp_path / "a.bin")
    assert describe(tmp_path / "a.bin").repairs == (
        "gave 8 attention layers their official numbers, by their paths",
        f"left out {len(UNET.state_dict())} tensors of the U-Net itself",
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_as_it_is(layout: str, tmp_path: Path) -> None:
    official = file_of("base")
    torch.save(LAYOUTS[layout][0](official), tmp_path / "a.bin")
    loaded = adapter_files.official(load_adapter(tmp_path / "a.bin", image_encoder=None))
    assert all(torch.equal(loaded[name], official[name]) for name in official)


@pytest.mark.parametrize("family", UNETS)
def test_paths_get_the_numbers_that_the_true_base_gives_them(family: str) -> None:
    processors = list(meta_unet(family).attn_processors)
    tensors = {f"unet.{path}.to_k_ip.weight": torch.tensor([n]) for n, path in enumerate(processors) if n % 2}
    shuffled = dict(sorted(tensors.items()))
    found = convert_layout(shuffled | {"image_proj_model.proj.weight": torch.zeros(1)}).tensors
    numbers = {name: int(tensor) for name, tensor in found.items() if name.startswith("ip_adapter.")}
    assert numbers == {f"ip_adapter.{n}.to_k_ip.weight": n for n in range(1, len(processors), 2)}


# Files that cannot be repaired


def problems_of(tensors: Tensors, tmp_path: Path) -> tuple[str, ...]:
    torch.save(tensors, tmp_path / "a.bin")
    with pytest.raises(CheckpointError):
        convert_adapter(tmp_path / "a.bin", tmp_path / "b.bin")
    assert not (tmp_path / "b.bin").exists()
    with pytest.raises(CheckpointError):
        load_adapter(tmp_path / "a.bin")
    return describe(tmp_path / "a.bin").problems


def test_a_layer_that_the_unet_has_and_the_adapter_lacks_is_missed(tmp_path: Path) -> None:
    """Otherwise every later layer would get the number of another."""
    tensors = by_accelerate(file_of("base"))
    path = PATHS[3].removesuffix(".processor")
    for kind in ("to_k_ip", "to_v_ip"):
        del tensors[f"unet.{path}.processor.{kind}.weight"]
    assert problems_of(tensors, tmp_path) == (
        f"{path}.processor.to_k_ip.weight (ip_adapter.3.to_k_ip.weight) is missing",
    )


def test_half_a_layer_is_missed(tmp_path: Path) -> None:
    tensors = by_accelerate(file_of("base"))
    del tensors[by_path("ip_adapter.3.to_v_ip.weight", "unet.")]
    assert problems_of(tensors, tmp_path) == ("ip_adapter.3.to_v_ip.weight is missing",)


def test_the_empty_result_of_the_official_readme_is_said_to_be_empty(tmp_path: Path) -> None:
    """Its snippet skips `unet*`, where accelerate left the layers."""
    tensors = {k: v for k, v in file_of("base").items() if k.startswith("image_proj.")}
    assert problems_of(tensors, tmp_path) == (
        "it has no attention layers (ip_adapter.N.to_k_ip.weight, ip_adapter.N.to_v_ip.weight)",
    )


def test_two_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    pipe: Any = tiny.xl_pipeline()
    both = [adapter_files.nest_tensors(file_of(variant)) for variant in ("base", "plus")]
    pipe.load_ip_adapter(both, subfolder=["", ""], weight_name=["", ""], image_encoder_folder=None)
    assert problems_of(pipe.unet.state_dict(), tmp_path) == (
        "it holds 2 adapters (image_projection_layers.0, image_projection_layers.1); "
        "save each in a file of its own",
    )
    two = training(file_of("base")) | file_of("plus")
    assert problems_of(two, tmp_path) == (
        "it holds 2 adapters (image_proj, image_proj_model); save each in a file of its own",
    )


def test_two_tensors_for_one_place_are_refused(tmp_path: Path) -> None:
    tensors = by_hand(file_of("base"))
    path = by_path("ip_adapter.3.to_k_ip.weight", "ip_adapter.")
    twice = path.replace("ip_adapter.", "ip_adapter.unet.")
    assert f"{path} and {twice} both stand for ip_adapter.3.to_k_ip.weight" in problems_of(
        tensors | {twice: tensors[path]}, tmp_path
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_neither_the_adapters_nor_the_unets_is_named(layout: str, tmp_path: Path) -> None:
    tensors = LAYOUTS[layout][0](file_of("base")) | {"text_encoder.weight": torch.zeros(2)}
    assert problems_of(tensors, tmp_path) == ("text_encoder.weight does not belong in a base adapter",)


# Names with the word of what wrapped the model

PREFIXES = {
    "DDP": "module.",
    "torch.compile": "_orig_mod.",
    "compiled in DDP": "module._orig_mod.",
    "FSDP": "_fsdp_wrapped_module.",
    "a script's own": "ip_adapter_model.",
    "Lightning": "model.adapter.",
}


@pytest.mark.parametrize("variant", ["base", "plus"])
@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize(
    "layout", [lambda official: official, training, by_accelerate], ids=["ours", "a", "b"]
)
def test_a_file_whose_names_all_have_a_prefix_is_read_as_without(
    layout: Callable[[Tensors], Tensors], prefix: str, variant: str
) -> None:
    official = file_of(variant)
    found = convert_layout({f"{prefix}{name}": tensor for name, tensor in layout(official).items()})
    assert not found.problems
    assert found.repairs[0].startswith("removed ")
    assert found.tensors.keys() == official.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in official.items())


def test_words_of_wrapped_parts_inside_names_are_taken_off() -> None:
    official = file_of("base")
    wrapped = {name.replace(".", "._orig_mod.", 1): tensor for name, tensor in training(official).items()}
    found = convert_layout(wrapped)
    assert not found.problems
    assert found.tensors.keys() == official.keys()


def test_two_names_that_differ_by_a_prefix_only_are_a_problem() -> None:
    official = file_of("base")
    name = next(iter(official))
    found = convert_layout({**official, f"module.{name}": official[name]})
    assert found.problems == (f"{name} and module.{name} both stand for {name}",)


@pytest.mark.parametrize("key", ["module", "state_dict", "model_state_dict"])
def test_the_weights_in_the_file_of_a_trainer_are_found(key: str, tmp_path: Path) -> None:
    official = file_of("base")
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({key: official, "optimizer": None, "global_steps": 10, "ds_version": "0.1"}, file)
    read = read_tensors(file).tensors
    assert read.keys() == official.keys()
    assert describe(file).variant == "base"


def test_a_file_without_a_prefix_is_not_said_to_be_repaired() -> None:
    assert convert_layout(file_of("base")).repairs == ()


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            "Git LFS pointer.*git lfs pull",
        ),
        (b"<!doctype html>\n<html><head>", "a web page, not the file itself: download"),
        (b"\xef\xbb\xbf\r\n <HTML>", "a web page"),
    ],
)
def test_what_was_saved_in_place_of_an_adapter_is_named(
    content: bytes, message: str, suffix: str, tmp_path: Path
) -> None:
    file = tmp_path / f"adapter.{suffix}"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_adapter(file, image_encoder=None)
