"""The figures of the paper, in miniature, on held-out concepts: each a function from a studio to a figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image

from imprompt import mini
from imprompt.evaluation.figures.figure import Figure
from imprompt.evaluation.figures.measures import (
    colour_gap,
    edge_gap,
    layout_gap,
    likeness_gap,
    mean_difference,
    share,
)
from imprompt.evaluation.figures.studio import Studio, turned
from imprompt.evaluation.grounds import border_colour, name_ground
from imprompt.evaluation.judge import Judge
from imprompt.evaluation.metrics import mean_distance

NEIGHBOUR = 3
"""Where a figure needs two pictures, the other one is that of this many rows further on."""

HIDDEN = (150, 152, 156)
"""What is shown in place of the masked part, RGB."""

COLOURING, LAYING_OUT = {4: 1.0, 5: 1.0, 6: 1.0}, {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}
"""Layers for style and for layout, found by letting each of the base's seven transformers act alone."""

TEXT_SCALE = 2.0
"""λ where there is text."""

TEXTS = ("face", "flag", "face, on a blue background")
"""What the text asks for beside an image prompt: things that this base can draw from text."""

Box = tuple[int, int, int, int]

GROUND = "blue"
"""The ground that one of the texts names."""


def overview(studio: Studio) -> Figure:
    """What an image prompt can be used for, in one sheet."""
    judge, references, prompts = studio.judge, studio.references, studio.prompts()
    controlled_by, _, found = edged(studio)
    inputs, masked, _ = half_masked(studio)
    text = TEXTS[-1]
    made = {
        "variation": studio.alone[0],
        f"“{text}”": studio.draw(studio.prompts(scale=TEXT_SCALE, layers=COLOURING), text=text),
        "painted": studio.draw(prompts, **inputs),
        "with edges": studio.draw(prompts, pipe=controlled_by, image=found),
    }
    before = {"painted": ("masked", masked), "with edges": ("edges", found)}
    columns: dict[str, Sequence[Image.Image]] = {"image prompt": references}
    for name, row in made.items():
        columns |= dict([before[name]]) if name in before else {}
        columns[name] = row
    return Figure(
        name="overview",
        title="What an image prompt can be used for (the paper’s figure 1)",
        promise="one adapter on one base: variations, a text beside the image, a masked half painted anew, "
        "edges that say where.",
        settings=f"as in the figures below, seed 0; with text λ = {TEXT_SCALE} on the layers {COLOURING}",
        columns=columns,
        measured={"likeness": {k: likeness_gap(judge, row, references) for k, row in made.items()}},
    )


def variations(studio: Studio) -> Figure:
    """Image prompt alone, several seeds."""
    judge, references, seeds = studio.judge, studio.references, studio.alone
    return Figure(
        name="variations",
        title="Image variations (part of the paper’s figure 1)",
        promise="without text, different seeds give different pictures of what the image prompt shows.",
        settings="λ = 1, no text, four seeds",
        columns={"image prompt": references, **{f"seed {k}": row for k, row in enumerate(seeds)}},
        measured={
            "likeness": {
                "seed 0": likeness_gap(judge, seeds[0], references),
                "without image prompt": likeness_gap(judge, studio.draw(), references),
            },
            "mean distance among the seeds (0: all the same)": {"": spread_of(judge, seeds)},
        },
    )


def fine_grained(studio: Studio) -> Figure:
    """Sixteen tokens of the grid of features beside four of the one embedding."""
    judge, references = studio.judge, studio.references
    studios = {"mini": studio, "mini-plus": Studio(studio.weights, studio.settings, "mini-plus")}
    seeds = {name: one.alone for name, one in studios.items()}
    first = {name: rows[0] for name, rows in seeds.items()}
    spread = {name: spread_of(judge, rows) for name, rows in seeds.items()}
    return Figure(
        name="fine-grained",
        title="Fine-grained features (the paper’s second ablation)",
        promise="sixteen tokens read from the encoder’s grid of features keep more of the image prompt, "
        "its layout above all, and vary less from seed to seed, than four of its one embedding.",
        settings="λ = 1, no text; the embedded model’s two adapters",
        columns={"image prompt": references}
        | {f"{name}, seed {seed}": rows[seed] for name, rows in seeds.items() for seed in range(2)},
        measured={
            "likeness": {name: likeness_gap(judge, row, references) for name, row in first.items()},
            "palette": {name: colour_gap(row, references) for name, row in first.items()},
            "layout": {name: layout_gap(row, references) for name, row in first.items()},
            "mean distance among four seeds (0: all the same)": spread,
        },
    )


