"""Adapter files: round trips, recognition by shapes, and every way in which a file can be wrong."""

import errno
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import adapter_files
import tiny
from imprompt import mini
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint import (
    PUBLISHED,
    convert_adapter,
    describe,
    from_official,
    load_adapter,
    loading,
    save_adapter,
    to_official,
)
from imprompt.checkpoint.files import read_tensors
from imprompt.errors import AdapterMismatch, CheckpointError, OutputError, UnknownModel
from imprompt.inputs.encoder import ImageEncoder
from imprompt.projection import (
    FacePlusProjection,
    ImageProjection,
    LinearProjection,
    PatchProjection,
    PerceiverShape,
    ResamplerProjection,
)
from imprompt.reference import Reference

SUFFIXES = [".safetensors", ".bin"]


@pytest.fixture
def adapter() -> ImagePromptAdapter:
    return tiny.adapter(tiny.sd_unet())


def official(adapter: ImagePromptAdapter) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in to_official(adapter.state_dict()).items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


# Laws


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_save_then_load_is_the_identity(
    adapter: ImagePromptAdapter, tmp_path: Path, dtype: torch.dtype, suffix: str
) -> None:
    save_adapter(adapter.to(dtype), tmp_path / f"a{suffix}")
    loaded = load_adapter(tmp_path / f"a{suffix}")
    assert same(dict(loaded.state_dict()), dict(adapter.state_dict()))
    assert loaded.shapes == adapter.shapes


@pytest.mark.parametrize("variant", adapter_files.PROJECTIONS)
def test_every_variant_comes_back_as_it_was_saved(tmp_path: Path, variant: str) -> None:
    made = adapter_files.adapter(tiny.sd_unet(), variant).half()
    save_adapter(made, tmp_path / "a.safetensors")
    loaded = load_adapter(tmp_path / "a.safetensors", image_encoder=None)
    assert same(dict(sorted(loaded.state_dict().items())), dict(sorted(made.state_dict().items())))
    assert type(loaded.projection) is type(made.projection)
    assert (loaded.projection.takes, loaded.projection.tokens) == (
        made.projection.takes,
        made.projection.tokens,
    )


@st.composite
def official_tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    embedding_dim, context_dim, tokens = (draw(st.integers(1, 7)) for _ in range(3))
    numbers = draw(st.lists(st.integers(0, 200), min_size=1, max_size=5, unique=True))
    shapes = {
        "image_proj.proj.weight": (tokens * context_dim, embedding_dim),
        "image_proj.proj.bias": (tokens * context_dim,),
        "image_proj.norm.weight": (context_dim,),
        "image_proj.norm.bias": (context_dim,),
    }
    for number in numbers:
        inner = draw(st.integers(1, 7))
        shapes |= {f"ip_adapter.{number}.to_{x}_ip.weight": (inner, context_dim) for x in "kv"}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@given(official_tensors())
def test_official_to_ours_to_official_is_the_identity(tensors: dict[str, Tensor]) -> None:
    assert same(to_official(from_official(tensors)), tensors)


@settings(deadline=None, max_examples=40)
@given(official_tensors())
def test_every_sound_official_file_loads_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    safetensors.torch.save_file(tensors, path)
    loaded = to_official(load_adapter(path).state_dict())
    assert same({name: loaded.pop(name) for name in tensors}, tensors)
    assert not loaded


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_adapter_gives_the_same_picture_after_saving_and_loading(
    adapter: ImagePromptAdapter, tmp_path: Path, suffix: str
) -> None:
    save_adapter(adapter, tmp_path / f"a{suffix}")
    assert np.array_equal(draw_with(adapter), draw_with(load_adapter(tmp_path / f"a{suffix}")))


def draw_with(adapter: ImagePromptAdapter) -> np.ndarray:
    pipe = tiny.sd_pipeline()
    with adapter.attach(pipe), adapter.references(Reference(tiny.embedding(1))):
        return run(pipe)


