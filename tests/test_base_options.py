"""What a job does to its base: LoRAs, autoencoder, textual inversions, sampler, text layers, device."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import tiny
from imprompt import ImageEmbeddings, Reference, save_adapter
from imprompt.cli.options import build_job
from imprompt.errors import CheckpointError, ConfigError, MissingExtra, UnknownModel
from imprompt.generation import models
from imprompt.generation.base_parts import apply_base_options, offload_base
from imprompt.generation.generate import generate_each
from imprompt.generation.job import DEFAULT_STEPS, Job, collect_settings, parse_job, read_settings, save_job
from imprompt.generation.job.base_options import BaseOptions
from imprompt.generation.job.samplers import SAMPLERS
from imprompt.generation.job.speeds import FEW_STEP_SPEEDS, SPEEDS, list_speed_settings
from imprompt.generation.models import load_pipeline
from imprompt.generation.settings import Settings
from imprompt.runtime.devices import choose_device
from imprompt.runtime.picture_files import save_picture
from ldm_layout import convert_vae
from lora_files import write_lora

PROMPT = "a cat"


def draw(pipe: Any, **arguments: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipe(PROMPT, num_inference_steps=2, output_type="np", generator=generator, **arguments).images


def with_options(pipe: Any, **options: Any) -> Any:
    apply_base_options(pipe, BaseOptions(**options))
    return pipe


# LoRAs


@pytest.mark.parametrize("kohya", [False, True])
@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_a_lora_changes_the_picture_as_in_diffusers(tmp_path: Path, kohya: bool, weight: float) -> None:
    file = write_lora(tmp_path, tiny.sd_unet(seed=2), kohya=kohya)
    theirs: Any = tiny.sd_pipeline()
    theirs.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name="it")
    theirs.set_adapters(["it"], [weight])
    ours = with_options(tiny.sd_pipeline(), loras=f"{file}:{weight}")
    np.testing.assert_allclose(draw(ours), draw(theirs), atol=1e-4)
    assert np.abs(draw(ours) - draw(tiny.sd_pipeline())).max() > 1e-2


def test_two_loras_add_up_and_no_layer_of_peft_remains(tmp_path: Path) -> None:
    files = [write_lora(tmp_path, tiny.sd_unet(seed=2), seed=seed) for seed in (0, 1)]
    both = with_options(tiny.sd_pipeline(), loras=[str(files[0]), {"file": str(files[1]), "weight": 0.5}])
    one = with_options(tiny.sd_pipeline(), loras=str(files[0]))
    assert np.abs(draw(both) - draw(one)).max() > 1e-3
    assert not [name for name, _ in both.unet.named_modules() if "lora" in name]


def test_a_lora_of_weight_zero_is_the_base(tmp_path: Path) -> None:
    file = write_lora(tmp_path, tiny.sd_unet(seed=2))
    ours = with_options(tiny.sd_pipeline(), loras=f"{file}:0")
    np.testing.assert_array_equal(draw(ours), draw(tiny.sd_pipeline()))


def test_an_adapter_acts_on_a_base_with_a_lora(tmp_path: Path) -> None:
    file = write_lora(tmp_path, tiny.sd_unet(seed=2))
    pipe = with_options(tiny.sd_pipeline(), loras=str(file))
    plain, adapter = draw(pipe), tiny.adapter(pipe.unet)
    with adapter.attach(pipe), adapter.use(tiny.embedding(1)):
        assert np.abs(draw(pipe) - plain).max() > 1e-2
    np.testing.assert_array_equal(draw(pipe), plain)


def test_a_lora_for_another_base_is_refused(tmp_path: Path) -> None:
    file = write_lora(tmp_path, tiny.xl_unet(seed=2))
    with pytest.raises(ConfigError, match=r"lora-0\.safetensors"):
        with_options(tiny.sd_pipeline(), loras=str(file))


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing.safetensors", "no such file"), (".", "is a folder"), ("owner/name", "owner/name:file")],
)
def test_a_lora_that_is_not_here_is_named(name: str, said: str) -> None:
    with pytest.raises(UnknownModel, match=said):
        with_options(tiny.sd_pipeline(), loras=name)


def test_a_lora_needs_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="peft"):
        with_options(tiny.sd_pipeline(), loras="any.safetensors")


# Autoencoder, textual inversion


def test_another_autoencoder_decodes(tmp_path: Path) -> None:
    tiny.autoencoder(seed=9).save_pretrained(tmp_path / "vae")
    expected: Any = tiny.sd_pipeline()
    expected.vae = tiny.autoencoder(seed=9)
    ours = with_options(tiny.sd_pipeline(), vae=str(tmp_path / "vae"))
    np.testing.assert_array_equal(draw(ours), draw(expected))


@pytest.mark.parametrize("is_original", [False, True])
def test_an_autoencoder_from_a_file_decodes(tmp_path: Path, is_original: bool) -> None:
    other = tiny.autoencoder(seed=9)
    save_file(convert_vae(other) if is_original else other.state_dict(), tmp_path / "vae.safetensors")
    expected: Any = tiny.sd_pipeline()
    expected.vae = other
    ours = with_options(tiny.sd_pipeline(), vae=str(tmp_path / "vae.safetensors"))
    np.testing.assert_array_equal(draw(ours), draw(expected))


def test_another_file_is_no_autoencoder(tmp_path: Path) -> None:
    file = write_lora(tmp_path, tiny.sd_unet(seed=2))
    with pytest.raises(CheckpointError, match=r"lora-0\.safetensors"):
        with_options(tiny.sd_pipeline(), vae=str(file))


def test_an_autoencoder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=16).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="16 latent channels; this base has 4"):
        with_options(tiny.sd_pipeline(), vae=str(tmp_path))


def test_a_textual_inversion_gives_a_word_its_embedding(tmp_path: Path) -> None:
    pipe = tiny.sd_pipeline()
    learned = torch.randn(2, pipe.text_encoder.config.hidden_size)
    save_file({"emb_params": learned}, tmp_path / "mine.safetensors")
    with_options(pipe, embeddings=str(tmp_path / "mine.safetensors"))
    ids = [pipe.tokenizer.convert_tokens_to_ids(token) for token in ("mine", "mine_1")]
    torch.testing.assert_close(pipe.text_encoder.get_input_embeddings().weight[ids], learned)
    with_options(pipe, embeddings=f"other={tmp_path / 'mine.safetensors'}")
    assert "other" in pipe.tokenizer.get_vocab()


def test_a_textual_inversion_for_another_base_is_refused(tmp_path: Path) -> None:
    save_file({"emb_params": torch.randn(1, 5)}, tmp_path / "mine.safetensors")
    with pytest.raises(ConfigError, match=r"mine\.safetensors does not fit this base"):
        with_options(tiny.sd_pipeline(), embeddings=str(tmp_path / "mine.safetensors"))


def test_both_text_encoders_of_sdxl_learn_a_word(tmp_path: Path) -> None:
    pipe: Any = tiny.xl_pipeline()
    widths = (pipe.text_encoder.config.hidden_size, pipe.text_encoder_2.config.hidden_size)
    tensors = {f"clip_{key}": torch.randn(1, width) for key, width in zip("lg", widths, strict=True)}
    save_file(tensors, tmp_path / "mine.safetensors")
    with_options(pipe, embeddings=str(tmp_path / "mine.safetensors"))
    assert "mine" in pipe.tokenizer.get_vocab()
    assert "mine" in pipe.tokenizer_2.get_vocab()


# Samplers


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws(name: str) -> None:
    pipe = with_options(tiny.sd_pipeline(), scheduler=name)
    assert type(pipe.scheduler).__name__ == SAMPLERS[name].scheduler
    assert pipe.scheduler.config.beta_end == tiny.scheduler().config["beta_end"]
    assert np.isfinite(draw(pipe)).all()


def test_an_unknown_sampler_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'dpm' is no scheduler; the schedulers are ddim, "):
        parse_job({"references": ["a.png"], "scheduler": "dpm"})


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_speed_fills_in_what_is_not_given_and_a_job_has_its_settings(speed: str) -> None:
    job = parse_job({"references": ["a.png"], "speed": speed})
    assert job == parse_job({"references": ["a.png"], **SPEEDS[speed]})
    assert parse_job({"references": ["a.png"], "speed": speed, "steps": 12}).steps == 12
    stored = job.model_dump(mode="json", exclude_defaults=True)
    assert parse_job(stored) == job


@pytest.mark.parametrize(
    "given",
    [
        {"guidance_scale": 1.0},
        {"steps": 4},
        {"scheduler": "euler_a"},
        {"controls": [{"image": "a.png"}]},
        {"guidance_interval": (0.2, 0.8), "guidance_scale": 3},
        {"feature_cache": 2, "steps": 12, "scheduler": "dpm++_2m"},
    ],
)
def test_a_speed_goes_with_any_given_setting(given: dict[str, Any]) -> None:
    for speed in SPEEDS:
        parse_job({"references": ["a.png"], "speed": speed, **given})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speed": "warp"}, "speed must be exact, balanced, fast, lcm, hyper, lightning, turbo, not 'warp'"),
        ({"feature_cache": 2, "steps": 8}, "feature_cache needs 9 steps or more, not 8"),
        ({"feature_cache": 2, "controls": [{"image": "a.png"}]}, "cannot be used with a ControlNet"),
    ],
)
def test_speeds_and_caches_that_cannot_be_right(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_job({"references": ["a.png"], **settings})


def test_another_speed_replaces_what_the_speed_of_a_picture_has_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.picture().save("a.png")
    job, made = parse_job({"references": ["a.png"], "speed": "fast"}), tmp_path / "out.png"
    save_picture(tiny.picture(), made, collect_settings(job, made))
    stored = read_settings(made)
    assert "speed" not in stored
    assert stored["scheduler"] == "dpm++_2m"
    same, exact = build_job({"like": made}), build_job({"like": made, "speed": "exact"})
    assert (same.scheduler, same.steps) == (job.scheduler, job.steps)
    assert (exact.scheduler, exact.steps) == (None, DEFAULT_STEPS)


@pytest.mark.parametrize("speed", FEW_STEP_SPEEDS)
def test_a_speed_for_few_steps_fills_in_what_is_not_given(speed: str) -> None:
    job = parse_job({"references": ["a.png"], "speed": speed, "steps": 7})
    assert (job.steps, job.guidance_scale) == (7, 1.0)
    assert job.scheduler == FEW_STEP_SPEEDS[speed]["scheduler"]


def test_a_speed_replaces_what_an_earlier_one_set() -> None:
    assert list_speed_settings("fast") == {"scheduler", "steps"}
    assert list_speed_settings("lcm") == {*list_speed_settings("fast"), "guidance_scale"}


def test_the_options_survive_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"loras": ["owner/name:a.safetensors:0.5"], "embeddings": "cat=owner/name:cat.safetensors"}
    more = {"scheduler": "euler_a", "clip_skip": 2, "device": "cpu", "dtype": "bfloat16", "tiling": True}
    job = parse_job({"references": ["a.png"], **options, **more})
    assert job.loras[0].model_dump() == {"file": "owner/name:a.safetensors", "weight": 0.5}
    save_job(job, "job.toml")
    assert Job.from_toml("job.toml") == job


# Texts


def generate(pipe: Any, **settings: Any) -> np.ndarray:
    adapter = tiny.adapter(pipe.unet)
    reference = Reference(tiny.embedding(1), scale=0.5)
    made = generate_each(pipe, [(adapter, [reference])], Settings(steps=2, **settings))
    return np.asarray(next(made))


@pytest.mark.parametrize(("build", "own"), [(tiny.sd_pipeline, 1), (tiny.xl_pipeline, 2)])
def test_the_base_s_own_text_layer_is_the_default(build: Any, own: int) -> None:
    default = generate(build(), prompt=PROMPT)
    np.testing.assert_array_equal(generate(build(), prompt=PROMPT, clip_skip=own), default)
    assert (generate(build(), prompt=PROMPT, clip_skip=3 - own) != default).any()


@pytest.mark.parametrize(("build", "other"), [(tiny.sd_pipeline, 2), (tiny.xl_pipeline, 1)])
def test_weights_in_another_text_layer_are_refused(build: Any, other: int) -> None:
    with pytest.raises(ConfigError, match=f"not clip_skip = {other}"):
        generate(build(), prompt=PROMPT, clip_skip=other, prompt_weighting=True)


def test_too_many_skipped_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="clip_skip must be at most"):
        generate(tiny.sd_pipeline(), prompt=PROMPT, clip_skip=12)


@pytest.mark.parametrize("build", [tiny.sd_pipeline, tiny.xl_pipeline])
def test_a_prompt_without_weights_is_the_same_with_weighting(build: Any) -> None:
    plain, weighted = (
        generate(build(), prompt=PROMPT, negative_prompt="dog", prompt_weighting=is_weighted)
        for is_weighted in (False, True)
    )
    assert np.abs(plain.astype(int) - weighted.astype(int)).max() <= 1
    heavier = generate(build(), prompt="a cat++", negative_prompt="dog", prompt_weighting=True)
    assert (heavier != weighted).any()


def test_a_long_prompt_is_read_to_its_end_with_weighting() -> None:
    long = "a b c d e f g h i j k l m"
    made = [generate(tiny.sd_pipeline(), prompt=long + end, prompt_weighting=True) for end in (" n", " o")]
    assert (made[0] != made[1]).any()


def test_words_that_a_base_does_not_read_are_named() -> None:
    with pytest.warns(UserWarning, match="it drops '.*m'"):
        generate(tiny.sd_pipeline(), prompt="a b c d e f g h i j k l m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(tiny.sd_pipeline(), prompt="a b")


def test_weighting_needs_compel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"imprompt\[prompts\]"):
        generate(tiny.sd_pipeline(), prompt=PROMPT, prompt_weighting=True)


# Device and memory


def test_a_device_that_is_not_here_is_named() -> None:
    with pytest.raises(ConfigError, match="'gpu' is none of cuda, mps, xpu and cpu"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="this machine has no device 'cuda:7'"):
            choose_device("cuda:7")
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("kind", ["model", "sequential", "group"])
def test_offloading_to_the_cpu_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="the device is the CPU"):
        offload_base(tiny.sd_pipeline(), kind, torch.device("cpu"))


# The command line


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2
def test_the_command_line_changes_a_base_and_repeats_it(
    imprompt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load_pipeline", load_pipeline)  # afresh for each command
    pipe = tiny.sd_pipeline()
    pipe.save_pretrained("base")
    write_lora(tmp_path, tiny.sd_unet(seed=2))
    save_adapter(tiny.adapter(pipe.unet), "adapter.safetensors")
    blank = torch.zeros_like(tiny.embedding())
    ImageEmbeddings({"image_embedding": tiny.embedding(1)}, {"image_embedding": blank}).save(
        "cat.safetensors"
    )
    words = (
        "--base",
        "base",
        "--adapter",
        "adapter.safetensors",
        "--steps",
        "2",
        "--lora",
        "lora-0.safetensors:0.5",
    )
    more = ("--scheduler", "euler_a", "--clip-skip", "2", "--dtype", "float32", "--device", "cpu", "--tiling")
    assert imprompt("generate", "cat.safetensors", "--prompt", "a cat", *words, *more).code == 0
    assert imprompt("generate", "--like", "out.png", "--output", "again.png").code == 0
    job = Job.from_image("again.png")
    assert (job.loras[0].weight, job.scheduler, job.clip_skip, job.tiling) == (0.5, "euler_a", 2, True)
    first, again = (np.asarray(Image.open(name)) for name in ("out.png", "again.png"))
    np.testing.assert_array_equal(first, again)