def spread_of(judge: Judge, seeds: Sequence[Sequence[Image.Image]]) -> str:
    """How unlike each other the pictures of one image prompt are, on average."""
    return f"{np.mean([mean_distance(judge.features(row)) for row in zip(*seeds, strict=True)]):.2f}"


def fine_tuned(studio: Studio) -> Figure:
    """The same adapter on a base fine-tuned on one style."""
    judge, references, prompts = studio.judge, studio.references, studio.prompts()
    made = {
        "base": studio.alone[0],
        "fine-tuned, no image prompt": studio.draw(pipe=studio.blueprint),
        "fine-tuned, image prompt": studio.draw(prompts, pipe=studio.blueprint),
    }
    return Figure(
        name="fine-tuned",
        title="The same adapter on a fine-tuned base (the paper’s figure 4)",
        promise="an adapter works, untouched, on a base that was fine-tuned on one style: content from the "
        "image prompt, style from the base.",
        settings='λ = 1, no text; the base is `mini.pipeline(style="blueprint")`, new to the adapter',
        columns={"image prompt": references, **made},
        measured={
            "dark blue paper": {which: share(on_paper(row)) for which, row in made.items()},
            "likeness": {which: likeness_gap(judge, row, references) for which, row in made.items()},
            "layout (of the base's picture)": {k: layout_gap(row, made["base"]) for k, row in made.items()},
        },
    )


def on_paper(pictures: Sequence[Image.Image]) -> list[bool]:
    """Which pictures have a dark blue border."""
    borders = [border_colour(picture) for picture in pictures]
    return [blue > 1.5 * max(red, green) and blue < 170 for red, green, blue in borders]


def controlled(studio: Studio) -> Figure:
    """A ControlNet on edges beside an image prompt."""
    references, prompts = studio.references, studio.prompts()
    pipe, layouts, found = edged(studio)
    made = {
        "image prompt alone": studio.alone[0],
        "edges alone": studio.draw(pipe=pipe, image=found),
        "both": studio.draw(prompts, pipe=pipe, image=found),
    }
    return Figure(
        name="control",
        title="ControlNet with an image prompt (the paper’s figure 5)",
        promise="the outline comes from the edges, colours and kind from the image prompt.",
        settings="λ = 1, no text; `mini.controlnet()` at strength 1 on `mini.edge_picture(picture)`",
        columns={"image prompt": references, "picture for edges": layouts, "its edges": found, **made},
        measured={
            "edges": {which: edge_gap(row, found) for which, row in made.items()},
            "palette": {which: colour_gap(row, references) for which, row in made.items()},
        },
    )


def edged(studio: Studio) -> tuple[DiffusionPipeline, list[Image.Image], list[Image.Image]]:
    """A pipeline with the ControlNet, other pictures, and their edges."""
    control = mini.controlnet(weights=studio.weights)
    pipe = mini.as_pipeline(StableDiffusionControlNetPipeline, studio.pipe, controlnet=control)
    layouts = turned(studio.references, NEIGHBOUR)
    return pipe, layouts, [mini.edge_picture(picture) for picture in layouts]


def image_to_image(studio: Studio) -> Figure:
    """Starting from another picture."""
    pipe = mini.as_pipeline(StableDiffusionImg2ImgPipeline, studio.pipe)
    references, prompts = studio.references, studio.prompts()
    starts = turned(references, NEIGHBOUR)
    made = {
        f"strength {strength}": studio.draw(prompts, pipe=pipe, image=starts, strength=strength)
        for strength in (0.5, 0.7, 0.9)
    }
    return Figure(
        name="image-to-image",
        title="Image to image (the paper’s figure 7, left)",
        promise="the starting picture takes on the image prompt's colours and kind, more so at greater "
        "strength, and keeps its layout.",
        settings="λ = 1, no text; diffusers' image-to-image pipeline",
        columns={"image prompt": references, "start": starts, **made},
        measured={
            "palette (of the image prompt)": {k: colour_gap(row, references) for k, row in made.items()},
            "layout (of the start)": {k: layout_gap(row, starts) for k, row in made.items()},
        },
    )


