"""Read the pictures, captions and prompts of the benchmarks."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from imprompt.errors import DataError, ImageError
from imprompt.evaluation.suites.folder import describe_first
from imprompt.inputs.image import load_image
from imprompt.runtime.faults import too_many

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

Item = TypeVar("Item")


@dataclass(frozen=True)
class CaptionedImage:
    """A picture of COCO.

    Attributes:
        id: COCO's number
        path: the file
        captions: in the order of their ids
    """

    id: int
    path: Path
    captions: tuple[str, ...]

    @property
    def name(self) -> str:
        """The id in file names."""
        return f"{self.id:012d}"


@dataclass(frozen=True)
class DreamBenchSubject:
    """A subject of DreamBench.

    Attributes:
        name: its folder
        pictures: its real pictures by name; the first one is the reference
        prompts: its prompts
    """

    name: str
    pictures: tuple[Path, ...]
    prompts: tuple[str, ...]


def read_coco(folder: Path, images: int) -> list[CaptionedImage]:
    """Return the first pictures of COCO2017 val by id, with their captions; none is decoded.

    Raises:
        DataError: a file or folder is missing or damaged, or there are fewer pictures
    """
    pictures, captions = folder / "val2017", folder / "annotations" / "captions_val2017.json"
    for path, what in ((pictures, "val2017.zip"), (captions, "annotations_trainval2017.zip")):
        if not path.exists():
            raise DataError(f"there is no {path}: unpack COCO's {what} into {folder}")
    try:
        data = json.loads(captions.read_text(encoding="utf-8"))
        files = {int(image["id"]): str(image["file_name"]) for image in data["images"]}
        lines = sorted(
            (int(one["id"]), int(one["image_id"]), str(one["caption"])) for one in data["annotations"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{captions} is no file of COCO's captions: {error!r}") from error
    found: dict[int, list[str]] = {}
    for _, image, caption in lines:
        found.setdefault(image, []).append(" ".join(caption.split()))
    numbers = [number for number in sorted(files) if number in found][:images]
    if len(numbers) < images:
        raise DataError(
            f"{captions} has {len(numbers)} pictures with captions; set data.images, which is {images}, lower"
        )
    return [CaptionedImage(number, pictures / files[number], tuple(found[number])) for number in numbers]


def read_dreambench(folder: Path, subjects: int) -> list[DreamBenchSubject]:
    """Return the first subjects of DreamBench by name, with the prompts of their kind; no picture is decoded.

    Raises:
        DataError: a file or folder is missing or damaged, or there are fewer subjects
    """
    home = folder / "dataset" if (folder / "dataset").is_dir() else folder
    listed = home / "prompts_and_classes.txt"
    if not listed.is_file():
        raise DataError(f"there is no {listed}: data.folder is to be a clone of github.com/google/dreambooth")
    classes, things, living = parse_prompts(listed.read_text(encoding="utf-8", errors="replace"))
    if not classes or not things or not living:
        raise DataError(f"{listed} has no classes, or no prompts, as DreamBench writes them")
    if len(classes) < subjects:
        raise DataError(
            f"{listed} has {len(classes)} subjects; data.subjects asks for {subjects}: set it lower"
        )
    return [_subject(home / name, classes[name], things, living) for name in sorted(classes)[:subjects]]


LIVING = ("cat", "dog")
"""The classes of DreamBench with the prompts for live subjects; all others are objects."""


def parse_prompts(text: str) -> tuple[dict[str, str], list[str], list[str]]:
    """Return classes by subject, prompts for objects and prompts for live subjects; "{1}" is the class.

    The unique token, which only a fine-tuned model knows, is left out.
    """
    classes, prompts, where = dict[str, str](), {"things": list[str](), "living": list[str]()}, ""
    for line in map(str.strip, text.splitlines()):
        heading = line.lower()
        if heading in ("classes", "object prompts", "live subject prompts"):
            where = {"classes": "classes", "object prompts": "things"}.get(heading, "living")
        elif where == "classes" and line.count(",") == 1 and line != "subject_name,class":
            subject, _, kind = line.partition(",")
            classes[subject.strip()] = kind.strip()
        elif where in prompts and (quoted := re.match(r"""(['"])(.*?\{1\}.*?)\1\.format""", line)):
            prompts[where].append(" ".join(quoted[2].replace("{0}", " ").split()))
    return classes, prompts["things"], prompts["living"]


def _subject(folder: Path, kind: str, things: Sequence[str], living: Sequence[str]) -> DreamBenchSubject:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder} with the subject's pictures")
    pictures = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES))
    if len(pictures) < 2:
        raise DataError(f"{folder} has {len(pictures)} pictures; a subject needs two, one to compare with")
    prompts = living if kind in LIVING else things
    return DreamBenchSubject(folder.name, pictures, tuple(prompt.replace("{1}", kind) for prompt in prompts))


def find_readable(
    paths: Iterable[Path], advance: Callable[[int], None] = lambda pictures: None
) -> tuple[set[Path], dict[str, str]]:
    """Decode every picture once; return those that can be read, and the names and faults of the others."""
    good: set[Path] = set()
    bad: dict[str, str] = {}
    for path in paths:
        try:
            load_image(path)
            good.add(path)
        except ImageError as error:
            bad[path.name] = str(error)
        advance(1)
    return good, bad


def check_readable_share(bad: Mapping[str, str], total: int, where: Path) -> None:
    """Raise an error if more than 1 % of the pictures cannot be read; one may always be unreadable.

    Raises:
        DataError: there are too many
    """
    if too_many(len(bad), total):
        raise DataError(
            f"{len(bad)} of {total} pictures cannot be read, more than 1 %; the first: "
            f"{describe_first(bad)}; all are in {where}"
        )


def number_items(items: Sequence[Item]) -> Iterator[tuple[str, Item]]:
    """Yield items with their numbers, all of one width."""
    width = len(str(len(items) - 1))
    return ((f"{number:0{width}d}", item) for number, item in enumerate(items))
