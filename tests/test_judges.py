"""Judges: CLIP, DINO, DINOv2 and SigLIP as tiny random models in folders, the embedded one; who is "self"."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import tiny
from imprompt.errors import ConfigError, UnknownModel
from imprompt.evaluation.judges import (
    CharacterJudge,
    ClipJudge,
    is_self,
    load_clip_judge,
    load_image_judge,
    load_judge,
)
from imprompt.evaluation.judges.characters import build_network
from imprompt.inputs.encoder import ImageEncoder

SHAPE: Any = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
SIZES = [(37, 31), (28, 28), (90, 20), (300, 41)]


def pictures() -> list[Image.Image]:
    return [tiny.picture(seed=seed, width=w, height=h) for seed, (w, h) in enumerate(SIZES)]


@tiny.seeded
def clip_model(*, seed: int = 0) -> CLIPModel:
    vision = CLIPVisionConfig(**SHAPE, image_size=28, patch_size=14, projection_dim=14)
    config = CLIPConfig(
        text_config=tiny.text_config(16, 14).to_dict(), vision_config=vision.to_dict(), projection_dim=14
    )
    return CLIPModel(config).eval()


def write_clip(folder: Path, model: CLIPModel) -> Path:
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    tiny.image_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("judges") / "tiny-clip", clip_model())


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> ClipJudge:
    return load_clip_judge(clip_folder)


# CLIP


def test_clip_sees_pictures_as_its_own_processor_makes_them_ready(clip: ClipJudge, clip_folder: Path) -> None:
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    for picture in pictures():
        expected = processor(images=picture, return_tensors="pt")["pixel_values"][0]
        assert torch.allclose(clip.pixels(picture), expected, atol=1e-5)


@torch.no_grad()
def test_clips_features_are_transformers_own_embeddings_at_length_one(clip: ClipJudge) -> None:
    model: Any = clip_model()
    processor = tiny.image_processor()
    captions = ["a cat", "red dog on a red ground", ""]
    pixels = processor(images=pictures(), return_tensors="pt")["pixel_values"]
    tokens = tiny.tokenizer()(captions, padding=True, truncation=True, return_tensors="pt")
    for ours, output in (
        (clip.features(pictures()), model.get_image_features(pixel_values=pixels)),
        (clip.text_features(captions), model.get_text_features(**tokens)),
    ):
        expected = torch.nn.functional.normalize(output.pooler_output, dim=-1)
        assert torch.allclose(ours, expected, atol=1e-5)
        assert torch.allclose(ours.norm(dim=-1), torch.ones(len(ours)), atol=1e-6)


def test_a_caption_among_others_has_the_features_that_it_has_alone(clip: ClipJudge) -> None:
    captions = ["a", "a cat and a dog", "red"]
    together = clip.text_features(captions)
    assert torch.allclose(together, torch.cat([clip.text_features([c]) for c in captions]), atol=1e-6)


def test_a_caption_that_is_cut_is_counted_and_told(clip_folder: Path) -> None:
    judge = load_clip_judge(clip_folder)
    judge.text_features(["a cat"])
    assert judge.cut_captions == 0
    assert judge.remarks() == []
    long = "cat " * 3 * judge.text_length
    first, second = judge.text_features([long, "a cat"]), judge.text_features([long + "dog"])
    assert torch.allclose(first[0], second[0], atol=1e-6)
    assert judge.cut_captions == 2
    assert judge.remarks() == ["2 captions were longer than tiny-clip reads and were cut"]


def test_the_name_is_the_folders_not_its_place(clip: ClipJudge) -> None:
    assert clip.name == "tiny-clip"


def test_the_fingerprint_is_of_the_weights(clip: ClipJudge, tmp_path: Path) -> None:
    again = load_clip_judge(write_clip(tmp_path / "again", clip_model()))
    other = load_clip_judge(write_clip(tmp_path / "other", clip_model(seed=1)))
    assert clip.fingerprint == again.fingerprint != other.fingerprint


def test_nothing_to_judge_is_an_error(clip: ClipJudge) -> None:
    for judged in (lambda: clip.features([]), lambda: clip.text_features([])):
        with pytest.raises(ValueError, match="to judge"):
            judged()


# Encoders of pictures alone


def vit() -> tuple[ViTModel, ViTImageProcessorPil]:
    config = ViTConfig(**SHAPE, image_size=28, patch_size=14)
    return ViTModel(config, add_pooling_layer=False), ViTImageProcessorPil(size={"height": 28, "width": 28})


def dinov2() -> tuple[Dinov2Model, BitImageProcessorPil]:
    shape: Any = {name: SHAPE[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    processor = BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
    return Dinov2Model(Dinov2Config(**shape, mlp_ratio=2, image_size=28, patch_size=14)), processor


def siglip() -> tuple[SiglipModel, SiglipImageProcessorPil]:
    text: Any = {**SHAPE, "vocab_size": 40, "max_position_embeddings": 8, "projection_size": 24}
    config = SiglipConfig(text_config=text, vision_config={**SHAPE, "image_size": 28, "patch_size": 14})
    return SiglipModel(config), SiglipImageProcessorPil(size={"height": 28, "width": 28})


@pytest.mark.parametrize("make", [vit, dinov2, siglip])
@torch.no_grad()
def test_an_image_judge_sees_and_tells_what_transformers_own_model_does(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, processor = make()
    for part in (model.eval(), processor):
        part.save_pretrained(tmp_path / make.__name__)
    judge = load_image_judge(tmp_path / make.__name__)
    pixels = processor(images=pictures(), return_tensors="pt")["pixel_values"]
    assert torch.allclose(torch.stack([judge.pixels(picture) for picture in pictures()]), pixels, atol=1e-5)
    vision = getattr(model, "vision_model", model)
    output = vision(pixels)
    expected = output.pooler_output if make is siglip else output.last_hidden_state[:, 0]
    assert torch.allclose(
        judge.features(pictures()), torch.nn.functional.normalize(expected, dim=-1), atol=1e-5
    )
    assert judge.name == make.__name__


def test_a_judge_that_reads_no_text_says_so(tmp_path: Path) -> None:
    for part in vit():
        part.save_pretrained(tmp_path / "dino")
    judge = load_image_judge(tmp_path / "dino")
    assert not judge.reads_text
    with pytest.raises(ConfigError, match="the judge dino reads no text; use a CLIP judge for it"):
        judge.text_features(["a cat"])


# The embedded one


@tiny.seeded
def write_judge(folder: Path) -> Path:
    """A tiny judge that reads hair and glasses."""
    words = {
        "hair": {"pink": r"\bpink hair\b", "blue": r"\bblue hair\b"},
        "glasses": {"none": r"\bno glasses\b", "glasses": r"(?<!no )\bglasses\b"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    CharacterJudge(build_network((6, 8), (1, 1), 4, 16), words).save(folder)
    return folder


def test_the_embedded_judge_s_features_are_probabilities_of_words(tmp_path: Path) -> None:
    judge = load_judge(write_judge(tmp_path))
    features = judge.features(pictures())
    probabilities = judge.encode(torch.stack([judge.pixels(picture) for picture in pictures()]))
    assert torch.allclose(probabilities.sum(dim=1), torch.tensor(2.0))
    assert torch.allclose(features.norm(dim=1), torch.tensor(1.0))


def test_a_caption_s_features_are_the_words_that_it_names(tmp_path: Path) -> None:
    judge = load_judge(write_judge(tmp_path))
    named = judge.text_features(["pink hair, no glasses", "glasses", "a rocket"])
    half = 2**-0.5
    assert torch.allclose(named, torch.tensor([[half, 0, half, 0], [0, 0, 0, 1.0], [0, 0, 0, 0]]))


# Self


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_judge_that_looks_through_the_conditioning_encoder_is_self(
    clip: ClipJudge, tmp_path: Path, dtype: torch.dtype
) -> None:
    clip_model().save_pretrained(tmp_path)
    encoder = CLIPVisionModelWithProjection.from_pretrained(tmp_path, dtype=dtype)
    assert is_self(clip, ImageEncoder(encoder))
    assert is_self(clip, encoder)


def test_a_judge_with_other_weights_is_not_self(clip: ClipJudge, tmp_path: Path) -> None:
    clip_model(seed=1).save_pretrained(tmp_path)
    same_shape = CLIPVisionModelWithProjection.from_pretrained(tmp_path)
    assert not is_self(clip, same_shape)
    assert not is_self(clip, tiny.vision_model())
    assert not is_self(clip, None)
    assert not is_self(load_judge(write_judge(tmp_path / "judge")), same_shape)


# What is not there, or not what it should be


def test_what_is_no_judge_is_refused_in_one_line(clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    half = tmp_path / "half"
    tiny.vision_model().save_pretrained(half)
    tiny.tokenizer().save_pretrained(half)
    tiny.image_processor().save_pretrained(half)
    torn = shutil.copytree(clip_folder, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"no tensors")
    for load in (load_clip_judge, load_image_judge, load_judge):
        for folder in (tmp_path / "missing", tmp_path / "empty", torn, half):
            if load is load_image_judge and folder is half:
                continue  # pictures alone are all that it asks for
            with pytest.raises(UnknownModel, match=folder.name) as caught:
                load(folder)
            assert "\n" not in str(caught.value)


def test_a_hub_model_that_cannot_be_reached_is_refused_in_one_line() -> None:
    for load in (load_clip_judge, load_image_judge):
        with pytest.raises(UnknownModel, match="no one/nothing") as caught:
            load("no one/nothing")
        assert "\n" not in str(caught.value)


def test_an_image_processor_for_another_size_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "other")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": {"shortest_edge": 56}}))
    with pytest.raises(UnknownModel, match="another size than 28"):
        load_clip_judge(folder)


def test_a_folder_without_its_tokenizer_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(
        clip_folder, tmp_path / "mute", ignore=shutil.ignore_patterns("*okenizer*", "vocab*")
    )
    with pytest.raises(UnknownModel, match="tokenizer"):
        load_clip_judge(folder)
