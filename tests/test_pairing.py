"""The base follows from the adapter and the adapter from the base, before anything large is read."""

import json
from pathlib import Path

import pytest

import tiny
from imprompt import save_adapter
from imprompt.checkpoint.published import PUBLISHED
from imprompt.errors import AdapterMismatch, ConfigError, UnknownModel
from imprompt.generation import pairing
from imprompt.generation.job import Job, parse_job
from imprompt.generation.pairing import USUAL_ADAPTERS, USUAL_BASES, pair_models, recognize_base


def job_of(**values: object) -> Job:
    return parse_job({"references": ["a.png"], **values})


def write_base(folder: Path, width: int, **more: object) -> str:
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text(json.dumps({"cross_attention_dim": width, **more}))
    return str(folder)


def test_without_both_it_is_the_embedded_model() -> None:
    assert (pair_models(job_of()).base, pair_models(job_of()).adapter) == ("mini", "mini")


def test_the_embedded_model_has_its_own_guidance_scale_unless_one_is_given() -> None:
    assert pair_models(job_of()).guidance_scale == 3.0
    assert pair_models(job_of(guidance_scale=7.5)).guidance_scale == 7.5


@pytest.mark.parametrize("name", [name for name in PUBLISHED if PUBLISHED[name].base_family in USUAL_BASES])
def test_every_published_adapter_has_a_base(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = PUBLISHED[name].base_family
    monkeypatch.setattr(pairing, "recognize_base", lambda base, revision=None: family)
    assert pair_models(job_of(adapter=name)).base == USUAL_BASES[family]


def test_the_embedded_adapters_have_the_embedded_base() -> None:
    assert pair_models(job_of(adapter="mini-plus")).base == "mini"
    assert pair_models(job_of(references=[{"images": "a.png", "adapter": "mini-plus"}])).base == "mini"


@pytest.mark.parametrize(
    ("width", "more", "adapter"),
    [
        (768, {}, "sd15"),
        (2048, {"encoder_hid_dim": None}, "sdxl"),
        (2048, {"encoder_hid_dim": 4096}, "kolors-plus"),
    ],
)
def test_a_base_has_its_usual_adapter(
    tmp_path: Path, width: int, more: dict[str, object], adapter: str
) -> None:
    base = write_base(tmp_path / "base", width, **more)
    assert pair_models(job_of(base=base)).adapter == adapter


def test_every_usual_adapter_is_published() -> None:
    assert {PUBLISHED[name].base_family: name for name in USUAL_ADAPTERS.values() if name in PUBLISHED} == {
        family: name for family, name in USUAL_ADAPTERS.items() if family != "mini"
    }


def test_a_pair_of_two_families_is_refused_with_what_would_fit(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", 2048)
    with pytest.raises(
        AdapterMismatch, match=r"sd15 is for SD1\.5, and the base .* is SDXL; .* instance sdxl"
    ):
        pair_models(job_of(base=base, adapter="sd15"))
    with pytest.raises(AdapterMismatch, match=r"sd15 is for SD1\.5, and the base mini:lines is mini"):
        pair_models(job_of(base="mini:lines", adapter="sd15"))


def test_a_family_without_a_published_adapter_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"is SD2\.x, for which no adapter is known; give one with --adapter"
    ):
        pair_models(job_of(base=write_base(tmp_path / "base", 1024)))


def test_an_adapter_for_an_unknown_base_asks_for_one(tmp_path: Path) -> None:
    save_adapter(tiny.adapter(tiny.sd_unet()), tmp_path / "mine.safetensors")
    with pytest.raises(ConfigError, match="is for an unknown base; give one with --base"):
        pair_models(job_of(adapter=str(tmp_path / "mine.safetensors")))


def test_models_of_no_known_family_are_left_to_the_attachment(tmp_path: Path) -> None:
    save_adapter(tiny.adapter(tiny.sd_unet()), tmp_path / "mine.safetensors")
    base = write_base(tmp_path / "base", 32)
    job = pair_models(job_of(base=base, adapter=str(tmp_path / "mine.safetensors")))
    assert job.base == base


def test_a_broken_configuration_is_named(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", 32)
    Path(base, "unet", "config.json").write_text("[]")
    with pytest.raises(UnknownModel, match=r"config\.json cannot be read as the configuration of a U-Net"):
        recognize_base(base)
