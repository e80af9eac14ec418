"""Training on FLUX.1 and Stable Diffusion 3.5: tiny bases, and a step computed by hand."""

import copy
import functools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

import tiny
import tiny_training
from by_hand_transformers import ByHand, HandTerm
from imprompt.attention.diffusers_internals import Branches
from imprompt.checkpoint import load_adapter
from imprompt.errors import AdapterMismatch, ConfigError
from imprompt.inputs.encoder import ImageEncoder
from imprompt.mini.tokenizer import BoundedTokenizer
from imprompt.training import adapters
from imprompt.training.adapters import build_run, train_adapter
from imprompt.training.config import TrainingConfig
from imprompt.training.denoising import predict
from imprompt.training.frozen_base import FrozenBase
from imprompt.training.objectives import image_prompting
from imprompt.training.objectives.image_prompting import ADAPTER_FILE
from short_runs import build_base as frozen_unet
from short_runs import take
from tiny_transformers import (
    FLUX_CONTEXT,
    FLUX_POOLED,
    JOINT_POOLED,
    KINDS,
    Kind,
    flux_transformer,
    joint_transformer,
)
from transformer_pipelines import autoencoder

SHIFT, GUIDANCE = 1.5, 3.0
NO_IMAGE = torch.tensor([True, False, False, True])
NO_TEXT = torch.tensor([False, True, False, True])


@tiny.seeded
def t5(*, seed: int = 0) -> T5EncoderModel:
    vocabulary = len(tiny.vocabulary())
    shape: dict[str, Any] = {"d_model": FLUX_CONTEXT, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=vocabulary, **shape)).eval()


def bounded_tokenizer() -> BoundedTokenizer:
    """The pipeline asks for 512 tokens, which would make the tests slow."""
    with tempfile.TemporaryDirectory() as folder:
        tiny.tokenizer().save_pretrained(folder)
        return BoundedTokenizer.from_pretrained(folder)


