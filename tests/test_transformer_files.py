"""Adapter files for diffusion transformers: every published layout ↔ ours ↔ diffusers', and refusals."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

import tiny
import tiny_transformers
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint import convert_adapter, describe, load_adapter, save_adapter, to_official
from imprompt.errors import AdapterMismatch, CheckpointError
from imprompt.inputs.encoder import ImageEncoder, load_image_encoder
from imprompt.projection import TokenProjection
from imprompt.reference import Reference
from test_transformers import close, official, run_prompted, wide_adapter
from tiny_transformers import FLUX_CONTEXT, KINDS, Kind, adapter, call, embeddings, transformer

every_kind = pytest.mark.parametrize("kind", KINDS)


@tiny.seeded
def redux(*, seed: int = 0) -> ImagePromptAdapter:
    projection = TokenProjection(tiny_transformers.FEATURE_DIM, FLUX_CONTEXT, tiny_transformers.PATCHES)
    made = ImagePromptAdapter(projection, {0: (FLUX_CONTEXT, FLUX_CONTEXT)}, injection="flux-redux")
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.requires_grad_(False)


def tensors_of(one: ImagePromptAdapter) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in to_official(one.state_dict()).items()}


def write(tensors: dict[str, Tensor], folder: Path, name: str = "file.safetensors", **facts: str) -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, path, facts)
    else:
        nested: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            group, _, rest = key.partition(".")
            nested.setdefault(group, {})[rest] = tensor
        torch.save(nested, path)
    return path


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Other layouts, made from the official one


XLABS = r"double_blocks.\1.processor.ip_adapter_double_stream"


def xlabs_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    rules = [
        (r"image_proj\.(.+)", r"ip_adapter_proj_model.\1"),
        (r"ip_adapter\.(\d+)\.to_([kv])_ip\.(.+)", rf"{XLABS}_\2_proj.\3"),
    ]
    return {rename_tensor(name, rules): tensor for name, tensor in tensors.items()}


def rename_tensor(name: str, rules: list[tuple[str, str]]) -> str:
    (made,) = [match.expand(to) for rule, to in rules if (match := re.fullmatch(rule, name))]
    return made


def diffusers_layout(one: ImagePromptAdapter) -> dict[str, Tensor]:
    """What diffusers stores of a transformer on which it has loaded the adapter."""
    model = transformer("sd35" if one.injection == "sd35" else "flux-xlabs")
    model._load_ip_adapter_weights(official(one))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


LAYOUTS: dict[str, tuple[Callable[[], ImagePromptAdapter], Callable[..., dict[str, Tensor]]]] = {
    "XLabs' own": (lambda: adapter("flux-xlabs"), lambda one: xlabs_layout(tensors_of(one))),
    "diffusers', XLabs": (lambda: adapter("flux-xlabs"), diffusers_layout),
    "diffusers', SD3.5": (wide_adapter, diffusers_layout),
    "diffusers' projection, SD3.5": (wide_adapter, lambda one: convert_projection(one)),
    "Redux's own": (
        redux,
        lambda one: {k.removeprefix("image_proj."): v for k, v in tensors_of(one).items()},
    ),
}


def convert_projection(one: ImagePromptAdapter) -> dict[str, Tensor]:
    """The layers by their official names, the resampler by diffusers'."""
    theirs = diffusers_layout(one)
    layers = {name: tensor for name, tensor in tensors_of(one).items() if name.startswith("ip_adapter.")}
    return layers | {name: tensor for name, tensor in theirs.items() if name.startswith("image_proj.")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_layout_is_converted_and_loads_as_it_is(layout: str, tmp_path: Path) -> None:
    build, other = LAYOUTS[layout]
    one = build()
    facts = {"tokens": "6"} if one.injection == "flux-redux" else {}
    file = write(other(one), tmp_path, **facts)
    found = describe(file)
    assert (found.variant, found.injection, found.problems) == (one.injection, one.injection, ())
    assert found.repairs
    assert same(tensors_of(load_adapter(file, image_encoder=None)), tensors_of(one))
    convert_adapter(file, tmp_path / "official.safetensors")
    assert same(safetensors.torch.load_file(tmp_path / "official.safetensors"), tensors_of(one))
    assert describe(tmp_path / "official.safetensors").repairs == ()


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("build", [lambda: adapter("flux-xlabs"), wide_adapter, redux])
def test_saving_and_loading_is_the_identity(
    build: Callable[[], ImagePromptAdapter], suffix: str, tmp_path: Path
) -> None:
    one = build()
    save_adapter(one, tmp_path / f"a.{suffix}")
    loaded = load_adapter(tmp_path / f"a.{suffix}", image_encoder=None)
    assert same(tensors_of(loaded), tensors_of(one))
    assert (loaded.injection, loaded.shapes) == (one.injection, one.shapes)


def test_heads_of_another_width_are_stated_by_a_file_or_it_is_not_written(tmp_path: Path) -> None:
    one = adapter("flux-instantx")
    save_adapter(one, tmp_path / "a.safetensors")
    assert load_adapter(tmp_path / "a.safetensors", image_encoder=None).head_dim == one.head_dim
    with pytest.raises(CheckpointError, match="cannot state that the base's heads are 8 wide"):
        save_adapter(one, tmp_path / "a.bin")


@every_kind
def test_a_loaded_adapter_makes_what_the_saved_one_makes(kind: Kind, tmp_path: Path) -> None:
    model, one, inputs = transformer(kind), adapter(kind), call(kind)
    save_adapter(one, tmp_path / "a.safetensors")
    loaded = load_adapter(tmp_path / "a.safetensors", image_encoder=None)
    with torch.no_grad():
        expected = run_prompted(model, one, inputs, Reference(embeddings(kind)))
        assert torch.equal(run_prompted(model, loaded, inputs, Reference(embeddings(kind))), expected)


def test_what_diffusers_reads_of_our_xlabs_file_is_the_adapter(tmp_path: Path) -> None:
    """Its loader takes `image_proj.` and `ip_adapter.`."""
    one, model = adapter("flux-xlabs"), transformer("flux-xlabs")
    save_adapter(one, tmp_path / "a.safetensors")
    groups: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in safetensors.torch.load_file(tmp_path / "a.safetensors").items():
        group, _, rest = name.partition(".")
        groups[group][rest] = tensor
    model._load_ip_adapter_weights(groups)
    inputs, picture = call("flux-xlabs"), embeddings("flux-xlabs")
    rows = {"joint_attention_kwargs": {"ip_adapter_image_embeds": [picture.expand(2, 1, -1)]}}
    with torch.no_grad():
        theirs = model(**inputs | rows).sample
        close(run_prompted(transformer("flux-xlabs"), one, inputs, picture), theirs)


# Damage


def files() -> dict[str, dict[str, Tensor]]:
    made = {kind: adapter(kind) for kind in ("flux-xlabs", "flux-instantx")}
    return {**{kind: tensors_of(one) for kind, one in made.items()}, "sd35": tensors_of(wide_adapter())}


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_tensor_is_named(kind: Kind, tmp_path: Path) -> None:
    """With diffusers, a layer keeps a tensor without values, and the file loads and runs silently."""
    tensors = files()[kind]
    tested = [name for name in tensors if re.match(r"ip_adapter\.[01]\.|image_proj\.(?!layers)", name)]
    for name in tested:
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        path = write(rest, tmp_path)
        with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is missing"):
            load_adapter(path, image_encoder=None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_block_is_named(kind: Kind, tmp_path: Path) -> None:
    rest = {name: tensor for name, tensor in files()[kind].items() if not name.startswith("ip_adapter.0.")}
    if kind == "flux-instantx":  # the rest has even numbers still
        assert any(name.startswith("ip_adapter.2.") for name in rest)
    with pytest.raises(CheckpointError, match=r"ip_adapter\.0 is missing"):
        load_adapter(write(rest, tmp_path), image_encoder=None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra", ["ip_adapter.0.to_q_ip.weight", "image_proj.more", "ip_adapter.0.norm_x"])
def test_an_extra_tensor_is_named(kind: Kind, extra: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{re.escape(extra)} does not belong in a {kind} adapter"):
        load_adapter(write(files()[kind] | {extra: torch.zeros(2)}, tmp_path), image_encoder=None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_another_shape_is_named(kind: Kind, tmp_path: Path) -> None:
    for name, tensor in files()[kind].items():
        if name.startswith("ip_adapter.1."):
            wrong = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 1)
            with pytest.raises(CheckpointError, match=r"ip_adapter\.1\.\S+ has shape"):
                load_adapter(write(files()[kind] | {name: wrong}, tmp_path), image_encoder=None)


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_a_resampler_of_any_depth_loads(depth: int, tmp_path: Path) -> None:
    from imprompt.projection import PerceiverShape, TimeResamplerProjection

    shape = PerceiverShape(width=64, depth=depth)
    projection = TimeResamplerProjection(10, 24, 4, shape=shape, waves=6)
    one = ImagePromptAdapter(projection, tiny_transformers.layers_of("sd35"), injection="sd35", head_dim=8)
    path = write(tensors_of(one), tmp_path)
    assert same(tensors_of(load_adapter(path, image_encoder=None)), tensors_of(one))


@pytest.mark.parametrize("tokens", [1, 7, 16])
def test_any_number_of_tokens_is_read_from_an_xlabs_file(tokens: int, tmp_path: Path) -> None:
    file = write(xlabs_layout(tensors_of(adapter("flux-xlabs", tokens=tokens))), tmp_path)
    assert load_adapter(file, image_encoder=None).projection.tokens == tokens


# Redux


def test_redux_stands_behind_the_text() -> None:
    model, one, inputs = transformer("flux-xlabs"), redux(), call("flux-xlabs")
    features = embeddings("sd35")
    tokens = one.projection(features)
    text = torch.cat([inputs["encoder_hidden_states"], tokens.expand(2, -1, -1)], 1)
    longer = {"encoder_hidden_states": text, "txt_ids": torch.zeros(text.shape[1], 3)}
    with torch.no_grad():
        base = model(**inputs).sample
        assert torch.equal(run_prompted(model, one, inputs, features), model(**inputs | longer).sample)
        assert torch.equal(run_prompted(model, one, inputs, Reference(features, scale=0)), base)
        assert torch.equal(model(**inputs).sample, base)
        weak = text.clone()
        weak[:, -tokens.shape[1] :] *= 0.5
        half = run_prompted(model, one, inputs, Reference(features, scale=0.5))
        close(half, model(**inputs | longer | {"encoder_hidden_states": weak}).sample)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layers": {"double": 1.0}}, "layers has no meaning"),
        ({"scaling": "key and value"}, "is not defined for this adapter"),
        ({"mask": torch.eye(4)}, "tokens are for the whole picture; leave out the mask"),
    ],
)
def test_what_redux_cannot_do_is_refused(settings: dict[str, Any], sentence: str) -> None:
    model, one = transformer("flux-xlabs"), redux()
    with pytest.raises(Exception, match=sentence):
        run_prompted(model, one, call("flux-xlabs"), Reference(embeddings("sd35"), **settings))


# SigLIP


@tiny.seeded
def siglip(*, seed: int = 0, width: int = tiny_transformers.FEATURE_DIM) -> SiglipVisionModel:
    config = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    return SiglipVisionModel(config).eval()


def test_siglip_returns_what_the_published_pipelines_take() -> None:
    model, picture = siglip(), tiny.picture(width=40, height=24)
    encoder = ImageEncoder(model)
    pixels = encoder.pixels([picture])
    assert torch.equal(pixels, encoder.pixels([picture], "stretch"))
    close(pixels.mean((2, 3)), encoder.pixels([picture], "stretch").mean((2, 3)))
    assert pixels.min() >= -1
    names: Any = ("image_embedding", "image_features", "last_image_features")
    made = encoder.inputs(pixels, names)
    output: Any = model(pixels, output_hidden_states=True)
    expected = output.pooler_output, output.hidden_states[-2], output.last_hidden_state
    assert all(torch.equal(made[name], one) for name, one in zip(names, expected, strict=True))
    assert (encoder.patches, encoder.embedding_dim) == (4, model.config.hidden_size)
    assert encoder.signature


def test_siglip_is_loaded_from_a_folder_and_named(tmp_path: Path) -> None:
    siglip().save_pretrained(tmp_path)
    encoder = load_image_encoder(tmp_path)
    assert (encoder.is_siglip, encoder.mean) == (True, (0.5, 0.5, 0.5))
    one = adapter("sd35")
    one.image_encoder = encoder
    saved = one.encode(tiny.picture())
    assert saved.inputs["image_features"].shape == (1, 4, tiny_transformers.FEATURE_DIM)
    assert not saved.blank["image_features"].any()


def test_an_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    save_adapter(adapter("sd35"), tmp_path / "a.safetensors")
    with pytest.raises(AdapterMismatch, match="image features is 12 wide, not 10"):
        load_adapter(tmp_path / "a.safetensors", image_encoder=ImageEncoder(siglip(width=12)))