def run(pipe: Any, **more: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat", num_inference_steps=2, output_type="np", generator=generator, **more).images


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_diffusers_loads_what_we_save_and_makes_the_same_picture(tmp_path: Path, suffix: str) -> None:
    pipe = tiny.sd_pipeline(image_encoder=True)
    adapter = tiny.adapter(pipe.unet)
    save_adapter(adapter, tmp_path / f"a{suffix}", {"encoder": "x"} if suffix == ".safetensors" else None)
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=f"a{suffix}", image_encoder_folder=None)
    embedding = tiny.embedding(1)
    theirs = run(pipe, ip_adapter_image_embeds=[torch.stack([torch.zeros_like(embedding), embedding])])
    assert np.abs(draw_with(adapter) - theirs).max() <= 1e-5


def test_the_metadata_says_what_the_file_is(adapter: ImagePromptAdapter, tmp_path: Path) -> None:
    save_adapter(adapter, tmp_path / "a.safetensors", {"encoder": "our own", "recipe": "mini"})
    found = describe(tmp_path / "a.safetensors")
    assert found.metadata == {
        "format": "pt",
        "variant": "base",
        "tokens": "4",
        "takes": f"image_embedding {tiny.EMBEDDING_DIM}",
        "context_dim": str(tiny.SD_CONTEXT),
        "unconditional": "image_embedding: zeros",
        "encoder": "our own",
        "recipe": "mini",
    }
    assert found.encoder == f"our own, {tiny.EMBEDDING_DIM} wide"
    assert found.layout == "official layout (safetensors)"


def test_equal_adapters_are_equal_files(adapter: ImagePromptAdapter, tmp_path: Path) -> None:
    for name in "ab":
        for _ in range(8):  # the writer of safetensors shuffles its metadata
            save_adapter(adapter, tmp_path / f"{name}.safetensors", {"encoder": "our own", "recipe": "mini"})
            assert (tmp_path / "a.safetensors").read_bytes() == (
                tmp_path / f"{name}.safetensors"
            ).read_bytes()


def test_a_file_that_names_the_minis_encoder_loads_with_it(tmp_path: Path) -> None:
    shipped = load_adapter("mini")
    save_adapter(shipped, tmp_path / "a.safetensors", {"image_encoder": "mini"})
    assert load_adapter(tmp_path / "a.safetensors").image_encoder is not None
    save_adapter(shipped, tmp_path / "b.safetensors", {"image_encoder": "a folder somewhere"})
    assert load_adapter(tmp_path / "b.safetensors").image_encoder is None


def test_a_given_encoder_spares_the_one_that_the_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mini's own adapter may name the mini: loading it must not ask the mini for its encoder again."""
    shipped = load_adapter("mini")
    save_adapter(shipped, tmp_path / "a.safetensors", {"image_encoder": "mini"})
    monkeypatch.setattr(mini, "adapter", lambda: pytest.fail("the mini was asked"))
    assert load_adapter(tmp_path / "a.safetensors", image_encoder=None).image_encoder is None


