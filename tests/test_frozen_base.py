"""The frozen models of a run: what they make is what the pipeline itself makes, and they stay as they are."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from conftest import ToyModel
from imprompt import mini
from imprompt.errors import AdapterMismatch, ConfigError
from imprompt.inputs.encoder import ImageEncoder
from imprompt.training.config import TrainingConfig, parse_config
from imprompt.training.frozen_base import FrozenBase, choose_encoding_dtype, hash_weights, load_frozen_base


@pytest.fixture(scope="module")
def base() -> FrozenBase:
    return FrozenBase(tiny.sd_pipeline(), ImageEncoder(tiny.vision_model()))


@pytest.fixture(scope="module")
def xl() -> FrozenBase:
    return FrozenBase(tiny.xl_pipeline(), None)


def config(**groups: Any) -> TrainingConfig:
    return parse_config({"preset": "mini", "output": "run", **groups}, "test")


@tiny.seeded
def pixels(*, seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 16, 24) * 2 - 1


@settings(max_examples=10)
@given(seed=st.integers(0, 50))
def test_latents_are_what_the_autoencoder_samples(base: FrozenBase, seed: int) -> None:
    found = base.pipe.vae.encode(pixels(seed=seed)).latent_dist
    sampled = found.sample(torch.Generator().manual_seed(seed)) * base.pipe.vae.config.scaling_factor
    noise = torch.randn(found.mean.shape, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(
        base.sample_latents(base.encode_targets(pixels(seed=seed)), noise), sampled, atol=1e-6
    )


def test_a_deterministic_autoencoder_gives_the_mean_exactly_in_every_precision() -> None:
    pipe = mini.pipeline()
    base = FrozenBase(pipe, None)
    moments = base.encode_targets(torch.rand(2, 3, 32, 48) * 2 - 1)
    assert moments.shape == (2, 96, 2, 3)
    for kept in (moments, moments.half(), moments.bfloat16()):
        noise = torch.randn(2, 48, 2, 3)
        assert torch.equal(
            base.sample_latents(kept, noise), kept[:, :48].float() * pipe.vae.config["scaling_factor"]
        )


def test_latents_are_shifted_and_scaled_by_channel_where_the_autoencoder_says_so(base: FrozenBase) -> None:
    changed = copy.deepcopy(base.pipe.vae)
    changed.register_to_config(latents_mean=[1.0, 2, 3, 4], latents_std=[2.0] * 4, scaling_factor=3.0)
    other = FrozenBase(tiny.sd_pipeline(), None)
    other.pipe.vae = changed
    zero = torch.full((1, 8, 1, 1), -torch.inf)
    zero[:, :4] = 0
    assert other.sample_latents(zero, torch.zeros(1, 4, 1, 1)).flatten().tolist() == [-1.5, -3, -4.5, -6]


def test_text_is_what_the_pipeline_encodes(base: FrozenBase, xl: FrozenBase) -> None:
    captions = ["a cat", ""]
    expected = base.pipe.encode_prompt(captions, "cpu", 1, False)[0]
    made = base.encode_text(captions)
    assert set(made) == {"text_embeddings"}
    assert torch.equal(made["text_embeddings"], expected)
    both = xl.encode_text(captions)
    pooled = xl.pipe.encode_prompt(
        captions, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )[2]
    assert torch.equal(both["pooled_text"], pooled)


def test_a_caption_that_is_too_long_is_cut_without_a_word(
    base: FrozenBase, caplog: pytest.LogCaptureFixture
) -> None:
    assert base.encode_text(["cat " * 50])["text_embeddings"].shape[1] == tiny.CONTEXT_LEN
    assert caplog.text == ""


def test_image_inputs_are_the_encoders(base: FrozenBase) -> None:
    encoder, pictures = ImageEncoder(tiny.vision_model()), [tiny.picture(seed=1), tiny.picture(seed=2)]
    made = base.encode_references(pictures, ["image_embedding", "image_features"], "pad")
    seen = encoder.pixels(pictures, "pad")
    assert torch.equal(made["image_embedding"], encoder.encode(seen))
    assert torch.equal(made["image_features"], encoder.features(seen))
    assert torch.equal(base.blank("image_features"), encoder.blank("image_features"))


def test_without_an_image_encoder_pictures_are_refused(xl: FrozenBase) -> None:
    with pytest.raises(AdapterMismatch, match=r"base\.image_encoder"):
        xl.encode_references([tiny.picture()], ["image_embedding"])


def test_sdxl_is_told_text_and_size_and_others_nothing(base: FrozenBase, xl: FrozenBase) -> None:
    sizes = torch.tensor([[31, 37, 0, 3, 16, 16]])
    told = xl.build_added_conditions(xl.encode_text(["x"])["pooled_text"], sizes)
    assert told is not None
    assert told["time_ids"].tolist() == sizes.tolist()
    assert told["text_embeds"].shape == (1, tiny.XL_CONTEXT_2)
    assert xl.needs_size
    assert base.build_added_conditions(None, None) is None
    with pytest.raises(AdapterMismatch, match="pooled text"):
        xl.build_added_conditions(None, sizes)


def test_everything_is_frozen(base: FrozenBase) -> None:
    parameters = [p for module in base.modules for p in module.parameters()]
    assert parameters
    assert not any(p.requires_grad for p in parameters)
    assert not any(module.training for module in base.modules)


def test_one_changed_weight_is_another_fingerprint() -> None:
    unet = tiny.sd_unet()
    before = hash_weights(unet)
    assert hash_weights(tiny.sd_unet()) == before
    last = list(unet.parameters())[-1]
    last.data[-1] = torch.nextafter(last.data[-1], torch.tensor(math.inf))
    assert hash_weights(unet) != before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_has_one_fingerprint_in_every_type(base: FrozenBase, dtype: torch.dtype) -> None:
    narrow = FrozenBase(tiny.sd_pipeline(), ImageEncoder(tiny.vision_model()), dtype=dtype)
    assert narrow.unet.dtype == dtype
    assert narrow.fingerprints() == base.fingerprints()


def test_every_part_has_its_own_fingerprint(base: FrozenBase) -> None:
    pipe = tiny.sd_pipeline()
    pipe.register_modules(text_encoder=tiny.text_model(seed=9))
    other = FrozenBase(pipe, ImageEncoder(tiny.vision_model(seed=9))).fingerprints()
    changed = {name for name, value in base.fingerprints().items() if other[name] != value}
    assert changed == {"text_encoder", "image_encoder"}


def test_an_autoencoder_encodes_in_a_type_that_holds_its_values() -> None:
    vae = tiny.autoencoder()
    assert choose_encoding_dtype(torch.float16, vae) == torch.float32
    assert choose_encoding_dtype(torch.bfloat16, vae) == torch.float32
    vae.register_to_config(force_upcast=False)
    assert choose_encoding_dtype(torch.float16, vae) == torch.float16
    base = FrozenBase(tiny.sd_pipeline(), None, dtype=torch.bfloat16)
    assert base.pipe.vae.dtype == torch.bfloat16
    assert torch.equal(
        base.encode_targets(pixels()), FrozenBase(tiny.sd_pipeline(), None).encode_targets(pixels())
    )


def test_models_are_loaded_as_the_configuration_names_them(toy: ToyModel) -> None:
    base = {"model": str(toy.base), "image_encoder": str(toy.image_encoder)}
    loaded = load_frozen_base(config(base=base), "cpu")
    same = FrozenBase(tiny.sd_pipeline(), ImageEncoder(tiny.vision_model()))
    assert loaded.fingerprints() == same.fingerprints()
    embedded = load_frozen_base(config(), "cpu")
    assert embedded.image_encoder is not None
    assert embedded.image_encoder.embedding_dim == mini.adapter().projection.takes["image_embedding"]


def test_a_base_whose_encoder_is_not_known_must_be_given_one(toy: ToyModel) -> None:
    base = {"model": str(toy.base)}
    with pytest.raises(ConfigError, match="image_encoder"):
        load_frozen_base(config(base=base), "cpu")
    assert load_frozen_base(config(base=base, adapter={"variant": "faceid"}), "cpu").image_encoder is None


def test_a_base_without_a_unet_is_refused(tmp_path: Path) -> None:
    pipe: Any = tiny.sd_pipeline()
    pipe.unet = None
    with pytest.raises(AdapterMismatch, match="no U-Net"):
        FrozenBase(pipe, None)
