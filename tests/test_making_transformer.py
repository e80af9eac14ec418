"""The embedded transformer: its autoencoder's latents, its loss, and its stage, on noise for pictures."""

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.auto_pipeline import AutoPipelineForText2Image
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

import tiny
from imprompt import mini
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.choices import Injection
from imprompt.errors import UnknownModel
from imprompt.evaluation.judges.characters import CharacterJudge, build_network
from imprompt.inputs.encoder import ImageEncoder
from imprompt.lab.making.batches import DrawingBatch
from imprompt.lab.making.captions import build_caption_patterns
from imprompt.lab.making.characters import sample_character
from imprompt.lab.making.objectives import transformer
from imprompt.lab.making.objectives.base import build_scheduler, build_text_encoder, build_unet
from imprompt.lab.making.objectives.transformer import (
    TextStates,
    TransformerObjective,
    flow_error,
    to_tokens,
)
from imprompt.lab.making.recipe import BaseRecipe, StageRecipe, parse_recipe
from imprompt.lab.making.stages import train_stage
from imprompt.lab.making.tokenizer import train_tokenizer
from imprompt.lab.suite.images import ImageSettings, SuiteCondition, SuiteModels, generate_images
from imprompt.lab.suite.subjects import Subject
from imprompt.mini.autoencoder import PatchAutoencoder
from imprompt.projection import LinearProjection
from imprompt.training.denoising import number_places

SIZE, CHANNELS, WIDTH = 32, 8, 64


