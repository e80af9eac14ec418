"""Jobs: TOML and back, settings inside pictures and back, and one sentence for everything that is wrong."""

import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from imprompt.errors import ConfigError, ImageError, InvalidReference, OutputError
from imprompt.generation.job import (
    DEFAULT_STEPS,
    Job,
    JobReference,
    collect_settings,
    parse_job,
    save_job,
)
from imprompt.reference import Reference
from imprompt.runtime.picture_files import save_picture

FULL: dict[str, Any] = {
    "prompt": ["a cat", 'say "λ"\n'],
    "negative_prompt": "rain",
    "guidance_scale": 3,
    "guidance_interval": [0.2, 0.8],
    "steps": 30,
    "seed": 7,
    "count": 2,
    "size": 64,
    "init_image": "start.png",
    "strength": 0.5,
    "inpaint": "hole.png",
    "controls": [{"image": "edges.png", "scale": 0.5}],
    "references": [
        {"images": ["cat.png", "dog.png"], "combine": "average", "weights": [1, 2], "scale": 0.5},
        {"images": "room.png", "layers": {"6": 1.0, "up_blocks.1": 0.5}, "crop": [0.5, 0], "mask": "m.png"},
        {"images": "hat.png", "layers": "style", "end": 0.5, "negative": "rain.png"},
    ],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Laws


def test_earlier_spellings_are_read() -> None:
    values = {"images": ["a.png", "b.png"], "crop": "centre", "combine": "normalised average"}
    (reference,) = parse_job({"references": [values]}).references
    assert (reference.crop, reference.combine) == ("center", "normalized average")
    direct = Reference(["a.png", "b.png"], crop="centre", combine="normalised average")  # pyright: ignore
    assert (direct.crop, direct.combine) == ("center", "normalized average")


def test_a_saved_job_is_the_same_job(folder: Path) -> None:
    job = parse_job(FULL)
    save_job(job, "job.toml")
    assert Job.from_toml("job.toml") == job


@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"])),
    scale=st.floats(-1e300, 1e300),
    seed=st.integers(0, 2**62),
)
def test_any_text_and_number_comes_back_from_toml(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, scale: float, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    values = {"prompt": prompt, "seed": seed, "references": [{"images": "/cat.png", "scale": scale}]}
    save_job(parse_job(values), path)
    read = tomllib.loads(path.read_text(encoding="utf-8"))
    job = Job.from_toml(path)
    assert (job.prompt, job.references[0].scale, job.seed) == (prompt, scale, seed)
    assert read.get("prompt", "") == prompt


def test_a_picture_gives_back_the_job_that_made_it(folder: Path) -> None:
    job = parse_job(FULL | {"prompt": "a cat", "count": 1})
    save_picture(tiny.picture(), "out.png", collect_settings(job, Path("out.png")))
    assert Job.from_image("out.png") == job


def test_paths_are_relative_to_the_file(folder: Path) -> None:
    Path("jobs").mkdir()
    Path("jobs/job.toml").write_text(
        'references = ["cat.png", "/dog.png"]\nbase = "mini"\ninit_image = "a.png"'
    )
    job = Job.from_toml("jobs/job.toml")
    assert [reference.images for reference in job.references] == [("jobs/cat.png",), ("/dog.png",)]
    assert (job.base, job.init_image, job.output) == ("mini", "jobs/a.png", "out.png")
    save_job(job, "moved.toml")
    assert Job.from_toml("moved.toml") == job


def test_a_name_is_a_path_only_if_something_is_there(folder: Path) -> None:
    for name in ("mini", "base", "sub"):
        Path(name).mkdir()
    Path("sub/base").mkdir()
    Path("sub/job.toml").write_text('references = ["cat.png"]\nbase = "base"\nadapter = "owner/name:file"')
    job = Job.from_toml("sub/job.toml")
    assert (job.base, job.adapter) == ("sub/base", "owner/name:file")
    Path("job.toml").write_text('references = ["cat.png"]')
    assert Job.from_toml("job.toml").base is None


# What a picture tells


def test_a_picture_tells_no_folders_of_the_disk(folder: Path) -> None:
    for name in ("here/below", "elsewhere"):
        Path(name).mkdir(parents=True)
    job = parse_job(
        {"references": [str(folder / "here/below/cat.png"), "/secret/folder/dog.png", "elsewhere/x.png"]}
    )
    told = collect_settings(job, folder / "here" / "out.png")["references"]
    assert [one["images"] for one in told] == [["below/cat.png"], ["dog.png"], ["elsewhere/x.png"]]


def test_the_settings_of_older_pictures_are_still_read(folder: Path) -> None:
    old = {
        "prompt": "x",
        "references": ["cat.png", "hat.png"],
        "scale": 0.5,
        "steps": 9,
        "seed": 3,
        "size": 64,
    }
    save_picture(tiny.picture(), "old.png", old | {"versions": {"imprompt": "0.1.0"}})
    job = Job.from_image("old.png")
    assert [(one.images, one.scale) for one in job.references] == [(("cat.png",), 0.5), (("hat.png",), 0.5)]
    assert (job.prompt, job.steps, job.seed, job.width, job.height) == ("x", 9, 3, 64, 64)


def test_the_earlier_steps_of_a_reference_are_still_read(folder: Path) -> None:
    reference = {"images": "cat.png", "steps": [0.2, 0.5]}
    Path("old.toml").write_text('[[references]]\nimages = "cat.png"\nsteps = [0.2, 0.5]\n')
    save_picture(tiny.picture(), "old.png", {"references": [reference]})
    for job in (Job.from_toml("old.toml"), Job.from_image("old.png")):
        assert [(one.start, one.end) for one in job.references] == [(0.2, 0.5)]
        assert collect_settings(job, Path("new.png"))["references"] == [
            {"images": ["cat.png"], "scale": 1.0, "start": 0.2, "end": 0.5}
        ]


# What it asks for


def test_left_out_is_the_default() -> None:
    job = parse_job({"references": "cat.png"})
    assert job == Job(references=(JobReference(images=("cat.png",)),))
    assert (job.steps, job.prompts, list(job.seeds), job.outputs) == (
        DEFAULT_STEPS,
        ("",),
        [0],
        [Path("out.png")],
    )


def test_every_field_of_a_reference_can_be_asked_for() -> None:
    defaults = {field.name: field.default for field in fields(Reference)}
    asked = {name: field.get_default() for name, field in JobReference.model_fields.items()}
    assert asked.pop("adapter") is None
    assert asked | {"images": MISSING} == defaults


def test_a_reference_is_built_with_its_settings(folder: Path) -> None:
    for name in ("cat.png", "dog.png", "m.png"):
        tiny.picture().save(name)
    values = {
        "images": ["cat.png", "dog.png"],
        "scale": 0.5,
        "layers": {"6": 1.0},
        "mask": "m.png",
        "crop": [0.5, 0],
        "negative": "dog.png",
        "combine": "average",
        "step_weights": [1, 0.5],
        "scaling": "key and value",
    }
    made = parse_job({"references": [values]}).references[0].load()
    assert (len(made.pictures), made.scale, made.layers, made.crop) == (2, 0.5, {"6": 1.0}, (0.5, 0))
    assert (made.step_weights, made.combine, made.scaling) == ((1, 0.5), "average", "key and value")
    assert made.mask is not None
    assert made.negative is not None


def test_outputs_are_numbered_over_prompts_and_seeds() -> None:
    job = parse_job({"references": "a.png", "prompt": ["x", "y"], "count": 2, "output": "o.png"})
    assert [path.name for path in job.outputs] == ["o-0.png", "o-1.png", "o-2.png", "o-3.png"]


def test_references_are_grouped_by_adapter() -> None:
    references = ["a.png", {"images": "b.png", "adapter": "other"}, "c.png"]
    groups = parse_job({"references": references, "adapter": "mini"}).by_adapter
    assert {name: [one.images[0] for one in group] for name, group in groups.items()} == {
        "mini": ["a.png", "c.png"],
        "other": ["b.png"],
    }


# Refusals


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"promt": "x"}, "unknown key 'promt'; did you mean 'prompt'?"),
        (
            {"references": [{"images": "a", "scael": 1}]},
            "unknown key 'scael' in references[0]; did you mean 'scale'?",
        ),
        (
            {"controls": [{"image": "a", "modle": "x"}]},
            "unknown key 'modle' in controls[0]; did you mean 'model'?",
        ),
        ({"references": []}, "references must not be empty"),
        ({"references": [{"scale": 1}]}, "references[0].images is missing"),
        ({"references": [{"images": []}]}, "references[0].images must not be empty"),
        ({"references": [{"images": "a", "scale": "x"}]}, "references[0].scale must be a number, not 'x'"),
        ({"references": [{"images": "a", "scale": True}]}, "references[0].scale must be a number, not True"),
        (
            {"references": [{"images": "a", "crop": "middle"}]},
            "references[0].crop must be 'center', 'top', *",
        ),
        (
            {"references": [{"images": "a", "layers": {"6": "x"}}]},
            "references[0].layers must be a number, not 'x'",
        ),
        (
            {"references": [{"images": "a", "start": 0.5, "end": 0.2}]},
            "references[0]: start must be less than end, not 0.5 and 0.2",
        ),
        (
            {"references": [{"images": "a", "steps": [0.5, 0.2]}]},
            "references[0]: start must be less than end, not 0.5 and 0.2",
        ),
        (
            {"references": [{"images": "a", "steps": [0, 0.5, 1]}]},
            "references[0]: steps = [0, 0.5, 1] is an earlier form of start and end; give those",
        ),
        (
            {"references": [{"images": "a", "end": 0.5, "step_weights": [1]}]},
            "references[0]: step_weights replaces start, end and measured_in; leave those out",
        ),
        ({"steps": 2.5}, "steps must be a whole number, not 2.5"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be a finite number, not inf"),
        ({"size": 64, "width": 64}, "size is width and height at once; give it or them"),
        ({"width": 64}, "width and height belong together; give both, or size"),
        (
            {"strength": 0.5},
            "strength is about init_image, and there is none; give the picture to start from",
        ),
        (
            {"inpaint": "m.png"},
            "inpaint is about init_image, and there is none; give the picture to start from",
        ),
        ({"init_image": "a", "strength": 0}, "strength must be greater than 0, not 0"),
        ({"guidance_interval": [0.5, 0.5]}, "guidance_interval must be 0 ≤ start < end ≤ 1, not 0.5 and 0.5"),
        (
            {"guidance_interval": [0, 0.5], "guidance_scale": 1},
            "guidance_interval needs a guidance_scale above 1, not 1.0",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_job({"references": ["cat.png"]} | values, "job.toml: ")
    start, star, _ = f"job.toml: {message}".partition("*")
    assert str(raised.value).startswith(start)
    assert star or str(raised.value) == start


def test_files_that_are_no_jobs(folder: Path) -> None:
    Path("bad.toml").write_text("x = ")
    Path("latin.toml").write_bytes(b'x = "\xff"')
    for name, message in {
        "no.toml": "no such file",
        "bad.toml": "is not TOML",
        "latin.toml": "is not",
    }.items():
        with pytest.raises(ConfigError, match=message):
            Job.from_toml(name)
    tiny.picture().save("plain.png")
    with pytest.raises(ImageError, match=r"plain.png holds no settings"):
        Job.from_image("plain.png")


def test_an_embedding_file_stands_alone() -> None:
    with pytest.raises(InvalidReference, match=r"x\.safetensors holds embeddings; give it alone"):
        parse_job({"references": [{"images": ["a.png", "x.safetensors"]}]}).references[0].load()


def test_a_job_is_written_whole_and_as_toml_only(folder: Path) -> None:
    job = parse_job({"references": "a.png"})
    with pytest.raises(OutputError, match=r"must end in .toml"):
        save_job(job, "job.json")
    assert list(folder.iterdir()) == []