def test_another_form_of_no_image_is_refused(adapter: ImagePromptAdapter, tmp_path: Path) -> None:
    save_adapter(adapter, tmp_path / "a.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "a.safetensors")
    safetensors.torch.save_file(tensors, tmp_path / "b.safetensors", {"unconditional": "a black picture"})
    with pytest.raises(
        CheckpointError, match=r"another form of no image \('a black picture'\) than imprompt"
    ):
        load_adapter(tmp_path / "b.safetensors", image_encoder=None)


# Wrong files


def replace_tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def tamper(tensors: dict[str, Tensor]) -> None:
        tensors[name] = change(tensors[name])

    return tamper


def remove_tensor(name: str) -> Callable[[dict[str, Tensor]], None]:
    def tamper(tensors: dict[str, Tensor]) -> None:
        del tensors[name]

    return tamper


def add_tensor(name: str) -> Callable[[dict[str, Tensor]], None]:
    def tamper(tensors: dict[str, Tensor]) -> None:
        tensors[name] = torch.zeros(2)

    return tamper


def with_bad_value(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([1]), value)


PROJECTION, KEY, VALUE = (
    "image_proj.proj.weight",
    "ip_adapter.3.to_k_ip.weight",
    "ip_adapter.3.to_v_ip.weight",
)

TAMPERED: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "missing key": (remove_tensor(KEY), f"{KEY} is missing"),
    "missing value": (remove_tensor(VALUE), f"{VALUE} is missing"),
    "missing projection": (remove_tensor(PROJECTION), f"{PROJECTION} is missing"),
    "missing norm": (remove_tensor("image_proj.norm.bias"), "image_proj.norm.bias is missing"),
    "extra in projection": (
        add_tensor("image_proj.extra"),
        "image_proj.extra does not belong in a base adapter",
    ),
    "extra layer": (add_tensor("ip_adapter.3.to_q_ip.weight"), "ip_adapter.3.to_q_ip.weight does not belong"),
    "extra group": (add_tensor("optimizer"), "optimizer does not belong"),
    "number with a zero": (
        add_tensor("ip_adapter.03.to_k_ip.weight"),
        "ip_adapter.03.to_k_ip.weight does not belong",
    ),
    "narrow key": (
        replace_tensor(KEY, lambda tensor: tensor[:, 1:]),
        f"{KEY} has shape 16 × 19, but the image tokens are 20 wide",
    ),
    "short value": (
        replace_tensor(VALUE, lambda tensor: tensor[1:]),
        f"{VALUE} has shape 15 × 20, not 16 × 20",
    ),
    "flat key": (
        replace_tensor(KEY, lambda tensor: tensor.flatten()),
        f"{KEY} has shape 320, but the image tokens",
    ),
    "norm of another width": (
        replace_tensor("image_proj.norm.weight", lambda tensor: tensor[1:]),
        "image_proj.proj.weight (80 × 14) does not divide into tokens 19 wide (image_proj.norm.weight)",
    ),
    "short bias": (
        replace_tensor("image_proj.proj.bias", lambda tensor: tensor[1:]),
        "image_proj.proj.bias has shape 79, not 80",
    ),
    "empty projection": (
        replace_tensor(PROJECTION, lambda tensor: tensor[:, :0]),
        f"{PROJECTION} has shape 80 × 0, from which no size can be read",
    ),
    "NaN": (replace_tensor(KEY, with_bad_value(torch.nan)), f"{KEY} holds NaN or infinity"),
    "infinity": (
        replace_tensor(PROJECTION, with_bad_value(-torch.inf)),
        f"{PROJECTION} holds NaN or infinity",
    ),
    "integers": (replace_tensor(KEY, lambda tensor: tensor.long()), f"{KEY} is torch.int64"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("tamper", TAMPERED)
def test_a_wrong_tensor_is_named(
    adapter: ImagePromptAdapter, tmp_path: Path, tamper: str, suffix: str
) -> None:
    change, message = TAMPERED[tamper]
    tensors, path = official(adapter), tmp_path / f"a{suffix}"
    change(tensors)
    if suffix == ".bin":
        torch.save(tensors, path)  # flat, as some tools write it
    else:
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    assert any(message in problem for problem in describe(path).problems), describe(path).problems
    with pytest.raises(CheckpointError, match="a" + suffix):
        load_adapter(path)


def test_all_faults_are_counted_in_the_message(adapter: ImagePromptAdapter, tmp_path: Path) -> None:
    tensors = official(adapter)
    del tensors[KEY], tensors["image_proj.norm.bias"]
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"norm\.bias is missing \(and 1 more: imprompt inspect"):
        load_adapter(tmp_path / "a.safetensors")


def test_a_tensor_that_claims_more_than_it_stores_is_not_filled_in(
    adapter: ImagePromptAdapter, tmp_path: Path
) -> None:
    tensors = official(adapter)
    tensors[PROJECTION] = torch.zeros(1, 1).expand(80, 10**12)
    torch.save(tensors, tmp_path / "a.bin")
    assert (
        f"{PROJECTION} claims 80000000000000 values but holds fewer" in describe(tmp_path / "a.bin").problems
    )


class Intruder:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, old_format: bool) -> None:
    path, trace = tmp_path / "a.bin", tmp_path / "trace"
    torch.save({"image_proj": Intruder(trace)}, path, _use_new_zipfile_serialization=not old_format)
    for use in (describe, load_adapter):
        with pytest.raises(CheckpointError, match="holds more than tensors, perhaps code; it was refused"):
            use(path)
    assert not trace.exists()