@pytest.fixture(scope="module")
def codec() -> PatchAutoencoder:
    torch.manual_seed(0)
    return PatchAutoencoder.fit(torch.rand(40, 3, SIZE, SIZE) * 2 - 1, latent_channels=CHANNELS, patch_size=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise for drawings, with the attributes of characters."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("training", 20), ("combinations", 4)):
        place = folder / split
        place.mkdir()
        pictures = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        np.save(place / "pictures.npy", pictures)
        characters = (sample_character(random.Random(k), "training") for k in range(count))
        lines = [json.dumps(character.to_json()) + "\n" for character in characters]
        (place / "characters.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def base(codec: PatchAutoencoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that holds a random base."""
    folder = tmp_path_factory.mktemp("model")
    recipe = BaseRecipe(stage="base", steps=1, widths=(16, 32), heads=2, text_width=WIDTH, text_layers=1)  # type: ignore[call-arg]
    tokenizer = train_tokenizer(["pink hair", "tan skin"], size=600, length=recipe.text_length)
    text_encoder = build_text_encoder(recipe, tokenizer)
    unet = build_unet(recipe, CHANNELS, WIDTH, sample_size=SIZE // 8)
    pipe = mini.assemble(codec, text_encoder, tokenizer, unet, build_scheduler())
    pipe.save_pretrained(folder / "base")
    return folder


@pytest.fixture(scope="module")
def make_recipe(base: Path, data: Path) -> Callable[..., StageRecipe]:
    def build(**more: Any) -> StageRecipe:
        loop = {"steps": 2, "batch_size": 4, "warmup_steps": 1, "log_every": 1, "save_every": 1}
        small = {"heads": 2, "head_dim": 16, "double_blocks": 1, "single_blocks": 1, "text_length": 16}
        values = {"stage": "transformer", "data": str(data), "output": str(base), **loop, **small, **more}
        return parse_recipe(values, "test")

    return build


@pytest.fixture(scope="module")
def model(make_recipe: Callable[..., StageRecipe]) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "SHOWN_STEPS", 1)
        folder = train_stage(make_recipe())
    assert folder is not None
    return folder


def test_split_latents_are_the_same_code(codec: PatchAutoencoder) -> None:
    split: Any = codec.split(2)
    pixels = torch.rand(2, 3, SIZE, SIZE + 16) * 2 - 1
    both: list[Any] = [split, codec]
    latents, whole = (one.encode(pixels).latent_dist.mode() for one in both)
    assert latents.shape == (2, CHANNELS // 4, 8, 12)
    assert torch.equal(split.decode(latents).sample, codec.decode(whole).sample)  # type: ignore[union-attr]
    packed = FluxPipeline._pack_latents(latents, 2, CHANNELS // 4, 8, 12)
    assert torch.equal(packed, to_tokens(whole)), "a token of FLUX.1's pipeline is a patch"


def test_places_are_those_of_diffusers_pipeline() -> None:
    ids = FluxPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    assert torch.equal(number_places(3, 5), ids)


def test_the_loss_is_that_of_rectified_flow() -> None:
    latents, noise = torch.randn(2, 3, 4, CHANNELS, 2, 2).unbind()
    sigmas = torch.tensor([0.1, 0.5, 0.9])
    texts = TextStates(torch.randn(3, 5, WIDTH), torch.randn(3, WIDTH))
    seen: dict[str, Any] = {}

    def remember(**inputs: Any) -> tuple[torch.Tensor]:
        seen.update(inputs)
        return (inputs["hidden_states"] * 0.5,)

    latents, noise = latents[:, 0], noise[:, 0]
    error = flow_error(remember, latents, noise, sigmas, texts)
    rows = []
    for x, e, sigma, given in zip(latents, noise, sigmas, seen["hidden_states"], strict=True):
        noisy = (1 - sigma) * x + sigma * e
        assert torch.allclose(given.T.reshape(x.shape), noisy)
        rows.append(((noisy * 0.5 - (e - x)) ** 2).mean())
    assert torch.allclose(error, torch.stack(rows).mean())
    assert torch.equal(seen["timestep"], sigmas)


def test_blocks_begin_as_the_identity(make_recipe: Callable[..., StageRecipe], base: Path) -> None:
    objective = TransformerObjective(make_recipe(), base)  # type: ignore[arg-type]
    block, heads = objective.transformer.transformer_blocks[0], 2 * 16
    image, text, time = torch.randn(1, 4, heads), torch.randn(1, 3, heads), torch.randn(1, heads)
    after = block(hidden_states=image, encoder_hidden_states=text, temb=time, image_rotary_emb=None)
    assert torch.equal(after[0], text)
    assert torch.equal(after[1], image)
    trained = {id(weight) for group in objective.parameter_groups() for weight in group["params"]}
    assert trained == {id(weight) for weight in objective.transformer.parameters()}


def test_a_compiled_transformer_has_the_loss_and_the_weights_of_the_plain_one(
    make_recipe: Callable[..., StageRecipe], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, compiled = (TransformerObjective(make_recipe(compile=on), base) for on in (False, True))  # type: ignore[arg-type]
    assert compiled.trained_transformer[0] is not compiled.transformer
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for objective in (plain, compiled):
        for weight in objective.transformer.parameters():
            torch.nn.init.constant_(weight, 0.01)
    batch = DrawingBatch([0, 1, 2], seed=1)
    losses = [objective.loss(batch)["loss"] for objective in (plain, compiled)]
    torch.testing.assert_close(*losses)
    losses[1].backward()
    assert all(weight.grad is not None for weight in compiled.transformer.parameters())


def test_the_stage_writes_a_pipeline_of_flux(model: Path) -> None:
    loaded = mini.transformer_pipeline(weights=model)
    assert isinstance(loaded, FluxPipeline)
    pipe: Any = loaded
    call = {"height": SIZE, "width": SIZE, "num_inference_steps": 2, "output_type": "np"}
    generator = torch.Generator()
    pictures = pipe(
        "pink hair", negative_prompt="", true_cfg_scale=3.0, generator=generator.manual_seed(0), **call
    ).images
    assert pictures.shape == (1, SIZE, SIZE, 3)
    assert np.isfinite(pictures).all()
    found: Any = AutoPipelineForText2Image.from_pretrained(model / "transformer")
    again = found(
        "pink hair", negative_prompt="", true_cfg_scale=3.0, generator=generator.manual_seed(0), **call
    ).images
    assert np.array_equal(pictures, again)


@pytest.mark.parametrize("kind", ["flux-xlabs", "flux-instantx"])
def test_the_suite_draws_with_an_adapter_on_the_transformer(model: Path, kind: Injection) -> None:
    pipe: Any = mini.transformer_pipeline(weights=model)
    torch.manual_seed(0)
    projection = LinearProjection(tiny.EMBEDDING_DIM, WIDTH, 2)
    adapter = ImagePromptAdapter.for_transformer(pipe.transformer, projection, kind)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    adapter.image_encoder = ImageEncoder(tiny.vision_model())
    judge = CharacterJudge(build_network((8, 16), (1, 1), 4, 32), build_caption_patterns())
    models = SuiteModels(pipe, adapter, judge)
    character = sample_character(random.Random(0), "training")
    subjects = [Subject(k, "combinations", character, tiny.picture(seed=k)) for k in range(3)]
    settings = ImageSettings(steps=1, batch_size=2)
    without, alone = (generate_images(models, subjects, SuiteCondition(x), settings) for x in (0.0, 1.0))
    assert [picture.size for picture in alone] == [(mini.SIZE, mini.SIZE)] * 3
    assert all(one.tobytes() != other.tobytes() for one, other in zip(without, alone, strict=True))


def test_the_stage_reports_its_loss_by_noise_level(model: Path) -> None:
    lines = [json.loads(line) for line in (model / "runs/transformer/log.jsonl").read_text().splitlines()]
    figures = set().union(*(line for line in lines if "event" not in line))
    assert {"loss", "held-out loss", "held-out loss at 0.1", "held-out loss at 0.9"} <= figures
    assert list((model / "runs/transformer/samples").glob("*.png"))


def test_no_transformer_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="transformer"):
        mini.transformer_pipeline(weights=tmp_path)
