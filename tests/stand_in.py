"""COCO and DreamBench in miniature: toy pictures in their layouts, tiny random judges, settings for both."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

import tiny
from conftest import ToyModel
from imprompt.evaluation.settings import CocoSettings, load_settings
from imprompt.evaluation.suites.data import read_coco
from imprompt.evaluation.suites.drawing import DrawingJob
from imprompt.evaluation.suites.folder import BenchmarkFolder
from imprompt.evaluation.suites.tasks import Task, derive_seed

SHAPE: Any = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
IMAGES = 8
SAMPLES = 2
IDS = [139 + 11 * number for number in range(IMAGES)]

PROMPTS = """Classes

subject_name,class
clock,clock
dog,dog
teapot,teapot

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the snow'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
'a wet {0} {1}'.format(unique_token, class_token)
]
"""


class StandIn(NamedTuple):
    """Where everything is."""

    coco: Path
    dreambench: Path
    clip: Path
    self_judge: Path
    toy: ToyModel

    def settings(self, folder: Path, **data: Any) -> list[str]:
        """`--set` for the toy adapter on a data folder."""
        method = {
            "model": self.toy.base,
            "adapter": self.toy.adapter,
            "image_encoder": self.toy.image_encoder,
        }
        judging = {"clip": self.clip, "image": [str(self.self_judge)], "shown": 1}
        groups = {
            "data": {"folder": folder, **data},
            "method": method,
            "drawing": {"steps": 2, "batch_size": 2, "workers": 1},
            "judging": judging,
        }
        return [
            f"{name}.{key}={json.dumps(value if isinstance(value, int | list) else str(value))}"
            for name, group in groups.items()
            for key, value in group.items()
        ]


def make_stand_in(folder: Path, toy: ToyModel) -> StandIn:
    made = StandIn(folder / "coco", folder / "dreambooth", folder / "clip", folder / "self", toy)
    write_coco(made.coco, IDS)
    write_dreambench(made.dreambench)
    write_clip(made.clip)
    shutil.copytree(toy.image_encoder, made.self_judge)
    tiny.image_processor().save_pretrained(made.self_judge)
    return made


def write_coco(folder: Path, ids: Sequence[int]) -> None:
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    notes = []
    for number in ids:
        picture = tiny.picture(seed=number, width=30 + number % 17, height=28 + number % 13)
        picture.save(folder / "val2017" / f"{number:012d}.jpg")
        texts = (f"picture {number}", f"a toy, no. {number}")
        notes += [
            {"id": 1000 - 2 * number + k, "image_id": number, "caption": t} for k, t in enumerate(texts)
        ]
    images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in reversed(ids)]
    said = json.dumps({"images": images, "annotations": notes})
    (folder / "annotations" / "captions_val2017.json").write_text(said)


def write_dreambench(folder: Path) -> None:
    for place, subject in enumerate(("clock", "dog", "teapot")):
        home = folder / "dataset" / subject
        home.mkdir(parents=True)
        for number in range(3):
            tiny.picture(seed=10 * place + number).save(home / f"{number:02d}.jpg")
    (folder / "dataset" / "prompts_and_classes.txt").write_text(PROMPTS)


@tiny.seeded
def clip_model(*, seed: int = 0) -> CLIPModel:
    vision = CLIPVisionConfig(**SHAPE, image_size=28, patch_size=14, projection_dim=14)
    text = tiny.text_config(16, 14).to_dict()
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=14)).eval()


def write_clip(folder: Path) -> None:
    clip_model(seed=7).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    tiny.image_processor().save_pretrained(folder)


def coco_settings(stand_in: StandIn, *more: str) -> list[str]:
    return [*stand_in.settings(stand_in.coco, images=IMAGES, samples=SAMPLES), *more]


def read_drawings(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "pictures").glob("*.png"))}


def job_of(stand_in: StandIn, config: Path, output: Path, *more: str) -> tuple[list[Task], DrawingJob]:
    """What `evaluate_coco` draws, without its judges."""
    asked = load_settings(CocoSettings, config, coco_settings(stand_in, *more))
    folder = BenchmarkFolder(output)
    folder.begin({})
    images = read_coco(stand_in.coco, IMAGES)
    tasks = [
        Task(f"{image.name}-{k}", str(image.path), "", 1.0, derive_seed("coco", image.id, k))
        for image in images
        for k in range(SAMPLES)
    ]
    return tasks, DrawingJob(asked.method, asked.drawing, folder, "cpu")