@tiny.seeded
def projected_text(*, seed: int = 0) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(tiny.text_config(8, JOINT_POOLED // 2)).eval()


@functools.cache
def pipeline(kind: Kind) -> Any:
    """XLabs' base is distilled, as FLUX.1 [dev] is; Stable Diffusion 3.5 has no T5 here, as its users may."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    if kind == "sd35":
        return StableDiffusion3Pipeline(
            transformer=joint_transformer(),
            scheduler=scheduler,
            vae=autoencoder("SD3.5"),
            text_encoder=projected_text(seed=1),
            tokenizer=tiny.tokenizer(),
            text_encoder_2=projected_text(seed=2),
            tokenizer_2=tiny.tokenizer(),
            text_encoder_3=None,  # pyright: ignore[reportArgumentType]
            tokenizer_3=None,  # pyright: ignore[reportArgumentType]
        )
    return FluxPipeline(
        scheduler=scheduler,
        vae=autoencoder("FLUX.1"),
        text_encoder=tiny.text_model(width=FLUX_POOLED),
        tokenizer=tiny.tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=bounded_tokenizer(),  # pyright: ignore[reportArgumentType]
        transformer=flux_transformer(guidance=kind == "flux-xlabs"),
    )


def build_base(kind: Kind) -> FrozenBase:
    return FrozenBase(copy.deepcopy(pipeline(kind)), ImageEncoder(tiny.vision_model(seed=3)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformers")
    tiny_training.write_pictures(folder / "pictures", count=8)
    return folder


def config(home: Path, kind: Kind, name: str = "run", **changes: Any) -> TrainingConfig:
    least = {
        "preset": kind,
        "adapter__tokens": 3,
        "cache__folder": str(home / "cache"),
        "cache__precision": "fp32",
        "data__buckets": False,
        "loss__guidance_scale": GUIDANCE,
        "training__steps": 2,
        "training__gradient_checkpointing": False,
    }
    return tiny_training.config(home, home / "pictures", home / name, **{**least, **changes})


@dataclass
class DroppedTerm(HandTerm):
    """An image prompt that does not act in some rows."""

    shown: Tensor = field(default_factory=lambda: torch.ones(1))

    def rows(self, branches: Branches, each: int) -> tuple[Tensor, Tensor]:
        inputs, acts = super().rows(branches, each)
        return inputs, acts * self.shown[:, None, None]


def compute_loss_by_hand(run: Any, base: FrozenBase, batch: Any, kind: Kind) -> Tensor:
    """mean (v - (ε - x))² where v is the transformer's, with the image prompts computed by hand."""
    vae, transformer, draws = base.pipe.vae.config, base.denoiser, batch.draws
    mean, log_variance = batch.moments.chunk(2, 1)
    clean = mean + (0.5 * log_variance).exp() * draws.latent_noise
    clean = (clean - vae.shift_factor) * vae.scaling_factor
    place = (draws.normal.sigmoid() * 1000).long()
    sigma = (place + 1) / 1000
    sigma = SHIFT * sigma / (1 + (SHIFT - 1) * sigma)
    level = sigma[:, None, None, None]
    noisy = (1 - level) * clean + level * draws.noise
    captions = ["" if drop else caption for caption, drop in zip(batch.captions, NO_TEXT, strict=True)]
    (value,) = batch.inputs.values()
    blank = torch.zeros_like(value[0])
    if kind == "flux-xlabs":
        assert base.image_encoder is not None
        black = base.image_encoder.pixels([Image.new("RGB", (28, 28))])
        blank = base.image_encoder.inputs(black, ["image_embedding"])["image_embedding"]
        assert blank.any()
    inputs = torch.where(NO_IMAGE.reshape(-1, *(1,) * (value.ndim - 1)), blank, value)
    shown = ~NO_IMAGE if kind == "flux-instantx" else torch.ones(len(value))
    term = DroppedTerm(run.objective.mechanism.adapter, inputs, shown=shown.float())
    with ByHand(transformer, [term], each=1).install():
        if kind == "sd35":
            states, _, pooled, _ = base.pipe.encode_prompt(
                captions, None, None, do_classifier_free_guidance=False
            )
            predicted = transformer(
                hidden_states=noisy,
                encoder_hidden_states=states,
                pooled_projections=pooled,
                timestep=sigma * 1000,
            ).sample
        else:
            states, pooled, text_ids = base.pipe.encode_prompt(captions, None)
            size = len(noisy), *noisy.shape[1:]
            guidance = torch.full((len(noisy),), GUIDANCE) if kind == "flux-xlabs" else None
            predicted = transformer(
                hidden_states=FluxPipeline._pack_latents(noisy, *size),
                encoder_hidden_states=states,
                pooled_projections=pooled,
                timestep=sigma,
                img_ids=FluxPipeline._prepare_latent_image_ids(
                    1, size[2] // 2, size[3] // 2, "cpu", torch.float32
                ),
                txt_ids=text_ids,
                guidance=guidance,
            ).sample
            factor = base.pipe.vae_scale_factor
            predicted = FluxPipeline._unpack_latents(predicted, size[2] * factor, size[3] * factor, factor)
    return (predicted - (draws.noise - clean)).square().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_a_step_by_hand(home: Path, kind: Kind) -> None:
    base = build_base(kind)
    run = build_run(config(home, kind), base)
    adapter: Any = run.objective.trained
    torch.manual_seed(0)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    (batch,) = next(run.feed(range(1)))
    batch = batch._replace(draws=batch.draws._replace(no_image=NO_IMAGE, no_text=NO_TEXT))
    ours = run.objective.differentiate(batch, lambda loss: loss.backward())["loss"]
    found = {name: weight.grad for name, weight in adapter.named_parameters()}
    adapter.zero_grad()
    theirs = compute_loss_by_hand(run, base, batch, kind)
    theirs.backward()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    assert all(gradient is not None for gradient in found.values())
    for name, weight in adapter.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert not any(weight.grad is not None for module in base.modules for weight in module.parameters())


@pytest.mark.parametrize("kind", ["flux-xlabs", "flux-instantx"])
def test_training_on_flux_begins_at_the_base(home: Path, kind: Kind) -> None:
    base = build_base(kind)
    run = build_run(config(home, kind), base)
    (batch,) = next(run.feed(range(1)))
    objective: Any = run.objective
    loss = objective.loss(batch)["loss"]
    objective.mechanism.detach()
    text = objective.text_of(batch, dropped=batch.draws.no_text)
    times = objective.noising.times(batch.draws.uniform, batch.draws.normal)
    without = objective.mean_errors(functools.partial(predict, base.denoiser), batch, text, times)
    assert torch.equal(loss, without.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_writes_an_adapter_that_generates(
    home: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_prompting, "BANDS", (0.5,))
    base = build_base(kind)
    monkeypatch.setattr(adapters, "load_frozen_base", lambda *_: base)
    folder = train_adapter(config(home, kind, f"whole-{kind}"))
    assert list(folder.glob("samples/*.png"))
    adapter = load_adapter(folder / ADAPTER_FILE, image_encoder=None)
    assert adapter.injection == kind
    adapter.image_encoder = ImageEncoder(tiny.vision_model(seed=3))
    pipe = copy.deepcopy(pipeline(kind))
    pipe.set_progress_bar_config(disable=True)
    call = {"height": 16, "width": 16, "num_inference_steps": 1, "output_type": "latent"}

    def generate() -> Tensor:
        return pipe("a cat", generator=torch.Generator().manual_seed(0), **call).images

    before = generate()
    with adapter.attach(pipe), adapter.use(tiny.picture()):
        assert not torch.equal(generate(), before)
    assert torch.equal(generate(), before)


@pytest.mark.parametrize("kind", ["flux-instantx", "sd35"])
def test_checkpointing_changes_no_loss(home: Path, kind: Kind) -> None:
    losses = [
        take(build_run(config(home, kind, training__gradient_checkpointing=one), build_base(kind)), 2)
        for one in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("kind", ["flux-xlabs", "sd35"])
def test_the_cache_holds_the_texts_of_the_pipeline(home: Path, kind: Kind) -> None:
    base = build_base(kind)
    (batch,) = next(build_run(config(home, kind), base).feed(range(1)))
    one = batch.captions[0]
    if kind == "sd35":
        states, _, pooled, _ = base.pipe.encode_prompt(one, None, None, do_classifier_free_guidance=False)
    else:
        states, pooled, _ = base.pipe.encode_prompt(one, None)
    torch.testing.assert_close(batch.text["text_embeddings"][:1], states)
    torch.testing.assert_close(batch.text["pooled_text"][:1], pooled)
    for name, model in base.pipe.components.items():
        if name.startswith("text_encoder") and model is not None:
            model.forward = None  # a second run must not need it for captions in the cache
    empty = {name: value[:1] for name, value in batch.text.items()}
    base.encode_text = lambda captions: empty  # type: ignore[method-assign]
    assert take(build_run(config(home, kind, "again"), base), 1)


def test_an_adapter_for_another_base_is_refused(home: Path) -> None:
    with pytest.raises(AdapterMismatch, match="flux-xlabs adapter is for a FluxTransformer2DModel"):
        build_run(config(home, "flux-xlabs"), build_base("sd35"))
    with pytest.raises(AdapterMismatch, match="sd35 adapter is for a SD3Transformer2DModel, not for a UNet"):
        build_run(config(home, "sd35"), frozen_unet())
    with pytest.raises(AdapterMismatch, match="a FluxPipeline has no U-Net"):
        build_run(config(home, "flux-xlabs", preset="sd15"), build_base("flux-xlabs"))


def test_what_only_a_unet_has_is_refused(home: Path) -> None:
    with pytest.raises(
        ConfigError, match=r'distillation\.rank goes with a variant for U-Nets, not with "sd35"'
    ):
        config(home, "sd35", distillation__rank=4)
    with pytest.raises(ConfigError, match='goes with the variant "base", not "flux-xlabs"'):
        config(home, "flux-xlabs", adapter__mechanism="unclip")
