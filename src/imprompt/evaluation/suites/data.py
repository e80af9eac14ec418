"""Where the pictures, captions and prompts of the benchmarks come from."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from imprompt.errors import DataError, ImageError
from imprompt.evaluation.suites.folder import first_of, too_many
from imprompt.inputs.image import load_image

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Captioned:
    """A picture of COCO.

    Attributes:
        id: COCO's number
        path: the file
        captions: what people wrote, in the order of their ids
    """

    id: int
    path: Path
    captions: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its id as file names have it."""
        return f"{self.id:012d}"


@dataclass(frozen=True)
class Subject:
    """A subject of DreamBench.

    Attributes:
        name: its folder
        pictures: its real pictures by name; the first one is the reference
        prompts: what is asked for
    """

    name: str
    pictures: tuple[Path, ...]
    prompts: tuple[str, ...]


def read_coco(folder: Path, images: int) -> list[Captioned]:
    """The first pictures of COCO2017 val by id, with their captions; none is decoded.

    Raises:
        DataError: a file or folder is missing or damaged, or there are fewer pictures
    """
    pictures, captions = folder / "val2017", folder / "annotations" / "captions_val2017.json"
    for path, what in ((pictures, "val2017.zip"), (captions, "annotations_trainval2017.zip")):
        if not path.exists():
            raise DataError(f"there is no {path}: unpack COCO's {what} into {folder}")
    try:
        said = json.loads(captions.read_text(encoding="utf-8"))
        files = {int(image["id"]): str(image["file_name"]) for image in said["images"]}
        lines = sorted(
            (int(one["id"]), int(one["image_id"]), str(one["caption"])) for one in said["annotations"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{captions} is no file of COCO's captions: {error!r}") from error
    found: dict[int, list[str]] = {}
    for _, image, caption in lines:
        found.setdefault(image, []).append(" ".join(caption.split()))
    chosen = [number for number in sorted(files) if number in found][:images]
    if len(chosen) < images:
        raise DataError(
            f"{captions} has {len(chosen)} pictures with captions; set data.images, which is {images}, lower"
        )
    return [Captioned(number, pictures / files[number], tuple(found[number])) for number in chosen]


def read_dreambench(folder: Path, subjects: int) -> list[Subject]:
    """The first subjects of DreamBench by name, with the prompts of their kind; no picture is decoded.

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
"""Classes of DreamBench that the prompts for live subjects are for; the others are objects."""


def parse_prompts(text: str) -> tuple[dict[str, str], list[str], list[str]]:
    """Classes by subject, prompts for objects, prompts for live subjects: with "{1}" where the class belongs.

    The place of the unique token, which only a fine-tuned model knows, is left out.
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


def _subject(folder: Path, kind: str, things: Sequence[str], living: Sequence[str]) -> Subject:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder} with the subject's pictures")
    pictures = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES))
    if len(pictures) < 2:
        raise DataError(f"{folder} has {len(pictures)} pictures; a subject needs two, one to compare with")
    prompts = living if kind in LIVING else things
    return Subject(folder.name, pictures, tuple(prompt.replace("{1}", kind) for prompt in prompts))


def readable(
    paths: Iterable[Path], advance: Callable[[int], None] = lambda pictures: None
) -> tuple[set[Path], dict[str, str]]:
    """Decode every picture once: those that can be used, and the names of those that cannot, and why."""
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


def check_share(bad: Mapping[str, str], total: int, where: Path) -> None:
    """Stop where more than 1 % of the pictures cannot be read; one may always be.

    Raises:
        DataError: too many
    """
    if too_many(len(bad), total):
        raise DataError(
            f"{len(bad)} of {total} pictures cannot be read, more than 1 %; the first: {first_of(bad)}; all "
            f"are in {where}"
        )


def numbered(items: Sequence[Item]) -> Iterator[tuple[str, Item]]:
    """Items with their numbers, all of one width."""
    width = len(str(len(items) - 1))
    return ((f"{number:0{width}d}", item) for number, item in enumerate(items))
