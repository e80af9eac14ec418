"""What was asked for on the command line, as a job."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprompt.cli.terminal import WrongUsage
from imprompt.errors import ConfigError

if TYPE_CHECKING:
    from imprompt.generation.job import Job

Given = Mapping[str, Any]
"""The options that were given, by the names of `generate`'s parameters."""

NOTHING = "-"
"""What stands for "nothing" where an option is given for each reference."""

_OF_THE_JOB = (
    "prompt",
    "negative_prompt",
    "guidance_scale",
    "steps",
    "seed",
    "count",
    "size",
    "init_image",
    "strength",
    "inpaint",
    "base",
    "adapter",
    "image_encoder",
)
_OF_EACH = {"scale": "scale", "mode": "layers", "mask": "mask", "crop": "crop", "negative": "negative"}
_BESIDE_A_JOB = ("output", "seed", "count")


def given_options(parameters: Mapping[str, Any]) -> Given:
    """Return what stands on the command line; what is left out is None, False or []."""
    left_out = (None, False)
    return {
        name: value
        for name, value in parameters.items()
        if not any(value is x for x in left_out) and value != []
    }


def asked_job(given: Given) -> "Job":
    """Make the job: from a file, or like a picture and then changed, or from the options alone.

    Raises:
        WrongUsage: options that do not go together, or are given a wrong number of times
        ConfigError, ImageError: see `imprompt.generation.job`
    """
    if "job" in given:
        return _from_file(given)
    if "like" in given:
        return _like(given)
    values = _values(given, {})  # before anything heavy is imported: wrong usage is found at once
    from imprompt.generation.job import parse_job

    return parse_job(values)


def _like(given: Given) -> "Job":
    from imprompt.generation.job import parse_job, read_job

    before = read_job(given["like"]).model_dump(mode="json", exclude_defaults=True)
    job = parse_job(_values(given, before))
    _check_files(job, given["like"])
    return job


def _from_file(given: Given) -> "Job":
    others = [name for name in given if name not in (*_BESIDE_A_JOB, "job")]
    if others:
        raise WrongUsage(f"beside --job stand only --output, --seed and --count, not {_option(others[0])}")
    from imprompt.generation.job import load_job, parse_job

    changes = {name: given[name] for name in _BESIDE_A_JOB if name in given}
    if "output" in changes:
        changes["output"] = str(changes["output"])
    before = load_job(given["job"]).model_dump(mode="json", exclude_defaults=True)
    return parse_job(before | changes)


def _values(given: Given, before: dict[str, Any]) -> dict[str, Any]:
    """What the job is to be checked as: what was there before, changed by what is given."""
    values = before | {name: given[name] for name in _OF_THE_JOB if name in given}
    if "size" in given:
        values = {name: value for name, value in values.items() if name not in ("width", "height")}
    if "output" in given:
        values["output"] = str(given["output"])
    values["references"] = _references(given, before.get("references", []))
    controls = _controls(given, before.get("controls", []))
    return values | ({"controls": controls} if controls else {})


def _references(given: Given, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    references = _with_images(given, before)
    for option, key in _OF_EACH.items():
        for reference, value in _shared(given, option, references):
            _set(reference, key, _position(value) if key == "crop" else value)
    for option, bound in (("from_", 0), ("until", 1)):
        for reference, value in _shared(given, option, references):
            span = list(reference.get("steps", (0.0, 1.0)))
            span[bound] = value
            reference["steps"] = span
    if "combine" in given:
        references = [reference | {"combine": given["combine"]} for reference in references]
    return references


def _with_images(given: Given, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A reference for every picture (or one for all, to be combined), each with the settings that it had."""
    if "reference" not in given:
        if not before:
            raise WrongUsage("Missing argument 'reference'.")
        return [dict(reference) for reference in before]
    pictures = [[picture] for picture in given["reference"]]
    if "combine" in given:
        pictures = [given["reference"]]
    if len(before) not in (0, 1, len(pictures)):
        raise WrongUsage(
            f"that picture has {len(before)} references, not {len(pictures)}; give as many, or none"
        )
    settings = before * len(pictures) if len(before) == 1 else before or [{}] * len(pictures)
    return [one | {"images": images} for one, images in zip(settings, pictures, strict=True)]


def _controls(given: Given, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    controls = [{"image": image} for image in given["control"]] if "control" in given else before
    for option, key in (("control_model", "model"), ("control_scale", "scale")):
        if option in given and not controls:
            raise WrongUsage(f"{_option(option)} is about --control, which is missing")
        for control, value in _shared(given, option, controls, of="controls"):
            control[key] = value
    return controls


def _shared(
    given: Given,
    option: str,
    among: Sequence[dict[str, Any]],
    *,
    of: str = "references",
) -> list[tuple[dict[str, Any], Any]]:
    """Each of `among` with its value of an option that is given once, for all, or once for each."""
    if option not in given:
        return []
    values = given[option]
    if len(values) not in (1, len(among)):
        raise WrongUsage(
            f"{_option(option)} is given {len(values)} times for {len(among)} {of}; give it once, for all, "
            f"or {len(among)} times",
        )
    return list(zip(among, values * len(among) if len(values) == 1 else values, strict=True))


def _set(reference: dict[str, Any], key: str, value: object) -> None:
    if value == NOTHING:
        reference.pop(key, None)
    else:
        reference[key] = value


def _position(crop: str) -> object:
    """ "0.5,0" as the position that it is; a name, or anything else, as it is."""
    try:
        return [float(number) for number in crop.split(",")] if "," in crop else crop
    except ValueError:
        return crop


def _check_files(job: "Job", picture: object) -> None:
    for file in job.files:
        if not Path(file).exists():
            raise ConfigError(
                f"{picture} was made from {file}, which is neither beside it nor here; give it again: "
                f"imprompt generate PICTURE --like {picture}"
            )


def _option(name: str) -> str:
    return "REFERENCE" if name == "reference" else f"--{name.strip('_').replace('_', '-')}"
