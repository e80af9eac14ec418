"""The options of `imprompt generate`, turned into a job."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprompt.cli.terminal import WrongUsage
from imprompt.errors import ConfigError

if TYPE_CHECKING:
    from imprompt.generation.job import Job

Options = Mapping[str, Any]
"""The options of a command line, by the names of the parameters of `generate`."""

NOTHING = "-"
"""The value of a per-reference option that leaves it at its default for one reference."""

_JOB_OPTIONS = (
    "prompt",
    "negative_prompt",
    "guidance_scale",
    "true_guidance_scale",
    "steps",
    "seed",
    "count",
    "width",
    "height",
    "init_image",
    "strength",
    "inpaint",
    "base",
    "adapter",
    "image_encoder",
    "loras",
    "vae",
    "embeddings",
    "scheduler",
    "clip_skip",
    "prompt_weighting",
    "device",
    "dtype",
    "speed",
    "feature_cache",
    "cuda_graphs",
    "backend",
    "variant",
    "revision",
    "offload",
    "tiling",
)
_REFERENCE_OPTIONS = {
    "scale": "scale",
    "mode": "layers",
    "mask": "mask",
    "crop": "crop",
    "negative": "negative",
    "from_": "start",
    "until": "end",
}
_OPTIONS_WITH_JOB = ("output", "seed", "count")


def drop_defaults(parameters: Mapping[str, Any]) -> Options:
    """Return the options that the command line sets; the others are None, False or []."""
    defaults = (None, False)
    return {
        name: value
        for name, value in parameters.items()
        if not any(value is default for default in defaults) and value != []
    }


def parse_size(text: str) -> tuple[int, int]:
    """Parse "512x768" into width and height, and "512" into both.

    Raises:
        WrongUsage: another text
    """
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isascii() and side.strip().isdigit() for side in sides):
        raise WrongUsage(f"--size takes 512 or 512x768 (width x height), not {text!r}")
    return int(sides[0]), int(sides[-1])


def parse_interval(text: str) -> list[float]:
    """Parse "0.2,0.8" into a start and an end.

    Raises:
        WrongUsage: another text
    """
    try:
        start, end = (float(number) for number in text.split(","))
    except ValueError:
        raise WrongUsage(
            f"--guidance-interval takes a start and an end, as in 0.2,0.8, not {text!r}"
        ) from None
    return [start, end]


def build_job(options: Options) -> "Job":
    """Build the job: from a job file, from the settings of a picture (--like), or from the options alone.

    Raises:
        WrongUsage: options that exclude each other, or are repeated a wrong number of times
        ConfigError, ImageError: see `imprompt.generation.job`
    """
    if "job" in options:
        return _load_job_file(options)
    if "like" in options:
        return _repeat_picture(options)
    values = _collect_values(options, {})  # wrong usage is reported before anything heavy is imported
    from imprompt.generation.job import parse_job

    return parse_job(values)


def _repeat_picture(options: Options) -> "Job":
    from imprompt.generation.job import Job, parse_job
    from imprompt.generation.job.speeds import list_speed_settings

    before = Job.from_image(options["like"])
    values = before.model_dump(mode="json", exclude_defaults=True)
    if "speed" in options:
        replaced = list_speed_settings(options["speed"])
        values = {name: value for name, value in values.items() if name not in replaced}
    job = parse_job(_collect_values(options, values))
    given = {
        str(one) for value in options.values() for one in (value if isinstance(value, list) else [value])
    }
    _check_files_of_picture({*before.files} & {*job.files} - given, options["like"])
    return job


def _load_job_file(options: Options) -> "Job":
    others = [name for name in options if name not in (*_OPTIONS_WITH_JOB, "job", "overwrite")]
    if others:
        raise WrongUsage(
            "--job can only be combined with --output, --overwrite, --seed and --count, not with "
            f"{_format_option(others[0])}"
        )
    from imprompt.generation.job import Job, parse_job

    changes = {name: options[name] for name in _OPTIONS_WITH_JOB if name in options}
    if "output" in changes:
        changes["output"] = str(changes["output"])
    before = Job.from_toml(options["job"]).model_dump(mode="json", exclude_defaults=True)
    return parse_job(before | changes)


def _collect_values(options: Options, before: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the job: the earlier ones, overridden by the options."""
    values = before | {name: options[name] for name in _JOB_OPTIONS if name in options}
    if "size" in options:
        if other := [name for name in ("width", "height") if name in options]:
            raise WrongUsage(f"--size sets width and height at once; leave out --{other[0]}")
        values["width"], values["height"] = parse_size(options["size"])
    if "guidance_interval" in options:
        values["guidance_interval"] = parse_interval(options["guidance_interval"])
    if "output" in options:
        values["output"] = str(options["output"])
    values["references"] = _collect_references(options, before.get("references", []))
    controls = _collect_controls(options, before.get("controls", []))
    return values | ({"controls": controls} if controls else {})


