"""The paper's figures, in miniature, of characters never seen: each a function from a studio to a figure."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image

from imprompt import mini
from imprompt.lab.figures.figure import Figure, build_figure
from imprompt.lab.figures.measures import (
    Pictures,
    closeness,
    correlations,
    edge_correlations,
    find_edges,
    line_picture,
    line_shares,
    seed_differences,
)
from imprompt.lab.figures.studio import Studio, require
from imprompt.lab.suite.subjects import CHANGES

COLORS = ("hair", "skin", "clothes", "ground")
SHAPES = ("hairdo", "expression", "glasses", "beard")
HEAD = ("hair", "hairdo", "glasses")
"""Attributes that the upper part of a picture shows."""

HEAD_SHARE = 5 / 8
"""How much of a picture's height the masked upper part is: whole cells of the latents."""

HIDDEN = (150, 152, 156)
"""What is shown in place of the masked part, RGB."""

TEXT_SCALES = {"sunglasses": 1.0, "pixel-art": 0.75, "red ground": 1.0}
"""λ beside each text."""

STRENGTHS = (0.5, 0.7, 0.9)
"""How much of a starting picture is painted anew."""


def variations(studio: Studio) -> Figure:
    """Image prompts alone, several seeds."""
    columns = {"image prompt": studio.drawings, "no image prompt": studio.unprompted}
    columns |= {f"seed {number}": seed for number, seed in enumerate(studio.seeds)}
    kept = np.mean([studio.kept(seed) for seed in studio.seeds], axis=0)
    differ = seed_differences(studio.seeds)
    numbers = {
        "kept": (kept, studio.kept(studio.unprompted)),
        "differ": (differ, np.zeros_like(differ)),
    }
    return build_figure("variations", columns, numbers)


def with_text(studio: Studio) -> Figure:
    """Image prompt and text together; on characters of whom every text asks something new."""
    few = Studio(studio.models, studio.settings, list(CHANGES.values()))
    columns: dict[str, Pictures] = {"image prompt": few.drawings, "no text": few.alone}
    numbers = {}
    for name, change in CHANGES.items():
        plain = few.paint(change=change)
        both = few.paint(few.prompts(scale=TEXT_SCALES[name]), change=change)
        columns |= {f"“{change.text}” alone": plain, f"“{change.text}”, scale {TEXT_SCALES[name]:g}": both}
        key = name.replace(" ", "-")
        numbers[key] = (few.asked(both, change), few.asked(few.alone, change))
        numbers[f"{key}-kept"] = (few.kept(both, change), few.kept(plain, change))
    return build_figure("text", columns, numbers)


def fine_tuned(studio: Studio) -> Figure:
    """The same adapter on a base fine-tuned on line drawings."""
    base = require(studio.models.fine_tuned, "fine-tuned base")
    plain, prompted = studio.paint(pipe=base), studio.paint(studio.prompts(), pipe=base)
    lines = [line_picture(drawing) for drawing in studio.drawings]
    columns = {
        "image prompt": studio.drawings,
        "image prompt as a line drawing": lines,
        "plain base": studio.alone,
        "fine-tuned, no image prompt": plain,
        "fine-tuned": prompted,
    }
    numbers = {
        "shapes": (correlations(prompted, lines), correlations(plain, lines)),
        "lines": (line_shares(prompted), line_shares(studio.alone)),
    }
    return build_figure("fine-tuned", columns, numbers)


def controlled(studio: Studio) -> Figure:
    """A ControlNet on edges beside an image prompt."""
    controlnet = require(studio.models.controlnet, "ControlNet")
    pipe = mini.as_pipeline(StableDiffusionControlNetPipeline, studio.models.pipe, controlnet=controlnet)
    edges = find_edges(studio.partner_drawings)
    plain = studio.paint(pipe=pipe, image=edges)
    both = studio.paint(studio.prompts(), pipe=pipe, image=edges)
    columns = {
        "image prompt": studio.drawings,
        "picture for edges": studio.partner_drawings,
        "its edges": edges,
        "image prompt alone": studio.alone,
        "edges alone": plain,
        "both": both,
    }
    numbers = {
        "colors": (studio.taken(both, COLORS), studio.taken(plain, COLORS)),
        "edges": (edge_correlations(both, edges), edge_correlations(studio.alone, edges)),
    }
    return build_figure("control", columns, numbers)


def image_to_image(studio: Studio) -> Figure:
    """Starting from another picture."""
    starts, edges = studio.partner_drawings, find_edges(studio.partner_drawings)
    pipe = mini.as_pipeline(StableDiffusionImg2ImgPipeline, studio.models.pipe)
    made = [studio.paint(studio.prompts(), pipe=pipe, image=starts, strength=one) for one in STRENGTHS]
    plain = studio.paint(pipe=pipe, image=starts, strength=STRENGTHS[1])
    columns = {
        "image prompt": studio.drawings,
        "start": starts,
        f"no image prompt, strength {STRENGTHS[1]}": plain,
        **{f"strength {one}": pictures for one, pictures in zip(STRENGTHS, made, strict=True)},
    }
    numbers = {
        "colors": (studio.taken(made[1], COLORS), studio.taken(plain, COLORS)),
        "edges": (edge_correlations(made[1], edges), edge_correlations(studio.alone, edges)),
    }
    return build_figure("image-to-image", columns, numbers)


