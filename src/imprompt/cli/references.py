"""The references of `imprompt generate`: folders of pictures, and pictures of which a crop loses much."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprompt.cli.terminal import WrongUsage, print_note
from imprompt.errors import ImageError

if TYPE_CHECKING:
    from imprompt.generation.job import Job
    from imprompt.generation.run import JobInputs

LONGEST_PORTRAIT = 1.6
"""The ratio of height to width above which a center crop is mentioned. Cameras take 3:2 at most, of which the
square in the middle keeps two thirds. In a longer picture of a standing person it has no head or no legs."""

_ONE_JOB_ONLY = ("view", "save_job")


def expand_folder(options: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the options once for every picture of a folder among the references, in the order of names.

    Other references stay beside each of the pictures. Without a folder, the options are returned as they are.

    Raises:
        WrongUsage: two folders, or an option that is about one generation only
        ImageError: the folder contains no pictures
    """
    references = options.get("reference", [])
    folders = [name for name in references if name != "-" and Path(name).is_dir()]
    if not folders:
        return [options]
    if len(folders) > 1:
        raise WrongUsage(f"{folders[0]} and {folders[1]} are folders; give one folder at a time")
    for name in _ONE_JOB_ONLY:
        if name in options:
            raise WrongUsage(f"--{name.replace('_', '-')} is about one picture, and {folders[0]} is a folder")
    position = references.index(folders[0])
    return [
        {**options, "reference": [*references[:position], picture, *references[position + 1 :]]}
        for picture in _list_pictures(Path(folders[0]))
    ]


def warn_about_portraits(job: "Job", inputs: "JobInputs") -> None:
    """Print one line about long portraits of which the encoder sees the middle only."""
    portraits = list(_find_portraits(job, inputs))
    if not portraits:
        return
    more = f" (and {len(portraits) - 1} more)" if len(portraits) > 1 else ""
    print_note(
        f"{portraits[0]}{more} is a long portrait, and the encoder sees the square in its middle, perhaps "
        "without head or legs: --crop top keeps the head, --crop pad all of it, and --view draws what is seen"
    )


def _find_portraits(job: "Job", inputs: "JobInputs") -> Iterator[str]:
    from PIL import Image

    for name, group in job.by_adapter.items():
        for described, reference in zip(group, inputs.references[name], strict=True):
            for file, picture in zip(described.images, reference.pictures, strict=False):
                if reference.crop not in ("center", "native") or not isinstance(picture, Image.Image):
                    continue
                if picture.height > LONGEST_PORTRAIT * picture.width:
                    yield file


def _list_pictures(folder: Path) -> list[str]:
    """Return the pictures of a folder; a note names other files, except hidden ones."""
    from imprompt.inputs.image import is_picture

    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    pictures, others = [], []
    for path in files:
        with path.open("rb") as file:
            (pictures if is_picture(file.read(64)) else others).append(str(path))
    if not pictures:
        raise ImageError(f"the folder {folder} contains no pictures; give a picture, or a folder of them")
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        print_note(f"{others[0]}{more} is no picture and is left out")
    return pictures