def inpainting(studio: Studio) -> Figure:
    """The lower half painted anew."""
    references, pictures = studio.references, turned(studio.references, NEIGHBOUR)
    inputs, masked, (upper, lower) = half_masked(studio)
    made = {
        "no image prompt": studio.draw(**inputs),
        "image prompt": studio.draw(studio.prompts(), **inputs),
    }
    kept = {which: mean_difference(cut(row, upper), cut(pictures, upper)) for which, row in made.items()}
    return Figure(
        name="inpainting",
        title="Inpainting (the paper’s figure 7, right)",
        promise="only the masked half changes, and what is put there is the image prompt's.",
        settings="λ = 1, no text, lower half masked, strength 1; `mini.InpaintPipeline`",
        columns={"image prompt": references, "picture": pictures, "masked": masked}
        | {f"painted, {which}": row for which, row in made.items()},
        measured={
            "palette (of the new half)": {k: colour_gap(cut(x, lower), references) for k, x in made.items()},
            "mean change of the kept half, of 255": {which: f"{x:.1f}" for which, x in kept.items()},
        },
    )


def half_masked(studio: Studio) -> tuple[dict[str, Any], list[Image.Image], tuple[Box, Box]]:
    """How to paint the lower half of other pictures anew; these with it hidden; both halves."""
    pictures = turned(studio.references, NEIGHBOUR)
    width, height = pictures[0].size
    upper, lower = (0, 0, width, height // 2), (0, height // 2, width, height)
    mask = Image.new("L", (width, height))
    mask.paste(255, lower)
    inputs = {"image": pictures, "mask_image": [mask] * len(pictures), "strength": 1.0}
    inputs |= {"height": height, "width": width}
    inputs["pipe"] = mini.as_pipeline(mini.InpaintPipeline, studio.pipe)
    hidden = [Image.composite(Image.new("RGB", x.size, HIDDEN), x, mask) for x in pictures]
    return inputs, hidden, (upper, lower)


def cut(pictures: Sequence[Image.Image], area: Box) -> list[Image.Image]:
    """The same area of every picture."""
    return [picture.crop(area) for picture in pictures]


def with_text(studio: Studio) -> Figure:
    """Image prompt and text together."""
    references, prompts = studio.references, studio.prompts(scale=TEXT_SCALE, layers=COLOURING)
    alone = {f"“{text}” alone": studio.draw(text=text) for text in TEXTS}
    both = {f"“{text}”": studio.draw(prompts, text=text) for text in TEXTS}
    silent = {"no text": studio.alone[0]}
    columns = {name: row for pair in zip(alone.items(), both.items(), strict=True) for name, row in pair}
    blue = [is_on(GROUND, picture) for name, row in both.items() if GROUND in name for picture in row]
    return Figure(
        name="text",
        title="Image and text (the paper’s figure 8)",
        promise="the text decides what is drawn and on what ground, the image prompt in what colours.",
        settings=f"with text λ = {TEXT_SCALE} on the layers {COLOURING}; without text λ = 1 on all",
        columns={"image prompt": references, **silent, **columns},
        measured={
            f"on {GROUND}, where the text says so": {"": share(blue)},
            "palette": {k: colour_gap(row, references) for k, row in (silent | columns).items()},
        },
    )


def is_on(ground: str, picture: Image.Image) -> bool:
    """Whether a picture stands on a ground of that name."""
    return name_ground(border_colour(picture)) == ground


def style_and_layout(studio: Studio) -> Figure:
    """Colours from one picture, layout from another."""
    references, layouts = studio.references, turned(studio.references, NEIGHBOUR)
    style, layout = studio.prompts(layers=COLOURING), studio.prompts(turn=NEIGHBOUR, layers=LAYING_OUT)
    made = {
        "style alone": studio.draw(style),
        "layout alone": studio.draw(layout),
        "both": studio.draw(style, layout),
        "both, all layers": studio.draw(studio.prompts(), studio.prompts(turn=NEIGHBOUR)),
    }
    return Figure(
        name="style-and-layout",
        title="Style of one picture, layout of another (not in the paper)",
        promise="with layers chosen for each, one image prompt gives the colours, another the arrangement.",
        settings=f"λ = 1, no text; `layers` = {COLOURING} for the one, {LAYING_OUT} for the other (spatial "
        "transformers in the order in which they run; docs/log.md says why these)",
        columns={"style from": references, "layout from": layouts, **made},
        measured={
            "palette (of the style picture)": {k: colour_gap(x, references) for k, x in made.items()},
            "palette (of the layout picture)": {k: colour_gap(x, layouts) for k, x in made.items()},
            "layout (of the layout picture)": {k: layout_gap(x, layouts) for k, x in made.items()},
        },
    )


PANELS = (
    overview,
    variations,
    fine_grained,
    fine_tuned,
    controlled,
    image_to_image,
    inpainting,
    with_text,
    style_and_layout,
)
"""All figures, in the page's order."""
