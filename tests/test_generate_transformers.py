"""`imprompt generate` and the library on FLUX.1 and Stable Diffusion 3.5, through the one job code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]
)

import tiny
import tiny_transformers
from conftest import Result
from faults import of_diffusers
from imprompt import Reference, generate, mini
from imprompt.checkpoint import save_adapter
from imprompt.errors import AdapterMismatch, ConfigError
from imprompt.generation.generate import generate_each
from imprompt.generation.guidance import USUAL_GUIDANCE, find_usual_guidance
from imprompt.generation.job import DEFAULT_GUIDANCE, Job
from imprompt.generation.pairing import (
    USUAL_ADAPTERS,
    USUAL_BASES,
    pair_models,
    recognize_base,
)
from imprompt.generation.settings import Settings
from imprompt.inputs.encoder import ImageEncoder
from imprompt.runtime.picture_files import SETTINGS_KEY
from test_transformer_files import siglip
from tiny_transformers import FLUX_CONTEXT, FLUX_POOLED, JOINT_CONTEXT, Kind, adapter
from transformer_pipelines import autoencoder

Command = Callable[..., Result]


class Base(NamedTuple):
    """A base with its adapter and its image encoder, as files."""

    folder: Path
    adapter: Path
    encoder: Path

    @property
    def options(self) -> list[str]:
        words = ["--base", self.folder, "--adapter", self.adapter, "--image-encoder", self.encoder]
        return [str(word) for word in words] + ["--steps", "2", "--size", "16x16"]


@tiny.seeded
def t5(*, seed: int = 0, width: int = FLUX_CONTEXT) -> dict[str, Any]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789,.!-▁"
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in letters)]
    tokenizer = T5TokenizerFast(vocab=vocabulary, model_max_length=12, extra_ids=0)  # pyright: ignore[reportCallIssue]
    sizes: Any = {"d_model": width, "d_kv": 5, "d_ff": 30, "num_layers": 1, "num_heads": 2}
    return {"encoder": T5EncoderModel(T5Config(vocab_size=64, **sizes)).eval(), "tokenizer": tokenizer}


@tiny.seeded
def clip(width: int, *, seed: int = 0, projected: bool = False) -> Any:
    config: CLIPTextConfig = tiny.text_config(width, width)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def flux_pipeline() -> Any:
    words = t5()
    scheduler: Any = of_diffusers("FlowMatchEulerDiscreteScheduler")
    return of_diffusers("FluxPipeline")(
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=autoencoder("FLUX.1"),
        text_encoder=clip(FLUX_POOLED),
        tokenizer=tiny.tokenizer(),
        text_encoder_2=words["encoder"],
        tokenizer_2=words["tokenizer"],
        transformer=tiny_transformers.flux_transformer(guidance=True),
    )


def joint_pipeline() -> Any:
    words = t5(width=JOINT_CONTEXT)
    scheduler: Any = of_diffusers("FlowMatchEulerDiscreteScheduler")
    return of_diffusers("StableDiffusion3Pipeline")(
        transformer=tiny_transformers.joint_transformer(),
        scheduler=scheduler(),
        vae=autoencoder("SD3.5"),
        text_encoder=clip(8, projected=True),
        tokenizer=tiny.tokenizer(),
        text_encoder_2=clip(6, seed=1, projected=True),
        tokenizer_2=tiny.tokenizer(),
        text_encoder_3=words["encoder"],
        tokenizer_3=words["tokenizer"],
    )


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    root = tmp_path_factory.mktemp("transformers")
    built = {"flux-xlabs": flux_pipeline, "flux-instantx": flux_pipeline, "sd35": joint_pipeline}
    made: dict[str, Base] = {}
    for kind, build in built.items():
        one = Base(root / build.__name__, root / f"{kind}.safetensors", root / f"encoder-{kind == 'sd35'}")
        if not one.folder.exists():
            build().save_pretrained(one.folder)
        if not one.encoder.exists():
            (siglip() if kind == "sd35" else tiny.vision_model(seed=3)).save_pretrained(one.encoder)
        save_adapter(adapter(kind), one.adapter)  # pyright: ignore[reportArgumentType]
        made[kind] = one
    return made


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    tiny.picture().save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


@pytest.mark.parametrize(
    ("build", "scale"),
    [
        (tiny.sd_pipeline, DEFAULT_GUIDANCE),
        (tiny.xl_pipeline, DEFAULT_GUIDANCE),
        (mini.pipeline, USUAL_GUIDANCE["mini"]),
        (flux_pipeline, USUAL_GUIDANCE["FLUX.1"]),
        (joint_pipeline, USUAL_GUIDANCE["SD3.5 Large"]),
    ],
)
def test_the_usual_guidance_of_a_base_is_known_from_its_pipeline(
    build: Callable[[], Any], scale: float
) -> None:
    assert find_usual_guidance(build()) == scale


def test_the_library_generates_with_the_usual_guidance_where_none_is_given() -> None:
    pipe, reference = mini.pipeline(), tiny.picture()
    (picture,) = generate(pipe, mini.adapter(), reference, steps=1)
    assert json.loads(picture.info[SETTINGS_KEY])["guidance_scale"] == USUAL_GUIDANCE["mini"]


@pytest.mark.parametrize("kind", tiny_transformers.KINDS)
def test_a_picture_is_generated_and_can_be_made_again(
    imprompt: Command, bases: dict[str, Base], kind: str, cat: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    done = imprompt("generate", cat, "--prompt", "a hat", *bases[kind].options, "--output", out)
    assert done.code == 0, done.error
    with Image.open(out) as picture:
        assert picture.size == (16, 16)
        stored = json.loads(picture.info[SETTINGS_KEY])
    assert stored["base"].endswith(bases[kind].folder.name)
    again = tmp_path / "again.png"
    words = bases[kind].options[:6]  # A picture does not contain where its models are.
    done = imprompt("generate", "--like", out, *words, "--output", again)
    assert done.code == 0, done.error
    with Image.open(out) as one, Image.open(again) as other:
        assert one.tobytes() == other.tobytes()
    without = tmp_path / "without.png"
    imprompt("generate", cat, "--prompt", "a hat", "--scale", "0", *bases[kind].options, "--output", without)
    with Image.open(out) as one, Image.open(without) as other:
        assert one.tobytes() != other.tobytes()


def test_true_guidance_and_image_to_image_and_inpainting_on_flux(
    imprompt: Command, bases: dict[str, Base], cat: Path, tmp_path: Path
) -> None:
    tiny.picture(seed=2).save(tmp_path / "start.png")
    mask = Image.new("L", (20, 20))
    mask.paste(255, (0, 0, 9, 20))
    mask.save(tmp_path / "mask.png")
    base, start = bases["flux-xlabs"], ["--init-image", str(tmp_path / "start.png")]
    ways = {
        "plain": [],
        "guided": ["--true-guidance-scale", "3", "--negative-prompt", "rain"],
        "from a picture": start,
        "inpainted": [*start, "--inpaint", str(tmp_path / "mask.png")],
    }
    made: set[bytes] = set()
    for name, words in ways.items():
        out = tmp_path / f"{name}.png"
        done = imprompt("generate", cat, *words, *base.options, "--output", out)
        assert done.code == 0, done.error
        with Image.open(out) as picture:
            made.add(picture.tobytes())
    assert len(made) == len(ways)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--negative-prompt", "rain"], "FLUX.1 has no negative prompt without true guidance"),
        (["--scheduler", "ddim"], "scheduler 'ddim' is for bases that predict noise"),
        (["--clip-skip", "2"], "FluxPipeline takes no clip_skip"),
        (["--prompt-weighting", "--prompt", "a (hat)1.2"], "prompt_weighting is for bases with CLIP"),
    ],
)
def test_what_flux_cannot_honor_is_one_sentence(
    imprompt: Command, bases: dict[str, Base], words: list[str], sentence: str, cat: Path, tmp_path: Path
) -> None:
    done = imprompt("generate", cat, *bases["flux-xlabs"].options, *words, "--output", tmp_path / "o.png")
    assert done.code == 1
    assert sentence in done.error
    assert "Traceback" not in done.error


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"guidance_interval": (0.0, 0.5)}, "guidance_interval is not possible on this base"),
        ({"true_guidance_scale": 2.0}, "true_guidance_scale is for FLUX.1"),
    ],
)
def test_what_sd35_cannot_honor_is_refused(settings: dict[str, Any], sentence: str) -> None:
    one = adapter("sd35")
    one.image_encoder = ImageEncoder(siglip())
    prompted = [(one, [Reference(tiny.picture())])]
    with pytest.raises(ConfigError, match=sentence):
        list(generate_each(joint_pipeline(), prompted, Settings(steps=1, size=(16, 16), **settings)))


@pytest.mark.parametrize("kind", ["flux-instantx", "sd35"])
def test_the_library_generates_alike_alone_or_among_several(kind: Kind) -> None:
    one = adapter(kind)
    one.image_encoder = ImageEncoder(siglip() if kind == "sd35" else tiny.vision_model(seed=3))
    pipe = joint_pipeline() if kind == "sd35" else flux_pipeline()
    pipe.set_progress_bar_config(disable=True)
    arguments: Any = {"prompt": "a hat", "steps": 2, "size": 16, "guidance_scale": 3.0}
    several = generate(pipe, one, tiny.picture(), seeds=[3, 4], **arguments)
    (alone,) = generate(pipe, one, tiny.picture(), seed=4, **arguments)
    assert several[1].tobytes() == alone.tobytes() != several[0].tobytes()
    assert not torch.is_grad_enabled() or not one.is_attached


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"_class_name": "FluxTransformer2DModel", "num_layers": 19, "joint_attention_dim": 4096}, "FLUX.1"),
        (
            {"_class_name": "SD3Transformer2DModel", "num_layers": 38, "caption_projection_dim": 2432},
            "SD3.5 Large",
        ),
        ({"_class_name": "SD3Transformer2DModel", "num_layers": 24, "caption_projection_dim": 1536}, None),
    ],
)
def test_a_base_is_recognized_by_its_transformer_and_paired(
    config: dict[str, Any], family: str | None, tmp_path: Path, cat: Path
) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    assert recognize_base(str(tmp_path)) == family
    references: Any = [{"images": str(cat)}]
    if family is None:
        with pytest.raises(ConfigError, match="for which no adapter is known"):
            pair_models(Job(base=str(tmp_path), references=references))
        return
    paired = pair_models(Job(base=str(tmp_path), references=references))
    assert paired.adapter == USUAL_ADAPTERS[family]
    assert paired.guidance_scale == USUAL_GUIDANCE[family]
    with pytest.raises(AdapterMismatch, match=f"the base .* is {family}"):
        pair_models(Job(base=str(tmp_path), adapter="sd15", references=references))
    assert family in USUAL_BASES