def inpainting(studio: Studio) -> Figure:
    """The upper part painted anew."""
    pictures, size = studio.partner_drawings, studio.size
    height = round(HEAD_SHARE * size)
    mask = Image.new("L", (size, size))
    mask.paste(255, (0, 0, size, height))
    inputs: dict[str, Any] = {"pipe": mini.as_pipeline(mini.InpaintPipeline, studio.models.pipe)}
    inputs |= {"image": pictures, "mask_image": [mask] * len(pictures), "strength": 1.0}
    inputs |= {"width": size, "height": size}
    plain, painted = studio.paint(**inputs), studio.paint(studio.prompts(), **inputs)
    cover, rest = Image.new("RGB", (size, size), HIDDEN), (0, height, size, size)
    columns = {
        "image prompt": studio.drawings,
        "picture": pictures,
        "masked": [Image.composite(cover, picture, mask) for picture in pictures],
        "painted, no image prompt": plain,
        "painted": painted,
    }
    numbers = {
        "head": (studio.taken(painted, HEAD), studio.taken(plain, HEAD)),
        "outside": (closeness(painted, pictures, rest), closeness(studio.alone, pictures, rest)),
    }
    return build_figure("inpainting", columns, numbers)


def fine_grained(studio: Studio) -> Figure:
    """Tokens of the grid of features beside those of one embedding."""
    plus, edges = require(studio.models.plus, "adapter mini-plus"), find_edges(studio.drawings)
    grid = [studio.paint(studio.prompts(), adapter=plus, seed=seed) for seed in range(2)]
    few, many = studio.models.adapter.projection.tokens, plus.projection.tokens
    columns = {"image prompt": studio.drawings}
    columns |= {f"{few} tokens, seed {seed}": studio.seeds[seed] for seed in range(2)}
    columns |= {f"{many} tokens of the grid, seed {seed}": grid[seed] for seed in range(2)}
    numbers = {
        "edges": (edge_correlations(grid[0], edges), edge_correlations(studio.alone, edges)),
        "kept": (studio.kept(grid[0]), studio.kept(studio.unprompted)),
    }
    return build_figure("fine-grained", columns, numbers)


def mixing(studio: Studio) -> Figure:
    """Two image prompts in one picture: both everywhere, and one above the other."""
    both = studio.paint(studio.prompts(scale=0.5), studio.prompts(studio.partners, scale=0.5))
    above = torch.zeros(studio.size, studio.size)
    above[: round(HEAD_SHARE * studio.size)] = 1
    stacked = studio.paint(studio.prompts(mask=above), studio.prompts(studio.partners, mask=1 - above))
    alone, other = studio.alone, studio.paint(studio.prompts(studio.partners))
    columns = {
        "first": studio.drawings,
        "second": studio.partner_drawings,
        "first alone": alone,
        "second alone": other,
        "half of each": both,
        "head of the first, rest of the second": stacked,
    }
    owners, clothes = studio.partners, ["clothes"]
    either, neither = (studio.taken(x) + studio.taken(x, owners=owners) for x in (both, studio.unprompted))
    numbers = {
        "either": (either, neither),
        "first": (studio.taken(both), studio.taken(other)),
        "second": (studio.taken(both, owners=owners), studio.taken(alone, owners=owners)),
        "head": (studio.taken(stacked, HEAD), studio.taken(other, HEAD)),
        "clothes": (studio.taken(stacked, clothes, owners), studio.taken(alone, clothes, owners)),
    }
    return build_figure("mixing", columns, numbers)


def style_and_layout(studio: Studio) -> Figure:
    """Colors from one image prompt, shapes from another, by the layers on which they act."""
    style, layout = studio.prompts(layers="style"), studio.prompts(studio.partners, layers="composition")
    colors, shapes, both = studio.paint(style), studio.paint(layout), studio.paint(style, layout)
    columns = {
        "colors from": studio.drawings,
        "shapes from": studio.partner_drawings,
        "colors alone": colors,
        "shapes alone": shapes,
        "both": both,
    }
    owners = studio.partners
    numbers = {
        "colors": (studio.taken(both, COLORS), studio.taken(shapes, COLORS)),
        "shapes": (studio.taken(both, SHAPES, owners), studio.taken(colors, SHAPES, owners)),
    }
    return build_figure("style-and-layout", columns, numbers)


PANELS: tuple[Callable[[Studio], Figure], ...] = (
    variations,
    with_text,
    fine_tuned,
    controlled,
    image_to_image,
    inpainting,
    fine_grained,
    mixing,
    style_and_layout,
)
"""The figures in the page's order; the overview stands before them and is made of them."""


OVERVIEW = {
    "variations": "kept",
    "text": "red-ground",
    "control": "colors",
    "image-to-image": "colors",
    "inpainting": "head",
}
"""Figure → its number that counts for the overview too."""


def overview(studio: Studio, figures: Mapping[str, Figure]) -> Figure:
    """What an image prompt can be used for: other figures' rows in one sheet, and a number of each."""
    control, start, painted = (figures[name].columns for name in ("control", "image-to-image", "inpainting"))
    change, scale = CHANGES["red ground"], TEXT_SCALES["red ground"]
    columns = {
        "image prompt": studio.drawings,
        "variation": studio.alone,
        f"“{change.text}”": studio.paint(studio.prompts(scale=scale), change=change),
        "edges": control["its edges"],
        "with edges": control["both"],
        "start": start["start"],
        "image to image": start[f"strength {STRENGTHS[1]}"],
        "masked": painted["masked"],
        "painted": painted["painted"],
    }
    return Figure("overview", columns, {name: figures[name].criteria[key] for name, key in OVERVIEW.items()})