def _collect_references(options: Options, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    references = _assign_pictures(options, before)
    for option, key in _REFERENCE_OPTIONS.items():
        for reference, value in _pair_with_values(options, option, references):
            _set_option(reference, key, _parse_crop(value) if key == "crop" else value)
    if "combine" in options:
        references = [reference | {"combine": options["combine"]} for reference in references]
    return references


def _assign_pictures(options: Options, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a reference for every picture, or one for all (--combine), with the earlier settings."""
    if "reference" not in options:
        if not before:
            raise WrongUsage("Missing argument 'reference'.")
        return [dict(reference) for reference in before]
    pictures = [[picture] for picture in options["reference"]]
    if "combine" in options:
        pictures = [options["reference"]]
    if len(before) not in (0, 1, len(pictures)):
        raise WrongUsage(
            f"the picture of --like has {len(before)} references, not {len(pictures)}; give as many "
            "pictures, or none"
        )
    settings = before * len(pictures) if len(before) == 1 else before or [{}] * len(pictures)
    return [one | {"images": images} for one, images in zip(settings, pictures, strict=True)]


def _collect_controls(options: Options, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    controls = [{"image": image} for image in options["control"]] if "control" in options else before
    for option, key in (("control_model", "model"), ("control_scale", "scale")):
        if option in options and not controls:
            raise WrongUsage(f"{_format_option(option)} needs --control, which is missing")
        for control, value in _pair_with_values(options, option, controls, of="controls"):
            control[key] = value
    return controls


def _pair_with_values(
    options: Options,
    option: str,
    among: Sequence[dict[str, Any]],
    *,
    of: str = "references",
) -> list[tuple[dict[str, Any], Any]]:
    """Return each of `among` with its value of an option, which is given once for all or once for each."""
    if option not in options:
        return []
    values = options[option]
    if len(values) not in (1, len(among)):
        raise WrongUsage(
            f"{_format_option(option)} is given {len(values)} times for {len(among)} {of}; give it once for "
            f"all, or {len(among)} times",
        )
    return list(zip(among, values * len(among) if len(values) == 1 else values, strict=True))


def _set_option(reference: dict[str, Any], key: str, value: object) -> None:
    if value == NOTHING:
        reference.pop(key, None)
    else:
        reference[key] = value


def _parse_crop(crop: str) -> object:
    """Parse a position such as "0.5,0" into two numbers; return anything else unchanged."""
    try:
        return [float(number) for number in crop.split(",")] if "," in crop else crop
    except ValueError:
        return crop


def _check_files_of_picture(files: Collection[str], picture: Path) -> None:
    """Refuse files from which a picture was made, if they are missing or changed."""
    from imprompt.generation.job import STANDARD_INPUT, hash_file, locate_file, read_hashes, read_settings

    hashes = read_hashes(read_settings(picture))
    located = {locate_file(picture, file, digest): digest for file, digest in hashes.items()}
    again = f"pass it again: imprompt generate PICTURE --like {picture}"
    for file in sorted({*files} - {STANDARD_INPUT}):
        if not Path(file).exists():
            raise ConfigError(
                f"{picture} was made from {file}, which is neither in its folder, nor in this one, nor where "
                f"it was then; {again}"
            )
        if located.get(file) not in (None, hash_file(file)):
            raise ConfigError(f"{picture} was made from another {file} than the one here; {again}")


def _format_option(name: str) -> str:
    return "REFERENCE" if name == "reference" else f"--{name.strip('_').replace('_', '-')}"