def test_code_in_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(pickle.dumps(Intruder(tmp_path / "trace")))
    with pytest.raises(CheckpointError):
        load_adapter(tmp_path / "a.bin")
    assert not (tmp_path / "trace").exists()


def test_things_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    torch.save({"image_proj": {"step": 3}}, tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match=r"image_proj\.step is a int, not a tensor"):
        describe(tmp_path / "a.bin")


def test_two_tensors_of_one_name_are_refused(adapter: ImagePromptAdapter, tmp_path: Path) -> None:
    tensors = official(adapter)
    torch.save(tensors | {"ip_adapter": {"3.to_k_ip.weight": tensors[KEY]}}, tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match=f"holds {KEY} twice"):
        load_adapter(tmp_path / "a.bin")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file(adapter: ImagePromptAdapter, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save_adapter(adapter, path)
    whole = path.read_bytes()
    for length in (1, 4, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            load_adapter(path)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", struct.pack("<Q", 8)]), st.binary(max_size=60))
def test_noise_gives_our_error(tmp_path_factory: pytest.TempPathFactory, start: bytes, noise: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(start + noise)
    with pytest.raises(CheckpointError):
        describe(path)


def test_a_giant_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(CheckpointError, match="truncated or no adapter file"):
        describe(tmp_path / "a.safetensors")


def test_files_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path, message in (
        (tmp_path / "none", "none: no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty", "empty is empty"),
    ):
        with pytest.raises(CheckpointError, match=message):
            describe(path)


def test_another_kind_of_file_is_said_to_be_one(tmp_path: Path) -> None:
    safetensors.torch.save_file({"lora.up": torch.zeros(2), "lora.down": torch.zeros(2)}, tmp_path / "a")
    problem = "it is no image-prompt adapter: it has no image_proj tensors (its first tensor is lora.down)"
    assert describe(tmp_path / "a").problems == (problem,)


# Where adapters come from


@pytest.mark.parametrize("name", ["frob", "no/such/file.safetensors", "owner/name"])
def test_an_unknown_adapter(name: str) -> None:
    with pytest.raises(UnknownModel, match=f"no adapter '{name}'"):
        load_adapter(name)


def test_the_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(repository: str, file: str, revision: str | None) -> str:
        raise LocalEntryNotFoundError(f"cannot reach {repository}\nand much more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UnknownModel) as raised:
        load_adapter("owner/name:folder/a.safetensors")
    message = "owner/name:folder/a.safetensors is not here and cannot be fetched: cannot reach owner/name"
    assert str(raised.value) == message


def test_a_hub_file_is_loaded(
    adapter: ImagePromptAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter(adapter, tmp_path / "a.safetensors")
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repository, file, **_: str(tmp_path / file)
    )
    assert load_adapter("owner/name:a.safetensors").shapes == adapter.shapes


def test_the_image_encoder_is_taken_along(adapter: ImagePromptAdapter, tmp_path: Path) -> None:
    save_adapter(adapter, tmp_path / "a.safetensors")
    tiny.vision_model().save_pretrained(tmp_path / "encoder")
    for source in (tiny.vision_model(), ImageEncoder(tiny.vision_model()), tmp_path / "encoder"):
        encoder = load_adapter(tmp_path / "a.safetensors", image_encoder=source).image_encoder
        assert encoder is not None
        assert encoder.embedding_dim == tiny.EMBEDDING_DIM
    assert load_adapter(tmp_path / "a.safetensors").image_encoder is None


def test_an_image_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    adapter = ImagePromptAdapter(LinearProjection(15, 4, 2), {1: (4, 3)})
    save_adapter(adapter, tmp_path / "a.safetensors")
    wanted = "needs an unknown image encoder, 15 wide; .* image embedding is 14 wide, not 15"
    with pytest.raises(AdapterMismatch, match=wanted):
        load_adapter(tmp_path / "a.safetensors", image_encoder=tiny.vision_model())


def test_an_adapter_of_faces_alone_gets_no_image_encoder_even_if_its_file_names_one(tmp_path: Path) -> None:
    """The embedded base and Stable Diffusion's presets have an encoder, which earlier files name."""
    adapter = adapter_files.adapter(tiny.sd_unet(), "faceid")
    save_adapter(adapter, tmp_path / "a.safetensors", {"image_encoder": "mini"})
    assert load_adapter(tmp_path / "a.safetensors").image_encoder is None


def test_an_image_encoder_for_an_adapter_that_takes_faces_alone_is_refused(tmp_path: Path) -> None:
    save_adapter(adapter_files.adapter(tiny.sd_unet(), "faceid"), tmp_path / "a.safetensors")
    assert load_adapter(tmp_path / "a.safetensors").image_encoder is None
    with pytest.raises(AdapterMismatch, match="it uses no image encoder"):
        load_adapter(tmp_path / "a.safetensors", image_encoder=tiny.vision_model())


SMALL = PerceiverShape(width=64, depth=1)
VIT_H, BIGG = "h94/IP-Adapter:models/image_encoder", "h94/IP-Adapter:sdxl_models/image_encoder"
KNOWN: list[tuple[str, ImageProjection]] = [
    (VIT_H, LinearProjection(1024, 4, 2)),
    (BIGG, LinearProjection(1280, 4, 2)),
    (VIT_H, ResamplerProjection(1280, 4, 2, shape=SMALL)),
    (VIT_H, PatchProjection(1280, 4, hidden_dim=3)),
    (VIT_H, FacePlusProjection(1280, 64, 2, version=2, shape=SMALL)),
    ("Kwai-Kolors/Kolors-IP-Adapter-Plus:image_encoder", ResamplerProjection(1024, 4, 2, shape=SMALL)),
]


@pytest.mark.parametrize(("known", "projection"), KNOWN)
def test_published_widths_bring_their_known_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str, projection: ImageProjection
) -> None:
    asked: list[str] = []

    def load(source: str) -> ImageEncoder:
        asked.append(source)
        raise UnknownModel("no connection")

    monkeypatch.setattr(loading, "load_image_encoder", load)
    made = ImagePromptAdapter(projection, {1: (projection.context_dim, 3)})
    save_adapter(made, tmp_path / "a.safetensors")
    with pytest.raises(UnknownModel, match=r"a\.safetensors needs .*CLIP .* wide; no connection"):
        load_adapter(tmp_path / "a.safetensors")
    assert asked == [known]
    assert load_adapter(tmp_path / "a.safetensors", image_encoder=None).image_encoder is None


# Short names


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_short_name_fetches_its_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def offline(repository: str, file: str, revision: str | None) -> str:
        asked.append((repository, file))
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    published = PUBLISHED[name]
    for spelled in (name, name.upper(), f"{published.repository}:{published.file}"):
        with pytest.raises(UnknownModel, match="is not here and cannot be fetched: offline"):
            load_adapter(spelled)
    assert asked == [(published.repository, published.file)] * 3


def test_a_misspelt_short_name_is_answered_with_the_right_one() -> None:
    with pytest.raises(UnknownModel, match=r"no adapter 'sd15-pluss' \(did you mean 'sd15-plus'\?\)"):
        load_adapter("sd15-pluss")


@pytest.mark.parametrize(("name", "version"), [("sd15-faceid-plus", 1), ("sdxl-faceid-plusv2", 2)])
def test_a_published_face_adapter_has_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: Literal[1, 2]
) -> None:
    file = tmp_path / "file.bin"
    save_adapter(adapter_files.adapter(tiny.sd_unet(), "faceid-plus"), file)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, file_name, **_: str(file))
    published = PUBLISHED[name]
    for source in (name, f"{published.repository}:{published.file}"):
        projection = load_adapter(source, image_encoder=None).projection
        assert isinstance(projection, FacePlusProjection)
        assert projection.version == version
    with pytest.raises(CheckpointError, match=f"is FaceID-Plus version {version}, not {3 - version}"):
        load_adapter(name, face_plus_version=2 if version == 1 else 1)


# What tensors do not tell


@pytest.mark.parametrize("version", [1, 2])
def test_our_own_file_says_which_version_of_faceid_plus_it_is(tmp_path: Path, version: Literal[1, 2]) -> None:
    made = adapter_files.adapter(tiny.sd_unet(), "faceid-plus" if version == 1 else "faceid-plusv2")
    save_adapter(made, tmp_path / "a.safetensors")
    projection = load_adapter(tmp_path / "a.safetensors", image_encoder=None).projection
    assert isinstance(projection, FacePlusProjection)
    assert projection.version == version


def test_a_faceid_plus_file_of_unknown_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    save_adapter(adapter_files.adapter(tiny.sd_unet(), "faceid-plus"), tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match=r"version 1 or 2 .* pass face_plus_version=1, or 2 for a file"):
        load_adapter(tmp_path / "a.bin")
    projection = load_adapter(tmp_path / "a.bin", image_encoder=None, face_plus_version=2).projection
    assert isinstance(projection, FacePlusProjection)
    assert projection.version == 2


def test_a_version_for_another_variant_is_refused(adapter: ImagePromptAdapter, tmp_path: Path) -> None:
    save_adapter(adapter, tmp_path / "a.bin")
    for source in (tmp_path / "a.bin", "mini"):
        with pytest.raises(CheckpointError, match="is no FaceID-Plus adapter, and only those have"):
            load_adapter(source, face_plus_version=2)


def test_impossible_metadata_is_named(tmp_path: Path) -> None:
    tensors = official(adapter_files.adapter(tiny.sd_unet(), "faceid-plus"))
    for metadata, message in (
        ({"head_dim": "wide"}, "its metadata state head_dim 'wide', which is no positive whole number"),
        ({"head_dim": "48"}, r"to_q.weight \(64 × 20\) does not divide into heads 48 wide"),
        ({"face_plus_version": "3"}, "its metadata state face_plus_version '3'; it must be 1 or 2"),
    ):
        safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", metadata)
        with pytest.raises(CheckpointError, match=message):
            load_adapter(tmp_path / "a.safetensors")


def test_a_perceiver_with_heads_of_another_width_comes_back(tmp_path: Path) -> None:
    shape = PerceiverShape(width=10, depth=2, attention_width=12, feed_forward_width=7, head_dim=4)
    made = ImagePromptAdapter(ResamplerProjection(24, 20, 3, shape=shape), {1: (20, 8)})
    save_adapter(made, tmp_path / "a.safetensors")
    loaded = load_adapter(tmp_path / "a.safetensors")
    features = torch.randn(2, 5, 24)
    assert torch.equal(loaded.projection(features), made.projection(features))
    for write in (
        lambda path: save_adapter(made, path),
        lambda path: convert_adapter(tmp_path / "a.safetensors", path),
    ):
        with pytest.raises(CheckpointError, match="cannot state that heads are 4 wide"):
            write(tmp_path / "a.bin")


def test_full_face_with_another_number_of_patches_needs_a_file_that_can_say_it(tmp_path: Path) -> None:
    made = adapter_files.adapter(tiny.sd_unet(), "full-face")
    save_adapter(made, tmp_path / "a.safetensors")
    assert load_adapter(tmp_path / "a.safetensors").projection.tokens == adapter_files.PATCHES
    with pytest.raises(CheckpointError, match="cannot state that the adapter takes 5 features"):
        save_adapter(made, tmp_path / "a.bin")


def test_a_file_of_several_number_formats_computes_in_the_widest(tmp_path: Path) -> None:
    tensors = official(adapter_files.adapter(tiny.sd_unet(), "plus"))
    mixed = {k: v.half() if k.startswith("ip_adapter.") else v for k, v in tensors.items()}
    torch.save(mixed, tmp_path / "a.bin")
    loaded = load_adapter(tmp_path / "a.bin", image_encoder=None)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    loaded({"image_features": torch.randn(1, 1, 5, adapter_files.FEATURES)})


# Saving


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.ckpt", "must end in .safetensors or .bin"),
        ("none/a.bin", "there is no folder"),
        ("folder.bin", "is not a file"),
    ],
)
def test_places_that_cannot_be_written(
    adapter: ImagePromptAdapter, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "folder.bin").mkdir()
    with pytest.raises(OutputError, match=message):
        save_adapter(adapter, tmp_path / name)


@pytest.mark.parametrize(
    ("suffix", "failure", "raised"),
    [
        (".bin", OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (".safetensors", safetensors.SafetensorError("I/O error: no space"), OutputError),
        (".safetensors", KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failure_while_saving_leaves_the_old_file_and_nothing_else(
    adapter: ImagePromptAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    failure: BaseException,
    raised: type[BaseException],
) -> None:
    def fail(tensors: object, path: Path, metadata: object = None) -> None:
        path.write_bytes(b"half")
        raise failure

    path = tmp_path / f"a{suffix}"
    save_adapter(adapter, path)
    before = path.read_bytes()
    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(raised):
        save_adapter(adapter, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_metadata_that_we_write_or_cannot_write_is_refused(
    adapter: ImagePromptAdapter, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="'tokens' is written by imprompt itself"):
        save_adapter(adapter, tmp_path / "a.safetensors", {"tokens": "7"})
    with pytest.raises(CheckpointError, match="cannot store metadata"):
        save_adapter(adapter, tmp_path / "a.bin", {"encoder": "x"})


def test_converting_there_and_back_is_the_identity(tmp_path: Path) -> None:
    made = adapter_files.adapter(tiny.sd_unet(), "faceid-plus")
    tensors = {name: tensor.half() for name, tensor in official(made).items()}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", {"encoder": "x"})
    convert_adapter(tmp_path / "a.safetensors", tmp_path / "b.bin")
    convert_adapter(tmp_path / "b.bin", tmp_path / "c.safetensors")
    assert same(
        dict(sorted(read_tensors(tmp_path / "c.safetensors").tensors.items())), dict(sorted(tensors.items()))
    )
    convert_adapter(tmp_path / "a.safetensors", tmp_path / "d.safetensors")
    assert describe(tmp_path / "d.safetensors").metadata["encoder"] == "x"


def test_a_faulty_file_is_not_converted(adapter: ImagePromptAdapter, tmp_path: Path) -> None:
    tensors = official(adapter)
    del tensors[KEY]
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=f"{KEY} is missing"):
        convert_adapter(tmp_path / "a.safetensors", tmp_path / "b.bin")
    assert not (tmp_path / "b.bin").exists()


def test_a_description_is_json(adapter: ImagePromptAdapter, tmp_path: Path) -> None:
    save_adapter(adapter, tmp_path / "a.bin")
    assert json.loads(json.dumps(describe(tmp_path / "a.bin").__dict__))["layers"]["7"] == [20, 32]
